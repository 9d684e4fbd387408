package match

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"mintai/api"
	"mintai/identity"
)

// TestEqualsShare: miners that do not differ get the same, whether load is
// counted or not.
func TestEqualsShare(t *testing.T) {
	for _, counted := range []bool{false, true} {
		t.Run(fmt.Sprintf("counted=%t", counted), func(t *testing.T) {
			const miners, asks = 7, 700
			j := judge{}
			b := NewBoard(j)
			for i := range miners {
				j[node(i)] = verdict{0.9, time.Second, 50}
				b.Put(with(lease(i, model("m")), func(l *Lease) { l.Slots = asks }))
			}
			got := map[identity.NodeID]int{}
			for i := range asks {
				m := pick(t, b, Needs{Model: "m"}, t0)
				got[m]++
				if counted {
					b.Begin(session(i), m, "m", t0.Add(time.Hour))
				}
			}
			for i := range miners {
				if n := got[node(i)]; n != asks/miners {
					t.Errorf("miner %d got %d of %d", i, n, asks)
				}
			}
		})
	}
}

// world is a little network in virtual time: miners that really have the
// speeds that the judge measured, and clients that ask at random moments.
type world struct {
	speeds judge // the truth
	slots  map[identity.NodeID]int
	load   float64 // requests a second
	asks   int
}

// result is what a world did.
type result struct {
	served map[identity.NodeID]int
	waits  []time.Duration // for a slot
	denied int
}

// run plays the world. A miner serves a request after the last one of its
// slots is free, and renews its lease at each change.
func (w *world) run(t *testing.T, judged Judge) result {
	t.Helper()
	r := result{served: map[identity.NodeID]int{}}
	random := rand.New(rand.NewPCG(1, 2))
	b := NewBoard(judged)
	busyUntil := map[identity.NodeID][]time.Time{}
	now := t0
	put := func(m identity.NodeID) {
		busyUntil[m] = slices.DeleteFunc(busyUntil[m], func(end time.Time) bool { return !end.After(now) })
		running := len(busyUntil[m])
		b.Put(Lease{
			Miner: m, Models: []Model{model("m")}, Slots: w.slots[m], QueueLimit: 8,
			InFlight: min(running, w.slots[m]), Queued: max(0, running-w.slots[m]), Expires: now.Add(time.Minute),
		})
	}
	for i := range w.asks {
		now = now.Add(time.Duration(random.ExpFloat64() / w.load * float64(time.Second)))
		for m := range w.slots {
			put(m)
		}
		c, err := b.Pick(Needs{Model: "m"}, now)
		if err != nil {
			r.denied++
			continue
		}
		s := session(i)
		b.Begin(s, c.Miner, "m", now.Add(10*time.Second))
		start := now
		if ends := busyUntil[c.Miner]; len(ends) >= w.slots[c.Miner] {
			slices.SortFunc(ends, time.Time.Compare)
			start = ends[len(ends)-w.slots[c.Miner]]
		}
		v := w.speeds[c.Miner]
		service := v.first + time.Duration(assumedTokens/v.rate*random.ExpFloat64()*float64(time.Second))
		busyUntil[c.Miner] = append(busyUntil[c.Miner], start.Add(service))
		b.Established(s)
		r.served[c.Miner]++
		r.waits = append(r.waits, start.Sub(now))
	}
	return r
}

// TestBetterMinersGetMore: under load, the faster, the better reputed and the
// larger of otherwise equal miners get more, and nobody starves for being
// second best.
func TestBetterMinersGetMore(t *testing.T) {
	base := verdict{0.9, 500 * time.Millisecond, 40}
	tests := []struct {
		name          string
		better, worse verdict
		slots         int // of the better one; the other has 2
	}{
		{"faster", verdict{0.9, 500 * time.Millisecond, 120}, base, 2},
		{"sooner", verdict{0.9, 100 * time.Millisecond, 40}, verdict{0.9, 4 * time.Second, 40}, 2},
		{"better reputed", verdict{0.99, 500 * time.Millisecond, 40}, verdict{0.5, 500 * time.Millisecond, 40}, 2},
		{"larger", base, base, 8},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			better, worse := node(1), node(2)
			w := world{
				speeds: judge{better: tt.better, worse: tt.worse},
				slots:  map[identity.NodeID]int{better: tt.slots, worse: 2},
				load:   0.3, asks: 3000,
			}
			r := w.run(t, w.speeds)
			if r.served[better] <= r.served[worse]*5/4 {
				t.Errorf("better %d, worse %d", r.served[better], r.served[worse])
			}
			if r.served[worse] == 0 {
				t.Error("the second best got nothing at all under load")
			}
		})
	}
}

// TestNewcomerIsMeasured: a miner that nobody measured gets its turns although
// a measured one is always free.
func TestNewcomerIsMeasured(t *testing.T) {
	b := NewBoard(judge{node(1): {0.99, 100 * time.Millisecond, 200}})
	many := func(l *Lease) { l.Slots = 1000 }
	b.Put(with(lease(1, model("m")), many))
	b.Put(with(lease(2, model("m")), many))
	got := 0
	for range 200 {
		if pick(t, b, Needs{Model: "m"}, t0) == node(2) {
			got++
		}
	}
	if got != 200/exploreEvery {
		t.Errorf("the newcomer got %d of 200", got)
	}
}

