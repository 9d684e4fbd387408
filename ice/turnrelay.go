package ice

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/turn/v5"
	"golang.org/x/time/rate"
)

// errNotRelayed says that the server relays UDP for its sessions only.
var errNotRelayed = errors.New("turn: not relayed here")

// turnListener is one socket that clients speak to.
type turnListener struct {
	net.PacketConn
	server *TURNServer
	done   sync.Once

	// user and asked, the bytes that it has, are of the request that is being
	// served: they are touched by the one goroutine of the TURN server that reads
	// the listener, which also writes the responses.
	user  string
	asked int
}

func newTURNListener(t *TURNServer, conn net.PacketConn) *turnListener {
	t.readers.Add(1)
	return &turnListener{PacketConn: conn, server: t}
}

// maxReadErrors ends the reading of a listener that only fails. One failing
// read, such as Windows reports for a datagram that was not delivered, must not:
// the TURN server would never read again.
const maxReadErrors = 100

// ReadFrom returns the next datagram.
func (l *turnListener) ReadFrom(b []byte) (int, net.Addr, error) {
	for failed := 1; ; failed++ {
		n, from, err := l.PacketConn.ReadFrom(b)
		if err == nil {
			if tap := l.server.cfg.Tap; tap != nil {
				tap(b[:n])
			}
			if answered(b[:n]) && !l.server.requests.answers(b[:n], addrPort(from).Addr(), time.Now()) {
				l.server.counters.droppedFlood.Add(1)
				failed = 0
				continue
			}
			if kind, id := classify(b[:n]); kind == bindingResponse {
				l.server.clients.shows(addrPort(from), id)
				failed = 0
				continue
			}
			l.asked = n
			return n, from, nil
		}
		if errors.Is(err, net.ErrClosed) || failed >= maxReadErrors {
			l.release()
			return 0, nil, err
		}
	}
}

// release tells the server that the listener is not read any more.
func (l *turnListener) release() { l.done.Do(l.server.readers.Done) }

// WriteTo sends to a client, and drops an answer that is too long for its
// request: that came from a forged source, or from a client that will say more
// when it asks again.
func (l *turnListener) WriteTo(b []byte, to net.Addr) (int, error) {
	if isResponse(b) && amplifies(len(b), l.asked) {
		l.server.counters.droppedFlood.Add(1)
		return len(b), nil
	}
	if !isResponse(b) {
		ok, question := l.server.clients.mayReceive(addrPort(to), len(b), time.Now())
		if question != nil {
			_, _ = l.PacketConn.WriteTo(question, to)
		}
		if !ok {
			l.server.counters.droppedFlood.Add(1)
			return len(b), nil
		}
	}
	return l.PacketConn.WriteTo(b, to)
}

// permit is asked for each CreatePermission, ChannelBind and Connect, in the
// goroutine that has just called onAuth for the same request.
func (l *turnListener) permit(_ net.Addr, peerIP net.IP) bool { return l.server.permit(l.user, peerIP) }

// relayGenerator opens the relayed sockets of one listener.
type relayGenerator struct{ server *TURNServer }

var _ turn.RelayAddressGenerator = (*relayGenerator)(nil)

// Validate has nothing to check: StartTURN did.
func (g *relayGenerator) Validate() error { return nil }

// AllocateListener refuses: TCP is not relayed (RFC 6062).
func (g *relayGenerator) AllocateListener(turn.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	g.server.counters.refusedOther.Add(1)
	return nil, nil, fmt.Errorf("%w: TCP", errNotRelayed)
}

// AllocateConn refuses: TCP is not relayed (RFC 6062).
func (g *relayGenerator) AllocateConn(turn.AllocateConnConfig) (net.Conn, error) {
	g.server.counters.refusedOther.Add(1)
	return nil, fmt.Errorf("%w: TCP", errNotRelayed)
}

// AllocatePacketConn opens a relayed UDP socket for a session.
func (g *relayGenerator) AllocatePacketConn(conf turn.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	t := g.server
	if conf.UserID == "" || conf.RequestedPort != 0 {
		// EVEN-PORT probes without a user, RESERVATION-TOKEN names a port.
		t.counters.refusedOther.Add(1)
		return nil, nil, fmt.Errorf("%w: a chosen port", errNotRelayed)
	}
	v6 := conf.Network == "udp6"
	t.mu.Lock()
	defer t.mu.Unlock()
	gives, err := t.quotaLocked(conf.UserID, time.Now())
	if err != nil {
		t.counters.refusedQuota.Add(1)
		return nil, nil, err
	}
	ts := t.sessions[conf.UserID]
	ip, err := g.relayIP(ts, v6)
	if err != nil {
		t.counters.refusedOther.Add(1)
		return nil, nil, err
	}
	if gives != nil { // before another port is looked for: its own may be the only one
		t.dropLocked(gives)
		gives.kill()
	}
	outside, beyond, preferred := t.outsideFor(ts, v6)
	conn, err := t.openRelay(ip, preferred)
	if err != nil {
		t.counters.refusedQuota.Add(1)
		return nil, nil, err
	}
	announced := netip.AddrPortFrom(ip, addrPort(conn.LocalAddr()).Port())
	if beyond {
		announced = outside.at(announced.Port())
	}
	r := newRelayConn(t, ts, conn, announced)
	t.relays[r] = struct{}{}
	ts.relays[r] = struct{}{}
	if ts.node != nil {
		ts.node.relays++
	}
	t.pairLocked(ts)
	t.readers.Add(1)
	return r, net.UDPAddrFromAddrPort(announced), nil
}

