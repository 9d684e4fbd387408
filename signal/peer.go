package signal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// errGoodbye is an orderly leave.
var errGoodbye = errors.New("signal: goodbye")

// nonceMemory is how many of a peer's requests are freed at once when it leaves.
const nonceMemory = 32

// Peer is one connected node at the coordinator. Its methods may be called from
// any goroutine and never block.
//
// A peer lives through these states, in this order:
//
//	connected --Hello--> admitted --handshake complete--> joined --> left
//	    |                    |  (with 0-RTT the Hello, and one     ^
//	    |                    |   MatchRequest, come before)        |
//	    +------ refused -----+-------------------------------------+
type Peer struct {
	server *Server
	conn   *quic.Conn
	stream *quic.Stream
	out    *outbox
	pace   *rate.Limiter
	done   chan struct{} // closed when the connection has ended and Left returned

	// Written before the peer is shown to anybody, read-only afterwards.
	node       identity.NodeID
	role       signalpb.Role
	name       string
	hello      *signalpb.Hello
	admittedAs string
	principal  string
	since      time.Time
	used0RTT   bool

	closing atomic.Pointer[CloseError] // the first reason to end, when this end has one

	calls  sync.Mutex // held while the handler is called: one call at a time, in order
	joined bool       // guarded by calls
	nonces []nonceKey // guarded by calls
}

// Node returns the peer's proven NodeID.
func (p *Peer) Node() identity.NodeID { return p.node }

// Role says whether the peer is a client or a miner.
func (p *Peer) Role() signalpb.Role { return p.role }

// Name is what the node calls itself. It comes from a stranger.
func (p *Peer) Name() string { return p.name }

// Hello returns the node's first message. It must not be changed.
func (p *Peer) Hello() *signalpb.Hello { return p.hello }

// AdmittedAs is "local", "member" or "open", as ServerConfig.Admit said.
func (p *Peer) AdmittedAs() string { return p.admittedAs }

// Principal is who is accountable for the node, as ServerConfig.Admit said.
func (p *Peer) Principal() string { return p.principal }

// Since is when the peer was admitted.
func (p *Peer) Since() time.Time { return p.since }

// Observed is the address that the peer's packets come from now: its
// server-reflexive candidate, unless OverTLS: then it is a TCP address, which is
// no candidate, and perhaps that of a proxy. It follows the peer through rebinding
// of its NAT (QUIC connection migration, RFC 9000 §9).
func (p *Peer) Observed() netip.AddrPort { return addrPortOf(p.conn.RemoteAddr()) }

// OverTLS reports whether the peer's packets come by way of
// ServerConfig.Streams: its network lets no UDP through, or not yet.
func (p *Peer) OverTLS() bool { return overTLS(p.conn.RemoteAddr()) }

// RemoteAddr is the address by which ServerConfig.Conn or one of Streams knows
// the peer's connection.
func (p *Peer) RemoteAddr() net.Addr { return p.conn.RemoteAddr() }

// Early reports whether the handshake is still running, so that what the peer
// has said came in 0-RTT and might be a replay. See ServerHandler.Message.
func (p *Peer) Early() bool {
	select {
	case <-p.conn.HandshakeComplete():
		return false
	default:
		return true
	}
}

// Done is closed when the peer has left and its handler has returned.
func (p *Peer) Done() <-chan struct{} { return p.done }

// Send queues a message. A Grant or NoMatch goes to the connection on which its
// nonce was asked last, which after a reconnect is not this one. When the queue
// is full the peer is dropped: it is told, and counted. The error is ErrClosed,
// ErrQueueFull or ErrTooLarge.
func (p *Peer) Send(env *signalpb.Envelope) error {
	to := p
	switch m := env.GetMessage().(type) {
	case *signalpb.Envelope_Grant:
		to = p.server.replies.answered(keyOf(p.node, m.Grant.GetNonce()), env, p)
	case *signalpb.Envelope_NoMatch:
		to = p.server.replies.answered(keyOf(p.node, m.NoMatch.GetNonce()), env, p)
	}
	return to.send(env)
}

