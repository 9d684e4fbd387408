package signal

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"mintai/signal/signalpb"
)

// NoMatchError says that the coordinator found no miner, and why.
type NoMatchError struct{ NoMatch *signalpb.NoMatch }

// Error shows the coordinator's line.
func (e *NoMatchError) Error() string {
	if m := e.NoMatch.GetMessage(); m != "" {
		return m
	}
	return "no miner matches"
}

// ErrNotConnected says that there is no connection to the coordinator now.
var ErrNotConnected = errors.New("not connected to the coordinator")

// UnreachableError says that the coordinator could not be asked in time.
type UnreachableError struct {
	Addrs    []string // where it was looked for over UDP
	TLSAddrs []string // and over TLS
	Err      error    // the newest failure; nil: no answer at all
}

// Error names the addresses and the failure.
func (e *UnreachableError) Error() string {
	s := "cannot reach the coordinator"
	if len(e.Addrs) > 0 {
		s += " at " + e.Addrs[0]
	}
	if len(e.TLSAddrs) > 0 {
		s += " over UDP, nor at " + e.TLSAddrs[0] + " over TLS"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns ErrNotConnected and the newest failure.
func (e *UnreachableError) Unwrap() []error { return []error{ErrNotConnected, e.Err} }

// errNoAnswer is the cause of a request's own deadline.
var errNoAnswer = errors.New("no answer in time")

// Update is a later answer to a match: another miner, or none.
type Update struct {
	Grant *signalpb.Grant // nil when Err is set
	Err   error           // a *NoMatchError or *RefusedError

	models *signalpb.Models
}

// updateLimit is how many answers may wait; the oldest are dropped.
const updateLimit = 8

// Matching is an answered match. While it is open, later answers arrive too:
// another Grant after a miner declined, or a NoMatch.
type Matching struct {
	Grant *signalpb.Grant // the first

	node    *Node
	request *request
}

// Updates delivers the later answers, newest last. It is never closed.
func (m *Matching) Updates() <-chan Update { return m.request.answers }

// Close ends the interest in later answers.
func (m *Matching) Close() { m.node.drop(m.request) }

// request is a question that waits for answers with its nonce.
type request struct {
	nonce   [nonceSize]byte
	env     *signalpb.Envelope
	early   bool          // may be sent in 0-RTT
	stale   time.Duration // 0: Deadlines.Stale
	answers chan Update

	// Guarded by Node.mu.
	sentOn  *link
	sentAt  time.Time // on sentOn
	heard   uint64    // packets received on sentOn when it was sent
	done    bool      // the first answer is there
	attempt uint32    // the highest of the grants that came
}

// Match asks for a miner and returns the first answer. It may be called before
// Run has connected: then the request leaves in one flight with the Hello, in
// 0-RTT when a ticket is stored. When the connection breaks, the request is sent
// again with the same nonce. An empty nonce is filled in. It ends with a
// *NoMatchError, a *RefusedError, an identity error, an *UnreachableError after
// Deadlines.Match, or the cause of ctx.
func (n *Node) Match(ctx context.Context, req *signalpb.MatchRequest) (*Matching, error) {
	req = proto.CloneOf(req)
	r := newRequest(req.GetNonce(), true)
	req.Nonce = r.nonce[:]
	r.env = &signalpb.Envelope{Message: &signalpb.Envelope_MatchRequest{MatchRequest: req}}
	if err := Validate(r.env); err != nil {
		return nil, err
	}
	first, err := n.await(ctx, r)
	if err != nil {
		n.drop(r)
		return nil, err
	}
	return &Matching{Grant: first.Grant, node: n, request: r}, nil
}

// Path asks for another path for a session. The answer is a Grant of the same
// session. It is sent again like a match, but never in 0-RTT, and a connection
// on which nothing at all comes for Deadlines.PathStale is given up for it.
func (n *Node) Path(ctx context.Context, req *signalpb.PathRequest) (*Matching, error) {
	req = proto.CloneOf(req)
	r := newRequest(req.GetNonce(), false)
	r.stale = n.cfg.Deadlines.PathStale
	req.Nonce = r.nonce[:]
	r.env = &signalpb.Envelope{Message: &signalpb.Envelope_PathRequest{PathRequest: req}}
	if err := Validate(r.env); err != nil {
		return nil, err
	}
	first, err := n.await(ctx, r)
	if err != nil {
		n.drop(r)
		return nil, err
	}
	return &Matching{Grant: first.Grant, node: n, request: r}, nil
}

// Heard counts the packets of the present connection to the coordinator; 0 when
// there is none. A count that stays while messages are sent means that nobody
// acknowledges them.
func (n *Node) Heard() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.status.Connected {
		return 0
	}
	return n.link.conn.ConnectionStats().PacketsReceived
}

// Models asks what is offered, by whom. The errors are those of Match.
func (n *Node) Models(ctx context.Context) (*signalpb.Models, error) {
	r := newRequest(nil, false)
	r.env = &signalpb.Envelope{Message: &signalpb.Envelope_ModelsRequest{ModelsRequest: &signalpb.ModelsRequest{Nonce: r.nonce[:]}}}
	defer n.drop(r)
	first, err := n.await(ctx, r)
	if err != nil {
		return nil, err
	}
	return first.models, nil
}

func newRequest(nonce []byte, early bool) *request {
	r := &request{early: early, answers: make(chan Update, updateLimit)}
	if len(nonce) == nonceSize {
		copy(r.nonce[:], nonce)
	} else {
		_, _ = rand.Read(r.nonce[:]) // never fails: crypto/rand aborts the process instead
	}
	return r
}

// await registers r, gets it sent, and returns its first answer.
func (n *Node) await(ctx context.Context, r *request) (Update, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Deadlines.Match, errNoAnswer)
	defer cancel()
	if err := n.add(r); err != nil {
		return Update{}, err
	}
	stale := cmp.Or(r.stale, n.cfg.Deadlines.Stale)
	look := time.NewTicker(stale)
	defer look.Stop()
	for {
		select {
		case u := <-r.answers:
			return u, u.Err
		case <-look.C:
			n.checkStale(r, stale)
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, errNoAnswer) {
				return Update{}, err
			}
			unreachable := &UnreachableError{Addrs: n.cfg.Addrs, Err: n.WhyNot()}
			if n.cfg.Fallback != nil {
				unreachable.TLSAddrs = n.cfg.TLSAddrs
			}
			return Update{}, unreachable
		}
	}
}