// TestBeatsLeastConnections: with home machines whose speeds differ tenfold,
// the wait for a slot stays short where a count of connections alone would
// pile work on the slow ones.
func TestBeatsLeastConnections(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	w := world{speeds: judge{}, slots: map[identity.NodeID]int{}, asks: 6000}
	capacity := 0.0
	for i := range 20 {
		rate := 5 * float64(int(1)<<random.IntN(5)) // 5 … 80 tokens per second
		v := verdict{0.9, 500 * time.Millisecond, rate}
		w.speeds[node(i)], w.slots[node(i)] = v, 1+random.IntN(4)
		capacity += float64(w.slots[node(i)]) / (v.first.Seconds() + assumedTokens/rate)
	}
	w.load = 0.6 * capacity
	informed, blind := w.run(t, w.speeds), w.run(t, nil)
	mean := func(waits []time.Duration) (sum time.Duration) {
		for _, d := range waits {
			sum += d
		}
		return sum / time.Duration(max(1, len(waits)))
	}
	if informed.denied > blind.denied || mean(informed.waits) > mean(blind.waits) {
		t.Errorf("by measured speed: %d denied, mean wait %v; by load alone: %d denied, mean wait %v",
			informed.denied, mean(informed.waits), blind.denied, mean(blind.waits))
	}
	if p := mean(informed.waits); p > 2*time.Second {
		t.Errorf("mean wait %v at 60 %% load", p)
	}
}

// TestManyMinersShare: with more miners than one decision looks at, each gets
// its turn, and a fast one more than a slow one.
func TestManyMinersShare(t *testing.T) {
	const miners = 5 * enough
	j := judge{}
	b := NewBoard(j)
	for i := range miners {
		j[node(i)] = verdict{0.9, time.Second, 50}
		b.Put(with(lease(i, model("m")), func(l *Lease) { l.Slots = 1000 }))
	}
	got := map[identity.NodeID]int{}
	for i := range 4 * miners {
		m := pick(t, b, Needs{Model: "m"}, t0)
		got[m]++
		b.Begin(session(i), m, "m", t0.Add(time.Hour))
	}
	for i := range miners {
		if n := got[node(i)]; n < 2 || n > 6 {
			t.Fatalf("miner %d got %d turns instead of about 4", i, n)
		}
	}
}

// BenchmarkPut renews the leases of 10,000 miners.
func BenchmarkPut(b *testing.B) {
	const miners = 10_000
	board := NewBoard(nil)
	leases := make([]Lease, miners)
	for i := range leases {
		leases[i] = lease(i, model("common"), model("other"))
		board.Put(leases[i])
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		board.Put(leases[i%miners])
		i++
	}
}

// BenchmarkPick chooses among 10,000 miners: all with the model, one in a
// hundred with it, and one named.
func BenchmarkPick(b *testing.B) {
	const miners = 10_000
	j := judge{}
	board := NewBoard(j)
	random := rand.New(rand.NewPCG(5, 6))
	for i := range miners {
		j[node(i)] = verdict{0.5 + random.Float64()/2, time.Duration(random.IntN(3000)) * time.Millisecond, 5 + random.Float64()*100}
		board.Put(with(lease(i, model("common"), model(api.Model(fmt.Sprintf("rare-%d", i%100)))), func(l *Lease) { l.Slots = 4 }))
	}
	for name, n := range map[string]Needs{
		"all":   {Model: "common", Call: api.ChatCompletions},
		"rare":  {Model: "rare-7", Call: api.ChatCompletions},
		"named": {Model: "common", Miner: node(77).String()},
		"none":  {Model: "nobody has it"},
		"any":   {},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = board.Pick(n, t0)
			}
		})
	}
}

// TestPromisesAreShared: an asker who is promised everything and never comes
// keeps nobody else out, and one who is alone may have it all.
func TestPromisesAreShared(t *testing.T) {
	b := NewBoard(nil)
	b.Put(with(lease(1, model("m")), func(l *Lease) { l.Slots, l.QueueLimit = 4, 4 }))
	greedy, modest, third := node(100), node(101), node(102)
	soon := t0.Add(15 * time.Second)
	next := 0
	take := func(asker identity.NodeID) error {
		next++
		_, err := b.Take(Needs{Model: "m", Asker: asker}, session(next), soon, t0)
		return err
	}
	got := func(asker identity.NodeID) (n int) {
		for take(asker) == nil {
			n++
		}
		return n
	}
	if n := got(greedy); n != 8 {
		t.Errorf("alone: %d of 8", n)
	}
	if n := got(modest); n != 4 {
		t.Errorf("the second of two: %d, want 4", n)
	}
	if n := got(third); n != 2 {
		t.Errorf("the third of three: %d, want 2", n)
	}
	if take(greedy) == nil {
		t.Error("the greedy one got more")
	}
	// What really runs counts in full.
	b.Put(with(lease(1, model("m")), func(l *Lease) { l.Slots, l.QueueLimit, l.InFlight, l.Queued = 4, 4, 4, 4 }))
	if take(node(103)) == nil {
		t.Error("a miner that is full of work was named")
	}
}
