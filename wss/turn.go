package wss

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// turnFirst is how long a connection may take to say anything at all.
	turnFirst = 15 * time.Second
	// turnIdle is how long it may be silent: an allocation is refreshed within 10
	// minutes, a permission within 5 (RFC 8656 §3.2, §9).
	turnIdle = 11 * time.Minute
)

// handover is a net.Listener for connections that were accepted elsewhere.
type handover struct {
	addr net.Addr
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

var _ net.Listener = (*handover)(nil)

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, c: make(chan net.Conn, 64), done: make(chan struct{})}
}

// push hands a connection over. It reports false, and the connection stays the
// caller's, when nobody takes it.
func (h *handover) push(c net.Conn) bool {
	select {
	case <-h.done:
		return false
	default:
	}
	select {
	case h.c <- c:
		return true
	default:
		return false
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.c:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }

// turnConn ends by itself when the client says nothing for too long, or takes
// nothing, so that it neither keeps a place nor holds the relay up.
type turnConn struct {
	net.Conn
	conn  *serverConn
	heard bool         // only the reader touches it
	until atomic.Int64 // the reader's own deadline, Unix nanoseconds; 0: none
}

// SetReadDeadline bounds reading further than this connection does by itself.
func (c *turnConn) SetReadDeadline(t time.Time) error {
	until := int64(0)
	if !t.IsZero() {
		until = t.UnixNano()
	}
	c.until.Store(until)
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline bounds reading and writing.
func (c *turnConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Admit says that the client is known, so that the connection keeps its place
// when all are taken; or, with false, that it no longer is.
func (c *turnConn) Admit(yes bool) {
	if c.conn != nil {
		c.conn.admit(yes)
	}
}

func (c *turnConn) Read(b []byte) (int, error) {
	wait := turnFirst
	if c.heard {
		wait = turnIdle
	}
	deadline := time.Now().Add(wait)
	if until := c.until.Load(); until != 0 && until < deadline.UnixNano() {
		deadline = time.Unix(0, until)
	}
	if err := c.Conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	c.heard = c.heard || n > 0
	return n, err
}

func (c *turnConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
