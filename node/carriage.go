package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"mintai/api"
	"mintai/identity"
	"mintai/quicstream"
)

// carriage carries one request and its answer over the tunnels to its miner, one
// after the other. Where one tunnel is left for another the answer goes on at the
// byte that its reader has: nothing is lost, and nothing comes twice.
//
//	          ┌───────────── move: a ride on the next tunnel ──────────────┐
//	          ▼                                                            │
//	riding ──head of the next ride──▶ riding it, the former ones cancelled ┘
//	   │
//	   └─the tunnel is lost─▶ waiting ──head of the next ride──▶ riding it
//	                             └────giveUp, refused────▶ failed
//
// A ride is cancelled only when a later one has its head: the miner has let go of
// the former by then. Before that a cancelled stream would cancel the work.
//
// Each ride has a goroutine until the head of its answer is there; Close waits
// for them. Read is called by one goroutine, the other methods by any.
type carriage struct {
	ctx     context.Context //nolint:containedctx // of this one request, ended by Close
	request tunnelRequest
	rides   sync.WaitGroup

	mu        sync.Mutex // guards what follows
	changed   chan struct{}
	count     int     // of rides
	ride      *ride   // whose answer is read; nil: none has begun yet
	pending   []*ride // whose heads are not there, the newest last
	delivered int64   // bytes that Read has returned
	began     bool    // the head was handed on: what follows continues it
	lost      error   // why nothing follows any more
	refused   error   // why the newest ride may not begin, while a former one carries
	retries   int     // of again, in a row
	gaveUp    error   // the same, once nothing is pending
	over      bool    // nothing is to follow: closed, or read to its end
	closed    bool    // before its end

	waiting atomic.Bool // somebody waits for the head, or for bytes
}

// rider is a tunnel as far as a request needs it; *link is one.
type rider interface {
	RoundTrip(*http.Request) (*http.Response, error)
}

// ride is one try to carry the answer over one tunnel.
type ride struct {
	on     rider
	number int
	cancel context.CancelFunc
	ctx    context.Context //nolint:containedctx // of this ride, ended by cancel
	resp   *http.Response
	at     int64 // where in the answer its next byte stands; the reader's
	failed error // of its answer, so that it is no use to read on
}

// tunnelRequest is what goes through the tunnel: the call, the body with the
// granted model, and nothing else of the local request.
type tunnelRequest struct {
	call    api.Call
	body    []byte
	session identity.SessionID
	id      identity.SessionID // of the request
	accept  string
}

func newTunnelRequest(s *session, req *api.Request, accept string) tunnelRequest {
	r := tunnelRequest{call: req.Call, body: req.WithModel(s.model).Body, session: s.id}
	_, _ = rand.Read(r.id[:]) // never fails: crypto/rand aborts the process instead
	if len(accept) < 256 {
		r.accept = accept
	}
	return r
}

// build makes the request. One that resumes names its body by the digest and says
// how much of the answer is there.
func (r tunnelRequest) build(ctx context.Context, resumes bool, offset int64) (*http.Request, error) {
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://miner"+string(r.call), bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("building the request: %w", err)
	}
	hr.Header.Set(api.HeaderRequest, hex.EncodeToString(r.id[:]))
	hr.Header.Set(api.HeaderSession, r.session.String())
	hr.Header.Set("Content-Type", "application/json")
	hr.Header.Set("User-Agent", "") // say nothing about this side
	if r.accept != "" {
		hr.Header.Set("Accept", r.accept)
	}
	if resumes {
		hr.Header.Set(quicstream.HeaderDigest, quicstream.RequestDigest(hr, r.body).String())
		hr.Header.Set(quicstream.HeaderResume, strconv.FormatInt(offset, 10))
		hr.Body, hr.GetBody, hr.ContentLength = http.NoBody, nil, 0
	}
	return hr, nil
}

// errResume says that the miner does not continue the answer.
var errResume = errors.New("the answer cannot be continued")

// errOvertaken says that a ride came to the miner after a later one.
var errOvertaken = errors.New("a later attempt carries the answer")

// errPatience says that nothing came of the search for another path.
var errPatience = errors.New("no path to the miner came up again")

// errClosed says that whoever asked wants nothing any more.
var errClosed = errors.New("the request was closed")

func newCarriage(ctx context.Context, request tunnelRequest) *carriage {
	return &carriage{ctx: ctx, request: request, changed: make(chan struct{})}
}

func (c *carriage) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// move begins a ride on another tunnel; the answer goes over to it when its head
// is there. The first call begins the request. It does not wait.
func (c *carriage) move(on rider) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.lost != nil || c.ride != nil && c.ride.on == on {
		return
	}
	if n := len(c.pending); n > 0 && c.pending[n-1].on == on {
		return
	}
	c.setOutLocked(on)
}

// maxRetries is how often a request is sent again over a tunnel that is well.
const maxRetries = 3

