package ice

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun"
	stunv4 "github.com/pion/stun/v4"
	"github.com/pion/turn/v5"
)

// streamRTO is the first retransmission of a TURN request over a stream, which
// loses nothing. RFC 8489 §6.2.2 does without; a full queue may drop one.
const streamRTO = 5 * time.Second

// turnWire is what the TURN client sends through: a UDP socket or a stream. It
// answers the client's first request itself when the nonce is known already,
// and says when a request for a permission has left.
type turnWire struct {
	server *net.UDPAddr // stands for the server, whatever is under the stream
	client *turn.Client // set before start

	udp    *net.UDPConn // one of the two is set
	stream net.Conn
	out    *packetStream

	mu       sync.Mutex // guards what follows
	realm    string
	nonce    string // to be used for the next unsigned request; empty: ask the server
	foretold [stunv4.TransactionIDSize]byte
	asked    func(netip.Addr)
}

var _ net.PacketConn = (*turnWire)(nil)

func newUDPWire(conn *net.UDPConn, server *net.UDPAddr) *turnWire {
	return &turnWire{udp: conn, server: server}
}

// streamServer is the name of the server at the other end of a stream. The TURN
// client needs one and does nothing with it.
var streamServer = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 3478}

func newStreamWire(conn net.Conn) *turnWire {
	return &turnWire{stream: conn, out: newPacketStream(conn), server: streamServer}
}

// expect sets what the server would say in its first answer.
func (w *turnWire) expect(realm, nonce string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if realm != "" && nonce != "" {
		w.realm, w.nonce = realm, nonce
	}
}

// onAsked calls f with the address of each permission whose request has left.
func (w *turnWire) onAsked(f func(netip.Addr)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = f
}

// start feeds the client until Close. pion's own loop ends for good at the
// first malformed datagram, which anybody may send.
func (w *turnWire) start(wg *sync.WaitGroup) {
	if w.udp != nil {
		wg.Go(w.readUDP)
		return
	}
	wg.Go(w.out.run)
	wg.Go(w.readStream)
}

func (w *turnWire) readUDP() {
	buf := make([]byte, legMTU)
	server := addrPort(w.server)
	for {
		n, from, err := w.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()) != server {
			continue
		}
		w.inbound(buf[:n])
	}
}

// readStream ends with the stream. The leg then is silent for good: what runs
// over it has timers of its own.
func (w *turnWire) readStream() {
	buf := make([]byte, legMTU)
	frames := turn.NewSTUNConn(w.stream)
	for {
		n, _, err := frames.ReadFrom(buf)
		if err != nil {
			_ = w.Close()
			return
		}
		w.inbound(buf[:n])
	}
}

func (w *turnWire) inbound(b []byte) {
	if kind, id := classify(b); kind == bindingRequest && w.udp != nil {
		_, _ = w.send(bindingHeader(stun.BindingSuccess, id)) // the server asks whether this end receives
		return
	}
	if isResponse(b) {
		w.learn(b)
	}
	_, _ = w.client.HandleInbound(b, w.server)
}

