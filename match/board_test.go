package match

import (
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mintai/api"
	"mintai/identity"
)

// pick is Pick where a choice is expected.
func pick(t *testing.T, b *Board, n Needs, now time.Time) identity.NodeID {
	t.Helper()
	c, err := b.Pick(n, now)
	if err != nil {
		t.Fatalf("Pick: %v", err)
	}
	return c.Miner
}

func TestExpiryByComparison(t *testing.T) {
	b := NewBoard(nil)
	b.Put(lease(1, model("m")))
	pick(t, b, Needs{}, t0.Add(time.Minute-1))
	if _, err := b.Pick(Needs{}, t0.Add(time.Minute)); err == nil {
		t.Error("a lease counts at the moment of its expiry")
	}
	pick(t, b, Needs{}, t0) // no decision of before changed it
	b.Put(with(lease(1, model("m")), func(l *Lease) { l.Expires = t0.Add(2 * time.Minute) }))
	pick(t, b, Needs{}, t0.Add(time.Minute))
	if b.Len() != 1 {
		t.Errorf("Len = %d after a renewal", b.Len())
	}
}

func TestSilentMinersAreSwept(t *testing.T) {
	b := NewBoard(nil)
	b.Put(lease(1, model("m")))
	b.Begin(session(1), node(1), "m", t0.Add(time.Hour))
	_, _ = b.Pick(Needs{}, t0.Add(2*time.Minute))
	if b.Len() != 1 {
		t.Error("a miner that just went silent is gone")
	}
	_, _ = b.Pick(Needs{}, t0.Add(time.Minute+silentFor))
	if b.Len() != 0 || len(b.byModel) != 0 || len(b.sessions) != 0 {
		t.Errorf("%d miners, %d models, %d sessions are left", b.Len(), len(b.byModel), len(b.sessions))
	}
}

func TestNewestLeaseReplacesAllBefore(t *testing.T) {
	b := NewBoard(nil)
	b.Put(lease(1, model("old")))
	b.Put(lease(1, model("new")))
	if _, err := b.Pick(Needs{Model: "old"}, t0); err == nil {
		t.Error("a model of a former lease is still offered")
	}
	pick(t, b, Needs{Model: "new"}, t0)
	b.Remove(node(1))
	b.Remove(node(1))
	if b.Len() != 0 || len(b.byModel) != 0 {
		t.Error("Remove left something")
	}
}

func TestFailover(t *testing.T) {
	b := NewBoard(nil)
	for i := range 4 {
		b.Put(lease(i, model("m")))
	}
	var tried []identity.NodeID
	for range 4 {
		m := pick(t, b, Needs{Model: "m", Exclude: tried}, t0)
		if slices.Contains(tried, m) {
			t.Fatalf("%v was tried twice", m.Short())
		}
		tried = append(tried, m)
	}
	_, err := b.Pick(Needs{Model: "m", Exclude: tried}, t0)
	var no *NoMatchError
	if !errors.As(err, &no) || no.Code != CodeBusy || !strings.Contains(err.Error(), "4 were already tried") {
		t.Errorf("after all: %v", err)
	}
}

func TestLoadIsCounted(t *testing.T) {
	slots := func(l *Lease) { l.Slots, l.QueueLimit = 2, 1 }
	b := NewBoard(nil)
	b.Put(with(lease(1, model("m")), slots))
	load := func(now time.Time) int { return b.Offers(false, now)[0].InFlight }
	soon := t0.Add(15 * time.Second)

	b.Begin(session(1), node(1), "m", soon)
	b.Begin(session(2), node(1), "m", soon)
	b.Begin(session(2), node(1), "m", soon) // again: no second count
	if got := load(t0); got != 2 {
		t.Fatalf("two sessions begun: load %d", got)
	}
	b.Begin(session(3), node(1), "m", soon)
	if _, err := b.Pick(Needs{}, t0); err == nil {
		t.Error("2 slots and a queue of 1 took a fourth session")
	}
	b.End(session(3))
	pick(t, b, Needs{}, t0)

	// Established, but the lease does not show it yet.
	b.Established(session(1))
	if got := load(t0); got != 2 {
		t.Errorf("established: load %d", got)
	}
	// The next lease does; session 2 is still on its way.
	b.Put(with(with(lease(1, model("m")), slots), func(l *Lease) { l.InFlight = 1 }))
	if got := load(t0); got != 2 {
		t.Errorf("after the lease: load %d", got)
	}
	// Session 2 never arrives: its count expires by comparison.
	if got := load(soon.Add(-1)); got != 2 {
		t.Errorf("just before its deadline: load %d", got)
	}
	if got := load(soon); got != 1 {
		t.Errorf("at its deadline: load %d", got)
	}
	b.End(session(1))
	b.End(session(2))
	b.End(session(99))
	b.Established(session(99))
	if got := load(t0); got != 1 || len(b.sessions) != 0 {
		t.Errorf("in the end: load %d, %d sessions", got, len(b.sessions))
	}
}

