package node

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// longAnswer sends a piece each time that the test opens the gate a bit.
func longAnswer(pieces chan string) func(*aiCall) {
	return func(c *aiCall) {
		for {
			select {
			case text, ok := <-pieces:
				if !ok {
					c.end()
					return
				}
				c.piece(text)
			case <-c.r.Context().Done():
				return
			}
		}
	}
}

// A running answer goes on when its tunnel is lost: over another path, from the
// byte that the client has, and the AI server is asked once.
func TestAnswerSurvivesItsTunnel(t *testing.T) {
	t.Parallel()
	pieces := make(chan string)
	l := newLab(t)
	ai := newAI(t, "m", longAnswer(pieces))
	m := l.miner("gpu-box", ai, func(c *minerConfig) { c.Deadlines.ResumeWindow = 20 * time.Second })
	cl := l.client()
	p := cl.ask(t, askOptions{prompt: []string{"?"}})
	pieces <- "one "
	p.out.waitFor("one ")
	first := cl.tunnel(t, m)
	for _, piece := range []string{"two ", "three "} {
		before := cl.tunnel(t, m)
		_ = before.Tunnel.Close(quicstream.Replaced) // to either end as if the path were gone
		waitUntil(t, "another tunnel", func() bool { return cl.tunnel(t, m) != before })
		pieces <- piece
		p.out.waitFor(piece)
	}
	close(pieces)
	got := p.wait()
	if got.exit != ExitOK || got.out != "one two three " {
		t.Errorf("%+v", got)
	}
	if n := ai.count(); n != 1 {
		t.Errorf("the AI server was asked %d times", n)
	}
	if cl.tunnel(t, m) == first {
		t.Error("the tunnel is the first one")
	}
}

// What cannot be continued ends with an error and not with silence: the miner was
// started anew and knows nothing of the answer.
func TestAnswerOfAMinerThatForgot(t *testing.T) {
	t.Parallel()
	pieces := make(chan string)
	l := newLab(t)
	ai := newAI(t, "m", longAnswer(pieces))
	m := l.miner("gpu-box", ai)
	cl := l.client()
	p := cl.ask(t, askOptions{prompt: []string{"?"}})
	pieces <- "one "
	p.out.waitFor("one ")
	m.kill()
	m.part.stop()
	l.miner("gpu-box", ai, func(c *minerConfig) { c.Key = m.cfg.Key })
	got := p.wait()
	if got.exit != ExitLost || got.out != "one " || !strings.Contains(got.err, "was lost in the middle") {
		t.Errorf("%+v", got)
	}
}

// A coordinator that was started anew knows no sessions: the client matches with
// the same miner again, and the answer goes on.
func TestAnswerSurvivesAnotherCoordinator(t *testing.T) {
	t.Parallel()
	pieces := make(chan string)
	l := newLab(t)
	ai := newAI(t, "m", longAnswer(pieces))
	m := l.miner("gpu-box", ai, func(c *minerConfig) { c.Deadlines.ResumeWindow = 20 * time.Second })
	cl := l.client()
	p := cl.ask(t, askOptions{prompt: []string{"?"}})
	pieces <- "one "
	p.out.waitFor("one ")
	l.killCoordinator()
	l.startCoordinator()
	l.waitOffered(m)
	waitUntil(t, "the client is back", func() bool { return cl.sig.Status().Connected })
	before := cl.tunnel(t, m)
	_ = before.Tunnel.Close(quicstream.Replaced)
	waitUntil(t, "another tunnel", func() bool { return cl.tunnel(t, m) != before })
	pieces <- "two"
	close(pieces)
	if got := p.wait(); got.exit != ExitOK || got.out != "one two" {
		t.Errorf("%+v", got)
	}
	if n := ai.count(); n != 1 {
		t.Errorf("the AI server was asked %d times", n)
	}
}

// askPath asks the coordinator for another path in a client's name.
func askPath(t *testing.T, cl *labClient, id identity.SessionID, path uint32) (*signalpb.Grant, signalpb.NoMatchCode) {
	t.Helper()
	req := &signalpb.PathRequest{Nonce: make([]byte, 16), Session: id[:], Path: path, Cause: signalpb.PathCause_PATH_CAUSE_LOST}
	_, _ = rand.Read(req.Nonce)
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	matching, err := cl.sig.Path(ctx, req)
	var none *signal.NoMatchError
	switch {
	case err == nil:
		matching.Close()
		return matching.Grant, 0
	case errors.As(err, &none):
		return nil, none.NoMatch.GetCode()
	}
	t.Fatal(err)
	return nil, 0
}