// again sends the request once more over the tunnel in use, if nothing carries the
// answer and nothing is under way: the tunnel is well, and only this request was
// lost, as when its tries came to the miner in another order.
func (c *carriage) again(on rider) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.lost != nil || c.gaveUp != nil || len(c.pending) > 0 || c.count == 0 || c.ride != nil && c.ride.failed == nil {
		return
	}
	if c.ride != nil && !isTunnelLost(c.ride.failed) { // its reader is about to be told
		return
	}
	if c.retries++; c.retries > maxRetries {
		c.lost = &quicstream.LostError{Received: c.delivered, Err: errPatience}
		c.changedLocked()
		return
	}
	c.setOutLocked(on)
}

// waits reports whether somebody waits for what comes next. A reader that is slow
// does not: what it has not read yet may be here.
func (c *carriage) waits() bool { return c.waiting.Load() }

func (c *carriage) setOutLocked(on rider) {
	c.count++
	r := &ride{on: on, number: c.count}
	if c.began {
		r.at = c.delivered
	}
	r.ctx, r.cancel = context.WithCancel(c.ctx)
	c.pending = append(c.pending, r)
	c.gaveUp = nil
	offset := r.at
	c.rides.Go(func() { c.begin(r, offset) })
}

// send brings the request over a ride's tunnel, and returns what the miner says to
// it. From the second ride on the miner may have the request: it is named by its
// digest first, and goes there once more only if the miner does not have it and
// nothing of the answer is here.
func (c *carriage) send(r *ride, offset int64) (*http.Response, error) {
	resp, err := c.roundTrip(r, r.number > 1, offset)
	if err != nil || r.number == 1 || tunnelRefusal(resp) != quicstream.RefusedUnknownRequest {
		return resp, err
	}
	c.mu.Lock()
	began := c.began
	c.mu.Unlock()
	if began {
		return resp, nil
	}
	_ = resp.Body.Close()
	return c.roundTrip(r, false, offset)
}

func (c *carriage) roundTrip(r *ride, resumes bool, offset int64) (*http.Response, error) {
	hr, err := c.request.build(r.ctx, resumes, offset)
	if err != nil {
		return nil, err
	}
	hr.Header.Set(quicstream.HeaderAttempt, strconv.Itoa(r.number))
	return r.on.RoundTrip(hr)
}

// tunnelRefusal is why the miner's end of the tunnel refused a request; empty for
// an answer, which says what attempt it is carried by, whatever its status.
func tunnelRefusal(resp *http.Response) quicstream.Refusal {
	if resp.Header.Get(quicstream.HeaderAttempt) != "" {
		return ""
	}
	return quicstream.Refusal(resp.Header.Get(quicstream.HeaderError))
}

// begin waits for the head of a ride's answer.
func (c *carriage) begin(r *ride, offset int64) {
	resp, err := c.send(r, offset)
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.Index(c.pending, r)
	if at >= 0 && err == nil {
		if err = c.judgeLocked(r, resp, offset); err != nil {
			_ = resp.Body.Close()
		}
	}
	switch {
	case at < 0: // nobody wants it any more
		r.cancel()
		if err == nil {
			_ = resp.Body.Close()
		}
		return
	case err != nil:
		r.cancel()
		c.pending = slices.Delete(c.pending, at, at+1)
		if c.count > r.number && errors.As(err, new(*quicstream.AbortedError)) { // most likely because a later ride has reached the miner
			err = &quicstream.LostError{Received: c.delivered, Err: err}
		}
		c.failedLocked(err)
	default:
		for _, former := range c.pending[:at] {
			former.cancel()
		}
		c.pending = slices.Delete(c.pending, 0, at+1)
		if c.ride != nil { // the miner sends nothing more there
			c.ride.cancel()
			_ = c.ride.resp.Body.Close()
		}
		r.resp, c.ride = resp, r
		c.refused, c.retries = nil, 0
	}
	c.changedLocked()
}

// failedLocked books a ride that did not begin.
func (c *carriage) failedLocked(err error) {
	switch {
	case len(c.pending) > 0, c.ride != nil && c.ride.failed == nil: // another carries, or may
		if !isTunnelLost(err) {
			c.refused = err
		}
	case !isTunnelLost(err):
		c.lost = err
	case c.refused != nil:
		c.lost = c.refused
	case c.gaveUp != nil:
		c.lost = c.gaveUp
	}
}

// isTunnelLost reports an error that is the tunnel's and not the request's: over
// another tunnel the answer may go on.
func isTunnelLost(err error) bool {
	return errors.As(err, new(*quicstream.LostError))
}

// judgeLocked says why a ride does not carry the answer, whose head it has. A
// refusal is an answer too if no other ride brings one.
func (c *carriage) judgeLocked(r *ride, resp *http.Response, offset int64) error {
	switch why := tunnelRefusal(resp); {
	case why == quicstream.RefusedStale: // a later ride is known there; should it fail, another may follow
		return &quicstream.LostError{Err: errOvertaken}
	case why != "" && (c.began || c.ride != nil || len(c.pending) > 1):
		return fmt.Errorf("%w: the miner says %s", errResume, why)
	case why != "" || r.number == 1 && !c.began:
		return nil
	}
	return checkContinued(resp, offset)
}

