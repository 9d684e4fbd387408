package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"sync"
	"time"

	"mintai/api"
	"mintai/gateway"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// maxTries bounds the miners that one request is offered to.
const maxTries = 4

// endPatience is how long a stream that has said its last word may stay open.
const endPatience = 250 * time.Millisecond

// queueDeadline is how long a request may wait for its turn at a miner that
// keeps saying so.
const queueDeadline = 10 * time.Minute

// wholeShare is how much longer an answer that is not streamed may take to begin:
// its first byte comes when the whole of it is there. It is the miner's measure
// too.
const wholeShare = 5

// RoundTrip carries a request of the local endpoint, which has parsed it, to a
// miner. Its errors are *api.Error, ready to be shown in the API's own shape.
func (c *client) RoundTrip(r *http.Request) (*http.Response, error) {
	req := gateway.RequestFromContext(r.Context())
	if req == nil {
		return nil, &api.Error{Status: http.StatusInternalServerError, Code: "internal", Message: "the request was not parsed"}
	}
	if r.Body != nil {
		_ = r.Body.Close() // req holds what was in it
	}
	resp, err := c.Do(r.Context(), req, r.Header.Get("Accept"))
	if err != nil {
		return nil, toAPIError(explain(err, c))
	}
	resp.Request = r
	return resp, nil
}

var _ http.RoundTripper = (*client)(nil)

// Do sends the request to a miner that can answer it and returns as soon as the
// answer's header is there. A miner that refuses, vanishes or can't be reached
// before that is replaced by the next one. The body of the response must be
// closed; closing it early cancels the work at the AI server.
func (c *client) Do(ctx context.Context, req *api.Request, accept string) (*http.Response, error) {
	model, miner := splitTarget(req.Model)
	n := needs{Needs: req.Needs, model: model, miner: miner, call: req.Call}
	tr := traceFrom(ctx)
	var exclude []identity.NodeID
	var last error // of the try before, more telling than "nobody is left"
	for attempt := 1; attempt <= maxTries; attempt++ {
		tr.try()
		s, l := c.warmSession(n, exclude) //nolint:contextcheck // whether a tunnel has ended is the connection's own
		if s != nil {
			tr.match(s)
		} else {
			var err error
			s, l, err = c.open(ctx, n, exclude, attempt, tr)
			if err != nil {
				if s == nil || ctx.Err() != nil { // no miner, or nobody waits any more
					return nil, firstTelling(last, err)
				}
				exclude, last = append(exclude, s.miner), err
				continue
			}
		}
		resp, next, err := c.send(ctx, s, l, req, accept, tr)
		switch next {
		case deliver:
			return resp, err
		case otherMiner:
			exclude = append(exclude, s.miner)
		case sameMiner:
			if !pause(ctx, s, attempt) {
				return nil, context.Cause(ctx)
			}
		}
		last = err
	}
	return nil, last
}