// Who may ask for another path, and how often.
func TestPathRequests(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	alice, bob := l.client(), l.client()
	for _, cl := range []*labClient{alice, bob} {
		if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
			t.Fatalf("%+v", got)
		}
	}
	s := alice.session(t, m)
	password := s.relays[0].config.Password
	grant, _ := askPath(t, alice, s.id, 1)
	if grant == nil || grant.GetPath() != 1 || string(grant.GetSession()) != string(s.id[:]) || grant.GetIce().GetLocalUfrag() == s.localICE.Ufrag {
		t.Fatalf("%v", grant)
	}
	if grant.GetRelay().GetPassword() != password { // another one would end the relay in use
		t.Error("the relay has another password")
	}
	refused := func(name string, cl *labClient, id identity.SessionID, path uint32, want signalpb.NoMatchCode) {
		t.Helper()
		if g, code := askPath(t, cl, id, path); code != want {
			t.Errorf("%s: %v, %v", name, g, code)
		}
	}
	refused("the same path twice", alice, s.id, 1, signalpb.NoMatchCode_NO_MATCH_BAD_REQUEST)
	refused("another client's session", bob, s.id, 2, signalpb.NoMatchCode_NO_MATCH_NO_SESSION)
	refused("no session", alice, identity.NewSessionID(), 2, signalpb.NoMatchCode_NO_MATCH_NO_SESSION)
	waitUntil(t, "the miner looks for the client", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.sessions[s.id] != nil && m.sessions[s.id].path == 1
	})
	busy := false
	for path := uint32(2); path < 2*maxPaths && !busy; path++ {
		_, code := askPath(t, alice, s.id, path)
		busy = code == signalpb.NoMatchCode_NO_MATCH_BUSY
	}
	if !busy {
		t.Errorf("%d paths within a minute were granted", 2*maxPaths)
	}
	bobs := bob.session(t, m)
	m.part.stop()
	waitUntil(t, "the miner has left", func() bool { _, miners := l.co.counts(); return miners == 0 })
	refused("the miner has left", bob, bobs.id, 1, signalpb.NoMatchCode_NO_MATCH_MINER_GONE)
}

// A client's word through the tunnel counts for its own sessions, and only for
// addresses where the coordinator said that relays are.
func TestPathsToldThroughTheTunnel(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	alice, bob := l.client(), l.client()
	for _, cl := range []*labClient{alice, bob} {
		if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
			t.Fatalf("%+v", got)
		}
	}
	s, tunnel := alice.session(t, m), alice.tunnel(t, m)
	told := func(id identity.SessionID, path uint32) error {
		ice, _ := mintICE()
		attempt := &session{id: id, number: path}
		attempt.localICE, attempt.remoteICE = readICE(ice)
		return tellThrough(t.Context(), tunnel, attempt, noCandidates())
	}
	if err := told(bob.session(t, m).id, 1); err == nil {
		t.Error("word of another client's session was taken")
	}
	if err := told(identity.NewSessionID(), 1); err == nil {
		t.Error("word of no session was taken")
	}
	if err := told(s.id, 0); err == nil {
		t.Error("word of a session's first path was taken")
	}
	if err := told(s.id, 1); err != nil {
		t.Errorf("its own: %v", err)
	}
	m.mu.Lock()
	path := m.sessions[s.id].path
	m.mu.Unlock()
	if path != 1 {
		t.Errorf("path %d", path)
	}
	relay := netip.MustParseAddrPort("192.0.2.1:3478")
	if !isAmong([]netip.AddrPort{relay}, relay.Addr()) || isAmong(nil, relay.Addr()) {
		t.Error("which addresses are relays is told wrongly")
	}
}

func TestCoordinatorWatch(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	var w coordinatorWatch
	for i, c := range []struct {
		ms        int
		heard     uint64
		away, say bool
	}{
		{0, 10, false, true},
		{100, 11, false, false}, // it acknowledges
		{1000, 11, false, true}, // is it there?
		{1100, 12, false, false},
		{2000, 12, false, true},
		{3500, 12, false, true},
		{3600, 12, true, false}, // nothing for 2.5 s
		{4500, 12, true, true},
		{4600, 3, false, false}, // another connection
	} {
		away, say := w.look(at(c.ms), c.heard)
		if away != c.away || say != c.say {
			t.Errorf("look %d: away %v, say %v", i, away, say)
		}
	}
}