// checkContinued looks at the head of an answer that should continue another.
func checkContinued(resp *http.Response, offset int64) error {
	at := int64(0)
	if text := resp.Header.Get(quicstream.HeaderResume); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%w: the miner continues at %q", errResume, text)
		}
		at = n
	}
	if at != offset {
		return fmt.Errorf("%w: the miner continues at byte %d instead of %d", errResume, at, offset)
	}
	return nil
}

// head waits for the head of the answer, over whichever tunnel it comes.
func (c *carriage) head() (*http.Response, error) {
	c.waiting.Store(true)
	defer c.waiting.Store(false)
	for {
		c.mu.Lock()
		switch {
		case c.ride != nil && !c.closed:
			c.began = true
			resp := *c.ride.resp
			c.mu.Unlock()
			resp.Body = c
			return &resp, nil
		case c.closed:
			c.mu.Unlock()
			return nil, errClosed
		case c.lost != nil:
			err := c.lost
			c.mu.Unlock()
			return nil, err
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-c.ctx.Done():
			return nil, context.Cause(c.ctx)
		}
	}
}

// Read returns the answer's bytes, each once, from whichever tunnel they come. It
// blocks while there is no tunnel; giveUp and the end of the request's context
// unblock it.
func (c *carriage) Read(p []byte) (int, error) {
	c.waiting.Store(true)
	defer c.waiting.Store(false)
	for {
		r, from, err := c.carrying()
		if err != nil {
			return 0, err
		}
		n, err := r.read(p, from)
		c.mu.Lock()
		c.delivered += int64(n)
		ended := errors.Is(err, io.EOF) && c.ride == r
		switch {
		case ended && n == 0:
			c.endLocked()
			c.mu.Unlock()
			return 0, io.EOF
		case err != nil && !ended && r.failed == nil:
			r.failed = err
			if c.count > r.number && !isTunnelLost(err) { // most likely because a later ride has reached the miner
				r.failed = &quicstream.LostError{Received: c.delivered, Err: err}
			}
		}
		c.mu.Unlock()
		if n > 0 {
			return n, nil // an end comes again with the next Read
		}
	}
}

// carrying waits for a ride that can be read, and says how much the reader has.
func (c *carriage) carrying() (*ride, int64, error) {
	for {
		c.mu.Lock()
		r, delivered, changed := c.ride, c.delivered, c.changed
		var err error
		switch {
		case c.closed:
			err = errClosed
		case c.over:
			err = io.EOF
		case c.ctx.Err() != nil:
			err = context.Cause(c.ctx)
		case r.failed == nil:
		case c.lost != nil:
			err = c.lost
		case len(c.pending) > 0:
			r = nil
		case !isTunnelLost(r.failed):
			err = r.failed
		case c.refused != nil:
			err = c.refused
		case c.gaveUp != nil:
			err = c.gaveUp
		default:
			r = nil
		}
		c.mu.Unlock()
		if r != nil || err != nil {
			return r, delivered, err
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
		}
	}
}

// read returns the next bytes that stand at from or behind it: the reader has the
// others, over another tunnel.
func (r *ride) read(p []byte, from int64) (int, error) {
	for {
		n, err := r.resp.Body.Read(p)
		had := min(max(0, from-r.at), int64(n))
		r.at += int64(n)
		if n = copy(p, p[had:n]); n > 0 || err != nil {
			return n, err
		}
	}
}

// giveUp ends the waiting for another tunnel with a reason. A ride that carries
// goes on, and so does one that has set out.
func (c *carriage) giveUp(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gaveUp = err
	if c.ride == nil && len(c.pending) == 0 && c.lost == nil {
		c.lost = err
	}
	c.changedLocked()
}

// on returns the tunnel that carries the answer now; nil when none has begun to.
func (c *carriage) on() rider {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ride == nil {
		return nil
	}
	return c.ride.on
}

// path is the path of the tunnel that carries the answer, or that of began.
func (c *carriage) path(began *link) Path {
	if l, ok := c.on().(*link); ok {
		return l.Path()
	}
	return began.Path()
}

// endLocked lets nothing follow.
func (c *carriage) endLocked() {
	c.over = true
	for _, r := range c.pending {
		r.cancel()
	}
	c.pending = nil
}

// Close ends the request: before its end that cancels the work at the miner.
func (c *carriage) Close() error {
	c.mu.Lock()
	c.closed = c.closed || !c.over
	c.endLocked()
	c.changedLocked()
	r := c.ride
	c.mu.Unlock()
	var err error
	if r != nil {
		r.cancel()
		err = r.resp.Body.Close()
	}
	c.rides.Wait()
	return err
}

var _ io.ReadCloser = (*carriage)(nil)