// relayIP decides which address the peer will see.
func (g *relayGenerator) relayIP(ts *turnSession, v6 bool) (netip.Addr, error) {
	fits := func(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() && a.Is6() == v6 }
	if ip := g.server.cfg.RelayIP; ip.IsValid() && fits(ip) {
		return ip, nil
	}
	listener := ts.local.Addr()
	if fits(listener) && !listener.IsLoopback() {
		return listener, nil
	}
	for peer := range ts.rights.peers {
		if peer.Is6() == v6 && !(listener.IsLoopback() && peer.IsLoopback()) {
			if ip := routeSource(peer); fits(ip) {
				return ip, nil
			}
		}
	}
	if fits(listener) {
		return listener, nil
	}
	if client := ts.client.Addr(); client.IsValid() && client.Is6() == v6 {
		if ip := routeSource(client); fits(ip) {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("turn: no address of the requested family to relay from")
}

// routeSource returns the local address that the system would send from. No
// datagram is sent: connecting a UDP socket only looks up the route.
func routeSource(to netip.Addr) netip.Addr {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}
	}
	defer func() { _ = conn.Close() }()
	return addrPort(conn.LocalAddr()).Addr()
}

// openRelay binds a free port of the range, one that is preferred while there is
// any, on ip when that is an address of this machine and on every address
// otherwise.
func (t *TURNServer) openRelay(ip netip.Addr, preferred func(uint16) bool) (*net.UDPConn, error) {
	network, bind := "udp4", netip.IPv4Unspecified()
	if ip.Is6() {
		network, bind = "udp6", netip.IPv6Unspecified()
	}
	if isLocal(ip) {
		bind = ip
	}
	lo, n := int(t.cfg.PortMin), int(t.cfg.PortMax)-int(t.cfg.PortMin)+1
	first := rand.IntN(n)
	var last error
	for _, want := range []bool{true, false} {
		for i := range n {
			port := uint16(lo + (first+i)%n)
			if preferred(port) != want {
				continue
			}
			conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(bind, port)))
			if err == nil {
				_ = conn.SetReadBuffer(legSocketBuffer)
				_ = conn.SetWriteBuffer(legSocketBuffer)
				return conn, nil
			}
			last = err
		}
	}
	return nil, fmt.Errorf("turn: no free relay port in %s: %w", t.portRange(), last)
}

func (t *TURNServer) portRange() string {
	return strconv.Itoa(int(t.cfg.PortMin)) + "-" + strconv.Itoa(int(t.cfg.PortMax))
}

func isLocal(ip netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if local, ok := netip.AddrFromSlice(n.IP); ok && local.Unmap() == ip {
				return true
			}
		}
	}
	return ip.IsLoopback()
}

// minPeerPort keeps the relay off well-known services of a miner's address,
// which may be the address of a whole household. NATs keep unprivileged source
// ports in their range (RFC 4787 §4.2.2, REQ-3).
const minPeerPort = 1024

// relayConn is a relayed socket that speaks to the other end of its session
// only, below a rate, until the session expires. It enforces by itself what
// permissions already say, since those outlive a change of the session's
// addresses.
type relayConn struct {
	*net.UDPConn
	server    *TURNServer
	session   *turnSession
	node      *nodeUse
	announced netip.AddrPort // what the peer sees
	rights    atomic.Pointer[rights]
	limit     *rate.Limiter // nil: none
	heard     heardPeers
	pairs     atomic.Pointer[map[netip.AddrPort]*relayConn] // of the session's other leg
	handed    *handover
	used      atomic.Int64 // when its client last sent something through it, from the server's beginning
	once      sync.Once    // the end of reading
	dropped   bool         // guarded by the server's mu
}

func newRelayConn(t *TURNServer, ts *turnSession, conn *net.UDPConn, announced netip.AddrPort) *relayConn {
	r := &relayConn{
		UDPConn: conn, server: t, session: ts, node: ts.node, announced: announced,
		limit: newByteLimit(t.cfg.BytesPerSecond), handed: newHandover(),
	}
	r.rights.Store(ts.rights)
	r.touch()
	return r
}

