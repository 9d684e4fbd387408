package signal

import (
	"context"
	"errors"
	"net"

	"github.com/quic-go/quic-go"
)

// FallbackConn carries the packets of one connection where UDP is blocked. It
// has one remote end. WriteTo must not block and may drop; an error of ReadFrom
// or WriteTo ends the connection at once, so there should be one only when the
// way is lost. Close ends a ReadFrom, and sends what WriteTo took before if that
// takes no long time.
type FallbackConn interface {
	net.PacketConn
	// Remote is the address that ReadFrom returns and WriteTo takes. When it has
	// a method AddrPort() netip.AddrPort, Status.Remote is its result, which may
	// be a proxy's address.
	Remote() net.Addr
}

// ErrMoved is the reason that Handler.Disconnected gets when the Node leaves a
// connection over TLS because UDP answered. Connected follows at once, and
// messages go over UDP already.
var ErrMoved = errors.New("signal: moved over to UDP")

// carrier is an open way over TLS with the transport that runs on it.
type carrier struct {
	conn      FallbackConn
	transport *quic.Transport
}

func newCarrier(conn FallbackConn) *carrier {
	return &carrier{conn, &quic.Transport{Conn: buffered(conn)}}
}

// close frees the way; the connection on it has been closed.
func (c *carrier) close() {
	_ = c.conn.Close()
	_ = c.transport.Close()
}

// dialOverTLS opens a way over TLS and connects on it. Deadlines.Dial counts for
// each of the two.
func (n *Node) dialOverTLS(ctx context.Context, addr string) (*link, error) {
	opening, done := context.WithTimeout(ctx, n.cfg.Deadlines.Dial)
	conn, err := n.cfg.Fallback(opening, addr)
	done()
	if err != nil {
		return nil, err
	}
	c := newCarrier(conn)
	l, err := n.handshake(ctx, way{addr: addr, trusted: n.trustedAs(addr), remote: conn.Remote(), transport: c.transport, carrier: c}, false)
	if err != nil {
		n.dials.Go(c.close)
		return nil, err
	}
	return l, nil
}

// trustedAs is the address of Addrs under which whoever answers at addr over TLS
// must be trusted: that of the same host, else the first. Otherwise somebody who
// blocks UDP could be trusted on first use in place of a known coordinator.
func (n *Node) trustedAs(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	for _, a := range n.cfg.Addrs {
		if h, _, herr := net.SplitHostPort(a); err == nil && herr == nil && h == host {
			return a
		}
	}
	return n.cfg.Addrs[0]
}
