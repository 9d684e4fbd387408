package ice

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun"
	"github.com/quic-go/quic-go"
)

// maxSTUN bounds a STUN message; checks are below 150 bytes. RFC 8489 §6.1:
// messages over UDP should fit the path MTU.
const maxSTUN = 1500

// stunKind is what the first bytes of a datagram say that it is.
type stunKind uint8

const (
	notSTUN stunKind = iota
	bindingRequest
	bindingResponse
	otherSTUN // a method or class that no check uses
)

// transactionID identifies a request and its response (RFC 8489 §5).
type transactionID [stun.TransactionIDSize]byte

const (
	stunHeader = 20
	stunCookie = 0x2112A442
)

// classify reads the header of RFC 8489 §5: "The most significant 2 bits of
// every STUN message MUST be zeroes", the magic cookie, and a length that is a
// multiple of four and covers exactly the rest of the datagram.
func classify(b []byte) (stunKind, transactionID) {
	var id transactionID
	if len(b) < stunHeader || len(b) > maxSTUN || b[0]&0xc0 != 0 {
		return notSTUN, id
	}
	length := int(binary.BigEndian.Uint16(b[2:4]))
	if binary.BigEndian.Uint32(b[4:8]) != stunCookie || length%4 != 0 || stunHeader+length != len(b) {
		return notSTUN, id
	}
	copy(id[:], b[8:stunHeader])
	var t stun.MessageType
	t.ReadValue(binary.BigEndian.Uint16(b[0:2]))
	switch {
	case t.Method != stun.MethodBinding:
		return otherSTUN, id
	case t.Class == stun.ClassRequest:
		return bindingRequest, id
	case t.Class == stun.ClassSuccessResponse || t.Class == stun.ClassErrorResponse:
		return bindingResponse, id
	default:
		return otherSTUN, id
	}
}

// ufragOf returns the user name fragment of the receiver: RFC 8445 §7.2.2 makes
// USERNAME "the username fragment provided by the peer", a colon, and the
// sender's own.
func ufragOf(b []byte) (string, bool) {
	m := stun.Message{Raw: b}
	if err := m.Decode(); err != nil {
		return "", false
	}
	name, err := m.Get(stun.AttrUsername)
	if err != nil {
		return "", false
	}
	local, _, ok := strings.Cut(string(name), ":")
	return local, ok && local != ""
}

// demux is the only reader of the transport's non-QUIC datagrams. It hands
// requests to the session that their user name is for, and responses to the
// session that sent the request. The sender's address decides nothing, so that
// two sessions never take each other's checks, whatever their peers claim.
//
// The answers to probes go to who sent those.
type demux struct {
	transport *quic.Transport
	spray     *spray // what all sessions send in vain

	received, malformed, unknown, overflow, forbidden atomic.Uint64

	mu      sync.Mutex // guards what follows
	byUfrag map[string]*sessionConns
	pending map[transactionID]*checkConn
	probes  map[transactionID]chan<- probeAnswer
}

var _ stunPort = (*demux)(nil)

func newDemux(t *quic.Transport) *demux {
	return &demux{
		transport: t,
		spray:     newSpray(),
		byUfrag:   make(map[string]*sessionConns),
		pending:   make(map[transactionID]*checkConn),
		probes:    make(map[transactionID]chan<- probeAnswer),
	}
}

// arm makes the transport keep datagrams that are not QUIC: it drops them until
// it is asked for one for the first time, and the goroutine that does may begin
// after an answer is there. It returns why the transport cannot work.
func (d *demux) arm() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := d.transport.ReadNonQUICPacket(ctx, nil); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// run reads until the transport or ctx ends.
func (d *demux) run(ctx context.Context) {
	buf := make([]byte, maxSTUN+1)
	for {
		n, from, err := d.transport.ReadNonQUICPacket(ctx, buf)
		if err != nil {
			return
		}
		d.received.Add(1)
		d.deliver(buf[:n], addrPort(from))
	}
}

// deliver routes one datagram. It keeps no reference to b.
func (d *demux) deliver(b []byte, from netip.AddrPort) {
	kind, id := classify(b)
	switch kind {
	case bindingRequest:
		ufrag, ok := ufragOf(b)
		if !ok {
			d.malformed.Add(1)
			return
		}
		d.mu.Lock()
		conns := d.byUfrag[ufrag]
		d.mu.Unlock()
		if conns == nil {
			d.unknown.Add(1)
			return
		}
		conns.received.Add(1)
		switch conns.admit(b, from) {
		case checkForbidden:
			d.forbidden.Add(1)
		case checkForged:
			d.malformed.Add(1)
		case checkTooMany:
			d.overflow.Add(1)
		case checkAdmitted:
			if !conns.family(from.Addr()).enqueue(b, from) {
				d.overflow.Add(1)
			}
		}
	case bindingResponse:
		d.mu.Lock()
		conn, probe := d.pending[id], d.probes[id]
		delete(d.pending, id)
		d.mu.Unlock()
		switch {
		case probe != nil:
			d.answered(b, from, probe)
			return
		case conn == nil:
			d.unknown.Add(1)
			return
		case !conn.session.answered(from):
			d.forbidden.Add(1)
			return
		}
		if !conn.enqueue(b, from) {
			d.overflow.Add(1)
		}
	case otherSTUN:
		d.unknown.Add(1)
	default:
		d.malformed.Add(1)
	}
}

func (d *demux) stats() SocketStats {
	return SocketStats{
		Received:  d.received.Load(),
		Malformed: d.malformed.Load(),
		Unknown:   d.unknown.Load(),
		Overflow:  d.overflow.Load(),
		Forbidden: d.forbidden.Load(),
		Withheld:  d.spray.total(),
	}
}

// register makes the session's user name known. It fails when the name is in
// use, which for random names means that a session was opened twice.
func (d *demux) register(ufrag string, conns *sessionConns) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, taken := d.byUfrag[ufrag]; taken {
		return false
	}
	d.byUfrag[ufrag] = conns
	return true
}

// unregister forgets the session and its unanswered requests.
func (d *demux) unregister(ufrag string, conns *sessionConns) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byUfrag[ufrag] != conns {
		return
	}
	delete(d.byUfrag, ufrag)
	for id, conn := range d.pending {
		if conn.session == conns {
			delete(d.pending, id)
		}
	}
}

// answered hands the answer of a probe to who asked. What finds no room in the
// channel is dropped: whoever asks more often than that needs one answer only.
func (d *demux) answered(b []byte, from netip.AddrPort, probe chan<- probeAnswer) {
	a, ok := readAnswer(b, from)
	if !ok {
		d.malformed.Add(1)
		return
	}
	a.at = time.Now()
	select {
	case probe <- a:
	default:
		d.overflow.Add(1)
	}
}

// expect makes the answer to a probe known.
func (d *demux) expect(id transactionID, answers chan<- probeAnswer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.probes[id] = answers
}

// forget ends expect.
func (d *demux) forget(id transactionID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.probes, id)
}

// send writes a probe.
func (d *demux) send(raw []byte, to netip.AddrPort) error {
	_, err := d.transport.WriteTo(raw, net.UDPAddrFromAddrPort(to))
	return err
}

// sendCheck writes a message of a session. A request is remembered, so that its
// response finds the way back; the pacer bounds how many are.
func (d *demux) sendCheck(conn *checkConn, b []byte, kind stunKind, id transactionID, to net.Addr) error {
	if kind == bindingRequest {
		d.mu.Lock()
		d.pending[id] = conn
		d.mu.Unlock()
	}
	_, err := d.transport.WriteTo(b, to)
	return err
}
