package node

import (
	"context"
	"errors"
	"net/http"
	"time"

	"mintai/api"
	"mintai/backend"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal/signalpb"
)

// authorize admits a client's tunnel while it has a live session here.
func (m *miner) authorize(client identity.NodeID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.granted[client] == 0 {
		return errors.New("no live session")
	}
	return nil
}

// serve answers one request that came through a tunnel.
func (m *miner) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.URL.EscapedPath() == pathCall {
		m.servePath(w, r)
		return
	}
	call, err := api.Lookup(r.Method, r.URL.EscapedPath())
	if err != nil {
		api.WriteError(w, "", &api.Error{Status: http.StatusNotFound, Code: api.CodeNotOffered, Message: "no such call here"})
		return
	}
	client, _ := quicstream.PeerFromContext(r.Context())
	m.awaitOffer(r.Context(), r.Header.Get(api.HeaderSession))
	s, refusal := m.sessionFor(client, r.Header.Get(api.HeaderSession))
	if refusal != nil {
		api.WriteError(w, call, refusal)
		return
	}
	started := time.Now()
	acc := &accountWriter{ResponseWriter: w, start: started, counter: api.NewTokenCounter(call, true)}
	completed := false
	m.noteLoad()
	defer func() { // also when the handler aborts a truncated answer
		m.account(s, r, acc, completed)
		m.noteLoad()
	}()
	m.cfg.Backends.ServeHTTP(acc, r.WithContext(backend.WithGrant(r.Context(), s.model)))
	completed = true
}

// awaitClient waits until the client has a session here, at most offerGrace: its
// handshake may overtake the offer, most of all within one network.
func (m *miner) awaitClient(ctx context.Context, client identity.NodeID) {
	m.await(ctx, func() bool { return m.granted[client] > 0 || m.draining })
}

// awaitOffer waits until the session is known or over, at most offerGrace.
func (m *miner) awaitOffer(ctx context.Context, header string) {
	id, err := identity.ParseSessionID(header)
	if err != nil {
		return
	}
	m.await(ctx, func() bool {
		_, over := m.ended[id]
		return m.sessions[id] != nil || over || m.draining
	})
}

// await waits until ready, which is asked with mu held, at most offerGrace.
func (m *miner) await(ctx context.Context, ready func() bool) {
	limit := time.NewTimer(offerGrace)
	defer limit.Stop()
	for {
		m.mu.Lock()
		done, offers := ready(), m.offers
		m.mu.Unlock()
		if done {
			return
		}
		select {
		case <-offers:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// useLocked notes that something is asked. Where this miner has relays of its own,
// the client's tunnel may run over that of another of its sessions.
func (m *miner) useLocked(s *minerSession) {
	s.used = true
	if !s.lent || m.granted[s.client] < 2 {
		return
	}
	for _, other := range m.sessions {
		if other.client == s.client {
			other.used = true
		}
	}
}

// sessionFor returns the client's live session with that ID.
func (m *miner) sessionFor(client identity.NodeID, header string) (*minerSession, *api.Error) {
	id, err := identity.ParseSessionID(header)
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[id]
	switch {
	case err != nil, s == nil, s.client != client, !s.expires.After(time.Now()):
		return nil, &api.Error{Status: http.StatusForbidden, Code: codeSession, Message: "no live session of this client"}
	case m.draining:
		return nil, &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeShuttingDown, Message: "the miner is stopping"}
	}
	m.useLocked(s)
	if s.path == 0 {
		s.stopChecksLocked() // its client is here; on its way to another path it asks over the former one
	}
	copied := *s
	return &copied, nil
}

// account reports what this end saw of the request.
func (m *miner) account(s *minerSession, r *http.Request, w *accountWriter, completed bool) {
	a := account{total: time.Since(w.start), bytes: w.bytes, outcome: signalpb.Outcome_OUTCOME_OK}
	if id, err := identity.ParseSessionID(r.Header.Get(api.HeaderRequest)); err == nil {
		a.id = id
	}
	a.tokens, _ = w.counter.Tokens()
	if !w.firstAt.IsZero() {
		a.firstToken = w.firstAt.Sub(w.start)
		if rest := time.Since(w.firstAt).Seconds(); rest > 0 && a.tokens > 1 {
			a.speed = float64(a.tokens-1) / rest
		}
	}
	switch {
	case r.Context().Err() != nil:
		a.outcome = signalpb.Outcome_OUTCOME_CANCELLED
	case !completed, w.status >= 500:
		a.outcome = signalpb.Outcome_OUTCOME_BACKEND_ERROR
	case w.status >= 400:
		a.outcome = signalpb.Outcome_OUTCOME_REFUSED
	}
	m.cfg.Metrics.request(a)
	_ = m.sig.Send(a.message(s.id, s.model)) // lost when the coordinator is away
	m.log.Debug().Str("session", s.id.Short()).Str("peer", s.client.Short()).Str("outcome", a.outcome.String()).
		Dur("first", a.firstToken).Dur("total", a.total).Uint64("tokens", a.tokens).Msg("request")
}

// accountWriter counts what passes to the client.
type accountWriter struct {
	http.ResponseWriter
	start, firstAt time.Time
	status         int
	bytes          uint64
	counter        *api.TokenCounter
}

// WriteHeader notes the final status.
func (w *accountWriter) WriteHeader(status int) {
	if status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write passes p on.
func (w *accountWriter) Write(p []byte) (int, error) {
	if w.firstAt.IsZero() {
		w.firstAt = time.Now()
	}
	w.bytes += uint64(len(p))
	_, _ = w.counter.Write(p) // counts, never fails
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController flush.
func (w *accountWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