// TrySend is Send for what another node or the peer's own haste causes: it takes
// at most half of the queue, and a peer for which there is no room is told
// nothing instead of being dropped.
func (p *Peer) TrySend(env *signalpb.Envelope) error {
	return p.out.sendWithin(2, []*signalpb.Envelope{env})
}

// TrySendLast is TrySend for what can be done without, such as news of addresses:
// it takes at most a quarter of the queue, so that what opens a session finds room.
func (p *Peer) TrySendLast(env *signalpb.Envelope) error {
	return p.out.sendWithin(4, []*signalpb.Envelope{env})
}

func (p *Peer) send(envs ...*signalpb.Envelope) error {
	err := p.out.send(envs...)
	if errors.Is(err, ErrQueueFull) {
		p.server.counters.queueFull.Add(1)
		p.end(&CloseError{Code: CloseSlow, Message: "messages are not read", Err: err})
	}
	return err
}

// Close ends the connection: what is queued is still sent, then the reason.
// Left is called by the peer's own goroutine.
func (p *Peer) Close(code CloseCode, message string) {
	p.end(&CloseError{Code: code, Message: message})
}

// end notes the reason and wakes the reader, which ends the connection.
func (p *Peer) end(reason *CloseError) {
	if p.closing.CompareAndSwap(nil, reason) {
		_ = p.stream.SetReadDeadline(time.Unix(1, 0)) // long ago
	}
}

// serve reads until the connection ends, and says why it did. A nil error is
// an orderly leave.
func (p *Peer) serve(ctx context.Context) error {
	if err := p.greet(ctx); errors.Is(err, errGoodbye) {
		return nil
	} else if err != nil {
		return err
	}
	if p.Early() {
		return p.serveEarly(ctx)
	}
	p.join()
	return p.loop(ctx)
}

// serveEarly serves a peer whose handshake still runs: it joins when that ends,
// whatever it says meanwhile.
//
//go:noinline
func (p *Peer) serveEarly(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if p.awaitHandshake(ctx) == nil {
			p.join()
		}
	})
	return p.loop(ctx)
}

// loop hands messages on until the connection ends.
func (p *Peer) loop(ctx context.Context) error {
	for {
		length, err := readLength(p.stream) // an idle peer waits here, on a small stack
		if err == nil {
			// A goroutine of its own, so that the stack that a message takes is
			// given back: kept, it would cost each idle peer 8 KB.
			taken := make(chan error, 1)
			go func() { taken <- p.take(ctx, length) }()
			err = <-taken
		} else {
			err = p.blame(err)
		}
		switch {
		case errors.Is(err, errGoodbye):
			return nil
		case err != nil:
			return err
		}
	}
}

// take reads the rest of a message and hands it on.
func (p *Peer) take(ctx context.Context, length int) error {
	env, err := readEnvelope(p.stream, length)
	if err != nil {
		return p.blame(err)
	}
	if err := p.pace.Wait(ctx); err != nil {
		return &CloseError{Code: CloseShuttingDown, Err: err}
	}
	known, err := p.check(env)
	if err != nil || !known {
		return err
	}
	if env.GetGoodbye() != nil {
		return errGoodbye
	}
	return p.dispatch(ctx, env)
}

