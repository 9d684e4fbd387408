package signal

import (
	"context"
	"errors"
	"fmt"
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
	addr        string   // as configured
	carrier     *carrier // of a link over TLS; nil: UDP
	conn        *quic.Conn
	stream      *quic.Stream
	out         *outbox
	coordinator identity.NodeID
	welcome     *signalpb.Welcome // set with the link's publication
	complete    bool              // guarded by Node.mu: the handshake is over, everything may be sent
	reason      atomic.Pointer[CloseError]
}

// abort ends the connection from this side; it does not wait. The read loop
// sees the end and cleans up.
func (l *link) abort(code CloseCode, err error) {
	if l.reason.CompareAndSwap(nil, &CloseError{Code: code, Err: err}) {
		_ = l.stream.SetReadDeadline(time.Unix(1, 0)) // long ago
	}
}

// connect makes a connection and serves it until it ends, and after a
// connection over TLS the one over UDP that follows it. welcomed reports whether
// the coordinator admitted this node.
func (n *Node) connect(ctx context.Context) (welcomed bool, err error) {
	l, udp, err := n.dial(ctx)
	if err != nil {
		return false, err
	}
	if l.carrier == nil {
		return n.serve(ctx, l, nil)
	}
	m := n.startMove(ctx, l, udp)
	welcomed, err = n.serve(ctx, l, m)
	if next := m.finish(err); next != nil {
		return n.serve(ctx, next, nil)
	}
	return welcomed, err
}

// greet opens the stream and sends the Hello with the waiting requests, in one
// flight. When complete is false only what may be sent in 0-RTT goes, and no
// requests if another link has them.
func (n *Node) greet(l *link, complete bool) error {
	hello, err := n.open(l)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !complete && n.link != nil {
		return l.out.send(hello)
	}
	l.complete = complete
	n.link = l
	n.flushLocked(l, hello)
	return nil
}

// open opens l's stream and returns the Hello that must be sent first.
func (n *Node) open(l *link) (*signalpb.Envelope, error) {
	stream, err := l.conn.OpenStream()
	if err != nil {
		return nil, err
	}
	l.stream = stream
	l.out = newOutbox(stream, func(err error) { l.abort(CloseDone, err) })
	return &signalpb.Envelope{Message: &signalpb.Envelope_Hello{Hello: n.cfg.Hello(l.coordinator)}}, nil
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
	n.close(l, code)
}

// close ends the connection and frees what it holds; its way over TLS, whose end
// may take a while, in a goroutine that Run waits for.
func (n *Node) close(l *link, code CloseCode) {
	if reason := l.reason.Load(); reason != nil {
		code = reason.Code
	}
	_ = l.conn.CloseWithError(quic.ApplicationErrorCode(code), "")
	if l.out != nil {
		l.out.shut()
	}
	if l.carrier != nil {
		n.dials.Go(l.carrier.close)
	}
}

// serve greets, if that has not happened, and reads until the connection or ctx
// ends. When m prepares another link, serve returns once that is decided.
func (n *Node) serve(ctx context.Context, l *link, m *move) (welcomed bool, err error) {
	defer func() {
		n.detach(l)
		n.close(l, CloseDone)
	}()
	if err := n.begin(l); err != nil {
		return false, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan struct{})
	defer close(ended)
	wg.Go(func() { n.leave(ctx, l, ended) })

	if l.welcome == nil {
		if err := n.beWelcomed(l); err != nil {
			return false, err
		}
	}
	n.cfg.Handler.Connected(l.welcome)
	err = n.read(l)
	n.mu.Lock()
	if n.link == l {
		n.status.Connected = false
	}
	n.mu.Unlock()
	if m.finish(err) != nil {
		err = ErrMoved
	}
	n.cfg.Handler.Disconnected(err)
	return true, err
}

// begin makes l the link on which everything is sent.
func (n *Node) begin(l *link) error {
	if l.stream == nil {
		return n.greet(l, true)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l.complete = true
	n.link = l
	n.flushLocked(l)
	return nil
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

// beWelcomed reads the first message and publishes the connection.
func (n *Node) beWelcomed(l *link) error {
	w, err := l.readWelcome(n.cfg.Deadlines.Welcome)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.link != l { // another follows already
		return ErrMoved
	}
	n.publishLocked(l, w)
	return nil
}

// readWelcome reads the first message.
func (l *link) readWelcome(within time.Duration) (*signalpb.Welcome, error) {
	_ = l.stream.SetReadDeadline(time.Now().Add(within))
	if reason := l.reason.Load(); reason != nil { // its deadline was just replaced
		return nil, reason
	}
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
	return w, nil
}

// publishLocked makes l the connection that Status shows.
func (n *Node) publishLocked(l *link, w *signalpb.Welcome) {
	var observed netip.AddrPort
	if w.GetObserved() != nil {
		observed, _ = AddrPort(w.GetObserved()) // validated
	}
	var stun []netip.AddrPort
	for _, a := range w.GetStun() {
		at, _ := AddrPort(a) // validated
		stun = append(stun, at)
	}
	l.welcome = w
	n.learned = l.coordinator
	n.blocked = l.carrier != nil
	n.status = Status{
		Connected: true, Since: time.Now(), Addr: l.addr, Remote: addrPortOf(l.conn.RemoteAddr()), OverTLS: l.carrier != nil,
		Coordinator: l.coordinator, Observed: observed, Stun: stun, AdmittedAs: w.GetAdmittedAs(),
		Used0RTT: l.conn.ConnectionState().Used0RTT,
	}
	n.changedLocked()
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
			n.observe(l, m.LeaseAck.GetObserved())
		case *signalpb.Envelope_Offer, *signalpb.Envelope_Candidates, *signalpb.Envelope_SessionEnd, *signalpb.Envelope_Renewed,
			*signalpb.Envelope_ProbePorts:
		default:
			l.abort(CloseBadMessage, nil)
			return fmt.Errorf("%w: unexpected %T", ErrMalformed, m)
		}
		n.cfg.Handler.Message(env)
	}
}

// observe notes that the coordinator sees this node at another address.
func (n *Node) observe(l *link, a *signalpb.Address) {
	if a == nil {
		return
	}
	observed, err := AddrPort(a)
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.link == l {
		n.status.Observed = observed
	}
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
