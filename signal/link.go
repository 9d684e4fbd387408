package signal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// ErrUntrusted says that NodeConfig.Trust refused the coordinator that answered.
var ErrUntrusted = errors.New("coordinator not trusted")

// link is one connection to the coordinator.
type link struct {
	addr        string // as configured
	conn        *quic.Conn
	stream      *quic.Stream
	out         *outbox
	coordinator identity.NodeID
	complete    bool // guarded by Node.mu: the handshake is over, everything may be sent
	reason      atomic.Pointer[CloseError]
}

// abort ends the connection from this side; it does not wait. The read loop
// sees the end and cleans up.
func (l *link) abort(code CloseCode, err error) {
	if l.reason.CompareAndSwap(nil, &CloseError{Code: code, Err: err}) {
		_ = l.stream.SetReadDeadline(time.Unix(1, 0)) // long ago
	}
}

// connect makes a connection and serves it until it ends. welcomed reports
// whether the coordinator admitted this node.
func (n *Node) connect(ctx context.Context) (welcomed bool, err error) {
	l, err := n.dial(ctx)
	if err != nil {
		return false, err
	}
	return n.serve(ctx, l)
}

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

// dialOne connects to one address and returns when the handshake is complete
// and the coordinator is the right one. With early and a ticket, the Hello and
// the waiting MatchRequests have been sent by then.
func (n *Node) dialOne(ctx context.Context, t target, early bool) (*link, error) {
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
	dial, quicConf := n.cfg.Transport.Dial, n.quicConfig()
	if early && n.tickets.has(expected) {
		gate := newEarlyGate()
		defer gate.open()
		dial, quicConf.Tracer = n.cfg.Transport.DialEarly, gate.tracer
		opened = gate.open
	}
	conn, err := dial(ctx, net.UDPAddrFromAddrPort(t.remote), tlsConf, quicConf)
	if err != nil {
		if verifyErr != nil {
			err = verifyErr
		}
		return nil, err
	}
	l := &link{addr: t.addr, conn: conn, coordinator: expected}
	if handshaking(conn) {
		if err := n.greetEarly(ctx, l, opened); err != nil {
			n.discard(l, CloseDone)
			if verifyErr != nil {
				err = verifyErr
			}
			return nil, err
		}
	}
	if err := n.identify(l, t, cache); err != nil {
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
func (n *Node) identify(l *link, t target, cache *ticketCache) error {
	id, err := identity.PeerID(l.conn.ConnectionState().TLS)
	if err != nil {
		return err
	}
	if n.cfg.Coordinator.IsZero() && n.cfg.Trust != nil {
		if err := n.cfg.Trust(t.addr, id); err != nil {
			return fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
	}
	l.coordinator = id
	cache.bind(id)
	return nil
}

// greet opens the stream and sends the Hello with the waiting requests, in one
// flight. When complete is false only what may be sent in 0-RTT goes.
func (n *Node) greet(l *link, complete bool) error {
	stream, err := l.conn.OpenStream()
	if err != nil {
		return err
	}
	l.stream = stream
	l.out = newOutbox(stream, func(err error) { l.abort(CloseDone, err) })
	hello := n.cfg.Hello(l.coordinator)
	n.mu.Lock()
	defer n.mu.Unlock()
	l.complete = complete
	n.link = l
	n.flushLocked(l, &signalpb.Envelope{Message: &signalpb.Envelope_Hello{Hello: hello}})
	return nil
}

// detach makes l unknown; what was sent on it is to be sent again.
func (n *Node) detach(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.link == l {
		n.link = nil
	}
	for _, r := range n.requests {
		if r.sentOn == l {
			r.sentOn = nil
		}
	}
}

// discard closes a link that is not used.
func (n *Node) discard(l *link, code CloseCode) {
	n.detach(l)
	_ = l.conn.CloseWithError(quic.ApplicationErrorCode(code), "")
	if l.out != nil {
		l.out.shut()
	}
}

// serve greets, if that has not happened early, and reads until the connection
// or ctx ends.
func (n *Node) serve(ctx context.Context, l *link) (welcomed bool, err error) {
	defer func() {
		n.detach(l)
		code := CloseDone
		if reason := l.reason.Load(); reason != nil {
			code = reason.Code
		}
		_ = l.conn.CloseWithError(quic.ApplicationErrorCode(code), "")
		if l.out != nil {
			l.out.shut()
		}
	}()
	if l.stream == nil {
		if err := n.greet(l, true); err != nil {
			return false, err
		}
	} else {
		n.mu.Lock()
		l.complete = true
		n.link = l
		n.flushLocked(l)
		n.mu.Unlock()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan struct{})
	defer close(ended)
	wg.Go(func() { n.leave(ctx, l, ended) })

	welcome, err := n.welcome(l)
	if err != nil {
		return false, err
	}
	n.cfg.Handler.Connected(welcome)
	err = n.read(l)
	n.mu.Lock()
	n.status.Connected = false
	n.mu.Unlock()
	n.cfg.Handler.Disconnected(err)
	return true, err
}

// leave ends the link when ctx does. It says so in a message and waits, at most
// linger, until the coordinator has read it and all before it: a miner's lease
// must go, and a client's last receipt must arrive.
func (n *Node) leave(ctx context.Context, l *link, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	if l.out.send(&signalpb.Envelope{Message: &signalpb.Envelope_Goodbye{Goodbye: &signalpb.Goodbye{Reason: "stopping"}}}) == nil {
		timer := time.NewTimer(linger)
		select {
		case <-l.conn.Context().Done(): // the coordinator has read it
		case <-timer.C:
		}
		timer.Stop()
	}
	l.abort(CloseDone, context.Cause(ctx))
}

// welcome reads the first message and publishes the connection.
func (n *Node) welcome(l *link) (*signalpb.Welcome, error) {
	_ = l.stream.SetReadDeadline(time.Now().Add(n.cfg.Deadlines.Welcome))
	env, err := l.read()
	if err != nil {
		return nil, err
	}
	w := env.GetWelcome()
	if w == nil {
		l.abort(CloseBadMessage, nil)
		return nil, fmt.Errorf("%w: the first message is not a Welcome", ErrMalformed)
	}
	_ = l.stream.SetReadDeadline(time.Time{})
	if reason := l.reason.Load(); reason != nil {
		return nil, reason
	}
	var observed netip.AddrPort
	if w.GetObserved() != nil {
		observed, _ = AddrPort(w.GetObserved()) // validated
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.learned = l.coordinator
	n.status = Status{
		Connected: true, Since: time.Now(), Addr: l.addr, Remote: addrPortOf(l.conn.RemoteAddr()),
		Coordinator: l.coordinator, Observed: observed, AdmittedAs: w.GetAdmittedAs(),
		Used0RTT: l.conn.ConnectionState().Used0RTT,
	}
	n.changedLocked()
	return w, nil
}

// read delivers messages until the connection ends.
func (n *Node) read(l *link) error {
	for {
		env, err := l.read()
		if err != nil {
			return err
		}
		switch m := env.GetMessage().(type) {
		case *signalpb.Envelope_Grant:
			if n.answer(m.Grant.GetNonce(), Update{Grant: m.Grant}) {
				continue
			}
		case *signalpb.Envelope_NoMatch:
			if n.answer(m.NoMatch.GetNonce(), Update{Err: &NoMatchError{NoMatch: m.NoMatch}}) {
				continue
			}
		case *signalpb.Envelope_Models:
			n.answer(m.Models.GetNonce(), Update{models: m.Models})
			continue
		case *signalpb.Envelope_LeaseAck:
			n.observe(m.LeaseAck.GetObserved())
		case *signalpb.Envelope_Offer, *signalpb.Envelope_Candidates, *signalpb.Envelope_SessionEnd, *signalpb.Envelope_Renewed:
		default:
			l.abort(CloseBadMessage, nil)
			return fmt.Errorf("%w: unexpected %T", ErrMalformed, m)
		}
		n.cfg.Handler.Message(env)
	}
}

// observe notes that the coordinator sees this node at another address.
func (n *Node) observe(a *signalpb.Address) {
	if a == nil {
		return
	}
	observed, err := AddrPort(a)
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.Observed = observed
}

// read returns the next known message. A refusal is an error; so is the other
// end's close, with its code.
func (l *link) read() (*signalpb.Envelope, error) {
	for {
		env, err := ReadMessage(l.stream)
		if err != nil {
			return nil, l.explain(err)
		}
		switch err := validate(env); {
		case errors.Is(err, errUnknown):
			continue
		case err != nil:
			l.abort(CloseBadMessage, err)
			return nil, err
		}
		if refused := env.GetRefused(); refused != nil {
			return nil, refusedError(refused)
		}
		return env, nil
	}
}

// explain turns a read error into the reason of the connection's end.
func (l *link) explain(err error) error {
	if reason := l.reason.Load(); reason != nil {
		return reason
	}
	if code, message, ok := remoteClose(err); ok && code != CloseDone {
		return &RefusedError{Close: code, Message: message, RetryAfter: retryAfter(code)}
	}
	switch {
	case errors.Is(err, ErrMalformed), errors.Is(err, ErrTooLarge):
		l.abort(CloseBadMessage, err)
	case isTimeout(err):
		l.abort(CloseTimeout, err)
		return fmt.Errorf("no welcome in time: %w", err)
	}
	return fmt.Errorf("connection to the coordinator: %w", err)
}