// greet reads the Hello and answers it.
//
//go:noinline
func (p *Peer) greet(ctx context.Context) error {
	env, err := ReadMessage(p.stream)
	if err != nil {
		return p.blame(err)
	}
	if _, err := p.check(env); err != nil {
		return err
	}
	hello := env.GetHello()
	if hello == nil {
		p.server.counters.outOfOrder.Add(1)
		return &CloseError{Code: CloseBadMessage, Message: "the first message is not a Hello"}
	}
	state := p.conn.ConnectionState()
	cs := state.TLS
	p.used0RTT = state.Used0RTT
	if !cs.DidResume { // the certificate came with the handshake: let it finish
		if err := p.awaitHandshake(ctx); err != nil {
			return err
		}
		cs = p.conn.ConnectionState().TLS
	}
	if p.node, err = identity.PeerID(cs); err != nil {
		return &CloseError{Code: CloseBadMessage, Message: "no NodeID", Err: err}
	}
	p.hello, p.role, p.name = hello, hello.GetRole(), hello.GetName()
	p.admittedAs, p.principal, err = p.server.cfg.Admit(Joining{Node: p.node, Remote: p.Observed(), OverTLS: p.OverTLS(), Hello: hello})
	if err != nil {
		p.server.counters.notAdmitted.Add(1)
		var refused *CloseError
		if errors.As(err, &refused) {
			return refused
		}
		return &CloseError{Code: CloseNotAdmitted, Message: err.Error()}
	}
	p.since = time.Now()
	if err := p.stream.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if reason := p.closing.Load(); reason != nil {
		return reason
	}
	return p.send(&signalpb.Envelope{Message: &signalpb.Envelope_Welcome{Welcome: &signalpb.Welcome{
		Observed:   Address(p.Observed()),
		AdmittedAs: p.admittedAs,
		LeaseTtlMs: p.server.cfg.LeaseTTL.Milliseconds(),
		Version:    p.server.cfg.Version,
		Stun:       p.server.stun(),
		OverTls:    p.OverTLS(),
	}}})
}

// check validates a message; one from a newer version is not known.
func (p *Peer) check(env *signalpb.Envelope) (known bool, err error) {
	switch err := validate(env); {
	case errors.Is(err, errUnknown):
		p.server.counters.unknown.Add(1)
		return false, nil
	case err != nil:
		p.server.counters.malformed.Add(1)
		return false, &CloseError{Code: CloseBadMessage, Message: err.Error(), Err: err}
	}
	return true, nil
}

// blame counts a failure to read and turns it into the reason that the other
// end is told.
//
//go:noinline
func (p *Peer) blame(err error) error {
	c := &p.server.counters
	switch {
	case p.closing.Load() != nil:
		return p.closing.Load()
	case errors.Is(err, ErrTooLarge):
		c.oversized.Add(1)
	case errors.Is(err, ErrMalformed), errors.Is(err, io.ErrUnexpectedEOF):
		c.malformed.Add(1)
	case errors.Is(err, io.EOF): // it will send no more: a goodbye without words
		return errGoodbye
	case isTimeout(err):
		c.helloTimeout.Add(1)
		return &CloseError{Code: CloseTimeout, Message: "no Hello in time", Err: err}
	default:
		if code, _, ok := remoteClose(err); ok && code == CloseDone {
			return errGoodbye
		}
		return err
	}
	return &CloseError{Code: CloseBadMessage, Message: err.Error(), Err: err}
}

// isTimeout reports whether a read deadline passed; a dead connection is none.
func isTimeout(err error) bool {
	var idle *quic.IdleTimeoutError
	var handshake *quic.HandshakeTimeoutError
	var timeout interface{ Timeout() bool }
	return !errors.As(err, &idle) && !errors.As(err, &handshake) && errors.As(err, &timeout) && timeout.Timeout()
}

// awaitHandshake returns when the peer has proved its key in this connection.
// The handshake's own time limit bounds the wait.
func (p *Peer) awaitHandshake(ctx context.Context) error {
	select {
	case <-p.conn.HandshakeComplete():
		return nil
	case <-ctx.Done():
		return &CloseError{Code: CloseShuttingDown, Err: ctx.Err()}
	case <-p.conn.Context().Done():
		return context.Cause(p.conn.Context()) //nolint:contextcheck // why the connection ended
	}
}

