package node

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"mintai/backend"
	"mintai/identity"
	"mintai/match"
)

// avoid makes the coordinator believe that the miner has no free slot, so that
// it sends requests elsewhere as long as there is somewhere else.
func (l *lab) avoid(m *labMiner) {
	for range m.pool.Snapshot().Slots {
		l.co.board.Begin(identity.NewSessionID(), m.id(), "m", time.Now().Add(time.Minute))
	}
}

// A miner that cannot answer is replaced by the next one before the first byte,
// and nobody notices.
func TestFailover(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		harm func(t *testing.T, l *lab, m *labMiner, ai *aiServer)
		most time.Duration
	}{
		{"declines", func(t *testing.T, _ *lab, m *labMiner, _ *aiServer) {
			m.leaseMu.Lock() // no lease says so
			t.Cleanup(m.leaseMu.Unlock)
			m.mu.Lock()
			m.draining = true
			m.mu.Unlock()
		}, 2 * time.Second},
		{"vanished", func(_ *testing.T, _ *lab, m *labMiner, _ *aiServer) { m.kill() }, 4 * time.Second},
		{"AI server gone", func(_ *testing.T, _ *lab, _ *labMiner, ai *aiServer) { ai.Close() }, 2 * time.Second},
		{"AI server hangs up", func(_ *testing.T, _ *lab, _ *labMiner, ai *aiServer) {
			ai.answer = func(c *aiCall) { c.die() }
		}, 2 * time.Second},
		{"AI server talks nonsense", func(_ *testing.T, _ *lab, _ *labMiner, ai *aiServer) {
			ai.answer = func(c *aiCall) {
				c.w.Header().Set("Content-Type", "text/html")
				_, _ = c.w.Write([]byte("<h1>hello</h1>"))
			}
		}, 2 * time.Second},
		{"AI server refuses the miner's key", func(_ *testing.T, _ *lab, _ *labMiner, ai *aiServer) {
			ai.answer = func(c *aiCall) { c.refuse(http.StatusUnauthorized, "bad key") }
		}, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			badAI := newAI(t, "m", says("never seen"))
			bad := l.miner("bad", badAI)
			good := l.miner("good", newAI(t, "m", says("fine")))
			l.avoid(good)
			c.harm(t, l, bad, badAI)
			cl := l.client()
			started := time.Now()
			got := cl.ask(t, askOptions{prompt: []string{"?"}, json: true}).wait()
			took := time.Since(started)
			var report jsonReport
			if err := json.Unmarshal([]byte(got.out), &report); err != nil {
				t.Fatal(err)
			}
			if got.exit != ExitOK || report.Answer != "fine" || report.Miner != "good" || got.err != "" {
				t.Fatalf("exit %d, %s, stderr %q", got.exit, got.out, got.err)
			}
			if report.Attempts != 2 {
				t.Errorf("%d attempts, want 2", report.Attempts)
			}
			if took > c.most {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// A busy miner is passed over, also when the coordinator does not know yet.
func TestFailoverFromBusy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gate := make(chan struct{})
	slow := newAI(t, "m", saysAfter(gate, "", "slow"))
	slow.slots = 1
	pool := l.pool(backend.Options{QueueLimit: -1}, backend.Config{Type: backend.TypeOpenAI, URL: slow.URL, Slots: 1})
	bad := l.newMiner("bad", pool)
	bad.part = start(t, "bad", bad.Run)
	l.waitOffered(bad)
	good := l.miner("good", newAI(t, "m", says("fine")))
	first := l.client().ask(t, askOptions{prompt: []string{"?"}, model: "@bad"})
	receive(t, "the first request", slow.began)
	l.avoid(good)
	got := l.client().ask(t, askOptions{prompt: []string{"?"}}).wait()
	if got.exit != ExitOK || got.out != "fine" || got.err != "" {
		t.Errorf("%+v", got)
	}
	waitUntil(t, "the coordinator knows that it is busy", func() bool {
		_, err := l.co.board.Pick(match.Needs{Miner: "bad"}, time.Now())
		return err != nil && strings.Contains(err.Error(), "full")
	})
	// Nobody else is left when the busy one is asked for by name.
	got = l.client().ask(t, askOptions{prompt: []string{"?"}, model: "@bad"}).wait()
	if got.exit != ExitNoMiner || !strings.Contains(got.err, "full") && !strings.Contains(got.err, "no more requests") {
		t.Errorf("%+v", got)
	}
	close(gate)
	if got := first.wait(); got.exit != ExitOK || got.out != "slow" {
		t.Errorf("%+v", got)
	}
}

// A miner that has forgotten a session gets another one, unnoticed.
func TestMinerForgotTheSession(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.miner("gpu-box", newAI(t, "m", says("fine")))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	m.mu.Lock()
	for _, s := range m.sessions {
		m.endLocked(s)
	}
	m.mu.Unlock()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK || got.out != "fine" || got.err != "" {
		t.Errorf("%+v", got)
	}
}

// A miner that was killed and started again, with its key, is found again by a
// client whose tunnel to it is dead.
func TestMinerRestarts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", says("fine"))
	m := l.miner("gpu-box", ai)
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	m.kill()
	m.part.stop()
	l.miner("gpu-box", ai, func(c *minerConfig) { c.Key = m.cfg.Key })
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK || got.out != "fine" || got.err != "" {
		t.Errorf("%+v", got)
	}
}