// pause gives the offer of a new session that its miner did not know time to
// arrive there. It reports false when ctx ended.
func pause(ctx context.Context, s *session, attempt int) bool {
	if time.Since(s.granted) > 2*time.Second {
		return true
	}
	timer := time.NewTimer(50 * time.Millisecond << attempt)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// firstTelling prefers the failure of an earlier try to a "nobody is left".
func firstTelling(last, err error) error {
	var none *signal.NoMatchError
	if last != nil && errors.As(err, &none) {
		return last
	}
	return err
}

// after says what follows one try.
type after int

const (
	deliver    after = iota // the response or the error is the request's result
	sameMiner               // match again; the same miner may answer
	otherMiner              // match again, without this miner
)

// send makes one try over an open tunnel.
func (c *client) send(ctx context.Context, s *session, l *link, req *api.Request, accept string, tr *trace) (*http.Response, after, error) {
	tr.stage("waiting for the first token…")
	start := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	limit := c.deadlines.FirstByte
	if !req.Stream {
		limit *= wholeShare
	}
	first := newFirstByte(limit, cancel)
	request := newTunnelRequest(s, req, accept)
	car := newCarriage(first.watchQueue(ctx, tr), request)
	tr.connect(func() Path { return car.path(l) })
	resp, err := c.carry(car, l)
	if err != nil {
		first.stop()
		cause := context.Cause(ctx)
		cancel(nil)
		_ = car.Close()
		c.alight(car, l)
		next := c.afterFailure(s, l, request.id, cause, err)
		c.done(s)
		if next != deliver {
			c.retire(s, "failed")
		}
		return nil, next, failureOf(cause, err, s)
	}
	acc := &answer{
		client: c, session: s, car: car, link: l, id: request.id, start: start, status: resp.StatusCode,
		body: resp.Body, first: first, ctx: ctx, cancel: cancel, counter: api.NewTokenCounter(req.Call, req.Stream),
	}
	resp.Body = acc
	if next := refusal(resp); next != deliver {
		err := &refusedError{Miner: s.minerName, Code: resp.Header.Get(api.HeaderError), RetryAfter: retryAfter(resp.Header), Status: resp.StatusCode}
		acc.refused = true
		_ = acc.Close()
		c.retire(s, "refused") // the next request asks the coordinator again
		return nil, next, err
	}
	return resp, deliver, nil
}

// afterFailure decides what follows a request that failed before its answer
// began.
func (c *client) afterFailure(s *session, l *link, id identity.SessionID, cause, err error) after {
	outcome, next := signalpb.Outcome_OUTCOME_LOST, otherMiner
	switch {
	case errors.Is(cause, errFirstByte):
		outcome = signalpb.Outcome_OUTCOME_TIMEOUT
	case cause != nil: // cancelled, or the request's own deadline
		outcome, next = signalpb.Outcome_OUTCOME_CANCELLED, deliver
	case errors.Is(err, quicstream.ErrGoingAway): // it finishes what it has
		c.unlink(l)
		outcome = signalpb.Outcome_OUTCOME_BUSY
	case errors.As(err, new(*quicstream.AbortedError)):
		outcome = signalpb.Outcome_OUTCOME_BACKEND_ERROR
	case isTunnelLost(err), errors.Is(err, errPatience), errors.Is(err, errResume): // whoever keeps the tunnel has given it up
		if time.Since(s.granted) > c.deadlines.Direct { // a warm tunnel that died while nobody used it
			next = sameMiner
		}
	}
	c.receipt(s, account{id: id, outcome: outcome})
	return next
}

// failureOf names what ended a try.
func failureOf(cause, err error, s *session) error {
	switch {
	case errors.Is(cause, errFirstByte):
		return fmt.Errorf("%s: %w", s.minerName, errFirstByte)
	case cause != nil:
		return cause
	case errors.Is(err, quicstream.ErrGoingAway):
		return &refusedError{Miner: s.minerName, Code: string(quicstream.RefusedGoingAway), Status: http.StatusServiceUnavailable}
	case errors.As(err, new(*quicstream.AbortedError)):
		return &refusedError{Miner: s.minerName, Code: api.CodeBackendDown, Status: http.StatusBadGateway}
	default:
		return &lostError{Miner: s.minerName, Err: err}
	}
}

// codeSession is api.Error's code for a session that the miner does not know.
const codeSession = "session"

// refusal says what follows a response in which the miner itself, not its AI
// server, speaks.
func refusal(resp *http.Response) after {
	switch resp.Header.Get(api.HeaderError) {
	case codeSession, string(quicstream.RefusedUnauthorized): // unknown there, expired, or the miner restarted
		return sameMiner
	case api.CodeBusy, api.CodeShuttingDown, string(quicstream.RefusedGoingAway), api.CodeModelNotFound,
		api.CodeBackendDown, api.CodeBackendAuth, api.CodeBackendNonsense:
		return otherMiner
	default:
		return deliver
	}
}

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// errFirstByte says that the answer did not begin in time.
var errFirstByte = errors.New("no answer began in time")

// firstByte ends a request whose answer does not begin in time. A miner that
// says "queued" gets longer.
type firstByte struct {
	timer *time.Timer
}

func newFirstByte(limit time.Duration, cancel context.CancelCauseFunc) *firstByte {
	return &firstByte{timer: time.AfterFunc(limit, func() { cancel(errFirstByte) })}
}

func (f *firstByte) stop() { f.timer.Stop() }

// watchQueue follows the queue positions that the miner sends ahead.
func (f *firstByte) watchQueue(ctx context.Context, tr *trace) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			position, err := strconv.Atoi(h.Get(api.HeaderQueue))
			if err != nil || position < 1 {
				return nil // some other news
			}
			f.timer.Reset(queueDeadline)
			tr.stage(fmt.Sprintf("queued %d…", position))
			return nil
		},
	})
}

// answer is the body of a response on its way to the person: it watches for the
// first byte, counts tokens, and gives one account at the end.
type answer struct {
	client  *client
	session *session
	car     *carriage
	link    *link // on which it began
	id      identity.SessionID
	start   time.Time
	status  int
	refused bool

	body    io.ReadCloser
	first   *firstByte
	ctx     context.Context //nolint:containedctx // of this one request, ended by Close
	cancel  context.CancelCauseFunc
	counter *api.TokenCounter

	firstAt time.Time
	bytes   uint64
	tail    []byte // the last bytes that passed, at most tailLen
	once    sync.Once
}

// tailLen is enough to hold the end mark of any streamed answer and what may
// stand behind it.
const tailLen = 512

// endMarks are what the APIs write last in a streamed answer. A reader that has
// seen one may close at once, and the answer was whole.
var endMarks = [][]byte{[]byte("data: [DONE]"), []byte(`"done":true`), []byte(`"message_stop"`), []byte(`"response.completed"`)}

