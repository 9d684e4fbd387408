package signal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// pipeAddr is the address of one way over TLS, as its ends see each other.
type pipeAddr struct {
	name string
	at   netip.AddrPort
}

func (a pipeAddr) Network() string          { return networkTLS }
func (a pipeAddr) String() string           { return a.name }
func (a pipeAddr) AddrPort() netip.AddrPort { return a.at }

type datagram struct {
	bytes []byte
	from  net.Addr
}

// inbox is the receiving half of an in-memory net.PacketConn. What does not fit
// is dropped.
type inbox struct {
	queue  chan datagram
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex // guards all below
	deadline time.Time
	changed  chan struct{} // closed and replaced with the deadline
	err      error         // of a ReadFrom after the end; nil: net.ErrClosed
}

func newInbox() *inbox {
	return &inbox{queue: make(chan datagram, 256), closed: make(chan struct{}), changed: make(chan struct{})}
}

func (i *inbox) put(d datagram) {
	select {
	case i.queue <- d:
	default:
	}
}

func (i *inbox) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		i.mu.Lock()
		deadline, changed := i.deadline, i.changed
		i.mu.Unlock()
		var due <-chan time.Time
		if !deadline.IsZero() {
			timer := time.NewTimer(time.Until(deadline))
			defer timer.Stop()
			due = timer.C
		}
		select {
		case d := <-i.queue:
			return copy(b, d.bytes), d.from, nil
		case <-i.closed:
			return 0, nil, i.reason()
		case <-due:
			return 0, nil, os.ErrDeadlineExceeded
		case <-changed:
		}
	}
}

func (i *inbox) reason() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return i.err
	}
	return net.ErrClosed
}

// fail ends it as a lost way does.
func (i *inbox) fail(err error) {
	i.mu.Lock()
	i.err = err
	i.mu.Unlock()
	_ = i.Close()
}

func (i *inbox) Close() error {
	i.once.Do(func() { close(i.closed) })
	return nil
}

func (i *inbox) SetReadDeadline(t time.Time) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.deadline = t
	close(i.changed)
	i.changed = make(chan struct{})
	return nil
}

func (i *inbox) SetDeadline(t time.Time) error    { return i.SetReadDeadline(t) }
func (i *inbox) SetWriteDeadline(time.Time) error { return nil }

// tlsServer stands in for a listener of WebSockets: all their datagrams are one
// net.PacketConn.
type tlsServer struct {
	*inbox
	opened atomic.Int64 // ways so far
	lost   atomic.Bool  // everything is, in both directions

	mu    sync.Mutex // guards all below
	conns map[string]*tlsConn
}

var serverAddr = pipeAddr{"coordinator.test:443", netip.MustParseAddrPort("192.0.2.1:443")}

func newTLSServer(t testing.TB) *tlsServer {
	s := &tlsServer{inbox: newInbox(), conns: map[string]*tlsConn{}}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (s *tlsServer) LocalAddr() net.Addr { return serverAddr }

func (s *tlsServer) WriteTo(b []byte, to net.Addr) (int, error) {
	s.mu.Lock()
	conn := s.conns[to.String()]
	s.mu.Unlock()
	if conn != nil && !s.lost.Load() {
		conn.put(datagram{bytes.Clone(b), serverAddr})
	}
	return len(b), nil
}

// dial is a NodeConfig.Fallback.
func (s *tlsServer) dial(context.Context, string) (FallbackConn, error) {
	n := s.opened.Add(1)
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 7}), uint16(1024+n))
	c := &tlsConn{inbox: newInbox(), server: s, local: pipeAddr{fmt.Sprintf("%v#%d", at, n), at}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c.local.String()] = c
	return c, nil
}

// open is the number of ways that are open now.
func (s *tlsServer) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// tlsConn is the node's end of one way.
type tlsConn struct {
	*inbox
	server *tlsServer
	local  pipeAddr
}

var _ FallbackConn = (*tlsConn)(nil)

func (c *tlsConn) LocalAddr() net.Addr { return c.local }
func (c *tlsConn) Remote() net.Addr    { return serverAddr }

func (c *tlsConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if to != net.Addr(serverAddr) {
		return 0, errors.New("another address than Remote")
	}
	if !c.server.lost.Load() {
		c.server.put(datagram{bytes.Clone(b), c.local})
	}
	return len(b), nil
}

func (c *tlsConn) Close() error {
	c.server.mu.Lock()
	delete(c.server.conns, c.local.String())
	c.server.mu.Unlock()
	return c.inbox.Close()
}

// overStreams gives a coordinator a transport over s.
func overStreams(t testing.TB, s *tlsServer) option {
	return func(cfg *ServerConfig) {
		tr := NewTransport(s, cfg.Key)
		t.Cleanup(func() { _ = tr.Close() })
		cfg.Streams = append(cfg.Streams, tr)
	}
}

var _ net.PacketConn = (*tlsServer)(nil)

// strangerOverTLS is a QUIC client that comes over s.
func strangerOverTLS(t *testing.T, s *tlsServer) *quic.Transport {
	t.Helper()
	conn, err := s.dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := newCarrier(conn)
	t.Cleanup(c.close)
	return c.transport
}
