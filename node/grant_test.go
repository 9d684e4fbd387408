package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"mintai/api"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal/signalpb"
)

// sendWith sends a question through a tunnel in the name of a session, and
// returns the status and the code of the answer.
func sendWith(t *testing.T, l *link, s *session) (int, string) {
	t.Helper()
	req, err := api.ReadRequest(api.ChatCompletions, http.Header{"Content-Type": {"application/json"}}, bytes.NewReader([]byte(streamBody)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	hr, err := newTunnelRequest(s, req, "").build(ctx, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := l.RoundTrip(hr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get(api.HeaderError)
}

// What a miner answers is what was granted: this session, to this client, for
// this model, until it ends.
func TestGrants(t *testing.T) {
	t.Parallel()
	l, m, ai := ready(t, says("ok"))
	alice, bob := l.client(), l.client()
	for _, cl := range []*labClient{alice, bob} {
		if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
			t.Fatalf("%+v", got)
		}
	}
	asked := ai.count()
	own, foreign := bob.session(t, m), alice.session(t, m)
	tunnel := bob.tunnel(t, m)
	refused := func(name string, s *session, wantStatus int, wantCode string) {
		t.Helper()
		if status, code := sendWith(t, tunnel, s); status != wantStatus || code != wantCode {
			t.Errorf("%s: %d %q, want %d %q", name, status, code, wantStatus, wantCode)
		}
		if n := ai.count(); n != asked {
			t.Errorf("%s: it reached the AI server", name)
			asked = n
		}
	}
	refused("another client's session", foreign, http.StatusForbidden, codeSession)
	refused("an unknown session", &session{id: identity.NewSessionID(), model: "m"}, http.StatusForbidden, codeSession)
	refused("no session", &session{model: "m"}, http.StatusForbidden, codeSession)
	refused("another model", &session{id: own.id, model: "other"}, http.StatusForbidden, api.CodeNotGranted)

	// An expired one, while the client still has another: the tunnel is up.
	m.mu.Lock()
	late := *m.sessions[own.id]
	late.id, late.expires = identity.NewSessionID(), time.Now().Add(-time.Millisecond)
	m.sessions[late.id] = &late
	m.granted[late.client]++
	m.mu.Unlock()
	refused("an expired session", &session{id: late.id, model: "m"}, http.StatusForbidden, codeSession)

	if status, _ := sendWith(t, tunnel, own); status != http.StatusOK { // it was none of it that refused
		t.Errorf("its own session: %d", status)
	}
	asked++

	// A grant that is used again after its session was ended by its client, or
	// by the coordinator.
	bob.endSession(own.id, "done")
	waitUntil(t, "the session ends at the miner", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.sessions[own.id] == nil && m.sessions[late.id] == nil
	})
	refused("an ended session", own, http.StatusForbidden, string(quicstream.RefusedUnauthorized))

	// Alice is not disturbed by any of it.
	if got := alice.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK || got.out != "ok" {
		t.Errorf("%+v", got)
	}
}

// An expired grant is replaced by a new one, unnoticed by the person.
func TestExpiredSessionIsRenewed(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *coordinatorConfig) { c.Deadlines.Session = 300 * time.Millisecond })
	ai := newAI(t, "m", says("ok"))
	m := l.miner("gpu-box", ai)
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	s, tunnel := cl.session(t, m), cl.tunnel(t, m)
	waitUntil(t, "the grant expires", func() bool { // at each end when it was told the lifetime, by its own clock
		m.mu.Lock()
		defer m.mu.Unlock()
		there := m.sessions[s.id]
		return s.expired(time.Now()) && (there == nil || !there.expires.After(time.Now()))
	})
	if status, code := sendWith(t, tunnel, s); status != http.StatusForbidden {
		t.Errorf("the expired grant: %d %q", status, code)
	}
	if n := ai.count(); n != 1 {
		t.Errorf("%d questions at the AI server", n)
	}
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK || got.out != "ok" || got.err != "" {
		t.Errorf("%+v", got)
	}
}

