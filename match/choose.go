package match

import (
	"slices"
	"time"
)

// What is assumed where nothing was measured.
const (
	assumedTokens     = 256 // length of an answer
	assumedFirstToken = time.Second
	assumedRate       = 30.0 // tokens per second
	// maxETA keeps sums of estimates far from overflow: nobody waits for so long.
	maxETA = 30 * 24 * time.Hour
)

const (
	// failureCost is what a failed try costs besides the next miner's time.
	failureCost = 2 * time.Second
	// equalShare and equalSlack: miners whose cost is within this share, or
	// this long, of the best one's are equals and take turns.
	equalShare = 0.05
	equalSlack = 20 * time.Millisecond
	// exploreEvery is how often a miner that was never measured goes before the
	// measured ones, and exploreScore the reputation that it needs for that:
	// that of a newcomer, which a first failure takes away.
	exploreEvery = 20
	exploreScore = 0.45
)

// candidate is a miner that passed every filter, as choose sees it.
type candidate struct {
	rank  int // of its model: 0 an AI server, see Model.rank
	score float64
	// firstToken and tokensPerSecond were measured; 0: unknown.
	firstToken      time.Duration
	tokensPerSecond float64
	load, slots     int
	turn            uint64 // when it was last chosen; 0: never
	joined          uint64 // its place in the order of joining
}

// free reports whether the request would not have to wait.
func (c *candidate) free() bool { return c.load < c.slots }

// measured reports whether its speed is known.
func (c *candidate) measured() bool { return c.firstToken > 0 || c.tokensPerSecond > 0 }

// decision is what choose decided.
type decision struct {
	index    int           // of the candidate
	eta      time.Duration // expected time to the whole answer
	explored bool          // chosen to be measured
}

// choose decides who answers; it is pure, and the seam where another
// matchmaker goes. turn is the number of this decision and drives what would
// otherwise be chance.
//
// In this order: an AI server before the built-in engine, a free slot before a
// queue, then the lowest cost = ETA + (1 − score) · (2 s + ETA of the next
// best): the time to the whole answer plus what a failure would cost. Equals
// share: the least loaded of them goes first, then the one that waited longest
// for its turn. Each twentieth decision goes to a newcomer with a free slot,
// which otherwise would never be measured.
//
// candidates must not be empty.
func choose(candidates []candidate, turn uint64) decision {
	rank := candidates[0].rank
	for i := range candidates {
		rank = min(rank, candidates[i].rank)
	}
	anyFree, anyMeasured := false, false
	for i := range candidates {
		if c := &candidates[i]; c.rank == rank {
			anyFree = anyFree || c.free()
			anyMeasured = anyMeasured || c.measured()
		}
	}
	typical := assume(candidates)
	runs := func(c *candidate) bool { return c.rank == rank && c.free() == anyFree }

	if anyMeasured && turn%exploreEvery == 0 {
		best := -1
		for i := range candidates {
			c := &candidates[i]
			if runs(c) && c.free() && !c.measured() && c.score >= exploreScore && (best < 0 || goesBefore(c, &candidates[best])) {
				best = i
			}
		}
		if best >= 0 {
			return decision{index: best, eta: typical.eta(&candidates[best]), explored: true}
		}
	}

	// The two lowest ETAs: what a failure costs is the best of the others.
	const never = time.Duration(1<<63 - 1)
	first, second := never, never
	for i := range candidates {
		if c := &candidates[i]; runs(c) {
			switch eta := typical.eta(c); {
			case eta < first:
				first, second = eta, first
			case eta < second:
				second = eta
			}
		}
	}
	if second == never {
		second = first
	}
	cost := func(c *candidate) time.Duration {
		eta := typical.eta(c)
		next := first
		if eta == first {
			next = second
		}
		return eta + time.Duration((1-c.score)*float64(failureCost+next))
	}
	lowest := never
	for i := range candidates {
		if c := &candidates[i]; runs(c) {
			lowest = min(lowest, cost(c))
		}
	}
	limit := lowest + max(time.Duration(equalShare*float64(lowest)), equalSlack)
	best := -1
	for i := range candidates {
		c := &candidates[i]
		if !runs(c) || cost(c) > limit {
			continue
		}
		if best < 0 || goesBefore(c, &candidates[best]) {
			best = i
		}
	}
	return decision{index: best, eta: typical.eta(&candidates[best])}
}

// goesBefore orders equals: by load for each slot, then by turn, and by joining
// among those that never had one.
func goesBefore(a, b *candidate) bool {
	if la, lb := a.load*b.slots, b.load*a.slots; la != lb {
		return la < lb
	}
	if a.turn != b.turn {
		return a.turn < b.turn
	}
	return a.joined < b.joined
}

// assumption is the speed of a miner that nobody measured: the median of those
// that were.
type assumption struct {
	firstToken      time.Duration
	tokensPerSecond float64
}

func assume(candidates []candidate) assumption {
	first, rates := make([]time.Duration, 0, len(candidates)), make([]float64, 0, len(candidates))
	for i := range candidates {
		c := &candidates[i]
		if c.firstToken > 0 {
			first = append(first, c.firstToken)
		}
		if c.tokensPerSecond > 0 {
			rates = append(rates, c.tokensPerSecond)
		}
	}
	a := assumption{firstToken: assumedFirstToken, tokensPerSecond: assumedRate}
	if len(first) > 0 {
		slices.Sort(first)
		a.firstToken = first[len(first)/2]
	}
	if len(rates) > 0 {
		slices.Sort(rates)
		a.tokensPerSecond = rates[len(rates)/2]
	}
	return a
}

// eta is the expected time to a whole answer of usual length: the wait for a
// slot, the first token, and the rest.
func (a assumption) eta(c *candidate) time.Duration {
	first, rate := c.firstToken, c.tokensPerSecond
	if first <= 0 {
		first = a.firstToken
	}
	if rate <= 0 {
		rate = a.tokensPerSecond
	}
	service := first.Seconds() + assumedTokens/rate
	waiting := max(0, c.load-c.slots+1)
	seconds := service + float64(waiting)/float64(c.slots)*service
	return time.Duration(min(seconds, maxETA.Seconds()) * float64(time.Second))
}
