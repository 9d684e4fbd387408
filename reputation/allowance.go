package reputation

import (
	"time"

	"mintai/identity"
)

const (
	// DefaultAllowance is how many reports an hour one principal may have
	// counted for one miner, and as many at once.
	DefaultAllowance = 30
	// maxAllowances bounds the principals remembered at once, in memory only;
	// the oldest is forgotten first and starts afresh.
	maxAllowances = 1 << 15
)

type allowanceKey struct {
	miner     identity.NodeID
	principal string
	bad       bool
}

// bucket is a token bucket: what is left, as of at.
type bucket struct {
	left float64
	at   time.Time
}

// allowances limit how much one principal can move one miner's reputation,
// praise and blame apart, so that nobody buys or ruins a score with a flood of
// reports. They are token buckets filled at perHour.
type allowances struct {
	perHour float64
	known   map[allowanceKey]bucket
	order   fifo[allowanceKey]
}

// take uses one report of an allowance and reports whether there was one.
func (a *allowances) take(k allowanceKey, now time.Time) bool {
	b, have := a.known[k]
	switch {
	case !have:
		b = bucket{left: a.perHour, at: now}
		if a.known == nil {
			a.known = make(map[allowanceKey]bucket)
		}
		for a.order.len() >= maxAllowances {
			delete(a.known, a.order.front())
			a.order.pop()
		}
		a.order.push(k)
	case now.After(b.at):
		b.left = min(a.perHour, b.left+a.perHour*now.Sub(b.at).Hours())
		b.at = now
	case b.at.Sub(now) > clockSlack:
		b.at = now
	}
	ok := b.left >= 1
	if ok {
		b.left--
	}
	a.known[k] = b
	return ok
}