// Whoever was granted nothing gets no tunnel, and a miner with another key than
// the granted one is not talked to.
func TestStrangersGetNoTunnel(t *testing.T) {
	t.Parallel()
	l, m, ai := ready(t, says("ok"))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	addr := net.UDPAddrFromAddrPort(m.socket.LocalAddr())
	dial := func(key *identity.Key, peer identity.NodeID) error {
		ctx, cancel := context.WithTimeout(t.Context(), testWait)
		defer cancel()
		tunnel, err := quicstream.Dial(ctx, quicstream.DialConfig{Transport: cl.socket.Transport(), Addr: addr, Key: key, Peer: peer})
		if err != nil {
			return err
		}
		defer func() { _ = tunnel.Close(quicstream.Done) }()
		receive(t, "the miner's refusal", tunnel.Done())
		return tunnel.Err()
	}
	if err := dial(newKey(t), m.id()); !errors.Is(err, quicstream.ErrUnauthorized) {
		t.Errorf("a stranger: %v", err)
	}
	if err := dial(cl.key, newKey(t).ID()); !errors.Is(err, quicstream.ErrPeerIdentity) {
		t.Errorf("another miner than the granted one: %v", err)
	}
	if n := ai.count(); n != 1 {
		t.Errorf("%d questions at the AI server", n)
	}
}

// A match that is asked twice with one nonce, as a repeated 0-RTT packet does,
// makes one session.
func TestReplayedMatchMakesOneSession(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	cl := l.client()
	request := cl.matchRequest(needs{call: api.ChatCompletions}, nil, 1)
	var grants []*signalpb.Grant
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), testWait)
		matching, err := cl.sig.Match(ctx, request)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		matching.Close()
		grants = append(grants, matching.Grant)
	}
	for _, g := range grants[1:] {
		if !bytes.Equal(g.GetSession(), grants[0].GetSession()) {
			t.Error("a second session was granted")
		}
	}
	if sessions, _ := l.co.counts(); sessions != 1 {
		t.Errorf("%d sessions at the coordinator", sessions)
	}
	waitUntil(t, "the offer", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.sessions) == 1
	})
}

// A coordinator's broken grant is an error, not a crash.
func TestReadGrantRefusesNonsense(t *testing.T) {
	t.Parallel()
	forClient, _ := mintICE()
	id, miner := identity.NewSessionID(), newKey(t).ID()
	good := func() *signalpb.Grant { return &signalpb.Grant{Session: id[:], Miner: miner[:], Ice: forClient} }
	s, err := readGrant(good())
	if err != nil || s.id != id || s.miner != miner || s.minerName != miner.Short() || len(s.relays) != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, spoil := range map[string]func(*signalpb.Grant){
		"empty":          func(g *signalpb.Grant) { g.Reset() },
		"short session":  func(g *signalpb.Grant) { g.Session = g.Session[:5] },
		"no miner":       func(g *signalpb.Grant) { g.Miner = nil },
		"no credentials": func(g *signalpb.Grant) { g.Ice = nil },
	} {
		g := good()
		spoil(g)
		if s, err := readGrant(g); err == nil || s != nil {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	g := good()
	for _, a := range []*signalpb.Address{nil, {Ip: []byte{1, 2, 3}, Port: 1}, {Ip: []byte{127, 0, 0, 1}, Port: 70000}, {Ip: []byte{127, 0, 0, 1}}} {
		g.Candidates = append(g.Candidates, &signalpb.Candidate{Kind: signalpb.CandidateKind_CANDIDATE_HOST, Address: a})
	}
	g.Candidates = append(g.Candidates, &signalpb.Candidate{Kind: 99, Address: &signalpb.Address{Ip: []byte{127, 0, 0, 1}, Port: 9}})
	if s, err := readGrant(g); err != nil || len(s.candidates) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
