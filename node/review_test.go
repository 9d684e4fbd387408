package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"mintai/api"
	"mintai/backend"
	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// laggy forwards datagrams to target and back, each later by lag.
func laggy(t testing.TB, target string, lag time.Duration) string {
	t.Helper()
	to, err := net.ResolveUDPAddr("udp4", target)
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp4", nil, to)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var from *net.UDPAddr
	var wg sync.WaitGroup
	pump := func(read func([]byte) (int, error), write func([]byte)) {
		buf := make([]byte, 64<<10)
		for {
			n, err := read(buf)
			if err != nil {
				return
			}
			b := append([]byte(nil), buf[:n]...)
			wg.Add(1)
			time.AfterFunc(lag, func() { defer wg.Done(); write(b) })
		}
	}
	wg.Go(func() {
		pump(func(b []byte) (int, error) {
			n, addr, err := front.ReadFromUDP(b)
			mu.Lock()
			from = addr
			mu.Unlock()
			return n, err
		}, func(b []byte) { _, _ = back.Write(b) })
	})
	wg.Go(func() {
		pump(back.Read, func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			_, _ = front.WriteToUDP(b, from)
		})
	})
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		wg.Wait()
	})
	return front.LocalAddr().String()
}

// While a miner that stops lets its answers finish, a further request goes
// elsewhere and leaves them alone.
func TestDrainingMinerFinishesItsAnswers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", func(c *aiCall) { waitGate(c); c.end() })
	m := l.miner("gpu-box", ai, func(c *minerConfig) { c.Deadlines.Drain = testWait })
	cl := l.client()
	first := cl.ask(t, askOptions{prompt: []string{"?"}})
	first.out.waitFor("first")
	m.part.cancel()
	waitUntil(t, "the miner drains", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.draining
	})
	got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait()
	if got.exit != ExitNoMiner {
		t.Errorf("the second: %+v", got)
	}
	ai.gate()
	if got := first.wait(); got.exit != ExitOK || got.out != "first" {
		t.Errorf("the first: %+v", got)
	}
}

// A request over a warm tunnel may overtake the offer of its session.
func TestRequestOvertakesItsOffer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", says("fine"))
	pool := l.pool(backend.Options{}, backend.Config{Type: backend.TypeOpenAI, URL: ai.URL, Slots: 4})
	far := laggy(t, l.addr, 60*time.Millisecond)
	m := l.newMiner("far", pool, func(c *minerConfig) { c.Membership.addrs = []string{far} })
	m.part = start(t, "far", m.Run)
	l.waitOffered(m)
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	cl.forget(cl.session(t, m))
	got := cl.ask(t, askOptions{prompt: []string{"?"}, json: true}).wait()
	var report jsonReport
	if err := json.Unmarshal([]byte(got.out), &report); err != nil {
		t.Fatal(err)
	}
	if got.exit != ExitOK || report.Attempts != 1 {
		t.Errorf("exit %d: %s", got.exit, got.out)
	}
}

