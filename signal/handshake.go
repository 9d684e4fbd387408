package signal

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/quic-go/quic-go"

	"mintai/identity"
)

func (n *Node) quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           n.cfg.Deadlines.Dial,
		MaxIdleTimeout:                 idleTimeout,
		KeepAlivePeriod:                keepAlive,
		InitialStreamReceiveWindow:     4 * MaxMessage,
		MaxStreamReceiveWindow:         4 * MaxMessage,
		InitialConnectionReceiveWindow: 4 * MaxMessage,
		MaxConnectionReceiveWindow:     4 * MaxMessage,
		MaxIncomingStreams:             -1,
		MaxIncomingUniStreams:          -1,
		InitialPacketSize:              1200,
		DisablePathMTUDiscovery:        true, // small messages need no probes
		TokenStore:                     n.tokens,
	}
}

// way is one address of the coordinator and what leads there.
type way struct {
	addr      string // as configured
	trusted   string // for NodeConfig.Trust
	remote    net.Addr
	transport *quic.Transport
	carrier   *carrier // over TLS; nil: UDP
}

// handshake connects by one way and returns when the handshake is complete and
// the coordinator is the right one. With early and a ticket, the Hello and the
// waiting MatchRequests have been sent by then. The caller closes the carrier of
// a way that failed.
func (n *Node) handshake(ctx context.Context, w way, early bool) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Deadlines.Dial)
	defer cancel()
	n.mu.Lock()
	expected := n.learned
	n.mu.Unlock()
	var verifyErr error // quic-go tells the alert, not the reason
	tlsConf, err := n.cfg.Key.ClientTLS(ALPN, n.cfg.Coordinator, nil)
	if err != nil {
		return nil, err
	}
	verify := tlsConf.VerifyConnection
	tlsConf.VerifyConnection = func(cs tls.ConnectionState) error {
		verifyErr = verify(cs)
		return verifyErr
	}
	opened := func() {}
	cache := n.tickets.of(expected)
	tlsConf.ClientSessionCache = cache
	dial, quicConf := w.transport.Dial, n.quicConfig()
	if w.carrier != nil {
		quicConf.TokenStore = nil // no address of a way over TLS is seen twice
	}
	if early && n.tickets.has(expected) {
		gate := newEarlyGate()
		defer gate.open()
		dial, quicConf.Tracer = w.transport.DialEarly, gate.tracer
		opened = gate.open
	}
	conn, err := dial(ctx, w.remote, tlsConf, quicConf)
	if err != nil {
		if verifyErr != nil {
			err = verifyErr
		}
		return nil, err
	}
	l := &link{addr: w.addr, carrier: w.carrier, conn: conn, coordinator: expected}
	if handshaking(conn) {
		if err := n.greetEarly(ctx, l, opened); err != nil {
			n.discard(l, CloseDone)
			if verifyErr != nil {
				err = verifyErr
			}
			return nil, err
		}
	}
	if err := n.identify(l, w, cache); err != nil {
		n.discard(l, CloseDone)
		return nil, err
	}
	return l, nil
}

func handshaking(conn *quic.Conn) bool {
	select {
	case <-conn.HandshakeComplete():
		return false
	default:
		return true
	}
}

// greetEarly sends the first flight in 0-RTT and waits for the handshake. When
// the coordinator rejects the early data, l is left without a stream, as if
// nothing had been sent.
func (n *Node) greetEarly(ctx context.Context, l *link, opened func()) error {
	err := n.greet(l, false)
	opened()
	if err != nil {
		return err
	}
	select {
	case <-l.conn.HandshakeComplete():
	case <-l.conn.Context().Done():
		return context.Cause(l.conn.Context()) //nolint:contextcheck // why the connection ended
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if l.conn.ConnectionState().Used0RTT {
		return nil
	}
	n.detach(l)
	l.out.shut()
	l.stream, l.out = nil, nil
	l.reason.Store(nil)
	_, err = l.conn.NextConnection(ctx)
	return err
}

// identify checks who answered, and names the ticket's owner.
func (n *Node) identify(l *link, w way, cache *ticketCache) error {
	id, err := identity.PeerID(l.conn.ConnectionState().TLS)
	if err != nil {
		return err
	}
	if n.cfg.Coordinator.IsZero() && n.cfg.Trust != nil {
		if err := n.cfg.Trust(w.trusted, id); err != nil {
			return fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
	}
	l.coordinator = id
	cache.bind(id)
	return nil
}