// ended reports whether the answer has said that it is whole.
func (a *answer) ended() bool {
	for _, mark := range endMarks {
		if bytes.Contains(a.tail, mark) {
			return true
		}
	}
	return false
}

// Read passes the body on. A body that ends because the tunnel did is an error,
// never io.EOF.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.body.Read(p)
	if n > 0 {
		if a.firstAt.IsZero() {
			a.firstAt = time.Now()
			a.first.stop()
		}
		a.bytes += uint64(n)
		_, _ = a.counter.Write(p[:n]) // counts, never fails
		a.keepTail(p[:n])
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		a.finish(a.outcomeAtEnd())
	default:
		cause := context.Cause(a.ctx)
		switch {
		case errors.Is(cause, errFirstByte):
			a.finish(signalpb.Outcome_OUTCOME_TIMEOUT)
			err = fmt.Errorf("%s: %w", a.session.minerName, errFirstByte)
		case cause != nil:
			a.finish(signalpb.Outcome_OUTCOME_CANCELLED)
			err = cause
		case errors.As(err, new(*quicstream.AbortedError)):
			a.finish(signalpb.Outcome_OUTCOME_BACKEND_ERROR)
			err = &lostError{Miner: a.session.minerName, Err: err, Bytes: a.bytes, Backend: true}
		default:
			a.finish(signalpb.Outcome_OUTCOME_LOST)
			err = &lostError{Miner: a.session.minerName, Err: err, Bytes: a.bytes}
		}
	}
	return n, err
}

func (a *answer) keepTail(p []byte) {
	if len(p) >= tailLen {
		a.tail = append(a.tail[:0], p[len(p)-tailLen:]...)
		return
	}
	if over := len(a.tail) + len(p) - tailLen; over > 0 {
		a.tail = append(a.tail[:0], a.tail[over:]...)
	}
	a.tail = append(a.tail, p...)
}

// Close ends the request. Before the end of the body that cancels it at the AI server.
func (a *answer) Close() error {
	if a.ended() {
		a.finish(a.outcomeAtEnd())
		a.awaitEnd()
	}
	a.finish(signalpb.Outcome_OUTCOME_CANCELLED)
	a.first.stop()
	a.cancel(context.Canceled)
	return a.body.Close()
}

// awaitEnd lets a stream that has said its last word end by itself, which it
// does at once: closed before, it would look cancelled at the miner.
func (a *answer) awaitEnd() {
	patience := time.AfterFunc(endPatience, func() { a.cancel(context.Canceled) })
	defer patience.Stop()
	_, _ = io.CopyN(io.Discard, a.body, tailLen) // more than that is not an end
}

func (a *answer) outcomeAtEnd() signalpb.Outcome {
	switch {
	case a.status >= 500:
		return signalpb.Outcome_OUTCOME_BACKEND_ERROR
	case a.status >= 400:
		return signalpb.Outcome_OUTCOME_REFUSED
	default:
		return signalpb.Outcome_OUTCOME_OK
	}
}

func (a *answer) finish(outcome signalpb.Outcome) {
	a.once.Do(func() {
		if a.refused {
			outcome = signalpb.Outcome_OUTCOME_BUSY
		}
		acc := account{id: a.id, outcome: outcome, total: time.Since(a.start), bytes: a.bytes, path: a.car.path(a.link)}
		acc.tokens, _ = a.counter.Tokens()
		if !a.firstAt.IsZero() {
			acc.firstToken = a.firstAt.Sub(a.start)
			if rest := time.Since(a.firstAt).Seconds(); rest > 0 && acc.tokens > 1 {
				acc.speed = float64(acc.tokens-1) / rest
			}
		}
		a.client.receipt(a.session, acc)
		a.client.alight(a.car, a.link)
		a.client.done(a.session)
	})
}

// account is what one end saw of a request.
type account struct {
	id         identity.SessionID
	outcome    signalpb.Outcome
	firstToken time.Duration
	total      time.Duration
	tokens     uint64
	speed      float64
	bytes      uint64
	path       Path
}

// message is the account as a Receipt.
func (a account) message(session identity.SessionID, model api.Model) *signalpb.Envelope {
	return &signalpb.Envelope{Message: &signalpb.Envelope_Receipt{Receipt: &signalpb.Receipt{
		Session: session[:], Request: a.id[:], Outcome: a.outcome,
		FirstTokenUs: a.firstToken.Microseconds(), TotalUs: a.total.Microseconds(),
		Tokens: a.tokens, TokensPerSecond: a.speed, Bytes: a.bytes,
		PathKind: a.path.Kind, Model: string(model),
	}}}
}

// receipt sends the client's account. It is lost when the coordinator is away.
func (c *client) receipt(s *session, a account) {
	c.metrics.request(a)
	_ = c.sig.Send(a.message(s.id, s.model))
}
