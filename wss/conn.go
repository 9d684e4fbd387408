package wss

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/rs/zerolog"
)

const (
	// firstWait is how long the upgrade waits for a first datagram to take along.
	firstWait = time.Second
	// gatherWait is how long it then waits for each further one. A QUIC client
	// writes its first flight within a fraction of that.
	gatherWait = time.Millisecond
)

// Conn is a net.PacketConn to one coordinator. Its reads and writes fail only
// after its end: Close, or the loss of the connection, which is final; dial
// again then. Writing never blocks, and drops what finds no room.
type Conn struct {
	target string
	link   *link
	remote *Addr
	local  *Addr
	log    zerolog.Logger

	out  *queue
	in   chan *datagram
	read *deadline

	stop  context.CancelFunc
	ended chan struct{} // closed when nothing of it runs any more
	once  sync.Once
	err   error // why it ended; set before ended is closed
}

var _ net.PacketConn = (*Conn)(nil)

func newConn(l *link, target string, timeout time.Duration, log zerolog.Logger) *Conn {
	ctx, stop := context.WithCancel(context.Background())
	c := &Conn{
		target: target, link: l, log: log,
		out: newQueue(), in: make(chan *datagram, queueLength), read: newDeadline(),
		stop: stop, ended: make(chan struct{}),
	}
	c.remote, c.local = newAddr(l.raw.RemoteAddr(), c.out), newAddr(l.raw.LocalAddr(), nil)
	go c.run(ctx, timeout)
	return c
}

// Remote returns the only address with which datagrams are exchanged.
func (c *Conn) Remote() net.Addr { return c.remote }

// LocalAddr returns this end.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// Proxy returns the proxy in between, without credentials; nil: none.
func (c *Conn) Proxy() *url.URL { return c.link.proxy }

// run owns the connection from the upgrade to the end.
func (c *Conn) run(ctx context.Context, timeout time.Duration) {
	defer close(c.ended)
	err := c.carry(ctx, timeout)
	if ctx.Err() != nil {
		err = net.ErrClosed
	} else {
		c.log.Debug().Err(err).Str("target", c.target).Msg("connection over TLS ended")
	}
	c.err = fmt.Errorf("connection to %s over TLS: %w", c.target, err)
	c.stop()
	c.out.closed.Store(true)
	_ = c.link.raw.Close()
}

func (c *Conn) carry(ctx context.Context, timeout time.Duration) error {
	flight := c.gather(ctx)
	ws, again, err := c.upgrade(ctx, timeout, flight)
	if err != nil {
		for _, d := range flight {
			d.release()
		}
		return err
	}
	w := newWire(ws, c.link.raw, c.out)
	for i, d := range flight {
		if i < again {
			d.release()
		} else if err := w.write(d); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		sent <- w.send(ctx.Done(), func() (websocket.StatusCode, string) { return websocket.StatusNormalClosure, "" })
	}()
	err = w.receive(func(d *datagram) bool {
		d.from = c.remote
		select {
		case c.in <- d:
			return true
		case <-ctx.Done():
			d.release()
			return true // go on to read the other end's close message
		}
	})
	cancel()
	if failed := <-sent; failed != nil && errors.Is(err, net.ErrClosed) {
		err = failed
	}
	return ended(err)
}

// gather returns the datagrams that the upgrade takes along.
func (c *Conn) gather(ctx context.Context) []*datagram {
	var flight []*datagram
	wait := time.NewTimer(firstWait)
	defer wait.Stop()
	for len(flight) < maxFlight {
		select {
		case d := <-c.out.c:
			flight = append(flight, d)
			wait.Reset(gatherWait)
		case <-wait.C:
			return flight
		case <-ctx.Done():
			return flight
		}
	}
	return flight
}

// upgrade requests the WebSocket (RFC 6455 §4.1). It returns how many datagrams
// of the flight the server took.
func (c *Conn) upgrade(ctx context.Context, timeout time.Duration, flight []*datagram) (*websocket.Conn, int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	header := http.Header{}
	text, carried := encodeFlight(flight)
	if carried > 0 {
		header.Set(flightHeader, text)
	}
	ws, answer, err := c.link.upgrade(ctx, c.target, Subprotocol, header)
	if err != nil {
		return nil, 0, err
	}
	if n, err := strconv.Atoi(answer.Get(flightHeader)); err != nil || n != carried {
		carried = 0
	}
	return ws, carried, nil
}

// upgrade requests a WebSocket (RFC 6455 §4.1) and returns the header of the
// answer.
func (l *link) upgrade(ctx context.Context, target, subprotocol string, header http.Header) (*websocket.Conn, http.Header, error) {
	dialed := false
	transport := &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			if dialed {
				return nil, errors.New("the connection was used up")
			}
			dialed = true
			return l.Conn, nil
		},
		DisableKeepAlives: true, DisableCompression: true,
		MaxResponseHeaderBytes: maxProxyAnswer,
	}
	defer transport.CloseIdleConnections()
	ws, res, err := websocket.Dial(ctx, "https://"+target+Path, &websocket.DialOptions{ //nolint:bodyclose // Dial closes it
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader:   header,
		Subprotocols: []string{subprotocol},
	})
	switch {
	case err != nil && res != nil && res.StatusCode != http.StatusSwitchingProtocols:
		return nil, nil, fmt.Errorf("no WebSocket there: %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	case err != nil:
		return nil, nil, err
	case ws.Subprotocol() != subprotocol:
		_ = ws.CloseNow()
		return nil, nil, fmt.Errorf("the WebSocket there does not speak %s", subprotocol)
	}
	return ws, res.Header, nil
}

// ReadFrom returns the next datagram, and the one remote address. It waits
// until there is one, the read deadline has passed (os.ErrDeadlineExceeded) or
// the connection has ended.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in: // what came before the end counts
		return take(d, b)
	default:
	}
	select {
	case d := <-c.in:
		return take(d, b)
	case <-c.read.wait():
		return 0, nil, os.ErrDeadlineExceeded
	case <-c.ended:
		return 0, nil, c.err
	}
}

// take moves a datagram to who reads it. What does not fit is cut off, as with
// UDP: an error would end every QUIC connection of that reader.
func take(d *datagram, b []byte) (int, net.Addr, error) {
	defer d.release()
	return copy(b, d.bytes()), d.from, nil
}

// WriteTo sends to Remote, whatever address is given. It never blocks.
func (c *Conn) WriteTo(b []byte, _ net.Addr) (int, error) {
	if err := c.out.put(b); err != nil {
		<-c.ended
		return 0, c.err
	}
	return len(b), nil
}

// Close sends what was written, says goodbye and returns when nothing of the
// connection runs any more: within about a second if the other end is silent.
func (c *Conn) Close() error {
	c.once.Do(c.stop)
	<-c.ended
	return nil
}

// SetReadDeadline ends a ReadFrom that waits longer; zero: none.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.read.set(t)
	return nil
}

// SetDeadline does what SetReadDeadline does; writes never wait.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline does nothing: writes never wait.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer does nothing: there is no UDP socket. quic-go prints a warning
// when the method is missing.
func (c *Conn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing; see SetReadBuffer.
func (c *Conn) SetWriteBuffer(int) error { return nil }