// A client that asks for more at once than a miner has slots goes on being served.
func TestSessionsDoNotPileUp(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", says("fine"))
	ai.slots = 1
	go func() {
		for range ai.began {
		}
	}()
	t.Cleanup(func() { close(ai.began) })
	pool := l.pool(backend.Options{QueueLimit: 64}, backend.Config{Type: backend.TypeOpenAI, URL: ai.URL, Slots: 1})
	m := l.newMiner("gpu-box", pool)
	m.part = start(t, "gpu-box", m.Run)
	l.waitOffered(m)
	cl := l.client()
	var wg sync.WaitGroup
	var mu sync.Mutex
	bad := map[string]int{}
	for range 8 {
		wg.Go(func() {
			for range 80 {
				if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
					mu.Lock()
					bad[got.err]++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	sessions, _ := l.co.counts()
	m.mu.Lock()
	there := len(m.sessions)
	m.mu.Unlock()
	cl.mu.Lock()
	here := len(cl.sessions)
	cl.mu.Unlock()
	if len(bad) > 0 || sessions > 2*maxOver || there > 2*maxOver || here > 2*maxOver {
		t.Errorf("failed %v; %d sessions at the coordinator, %d at the miner, %d at the client", bad, sessions, there, here)
	}
}

// A client whose path failed says so before it ends the session.
func TestNoPathIsCounted(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *coordinatorConfig) { c.TURN.Enabled = false })
	l.unreachable("gpu-box", newAI(t, "m", says("fine")))
	cl := l.hidden(func(c *clientConfig) { c.Deadlines.Direct = 300 * time.Millisecond })
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitNoPath {
		t.Fatalf("%+v", got)
	}
	waitUntil(t, "the receipt", func() bool {
		return strings.Contains(l.metrics(t), `mintai_coordinator_receipts_total{from="client",outcome="OUTCOME_NO_PATH"}`)
	})
}

// A match that nobody waits for any more is given back.
func TestUnwantedGrantIsGivenBack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.miner("gpu-box", newAI(t, "m", says("fine")))
	far := laggy(t, l.addr, 50*time.Millisecond)
	cl := l.client(func(c *clientConfig) { c.Membership.addrs = []string{far} })
	if err := cl.sig.WaitConnected(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := cl.sig.Match(ctx, cl.matchRequest(needs{}, nil, 1)); err == nil {
		t.Fatal("matched at once")
	}
	waitUntil(t, "the offer", func() bool { s, _ := l.co.counts(); return s == 1 })
	waitUntil(t, "the end of the session", func() bool {
		s, _ := l.co.counts()
		m.mu.Lock()
		defer m.mu.Unlock()
		return s == 0 && len(m.sessions) == 0
	})
}

// A request that is cancelled while it connects takes nothing from another that
// waits for the same tunnel.
func TestCancelledConnectHarmsNobody(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	far := laggy(t, l.addr, 100*time.Millisecond)
	ai := newAI(t, "m", says("fine"))
	pool := l.pool(backend.Options{}, backend.Config{Type: backend.TypeOpenAI, URL: ai.URL, Slots: 4})
	m := l.newMiner("far", pool, func(c *minerConfig) { c.Membership.addrs = []string{far} })
	m.part = start(t, "far", m.Run)
	l.waitOffered(m)
	cl := l.client()
	if err := cl.sig.WaitConnected(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := cl.ask(t, askOptions{prompt: []string{"?"}})
	waitUntil(t, "the first connects", func() bool {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		return len(cl.dialing) == 1
	})
	second := cl.ask(t, askOptions{prompt: []string{"?"}, json: true})
	waitUntil(t, "the second has a session", func() bool {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		return len(cl.sessions) == 2
	})
	first.cancel()
	first.wait()
	got := second.wait()
	var report jsonReport
	if err := json.Unmarshal([]byte(got.out), &report); err != nil {
		t.Fatal(err)
	}
	if got.exit != ExitOK || report.Attempts != 1 {
		t.Errorf("exit %d: %s", got.exit, got.out)
	}
	third := cl.ask(t, askOptions{prompt: []string{"?"}, json: true}).wait()
	if err := json.Unmarshal([]byte(third.out), &report); err != nil {
		t.Fatal(err)
	}
	if third.exit != ExitOK || report.Attempts != 1 {
		t.Errorf("exit %d: %s", third.exit, third.out)
	}
}

// What a person types wrong is no fault of ours.
func TestOddNames(t *testing.T) {
	t.Parallel()
	l, _, _ := ready(t, says("fine"))
	for _, name := range []string{"a\nb", strings.Repeat("x", 600), "m@" + strings.Repeat("x", 100), "\xff", "ü", "a@b@c", "@", "m@"} {
		got := l.ask("-m", name, "?").wait()
		if got.exit == ExitInternal || got.exit == ExitNoPath {
			t.Errorf("%.20q: %+v", name, got)
		}
	}
}

// The deadline also ends a wait for standard input, and is told as JSON.
func TestDeadlineInStdin(t *testing.T) {
	t.Parallel()
	l, _, _ := ready(t, says("fine"))
	in, _ := pipe(t)
	got := l.askWithStdin(in, "-timeout", "50ms", "-").wait()
	if got.exit != ExitDeadline {
		t.Errorf("%+v", got)
	}
	in, _ = pipe(t)
	got = l.askWithStdin(in, "-json", "-timeout", "50ms", "-").wait()
	if got.exit != ExitDeadline || !json.Valid([]byte(got.out)) {
		t.Errorf("%+v", got)
	}
}

// A miner whose server has more models than fit in a lease, and odd ones,
// offers those that fit.
func TestManyModels(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.newMiner("library", l.pool(backend.Options{}, backend.Config{Type: backend.TypeDemo}))
	defer func() { _ = m.socket.Close() }()
	for _, c := range []struct{ size, least int }{{8, 150}, {250, 100}} {
		snap := backend.Snapshot{Slots: 1 << 20, QueueLimit: 1}
		for i := range 500 {
			name := fmt.Sprintf("%0*d", c.size, i)
			if i%10 == 0 {
				name = "\x1b[31m" + name // nobody could ask for it
			}
			snap.Models = append(snap.Models, backend.ModelInfo{
				Name: api.Model(name), Calls: api.Calls(), Family: strings.Repeat("f", 100), ContextTokens: 1 << 31,
				Quantization: strings.Repeat("q", 100), Backend: "openai", SizeBytes: 1 << 62,
			})
		}
		lease := writeLease(snap)
		env := &signalpb.Envelope{Message: &signalpb.Envelope_Lease{Lease: lease}}
		if err := signal.Validate(env); err != nil {
			t.Errorf("%d bytes: %v", c.size, err)
		}
		if err := signal.WriteMessage(io.Discard, env); err != nil {
			t.Errorf("%d bytes: %v", c.size, err)
		}
		if n := len(lease.GetModels()); n < c.least {
			t.Errorf("%d bytes: %d models, want %d", c.size, n, c.least)
		}
	}
}

// A session that begins when its client has left does not last.
func TestDeclinedAfterTheClientLeft(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	model := &signalpb.OfferedModel{Name: "m", Backend: "openai", Calls: []string{"/v1/chat/completions"}}
	first := l.attack(signalpb.Role_ROLE_MINER, "first")
	first.lease(model)
	client := l.attack(signalpb.Role_ROLE_CLIENT, "leaver")
	client.request(1)
	grant := client.hear("a grant", isMatched).GetGrant()
	second := l.attack(signalpb.Role_ROLE_MINER, "second")
	second.lease(model)
	_ = client.conn.CloseWithError(0, "")
	waitUntil(t, "the client has left", func() bool { return !l.isConnected(client.key.ID()) })
	first.say(&signalpb.Envelope{Message: &signalpb.Envelope_Decline{Decline: &signalpb.Decline{Session: grant.GetSession(), Reason: "busy"}}})
	offer := second.hear("an offer", func(e *signalpb.Envelope) bool { return e.GetOffer() != nil }).GetOffer()
	second.say(&signalpb.Envelope{Message: &signalpb.Envelope_Taken{Taken: &signalpb.Taken{Session: offer.GetSession()}}})
	waitUntil(t, "the offer is taken", func() bool {
		l.co.mu.Lock()
		defer l.co.mu.Unlock()
		s := l.co.sessions[identity.SessionID(offer.GetSession())]
		return s != nil && s.offerEnds.IsZero()
	})
	now := time.Now()
	l.co.sweep(now)
	l.co.sweep(now.Add(setupLimit))
	if n, _ := l.co.counts(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// A renewed session keeps its relay, in the middle of an answer too.
func TestRenewedSessionKeepsItsRelay(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *coordinatorConfig) { c.Deadlines.Session = 3 * time.Second })
	gate := make(chan struct{})
	m := l.unreachable("gpu-box", newAI(t, "m", saysAfter(gate, "first", " last")))
	cl := l.hidden()
	p := cl.ask(t, askOptions{prompt: []string{"?"}})
	p.out.waitFor("first")
	s := cl.session(t, m)
	if cl.tunnel(t, m).leg == nil {
		t.Fatal("the path is no relay")
	}
	first := s.expires
	cl.mu.Lock()
	cl.renew(s)
	cl.mu.Unlock()
	waitUntil(t, "the first grant's end", func() bool { return time.Now().After(first.Add(100 * time.Millisecond)) })
	close(gate)
	if got := p.wait(); got.exit != ExitOK || got.out != "first last" {
		t.Errorf("%+v", got)
	}
}

// An answer that is not streamed may take as long as the whole of it takes.
func TestWholeAnswersMayBeSlow(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gate := make(chan struct{})
	ai := newAI(t, "m", func(c *aiCall) {
		select {
		case <-gate:
		case <-c.r.Context().Done():
			return
		}
		_, _ = io.WriteString(c.w, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}`)
	})
	l.miner("one", ai)
	l.miner("two", ai)
	const limit = 500 * time.Millisecond
	url := l.client(func(c *clientConfig) { c.Deadlines.FirstByte = limit }).endpoint(t)
	began := time.Now()
	time.AfterFunc(limit+limit/2, func() { close(gate) })
	resp := post(t, t.Context(), url, strings.Replace(streamBody, "true", "false", 1))
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || ai.count() != 1 {
		t.Errorf("status %d after %v, %v, %d questions: %s", resp.StatusCode, time.Since(began), err, ai.count(), body)
	}
}

// Nothing in a JSON line steers a terminal, and nothing in it is changed.
func TestJSONIsHarmless(t *testing.T) {
	t.Parallel()
	in := "\x1b[31m\u009b31m\u202e\u2066\x7f\u2028 ü 漢 😀 <&> \U000e0001"
	var line strings.Builder
	if err := writeJSON(&line, in); err != nil {
		t.Fatal(err)
	}
	for _, r := range line.String() {
		if unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Bidi_Control, r) {
			t.Errorf("%U in %q", r, line.String())
		}
	}
	var out string
	if err := json.Unmarshal([]byte(line.String()), &out); err != nil || out != in {
		t.Errorf("%q, %v", out, err)
	}
}

// A session lasts as long as it was granted for, also where the clock is hours
// ahead of the coordinator's.
func TestClocksMayDisagree(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("fine"))
	past := time.Now().Add(-3 * time.Hour).UnixMilli()
	forClient, forMiner := mintICE()
	id, client := identity.NewSessionID(), newKey(t).ID()
	m.offered(&signalpb.Offer{Session: id[:], Client: client[:], Model: "m", Ice: forMiner, ExpiresUnixMs: past, LifetimeMs: 60_000})
	if _, refusal := m.sessionFor(client, id.String()); refusal != nil {
		t.Errorf("at the miner: %v", refusal)
	}
	s, err := readGrant(&signalpb.Grant{Session: id[:], Miner: client[:], Model: "m", Ice: forClient, ExpiresUnixMs: past, LifetimeMs: 60_000})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(s.expires); left < 50*time.Second || left > time.Minute {
		t.Errorf("at the client: %v are left", left)
	}
	if s.expires.Round(0) == s.expires {
		t.Error("the end moves when the clock is set")
	}
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	if e := cl.session(t, m).expires; e.Round(0) == e {
		t.Error("the coordinator said no lifetime")
	}
}
