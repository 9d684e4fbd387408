package node

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mintai/ice"
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

// feed sends one more piece of the answer.
func feed(t *testing.T, pieces chan<- string, piece string) {
	t.Helper()
	select {
	case pieces <- piece:
	case <-time.After(testWait):
		t.Fatalf("the AI server is not asked for %q any more", piece)
	}
}

// midway is a lab in which a client has the first piece, "one ", of an answer.
func midway(t *testing.T) (l *lab, ai *aiServer, m *labMiner, cl *labClient, p *process, pieces chan string) {
	t.Helper()
	pieces = make(chan string)
	l = newLab(t)
	ai = newAI(t, "m", longAnswer(pieces))
	m = l.miner("gpu-box", ai, func(c *minerConfig) { c.Deadlines.ResumeWindow = 20 * time.Second })
	cl = l.client()
	p = cl.ask(t, askOptions{prompt: []string{"?"}})
	feed(t, pieces, "one ")
	p.out.waitFor("one ")
	return l, ai, m, cl, p, pieces
}

// A running answer goes on when its tunnel is lost: over another path, from the
// byte that the client has, and the AI server is asked once.
func TestAnswerSurvivesItsTunnel(t *testing.T) {
	t.Parallel()
	_, ai, m, cl, p, pieces := midway(t)
	first := cl.tunnel(t, m)
	for _, piece := range []string{"two ", "three "} {
		before := cl.tunnel(t, m)
		_ = before.Tunnel.Close(quicstream.Replaced) // to either end as if the path were gone
		waitUntil(t, "another tunnel", func() bool { return cl.tunnel(t, m) != before })
		feed(t, pieces, piece)
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
	l, ai, m, _, p, _ := midway(t)
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
	l, ai, m, cl, p, pieces := midway(t)
	l.killCoordinator()
	l.startCoordinator()
	l.waitOffered(m)
	waitUntil(t, "the client is back", func() bool { return cl.sig.Status().Connected })
	before := cl.tunnel(t, m)
	_ = before.Tunnel.Close(quicstream.Replaced)
	waitUntil(t, "another tunnel", func() bool { return cl.tunnel(t, m) != before })
	feed(t, pieces, "two")
	close(pieces)
	if got := p.wait(); got.exit != ExitOK || got.out != "one two" {
		t.Errorf("%+v", got)
	}
	if n := ai.count(); n != 1 {
		t.Errorf("the AI server was asked %d times", n)
	}
}

const (
	lostCause    = signalpb.PathCause_PATH_CAUSE_LOST
	upgradeCause = signalpb.PathCause_PATH_CAUSE_UPGRADE
)

// askPath asks the coordinator for another path in a client's name.
func askPath(t *testing.T, cl *labClient, id identity.SessionID, path uint32, cause signalpb.PathCause) (*signalpb.Grant, signalpb.NoMatchCode) {
	t.Helper()
	req := &signalpb.PathRequest{Nonce: make([]byte, 16), Session: id[:], Path: path, Cause: cause, Probing: true}
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
	grant, _ := askPath(t, alice, s.id, 1, lostCause)
	if grant == nil || grant.GetPath() != 1 || string(grant.GetSession()) != string(s.id[:]) || grant.GetIce().GetLocalUfrag() == s.localICE.Ufrag {
		t.Fatalf("%v", grant)
	}
	if grant.GetRelay().GetPassword() != password { // another one would end the relay in use
		t.Error("the relay has another password")
	}
	refused := func(name string, cl *labClient, id identity.SessionID, path uint32, want signalpb.NoMatchCode) {
		t.Helper()
		if g, code := askPath(t, cl, id, path, lostCause); code != want {
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
		_, code := askPath(t, alice, s.id, path, lostCause)
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
	relays := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:3478")} // as a coordinator with an operator's relay says
	m.mu.Lock()
	m.sessions[s.id].relays = relays
	m.mu.Unlock()
	at := func(ip netip.Addr) []ice.Candidate {
		return []ice.Candidate{{Kind: ice.RelayUDP, Addr: netip.AddrPortFrom(ip, 50000)}}
	}
	told := func(id identity.SessionID, path uint32, candidates []ice.Candidate) error {
		ice, _ := mintICE()
		attempt := &session{id: id, number: path}
		attempt.localICE, attempt.remoteICE = readICE(ice)
		return tellThrough(t.Context(), tunnel, attempt, candidates)
	}
	if err := told(bob.session(t, m).id, 1, at(relays[0].Addr())); err == nil {
		t.Error("word of another client's session was taken")
	}
	if err := told(identity.NewSessionID(), 1, at(relays[0].Addr())); err == nil {
		t.Error("word of no session was taken")
	}
	if err := told(s.id, 0, at(relays[0].Addr())); err == nil {
		t.Error("word of a session's first path was taken")
	}
	if err := told(s.id, 1, at(netip.MustParseAddr("127.9.9.9"))); err == nil {
		t.Error("an address where no relay is was taken")
	}
	if grant, _ := askPath(t, alice, s.id, 2, upgradeCause); grant == nil { // which names no relay when only a direct path will do
		t.Error("no path was granted")
	}
	if err := told(s.id, 3, at(relays[0].Addr())); err != nil {
		t.Errorf("its own: %v", err)
	}
	m.mu.Lock()
	path := m.sessions[s.id].path
	m.mu.Unlock()
	if path != 3 {
		t.Errorf("path %d", path)
	}
	relay := netip.MustParseAddrPort("192.0.2.1:3478")
	if !isAmong([]netip.AddrPort{relay}, relay.Addr()) || isAmong(nil, relay.Addr()) {
		t.Error("which addresses are relays is told wrongly")
	}
}

// A grant that comes when nobody looks for that path any more does not end the
// session that it is for: an answer runs in it.
func TestLateGrantOfAPath(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	cl := l.client()
	ask := func() {
		t.Helper()
		if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
			t.Fatalf("%+v", got)
		}
	}
	ask()
	s := cl.session(t, m)
	for path := range uint32(2) {
		(*clientHandler)(cl.client).Message(&signalpb.Envelope{Message: &signalpb.Envelope_Grant{
			Grant: &signalpb.Grant{Session: s.id[:], Miner: s.miner[:], Path: path},
		}})
	}
	if grant, code := askPath(t, cl, s.id, 1, lostCause); grant == nil {
		t.Errorf("the coordinator has ended the session: %v", code)
	}
	ask()
	if cl.session(t, m) != s {
		t.Error("it is another session")
	}
}

// A coordinator has hard-NAT probing aimed only where an end's connection comes
// from: the source of one packet may be forged.
func TestProbingIsAimedAtConnections(t *testing.T) {
	const ei, apd = ice.EndpointIndependent, ice.AddressAndPortDependent
	now := time.Now()
	c := &coordinator{view: newNetview()}
	saw := func(v peerView) peerView {
		c.view.Saw(v.id, v.network.V4.Observed, netip.AddrPort{}, now)
		v.probes = true
		return v
	}
	client, miner := saw(behind("40.0.0.1:2", apd, apd)), saw(behind("30.0.0.1:1", ei, apd))
	o := outlook{expect: ice.RelayNeeded, reason: ice.ClientNATHard}
	forClient, forMiner := c.probing(client, miner, o, now)
	if forClient == nil || forMiner == nil || !forClient.GetHard() || forMiner.GetHard() {
		t.Fatalf("%v, %v", forClient, forMiner)
	}
	for name, change := range map[string]func(c, m *peerView){
		"the connection comes from elsewhere": func(c, _ *peerView) { c.observed = at("50.0.0.1:2") },
		"it is over TLS":                      func(_, m *peerView) { m.overTLS = true },
		"one end takes no part":               func(_, m *peerView) { m.probes = false },
		"not heard from":                      func(c, _ *peerView) { c.id = nodeNumber(99) },
		"not public": func(_, m *peerView) {
			m.observed, m.network.V4 = at("10.0.0.1:1"), &ice.Family{Observed: at("10.0.0.1:1")}
		},
	} {
		cl, mi := client, miner
		change(&cl, &mi)
		if a, b := c.probing(cl, mi, o, now); a != nil || b != nil {
			t.Errorf("%s: %v, %v", name, a, b)
		}
	}
	if a, _ := c.probing(client, miner, outlook{expect: ice.RelayNeeded, reason: ice.BothNATsHard}, now); a != nil {
		t.Error("two hard NATs probe each other")
	}
	if a, _ := c.probing(client, miner, o, now.Add(2*time.Minute)); a != nil {
		t.Error("an old proof counts")
	}
}

func TestPathsOfAnAnswer(t *testing.T) {
	t.Parallel()
	for want, g := range map[string]answered{
		"host":              {lastPath: Path{Kind: "host"}},
		"srflx":             {firstPath: Path{Kind: "srflx"}, lastPath: Path{Kind: "srflx"}},
		"relay-udp → prflx": {firstPath: Path{Kind: "relay-udp"}, lastPath: Path{Kind: "prflx"}},
	} {
		if got := g.paths(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
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