func TestSessionMovesToTheNextMiner(t *testing.T) {
	b := NewBoard(nil)
	b.Put(lease(1, model("m")))
	b.Put(lease(2, model("m")))
	b.Begin(session(1), node(1), "m", t0.Add(time.Minute))
	b.Begin(session(1), node(2), "m", t0.Add(time.Minute)) // declined by the first
	for _, o := range b.Offers(false, t0) {
		want := 0
		if o.Miner == node(2) {
			want = 1
		}
		if o.InFlight != want {
			t.Errorf("%s has load %d, want %d", o.Name, o.InFlight, want)
		}
	}
	b.Begin(session(1), node(9), "m", t0.Add(time.Minute)) // not on the board
	if len(b.sessions) != 0 {
		t.Error("a session of an unknown miner is counted")
	}
	b.Begin(session(2), node(1), "m", t0.Add(time.Minute))
	b.Remove(node(1))
	if len(b.sessions) != 0 {
		t.Error("a removed miner's session is counted")
	}
}

func TestUnendedSessionsAreSwept(t *testing.T) {
	b := NewBoard(nil)
	b.Put(with(lease(1, model("m")), func(l *Lease) { l.Expires = t0.Add(time.Hour); l.Slots = 2000 }))
	pick(t, b, Needs{}, t0)
	for i := range 1000 {
		b.Begin(session(i), node(1), "m", t0.Add(15*time.Second))
	}
	pick(t, b, Needs{}, t0.Add(sweepEvery))
	if len(b.sessions) != 0 || len(b.entries[node(1)].pending) != 0 {
		t.Errorf("%d sessions are left", len(b.sessions))
	}
}

func TestOffers(t *testing.T) {
	builtin := Model{Name: "builtin", Calls: chats, Backend: "builtin", SameUserOnly: true}
	b := NewBoard(judge{node(1): {0.9, time.Second, 50}})
	b.Put(with(lease(1, model("b"), builtin), func(l *Lease) { l.Local = true }))
	b.Put(lease(2, model("a"), model("b")))
	b.Put(with(lease(3, model("a")), func(l *Lease) { l.Draining = true }))
	b.Put(with(lease(4, model("a")), func(l *Lease) { l.Expires = t0 }))
	b.Put(lease(5, builtin))
	list := func(local bool) (out []string) {
		for _, o := range b.Offers(local, t0) {
			out = append(out, string(o.Model.Name)+"@"+o.Name)
		}
		return out
	}
	if got, want := list(false), []string{"a@box-2", "b@box-1", "b@box-2"}; !slices.Equal(got, want) {
		t.Errorf("Offers = %v, want %v", got, want)
	}
	if got, want := list(true), []string{"a@box-2", "b@box-1", "b@box-2", "builtin@box-1"}; !slices.Equal(got, want) {
		t.Errorf("Offers to the same user = %v, want %v", got, want)
	}
	if o := b.Offers(false, t0)[1]; o.Reputation != 0.9 || o.FirstToken != time.Second || o.TokensPerSecond != 50 {
		t.Errorf("measured offer = %+v", o)
	}
	if got := b.NoServer(false, t0); !slices.Equal(got, []string{"box-5"}) {
		t.Errorf("NoServer = %v", got)
	}
}

func TestPutKeepsItsOwnModels(t *testing.T) {
	models := []Model{model("m")}
	b := NewBoard(nil)
	b.Put(lease(1, models...))
	models[0].Name = "changed"
	pick(t, b, Needs{Model: "m"}, t0)
	b.Remove(node(1))
	if len(b.byModel) != 0 {
		t.Error("the index kept a model")
	}
}

