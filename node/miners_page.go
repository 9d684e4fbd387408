package node

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"mintai/match"
	"mintai/reputation"
	"mintai/terminal"
)

// serveMiners is the page /miners: each connected miner with what made its
// score, for the operator.
func (c *coordinator) serveMiners(w http.ResponseWriter, r *http.Request) {
	type entry struct {
		Name       string                 `json:"name"`
		Slots      int                    `json:"slots"`
		InFlight   int                    `json:"in_flight"`
		Queued     int                    `json:"queued"`
		Reputation reputation.Explanation `json:"reputation"`
	}
	now := time.Now()
	c.mu.Lock()
	leases := make([]match.Lease, 0, len(c.miners))
	for _, m := range c.miners {
		leases = append(leases, m.lease)
	}
	c.mu.Unlock()
	slices.SortFunc(leases, func(a, b match.Lease) int { return strings.Compare(a.Name, b.Name) })
	if r.URL.Query().Has("json") {
		out := make([]entry, 0, len(leases))
		for _, l := range leases {
			out = append(out, entry{l.Name, l.Slots, l.InFlight, l.Queued, c.ledger.Explain(l.Miner, now)})
		}
		w.Header().Set("Content-Type", "application/json")
		_ = writeJSON(w, out) // nobody is left to tell
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, l := range leases {
		_, _ = fmt.Fprintf(w, "%s: %d of %d slots busy, %d queued\n%s\n", terminal.OneLine(l.Name, 64), l.InFlight, l.Slots, l.Queued,
			c.ledger.Explain(l.Miner, now))
	}
}