// maxRequests is how many requests may wait at a time.
const maxRequests = 4096

// add makes r known. It is sent at once when the connection permits; otherwise
// the dialing side is woken. The error is ErrQueueFull.
func (n *Node) add(r *request) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.requests) >= maxRequests {
		return ErrQueueFull
	}
	n.requests[r.nonce] = r
	if n.link != nil {
		n.flushLocked(n.link)
		return nil
	}
	select {
	case n.wake <- struct{}{}:
	default: // already woken
	}
	return nil
}

func (n *Node) drop(r *request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.requests[r.nonce] == r {
		delete(n.requests, r.nonce)
		if r.attempt > 0 {
			n.past.note(r.nonce, r.attempt)
		}
		n.flushNextLocked()
	}
}

// flushNextLocked sends what waited for the end of another request.
func (n *Node) flushNextLocked() {
	if n.link != nil {
		n.flushLocked(n.link)
	}
}

// maxAsked is how many requests may be unanswered on one connection. More would
// fill its queues, and the connection would be ended for it, again and again.
const maxAsked = 32

// flushLocked sends what waits and may be sent on l now, in one flight, after
// the messages before. What is too much goes as soon as others are answered.
func (n *Node) flushLocked(l *link, before ...*signalpb.Envelope) {
	envs, room := before, maxAsked
	for _, r := range n.requests {
		if r.sentOn == l && !r.done {
			room--
		}
	}
	for _, r := range n.requests {
		if room <= 0 {
			break
		}
		if r.sentOn != l && !r.done && (r.early || l.complete) {
			room--
			r.sendLocked(l)
			envs = append(envs, r.env)
		}
	}
	if len(envs) == 0 {
		return
	}
	if err := l.out.send(envs...); err != nil {
		l.abort(CloseDone, err)
	}
}

func (r *request) sendLocked(l *link) {
	r.sentOn, r.sentAt, r.heard = l, time.Now(), l.conn.ConnectionStats().PacketsReceived
}

// maxAskAgain is how many answered requests move to another connection.
const maxAskAgain = 16

// askAgainLocked returns the answered but open requests of a link that is left,
// to be sent on the one that follows: the coordinator sends later answers to
// where a nonce was asked last. It still knows those nonces, and repeats the
// newest answer, which is dropped here.
func (n *Node) askAgainLocked(from, to *link) []*signalpb.Envelope {
	var envs []*signalpb.Envelope
	for _, r := range n.requests {
		if r.done && r.early && r.sentOn == from && time.Since(r.sentAt) < replyTTL/2 && len(envs) < maxAskAgain {
			r.sendLocked(to)
			envs = append(envs, r.env)
		}
	}
	return envs
}

// checkStale ends a connection on which nothing at all came since r was sent, for
// so long and for some round trips: its coordinator is gone, and a new one may
// stand at the same address.
func (n *Node) checkStale(r *request, limit time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := r.sentOn
	if l == nil || l != n.link || !l.complete {
		return
	}
	stats := l.conn.ConnectionStats()
	// A tick comes a little early or late.
	if since := time.Since(r.sentAt); since < limit-limit/8 || since < 3*stats.SmoothedRTT {
		return
	}
	if stats.PacketsReceived == r.heard {
		l.abort(CloseTimeout, errNoAnswer)
	}
}

// answer gives an answer to whoever waits for it and reports whether somebody
// does. A grant that came before is dropped: a request that went out on two
// connections is answered on both.
func (n *Node) answer(nonce []byte, u Update) bool {
	if len(nonce) != nonceSize {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	attempt := u.Grant.GetAttempt()
	r, ok := n.requests[[nonceSize]byte(nonce)]
	if !ok {
		return attempt > 0 && n.past.has([nonceSize]byte(nonce), attempt)
	}
	if attempt > 0 && attempt <= r.attempt {
		return true
	}
	r.attempt = max(r.attempt, attempt)
	r.giveLocked(u)
	n.flushNextLocked()
	return true
}

func (r *request) giveLocked(u Update) {
	r.done = true
	for {
		select {
		case r.answers <- u:
			return
		default:
		}
		select {
		case <-r.answers: // only Node.mu's holder fills it: there is room now
		default:
		}
	}
}

// failAll ends every waiting request with err.
func (n *Node) failAll(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.requests {
		if !r.done {
			r.giveLocked(Update{Err: err})
		}
	}
}
