package ice

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	pionice "github.com/pion/ice/v2"
	"github.com/pion/stun"
)

// checkQueue is how many messages wait for one agent; more are dropped, and
// the peer repeats them.
const checkQueue = 64

// sessionConns is what the demux keeps of one session: a packet connection for
// each family, since a candidate of pion/ice has one family, and what decides
// to whom they talk.
type sessionConns struct {
	v4, v6   *checkConn
	pacer    *pacer
	key      stun.MessageIntegrity // of checks to this side
	received atomic.Uint64

	mu     sync.RWMutex // guards what follows
	policy *Policy      // nil: every address
}

func newSessionConns(d *demux, local *net.UDPAddr, pwd string, policy *Policy) *sessionConns {
	c := &sessionConns{pacer: newPacer(), key: stun.NewShortTermIntegrity(pwd), policy: policy.clone()}
	c.pacer.spray = d.spray
	c.v4 = newCheckConn(d, c, local)
	c.v6 = newCheckConn(d, c, local)
	return c
}

// allows reports whether the session's policy permits a candidate.
func (c *sessionConns) allows(candidate Candidate) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.policy.Allows(candidate)
}

// allowsAddr reports whether anything may be sent to addr.
func (c *sessionConns) allowsAddr(addr netip.AddrPort) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.policy.allowsAddr(addr)
}

func (c *sessionConns) prove(addrs []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.policy != nil {
		c.policy.prove(addrs)
	}
}

func (c *sessionConns) allowRelay(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.policy != nil && len(c.policy.Relays) < MaxRemote && !c.policy.relay(addr.Unmap()) {
		c.policy.Relays = append(c.policy.Relays, addr.Unmap())
	}
}

// checkVerdict is what becomes of an inbound check.
type checkVerdict uint8

const (
	checkAdmitted  checkVerdict = iota
	checkForbidden              // the policy forbids to answer there
	checkForged                 // from an unknown address, and not signed by the peer
	checkTooMany                // from one address more than a session may talk to
)

// admit decides about an inbound check. One from an address that the session
// does not know yet takes one of few places, so it must be signed; the agent
// verifies all of them again.
func (c *sessionConns) admit(b []byte, from netip.AddrPort) checkVerdict {
	if !c.allowsAddr(from) {
		return checkForbidden
	}
	if !c.pacer.knows(from) {
		m := &stun.Message{Raw: append([]byte(nil), b...)}
		if m.Decode() != nil || c.key.Check(m) != nil {
			return checkForged
		}
		if !c.pacer.learn(from) {
			return checkTooMany
		}
	}
	c.pacer.earn(from)
	return checkAdmitted
}

// answered takes note of a response. It reports whether it may be looked at.
func (c *sessionConns) answered(from netip.AddrPort) bool {
	if !c.allowsAddr(from) {
		return false
	}
	c.pacer.answered(from)
	return true
}

func (c *sessionConns) family(a netip.Addr) *checkConn {
	if a.Is4() {
		return c.v4
	}
	return c.v6
}

func (c *sessionConns) close() {
	_ = c.v4.Close()
	_ = c.v6.Close()
}

type checkPacket struct {
	data []byte
	from *net.UDPAddr
}

// checkConn is the net.PacketConn over which one agent sends and receives
// checks. Closing it closes nothing but itself.
type checkConn struct {
	demux     *demux
	session   *sessionConns
	local     *net.UDPAddr
	queue     chan checkPacket
	closed    chan struct{}
	closeOnce sync.Once
}

var _ net.PacketConn = (*checkConn)(nil)

func newCheckConn(d *demux, session *sessionConns, local *net.UDPAddr) *checkConn {
	return &checkConn{
		demux:   d,
		session: session,
		local:   local,
		queue:   make(chan checkPacket, checkQueue),
		closed:  make(chan struct{}),
	}
}

// enqueue copies a message for the agent; false means that it was dropped.
func (c *checkConn) enqueue(b []byte, from netip.AddrPort) bool {
	p := checkPacket{data: append([]byte(nil), b...), from: net.UDPAddrFromAddrPort(from)}
	select {
	case c.queue <- p:
		return true
	default:
		return false
	}
}

// ReadFrom waits for the next message of the session. It is unblocked by Close.
func (c *checkConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-c.closed:
		return 0, nil, io.EOF
	default:
	}
	select {
	case <-c.closed:
		return 0, nil, io.EOF
	case p := <-c.queue:
		return copy(b, p.data), p.from, nil
	}
}

// WriteTo sends a message, unless the policy forbids the address, the session
// does not talk to it, or the pacer holds a request back. None of that is an
// error, nor is a failing route: all look like a packet lost on the way.
func (c *checkConn) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-c.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	kind, id := classify(b)
	if kind == notSTUN {
		return 0, ErrBadCandidate // nothing but checks passes here
	}
	dest := addrPort(to)
	if !c.session.allowsAddr(dest) || !c.session.pacer.knows(dest) {
		return len(b), nil
	}
	if kind == bindingRequest && !c.session.pacer.allow(dest, time.Now()) {
		return len(b), nil
	}
	_ = c.demux.sendCheck(c, b, kind, id, to)
	return len(b), nil
}

// Close ends ReadFrom and WriteTo.
func (c *checkConn) Close() error {
	c.closeOnce.Do(func() { close(c.closed) })
	return nil
}

// LocalAddr returns the address of the socket.
func (c *checkConn) LocalAddr() net.Addr { return c.local }

// SetDeadline does nothing: Close is how a read ends.
func (c *checkConn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (c *checkConn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (c *checkConn) SetWriteDeadline(time.Time) error { return nil }

// agentMux gives an agent the session's packet connections. pion's own mux
// routes by the remote address before the user name, keeps unbounded queues
// and lists every interface of the machine as a candidate of one connection,
// so that answers are credited to the wrong one.
type agentMux struct {
	ufrag string
	conns *sessionConns
	v6    bool
	port  int
	bound net.IP // nil: every address
}

var _ pionice.UDPMux = (*agentMux)(nil)

// GetConn returns the connection for the family of addr.
func (m *agentMux) GetConn(_ string, addr net.Addr) (net.PacketConn, error) {
	u, ok := addr.(*net.UDPAddr)
	if !ok {
		return nil, ErrBadCandidate
	}
	if u.IP.To4() != nil {
		return m.conns.v4, nil
	}
	return m.conns.v6, nil
}

// GetListenAddresses returns one address a family. It is never told to a peer.
func (m *agentMux) GetListenAddresses() []net.Addr {
	if m.bound != nil {
		return []net.Addr{&net.UDPAddr{IP: m.bound, Port: m.port}}
	}
	addrs := []net.Addr{&net.UDPAddr{IP: net.IPv4zero, Port: m.port}}
	if m.v6 {
		addrs = append(addrs, &net.UDPAddr{IP: net.IPv6unspecified, Port: m.port})
	}
	return addrs
}

// RemoveConnByUfrag ends the agent's reading.
func (m *agentMux) RemoveConnByUfrag(ufrag string) {
	if ufrag == m.ufrag {
		m.conns.close()
	}
}

// Close ends the agent's reading.
func (m *agentMux) Close() error {
	m.conns.close()
	return nil
}