// join makes the peer known, once.
func (p *Peer) join() {
	p.calls.Lock()
	defer p.calls.Unlock()
	if p.joined {
		return
	}
	p.server.enter(p)
	p.joined = true
	p.server.cfg.Handler.Joined(p)
}

// dispatch hands one message to the handler, in the order of arrival.
func (p *Peer) dispatch(ctx context.Context, env *signalpb.Envelope) error {
	if !mayCome(p.role, env) {
		p.server.counters.outOfOrder.Add(1)
		return &CloseError{Code: CloseBadMessage, Message: fmt.Sprintf("unexpected %T", env.GetMessage())}
	}
	request := env.GetMatchRequest()
	if request == nil || !p.early(keyOf(p.node, request.GetNonce())) {
		if err := p.awaitHandshake(ctx); err != nil {
			return err
		}
		p.join()
	}
	p.calls.Lock()
	defer p.calls.Unlock()
	if nonce := requestNonce(env); nonce != nil {
		k := keyOf(p.node, nonce)
		answer, fresh := p.server.replies.begin(k, p, time.Now())
		if !fresh {
			p.server.counters.repeated.Add(1)
			if answer != nil {
				return p.send(answer)
			}
			return nil
		}
		p.nonces = append(p.nonces, k)
		if n := len(p.nonces) - nonceMemory; n > 0 {
			p.nonces = p.nonces[n:]
		}
	}
	p.server.cfg.Handler.Message(p, env)
	return nil
}

// requestNonce is the nonce of a request that is answered once; nil for other
// messages.
func requestNonce(env *signalpb.Envelope) []byte {
	switch m := env.GetMessage().(type) {
	case *signalpb.Envelope_MatchRequest:
		return m.MatchRequest.GetNonce()
	case *signalpb.Envelope_PathRequest:
		return m.PathRequest.GetNonce()
	}
	return nil
}

// early decides whether a request may be handled before the handshake ends: it
// must be the first time that it is seen. Otherwise a complete handshake has to
// show that it is no replay. Every request of a connection that used 0-RTT is
// noted, also when it is handled after the handshake: its packets may have been
// early all the same, and could be sent again later.
func (p *Peer) early(k nonceKey) bool {
	if !p.used0RTT {
		return false
	}
	fresh := p.server.early.first(k, time.Now())
	if !p.Early() {
		return false
	}
	c := &p.server.counters
	if !fresh || p.server.replies.known(k) {
		c.replayed.Add(1)
		return false
	}
	c.early.Add(1)
	return true
}

// mayCome says which messages a role sends after its Hello.
func mayCome(role signalpb.Role, env *signalpb.Envelope) bool {
	switch env.GetMessage().(type) {
	case *signalpb.Envelope_MatchRequest, *signalpb.Envelope_PathRequest, *signalpb.Envelope_Renew, *signalpb.Envelope_SessionEnd:
		return role == signalpb.Role_ROLE_CLIENT
	case *signalpb.Envelope_Lease, *signalpb.Envelope_Taken, *signalpb.Envelope_Decline:
		return role == signalpb.Role_ROLE_MINER
	case *signalpb.Envelope_TunnelStatus, *signalpb.Envelope_Receipt, *signalpb.Envelope_ModelsRequest, *signalpb.Envelope_PeerSeen,
		*signalpb.Envelope_ProbePorts:
		return true
	case *signalpb.Envelope_Candidates:
		return len(env.GetCandidates().GetProven()) == 0 // what is proven the coordinator says
	default:
		return false
	}
}

// leave tells the handler and everybody who waits.
func (p *Peer) leave(err error) {
	p.calls.Lock()
	defer p.calls.Unlock()
	p.server.replies.left(p, p.nonces)
	if !p.joined {
		p.server.waiting.Add(-1)
	} else {
		p.server.exit(p)
		p.server.cfg.Handler.Left(p, err)
	}
	close(p.done)
}
