package ice

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	pionice "github.com/pion/ice/v2"
)

// checkQueue is how many messages wait for one agent; more are dropped, and
// the peer repeats them.
const checkQueue = 64

// sessionConns is what the demux keeps of one session: a packet connection for
// each family, since a candidate of pion/ice has one family.
type sessionConns struct {
	v4, v6   *checkConn
	pacer    *pacer
	received atomic.Uint64
}

func newSessionConns(d *demux, local *net.UDPAddr) *sessionConns {
	c := &sessionConns{pacer: newPacer()}
	c.v4 = newCheckConn(d, c, local)
	c.v6 = newCheckConn(d, c, local)
	return c
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

// WriteTo sends a message, unless the pacer holds a request back. Neither that
// nor a failing route is an error: both look like a packet lost on the way.
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
	if kind == bindingRequest && !c.session.pacer.allow(addrPort(to), time.Now()) {
		return len(b), nil
	}
	_ = c.demux.send(c, b, kind, id, to)
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