// learn keeps the nonce of a refusal, for the next try.
func (w *turnWire) learn(b []byte) {
	if messageType(b) != allocateError {
		return
	}
	m := &stunv4.Message{Raw: append([]byte(nil), b...)}
	var code stunv4.ErrorCodeAttribute
	var nonce stunv4.Nonce
	if m.Decode() != nil || code.GetFrom(m) != nil || code.Code != stunv4.CodeStaleNonce {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nonce = ""
	if nonce.GetFrom(m) == nil {
		w.nonce = nonce.String()
	}
}

var (
	allocateRequest   = stunv4.NewType(stunv4.MethodAllocate, stunv4.ClassRequest).Value()
	allocateError     = stunv4.NewType(stunv4.MethodAllocate, stunv4.ClassErrorResponse).Value()
	permissionRequest = stunv4.NewType(stunv4.MethodCreatePermission, stunv4.ClassRequest).Value()
)

// messageType returns the first two bytes of a STUN message.
func messageType(b []byte) uint16 {
	if len(b) < stunHeader {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

// WriteTo sends what the TURN client says.
func (w *turnWire) WriteTo(b []byte, _ net.Addr) (int, error) {
	switch messageType(b) {
	case allocateRequest:
		if answer := w.foretell(b); answer != nil {
			_, _ = w.client.HandleInbound(answer, w.server)
			return len(b), nil
		}
	case permissionRequest:
		n, err := w.send(b)
		w.left(b)
		return n, err
	}
	return w.send(b)
}

// send writes one packet to the server.
func (w *turnWire) send(b []byte) (int, error) {
	if w.udp != nil {
		return w.udp.WriteToUDPAddrPort(b, addrPort(w.server))
	}
	return w.out.write(b)
}

// foretell returns the demand for credentials with which the server would
// answer an unsigned request, when its nonce is known, or nil. A repetition of
// the same request goes to the server: it is made with locks held.
func (w *turnWire) foretell(b []byte) []byte {
	m := &stunv4.Message{Raw: append([]byte(nil), b...)}
	if m.Decode() != nil || m.Contains(stunv4.AttrMessageIntegrity) {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.nonce == "" || m.TransactionID == w.foretold {
		return nil
	}
	answer, err := stunv4.Build(
		stunv4.NewTransactionIDSetter(m.TransactionID),
		stunv4.NewType(stunv4.MethodAllocate, stunv4.ClassErrorResponse),
		&stunv4.ErrorCodeAttribute{Code: stunv4.CodeUnauthorized},
		stunv4.NewNonce(w.nonce), stunv4.NewRealm(w.realm),
	)
	if err != nil {
		return nil // too long for the attribute
	}
	w.foretold = m.TransactionID
	return answer.Raw
}

// left tells of a request for a permission that has been sent.
func (w *turnWire) left(b []byte) {
	w.mu.Lock()
	asked := w.asked
	w.mu.Unlock()
	m := &stunv4.Message{Raw: append([]byte(nil), b...)}
	var peer stunv4.XORMappedAddress
	if asked == nil || m.Decode() != nil || peer.GetFromAs(m, stunv4.AttrXORPeerAddress) != nil {
		return
	}
	if ip, ok := netip.AddrFromSlice(peer.IP); ok {
		asked(ip.Unmap())
	}
}

// indicate sends data to a peer in a Send indication (RFC 8656 §11.1), past the
// TURN client, which would first wait for the permission.
func (w *turnWire) indicate(data []byte, peer netip.AddrPort) error {
	m, err := stunv4.Build(
		stunv4.TransactionID, stunv4.NewType(stunv4.MethodSend, stunv4.ClassIndication),
		peerAddress(peer), dataAttr(data),
	)
	if err != nil {
		return err
	}
	_, err = w.send(m.Raw)
	return err
}

// peerAddress is XOR-PEER-ADDRESS (RFC 8656 §18.3).
type peerAddress netip.AddrPort

// AddTo adds the attribute to m.
func (p peerAddress) AddTo(m *stunv4.Message) error {
	addr := netip.AddrPort(p)
	a := stunv4.XORMappedAddress{IP: addr.Addr().AsSlice(), Port: int(addr.Port())}
	return a.AddToAs(m, stunv4.AttrXORPeerAddress)
}

// dataAttr is DATA (RFC 8656 §18.4).
type dataAttr []byte

// AddTo adds the attribute to m.
func (d dataAttr) AddTo(m *stunv4.Message) error {
	m.Add(stunv4.AttrData, d)
	return nil
}

// ReadFrom is never called: the wire feeds the client.
func (w *turnWire) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, context.Canceled }

// Close ends the reading and writing. Closing twice is not an error.
func (w *turnWire) Close() error {
	var err error
	if w.udp != nil {
		err = w.udp.Close()
	} else {
		w.out.stop()
		err = w.stream.Close()
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// LocalAddr returns this end's address.
func (w *turnWire) LocalAddr() net.Addr {
	if w.udp != nil {
		return w.udp.LocalAddr()
	}
	return w.stream.LocalAddr()
}

// SetDeadline does nothing: the TURN client sets none.
func (w *turnWire) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing; see SetDeadline.
func (w *turnWire) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing; see SetDeadline.
func (w *turnWire) SetWriteDeadline(time.Time) error { return nil }