func TestWhy(t *testing.T) {
	j := judge{node(1): {0.97, 400 * time.Millisecond, 62}}
	b := NewBoard(j)
	b.Put(with(lease(1, model("qwen3:8b")), func(l *Lease) { l.Slots, l.InFlight = 4, 1 }))
	check := func(n Needs, want string) {
		t.Helper()
		if c, err := b.Pick(n, t0); err != nil || c.Why != want {
			t.Errorf("Why = %q, %v\nwant  %q", c.Why, err, want)
		}
	}
	check(Needs{Model: "qwen3:8b"}, "the only one that can; 3 of 4 slots free, first token 0.4 s, 62 tok/s, reputation 0.97")
	check(Needs{Miner: "box-1"}, "the miner asked for, with qwen3:8b; 3 of 4 slots free, first token 0.4 s, 62 tok/s, reputation 0.97")
	b.Put(with(lease(2, model("qwen3:8b")), func(l *Lease) { l.InFlight, l.QueueLimit = 1, 3 }))
	check(Needs{Model: "qwen3:8b"}, "the best of 2 that can; 3 of 4 slots free, first token 0.4 s, 62 tok/s, reputation 0.97")
	check(Needs{Model: "qwen3:8b", Exclude: []identity.NodeID{node(1)}}, "the only one that can; 1 ahead in its queue, reputation 0.50")
}

// TestTake: requests that come at the same moment never share a slot, and one
// that was declined goes on to another miner with the same session.
func TestTake(t *testing.T) {
	const miners = 20
	b := NewBoard(nil)
	for i := range miners {
		b.Put(lease(i, model("m")))
	}
	soon := t0.Add(15 * time.Second)
	chosen := make([]identity.NodeID, miners)
	var wg sync.WaitGroup
	for i := range miners {
		wg.Go(func() {
			c, err := b.Take(Needs{Model: "m"}, session(i), soon, t0)
			if err != nil || c.Principal != "member" {
				t.Errorf("Take = %+v, %v", c, err)
			}
			chosen[i] = c.Miner
		})
	}
	wg.Wait()
	slices.SortFunc(chosen, func(a, b identity.NodeID) int { return slices.Compare(a[:], b[:]) })
	if got := len(slices.Compact(chosen)); got != miners {
		t.Errorf("%d miners for %d requests", got, miners)
	}
	if c, err := b.Take(Needs{Model: "m"}, session(99), soon, t0); err == nil {
		t.Errorf("a further request got %+v", c)
	}
	first := chosen[0]
	b.Put(with(lease(50, model("m")), func(l *Lease) {}))
	for _, o := range b.Offers(false, t0) {
		if o.Miner == node(50) && o.InFlight != 0 {
			t.Errorf("a new miner has load %d", o.InFlight)
		}
	}
	s := session(0) // whoever has it, declines
	c, err := b.Take(Needs{Model: "m", Exclude: []identity.NodeID{first}}, s, soon, t0)
	if err != nil {
		t.Fatal(err)
	}
	loaded := 0
	for _, o := range b.Offers(false, t0) {
		loaded += o.InFlight
	}
	if loaded != miners || b.sessions[s].lease.Miner != c.Miner {
		t.Errorf("load of %d for %d sessions", loaded, miners)
	}
}

// TestJudgeOutOfBounds: nonsense from a judge neither panics nor wins.
func TestJudgeOutOfBounds(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	b := NewBoard(judge{
		node(1): {nan, -time.Hour, nan},
		node(2): {-inf, math.MaxInt64, -inf},
		node(3): {-5, math.MinInt64, -1},
		node(4): {0.9, time.Second, 50},
	})
	for i := range 4 {
		b.Put(with(lease(i+1, model("m")), func(l *Lease) { l.Slots = 100 }))
	}
	for range 50 {
		if m := pick(t, b, Needs{Model: "m"}, t0); m != node(4) {
			t.Fatalf("chose %v", m.Short())
		}
	}
	for _, o := range b.Offers(false, t0) {
		if !(o.Reputation >= 0 && o.Reputation <= 1) || o.FirstToken < 0 || !(o.TokensPerSecond >= 0) {
			t.Errorf("offer %+v", o)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	b := NewBoard(judge{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 300 {
				id := (i*7 + g) % 20
				b.Put(lease(id, model("m"), model(api.Model(rune('a'+g)))))
				if c, err := b.Pick(Needs{Model: "m"}, t0); err == nil {
					s := session(g*1000 + i)
					b.Begin(s, c.Miner, c.Model.Name, t0.Add(time.Second))
					b.Established(s)
					b.End(s)
				}
				b.Offers(true, t0)
				b.NoServer(true, t0)
				if i%10 == 0 {
					b.Remove(node(id))
				}
			}
		})
	}
	wg.Wait()
	if len(b.sessions) != 0 {
		t.Errorf("%d sessions are left", len(b.sessions))
	}
}
