package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"mintai/api"
)

var _ http.Handler = (*Pool)(nil)

// ServeHTTP checks a stranger's request and has the granted model answer it.
// Nothing of a request that is refused reaches a server. While the request waits
// for a slot, 102 responses with api.HeaderQueue tell its position. When the
// server dies midway it panics with http.ErrAbortHandler, as httputil's
// ReverseProxy does, so that a truncated answer never looks whole.
func (p *Pool) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call, err := api.LookupRequest(r)
	if err != nil {
		p.refuse(w, api.Call(r.URL.Path), err)
		return
	}
	granted, ok := grantOf(r.Context())
	if !ok {
		p.refuse(w, call, &api.Error{Status: http.StatusForbidden, Code: api.CodeNotGranted, Message: "no grant covers this request"})
		return
	}
	req, err := api.ReadRequest(call, r.Header, r.Body)
	if err != nil {
		p.refuse(w, call, err)
		return
	}
	if req.Model != granted {
		p.refuse(w, call, &api.Error{
			Status: http.StatusForbidden, Code: api.CodeNotGranted,
			Message: fmt.Sprintf("the grant is for %q, not for the model that the request names", granted),
		})
		return
	}
	by, err := p.choose(granted, call)
	if err != nil {
		p.refuse(w, call, err)
		return
	}
	release, err := p.slot(w, r, by)
	if err != nil {
		p.refuse(w, call, err)
		return
	}
	defer release()
	p.answer(w, r, by, req)
}

func (p *Pool) answer(w http.ResponseWriter, r *http.Request, by *served, req *api.Request) {
	start := time.Now()
	clean, err := cleanRequest(r.Context(), req, r.Header.Values("Accept"))
	if err != nil {
		p.refuse(w, req.Call, err)
		return
	}
	out := &noted{ResponseWriter: w}
	whole := false
	defer func() {
		if code := out.Header().Get(api.HeaderError); code != "" {
			p.count(code)
		}
		if out.status == http.StatusBadGateway {
			p.lookAgain()
		}
		if !whole && r.Context().Err() == nil {
			p.lookAgain()
			p.count(api.CodeBackendDied)
			p.opts.Log.Warn().Str("server", by.name).Msg("the AI server died in the middle of an answer")
		}
		p.opts.Log.Debug().Str("server", by.name).Str("call", string(req.Call)).Int("status", out.status).
			Bool("whole", whole).Dur("took", time.Since(start)).Msg("request done")
	}()
	by.handler.ServeHTTP(out, clean)
	whole = true
}

// noted remembers the status.
type noted struct {
	http.ResponseWriter
	status int
}

func (n *noted) WriteHeader(status int) {
	if status >= 200 && n.status == 0 {
		n.status = status
	}
	n.ResponseWriter.WriteHeader(status)
}

func (n *noted) Write(b []byte) (int, error) {
	if n.status == 0 {
		n.status = http.StatusOK
	}
	return n.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }

// choose picks the server that answers: one with a free slot, else the one with
// the shortest queue for its size.
func (p *Pool) choose(model api.Model, call api.Call) (*served, error) {
	p.mu.Lock()
	offers := p.offers[model]
	p.mu.Unlock()
	if len(offers) == 0 {
		return nil, &api.Error{
			Status: http.StatusNotFound, Code: api.CodeModelNotFound,
			Message: fmt.Sprintf("the model %q is no longer offered here", model), Hint: "ask again",
		}
	}
	var (
		best     *served
		bestWait float64
	)
	for _, o := range offers {
		if !slices.Contains(o.calls, call) {
			continue
		}
		l := o.by.limiter.load()
		wait := float64(l.running+l.queued+1-l.slots) / float64(max(l.slots, 1))
		if wait <= 0 {
			return o.by, nil
		}
		if best == nil || wait < bestWait {
			best, bestWait = o.by, wait
		}
	}
	if best == nil {
		return nil, &api.Error{
			Status: http.StatusNotFound, Code: api.CodeNotOffered,
			Message: fmt.Sprintf("the server of %q does not answer %s", model, call),
		}
	}
	return best, nil
}

// slot waits for a turn.
func (p *Pool) slot(w http.ResponseWriter, r *http.Request, by *served) (release func(), err error) {
	var a announcer
	release, err = by.limiter.acquire(r.Context(), p.opts.QueueWait, func(pos int) {
		if !a.due(pos) {
			return
		}
		w.Header().Set(api.HeaderQueue, strconv.Itoa(pos))
		w.WriteHeader(http.StatusProcessing)
		w.Header().Del(api.HeaderQueue)
	})
	switch {
	case err == nil:
		return release, nil
	case errors.Is(err, errFull):
		return nil, &api.Error{
			Status: http.StatusServiceUnavailable, Code: api.CodeBusy,
			Message: "all slots and the queue are taken", Hint: "try again soon", RetryAfter: by.limiter.retryAfter(),
		}
	case errors.Is(err, errWaited):
		return nil, &api.Error{
			Status: http.StatusServiceUnavailable, Code: api.CodeBusy,
			Message: "no slot became free in time", Hint: "try again later", RetryAfter: by.limiter.retryAfter(),
		}
	default:
		return nil, err
	}
}

// refuse answers with an error that no server saw.
func (p *Pool) refuse(w http.ResponseWriter, call api.Call, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		panic(http.ErrAbortHandler) // the client is gone
	}
	e := api.AsError(err)
	p.count(e.Code)
	p.opts.Log.Debug().Str("code", e.Code).Int("status", e.Status).Msg("request refused")
	api.WriteError(w, call, e)
}
