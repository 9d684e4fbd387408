package match

import (
	"math"
	"testing"
	"time"
)

func TestChoose(t *testing.T) {
	fast := candidate{score: 0.9, firstToken: 300 * time.Millisecond, tokensPerSecond: 80, slots: 2}
	slow := candidate{score: 0.9, firstToken: 2 * time.Second, tokensPerSecond: 10, slots: 2}
	load := func(c candidate, n int) candidate { c.load = n; return c }
	score := func(c candidate, s float64) candidate { c.score = s; return c }
	newcomer := candidate{score: 0.5, slots: 2}

	tests := []struct {
		name string
		in   []candidate
		turn uint64
		want int
	}{
		{"only one", []candidate{slow}, 1, 0},
		{"faster", []candidate{slow, fast}, 1, 1},
		{"a free slot before a faster queue", []candidate{load(fast, 2), slow}, 1, 1},
		{"both have queues: the faster", []candidate{load(slow, 2), load(fast, 2)}, 1, 1},
		{"both have queues: the shorter", []candidate{load(fast, 9), load(fast, 2)}, 1, 1},
		{"a long fast queue against a short slow one", []candidate{load(fast, 60), load(slow, 2)}, 1, 1},
		{"better reputation", []candidate{score(fast, 0.3), fast}, 1, 1},
		{"a little slower, much better reputed", []candidate{score(fast, 0.1), {score: 0.95, firstToken: 400 * time.Millisecond, tokensPerSecond: 60, slots: 2}}, 1, 1},
		{"much faster, a little less reputed", []candidate{score(slow, 0.95), score(fast, 0.85)}, 1, 1},
		{"equals: the less loaded", []candidate{load(fast, 1), fast}, 1, 1},
		{"equals: by load for each slot", []candidate{load(fast, 1), {score: 0.9, firstToken: 300 * time.Millisecond, tokensPerSecond: 80, slots: 8, load: 2}}, 1, 1},
		{"equals: the one that waited longest", []candidate{{score: 0.9, slots: 1, turn: 7}, {score: 0.9, slots: 1, turn: 3}, {score: 0.9, slots: 1, turn: 5}}, 1, 1},
		{"equals without a turn: who joined first", []candidate{{score: 0.9, slots: 1, joined: 2}, {score: 0.9, slots: 1, joined: 1}}, 1, 1},
		{"nearly equal is equal", []candidate{{score: 0.9, firstToken: 300 * time.Millisecond, tokensPerSecond: 80, slots: 1, turn: 9}, {score: 0.9, firstToken: 310 * time.Millisecond, tokensPerSecond: 79, slots: 1, turn: 8}}, 1, 1},
		{"a server before the built-in engine", []candidate{{rank: 1, score: 1, firstToken: 1, tokensPerSecond: 1e6, slots: 9}, load(slow, 2)}, 1, 1},
		{"a newcomer's turn", []candidate{fast, newcomer}, exploreEvery, 1},
		{"not its turn", []candidate{fast, newcomer}, exploreEvery + 1, 0},
		{"a newcomer that failed has no turn", []candidate{fast, score(newcomer, 0.33)}, exploreEvery, 0},
		{"a full newcomer has no turn", []candidate{fast, load(newcomer, 2)}, exploreEvery, 0},
		{"newcomers only", []candidate{{score: 0.5, slots: 1, turn: 2}, {score: 0.5, slots: 1, turn: 1}}, exploreEvery, 1},
		{"worthless but alone", []candidate{{score: 0, slots: 1, load: 5}}, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := choose(tt.in, tt.turn); got.index != tt.want {
				t.Errorf("choose = %+v, want candidate %d", got, tt.want)
			}
		})
	}
}

func TestETA(t *testing.T) {
	known := candidate{firstToken: time.Second, tokensPerSecond: 256, slots: 2}
	tests := []struct {
		name string
		c    candidate
		want time.Duration
	}{
		{"idle", known, 2 * time.Second},
		{"one of two slots", with(known, func(c *candidate) { c.load = 1 }), 2 * time.Second},
		{"first in the queue", with(known, func(c *candidate) { c.load = 2 }), 3 * time.Second},
		{"third in the queue", with(known, func(c *candidate) { c.load = 4 }), 5 * time.Second},
		{"hopeless", candidate{slots: 1, firstToken: time.Second, tokensPerSecond: 1e-300, load: 1 << 20}, maxETA},
		{"unmeasured: as the others", candidate{slots: 1}, 3 * time.Second},
		{"unmeasured rate", candidate{slots: 1, firstToken: 500 * time.Millisecond}, 2500 * time.Millisecond},
	}
	a := assumption{firstToken: time.Second, tokensPerSecond: 128}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := a.eta(&tt.c); got != tt.want {
				t.Errorf("eta = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAssume(t *testing.T) {
	if a := assume([]candidate{{slots: 1}}); a.firstToken != assumedFirstToken || a.tokensPerSecond != assumedRate {
		t.Errorf("nothing measured: %+v", a)
	}
	a := assume([]candidate{
		{firstToken: 1 * time.Second, tokensPerSecond: 10},
		{firstToken: 3 * time.Second, tokensPerSecond: 90},
		{firstToken: 2 * time.Second, tokensPerSecond: 30},
		{},
	})
	if a.firstToken != 2*time.Second || a.tokensPerSecond != 30 {
		t.Errorf("median = %+v", a)
	}
}

// FuzzChoose: whatever the numbers, choose answers with a valid index, one of
// the best rank, and takes a free slot when there is one.
func FuzzChoose(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, uint64(20))
	f.Fuzz(func(t *testing.T, b []byte, turn uint64) {
		var in []candidate
		for ; len(b) >= 6 && len(in) < 40; b = b[6:] {
			in = append(in, candidate{
				rank: int(b[0] % 3), score: float64(b[1]) / 255, firstToken: time.Duration(b[2]) << (b[2] % 40),
				tokensPerSecond: math.Exp2(float64(b[3])-128) - math.Exp2(-128), load: int(b[4]) << (b[4] % 8), slots: 1 + int(b[5]), turn: uint64(b[4]),
			})
		}
		if len(in) == 0 {
			return
		}
		d := choose(in, turn)
		if d.index < 0 || d.index >= len(in) || d.eta < 0 {
			t.Fatalf("choose = %+v of %d", d, len(in))
		}
		got := in[d.index]
		for _, c := range in {
			if c.rank < got.rank || c.rank == got.rank && c.free() && !got.free() {
				t.Fatalf("chose %+v although there was %+v", got, c)
			}
		}
	})
}
