package ice

import (
	"net"
	"sync"
	"time"

	stunv4 "github.com/pion/stun/v4"
)

const (
	// nonceAge is how long one nonce is handed out. The server accepts it for an
	// hour, which leaves most of that to whoever gets it last.
	nonceAge = 5 * time.Minute
	// nonceWait bounds the wait for the server's own goroutine.
	nonceWait = time.Second
)

// nonceSource asks the TURN library for nonces the way a client would, through
// a listener that exists in memory only.
type nonceSource struct {
	conn *nonceConn

	mu    sync.Mutex // guards what follows, and one question at a time
	nonce string
	asked time.Time
}

// Nonce returns a nonce that the server accepts now and for most of an hour. A
// client that has it and the realm signs its first request at once (RFC 8489
// §9.2.4), which spares it a round trip. It is empty when the server is closed.
func (t *TURNServer) Nonce() string { return t.nonces.get(time.Now()) }

func (s *nonceSource) get(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := now.Sub(s.asked); s.nonce != "" && age >= 0 && age < nonceAge {
		select {
		case <-s.conn.done:
			return ""
		default:
			return s.nonce
		}
	}
	m := s.conn.ask()
	if m == nil {
		return ""
	}
	var nonce stunv4.Nonce
	if nonce.GetFrom(m) != nil {
		return ""
	}
	s.nonce, s.asked = nonce.String(), now
	return s.nonce
}

// nonceConn is the server's end of that listener. It has one client, which asks
// one question at a time.
type nonceConn struct {
	questions, answers chan []byte // cap 1
	done               chan struct{}
	once               sync.Once
	release            func() // called when the server reads no more
}

var _ net.PacketConn = (*nonceConn)(nil)

func newNonceConn(release func()) *nonceConn {
	return &nonceConn{
		questions: make(chan []byte, 1), answers: make(chan []byte, 1),
		done: make(chan struct{}), release: sync.OnceFunc(release),
	}
}

// nonceAddr stands for both ends: nobody else can have it.
var nonceAddr = &net.UDPAddr{IP: net.IPv4zero}

// ask makes a request without credentials and returns the answer, or nil.
func (c *nonceConn) ask() *stunv4.Message {
	req, err := stunv4.Build(stunv4.TransactionID, stunv4.NewType(stunv4.MethodAllocate, stunv4.ClassRequest))
	if err != nil {
		return nil
	}
	wait := time.NewTimer(nonceWait)
	defer wait.Stop()
	select {
	case c.questions <- req.Raw:
	case <-c.done:
		return nil
	case <-wait.C:
		return nil
	}
	for {
		select {
		case b := <-c.answers:
			m := &stunv4.Message{Raw: b}
			if m.Decode() == nil && m.TransactionID == req.TransactionID {
				return m
			}
		case <-c.done:
			return nil
		case <-wait.C:
			return nil
		}
	}
}

// ReadFrom returns the next question.
func (c *nonceConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case q := <-c.questions:
		return copy(b, q), nonceAddr, nil
	case <-c.done:
		c.release()
		return 0, nil, net.ErrClosed
	}
}

// WriteTo takes the answer.
func (c *nonceConn) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case c.answers <- append([]byte(nil), b...):
	default: // of a question that nobody waits for any more
	}
	return len(b), nil
}

// Close ends ReadFrom.
func (c *nonceConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// LocalAddr returns an address that nobody has.
func (c *nonceConn) LocalAddr() net.Addr { return nonceAddr }

// SetDeadline does nothing: the server sets none.
func (c *nonceConn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing; see SetDeadline.
func (c *nonceConn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing; see SetDeadline.
func (c *nonceConn) SetWriteDeadline(time.Time) error { return nil }