// touch notes that the client uses the allocation.
func (r *relayConn) touch() { r.used.Store(int64(time.Since(r.server.began))) }

func (r *relayConn) serves(peer netip.AddrPort) bool {
	now := r.rights.Load()
	return peer.Port() >= minPeerPort && now.peers[peer.Addr()] && time.Now().Before(now.expires)
}

// maySpeakTo reports whether a datagram may be sent to a peer that is served.
func (r *relayConn) maySpeakTo(peer netip.AddrPort) bool {
	return !r.server.cfg.PeersSpeakFirst || r.heard.has(peer) || r.rights.Load().known[peer]
}

// maxHeard bounds the miner's ports of one allocation. It has one, and a new one
// whenever its NAT forgets.
const maxHeard = 32

// heardPeers are the addresses that have sent to an allocation. Readers need no
// lock: the map is replaced, never changed.
type heardPeers struct {
	now atomic.Pointer[map[netip.AddrPort]struct{}]
}

// add is called by the allocation's reader only.
func (h *heardPeers) add(peer netip.AddrPort) {
	if h.has(peer) {
		return
	}
	next := map[netip.AddrPort]struct{}{peer: {}}
	if old := h.now.Load(); old != nil && len(*old) < maxHeard { // else begin anew: who is there speaks again
		for p := range *old {
			next[p] = struct{}{}
		}
	}
	h.now.Store(&next)
}

func (h *heardPeers) has(peer netip.AddrPort) bool {
	heard := h.now.Load()
	if heard == nil {
		return false
	}
	_, ok := (*heard)[peer]
	return ok
}

func (r *relayConn) within(n int) bool {
	now := time.Now()
	if (r.limit == nil || r.limit.AllowN(now, n)) &&
		(r.node == nil || r.node.limit == nil || r.node.limit.AllowN(now, n)) {
		return true
	}
	r.server.counters.droppedRate.Add(1)
	return false
}

// ReadFrom returns the next datagram of the peer, or of the session's other
// leg. An error ends the allocation.
func (r *relayConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := r.next(b)
		if err != nil {
			r.ended()
			return 0, nil, err
		}
		if tap := r.server.cfg.Tap; tap != nil {
			tap(b[:n])
		}
		if r.within(n) {
			r.server.counters.toClients.Add(uint64(n))
			return n, net.UDPAddrFromAddrPort(from), nil
		}
	}
}

// next returns the next datagram that may pass.
func (r *relayConn) next(b []byte) (int, netip.AddrPort, error) {
	for {
		if d, ok := r.handed.take(); ok {
			return copy(b, d.data), d.from, nil
		}
		n, from, err := r.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return 0, netip.AddrPort{}, err
		case errors.Is(err, os.ErrDeadlineExceeded):
			r.handed.rest(r.UDPConn)
			continue
		case err != nil:
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
		if !r.serves(from) {
			r.server.counters.droppedPeer.Add(1)
			continue
		}
		r.heard.add(from)
		return n, from, nil
	}
}

// WriteTo sends to the peer and drops what is for anybody else, or too much.
func (r *relayConn) WriteTo(b []byte, to net.Addr) (int, error) {
	r.touch()
	peer := addrPort(to)
	other := r.pair(peer)
	if other == nil && !(r.serves(peer) && r.maySpeakTo(peer)) ||
		other != nil && !time.Now().Before(r.rights.Load().expires) {
		r.server.counters.droppedPeer.Add(1)
		return len(b), nil
	}
	if !r.within(len(b)) {
		return len(b), nil
	}
	r.server.counters.toPeers.Add(uint64(len(b)))
	switch {
	case other == nil:
		_, _ = r.WriteToUDPAddrPort(b, peer) // a failing route is a lost datagram
	case !other.handed.give(other.UDPConn, b, r.announced):
		r.server.counters.droppedRate.Add(1)
	}
	return len(b), nil
}

// kill ends the allocation: its reader sees the error and deletes it.
func (r *relayConn) kill() { _ = r.UDPConn.Close() }

// Close is called by the server when the allocation ends. Closing twice is not
// an error.
func (r *relayConn) Close() error {
	r.kill()
	return nil
}

// ended is called once the socket is not read any more.
func (r *relayConn) ended() {
	r.once.Do(func() {
		r.server.clients.end(r)
		r.server.mu.Lock()
		r.server.dropLocked(r)
		r.server.mu.Unlock()
		r.server.readers.Done()
	})
}

// dropLocked counts an allocation no more. Again, it does nothing.
func (t *TURNServer) dropLocked(r *relayConn) {
	if r.dropped {
		return
	}
	r.dropped = true
	delete(t.relays, r)
	delete(r.session.relays, r)
	t.leaveNodeLocked(r.node, 0, 1)
	t.pairLocked(r.session)
}
