package reputation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"mintai/api"
	"mintai/identity"
)

// Explanation says why a miner has its score. Its JSON form is stable: fields
// are only ever added.
type Explanation struct {
	V     int             `json:"v"` // 1
	Miner identity.NodeID `json:"miner"`
	At    time.Time       `json:"at"`
	Score Score           `json:"score"`

	// Counted and NotCounted are the outcomes that clients reported, over all
	// time; only the former move the score.
	Counted    []OutcomeCount `json:"counted,omitempty"`
	NotCounted []OutcomeCount `json:"not_counted,omitempty"`

	Direct  uint64 `json:"direct"`  // requests over a direct path
	Relayed uint64 `json:"relayed"` // requests over a relay

	LastFault   string    `json:"last_fault,omitempty"`
	LastFaultAt time.Time `json:"last_fault_at,omitzero"`

	Models []ModelSpeed `json:"models,omitempty"` // measured lately, by name
}

// OutcomeCount is how often an outcome was reported.
type OutcomeCount struct {
	Outcome string  `json:"outcome"`
	Count   uint64  `json:"count"`
	Weight  float64 `json:"weight,omitempty"` // of one report; 0: it does not count
}

// ModelSpeed is what clients measured of one model.
type ModelSpeed struct {
	Model           api.Model `json:"model"`
	FirstTokenMS    float64   `json:"first_token_ms"`
	TokensPerSecond float64   `json:"tokens_per_second,omitempty"` // 0: unknown
	LastMeasured    time.Time `json:"last_measured"`
}

// Explain returns everything that made a miner's score at a moment.
func (l *Ledger) Explain(miner identity.NodeID, now time.Time) Explanation {
	var r record
	l.view(miner, func(found *record) { r = found.clone() })
	return explain(miner, &r, now)
}

func explain(miner identity.NodeID, r *record, now time.Time) Explanation {
	e := Explanation{V: 1, Miner: miner, At: now, Score: score(r, now), Direct: r.direct, Relayed: r.relayed}
	for o := OK; o < outcomes; o++ {
		n := r.counts[o]
		if n == 0 {
			continue
		}
		good, bad := weight(o)
		c := OutcomeCount{Outcome: o.String(), Count: n, Weight: good + bad}
		if c.Weight > 0 {
			e.Counted = append(e.Counted, c)
		} else {
			e.NotCounted = append(e.NotCounted, c)
		}
	}
	if r.lastFault != 0 {
		e.LastFault, e.LastFaultAt = r.lastFault.String(), r.lastFaultAt
	}
	for m, s := range r.speeds {
		if s.known(now) {
			e.Models = append(e.Models, ModelSpeed{
				Model: m, FirstTokenMS: float64(s.firstToken) / float64(time.Millisecond),
				TokensPerSecond: s.tokensPerSecond, LastMeasured: s.at,
			})
		}
	}
	slices.SortFunc(e.Models, func(a, b ModelSpeed) int { return strings.Compare(string(a.Model), string(b.Model)) })
	return e
}

// String tells the same to a person, in a few lines that end with a newline.
func (e Explanation) String() string {
	var b strings.Builder
	if len(e.Counted) == 0 && len(e.NotCounted) == 0 {
		fmt.Fprintf(&b, "%s: reputation %.2f, because no client has reported about it yet\n", e.Miner.Short(), e.Score.Value)
		return b.String()
	}
	fmt.Fprintf(&b, "%s: reputation %.2f", e.Miner.Short(), e.Score.Value)
	if e.Score.Falling {
		fmt.Fprintf(&b, ", lowered because of the last hours (%.2f over the last days)\n", e.Score.Alpha/(e.Score.Alpha+e.Score.Beta))
	} else {
		fmt.Fprintf(&b, ", (%.1f good + 1) ÷ (%.1f reports + 2); a report counts half after %s\n",
			e.Score.Alpha-1, e.Score.Evidence(), days(LongHalfLife))
	}
	writeCounts(&b, "counted", e.Counted)
	writeCounts(&b, "not counted, because not its doing", e.NotCounted)
	if e.LastFault != "" {
		fmt.Fprintf(&b, "  last fault: %s, %s ago\n", e.LastFault, roughly(e.At.Sub(e.LastFaultAt)))
	}
	if e.Direct+e.Relayed > 0 {
		fmt.Fprintf(&b, "  paths: %d direct, %d relayed\n", e.Direct, e.Relayed)
	}
	for _, m := range e.Models {
		fmt.Fprintf(&b, "  %s: first token %.1f s", m.Model, m.FirstTokenMS/1000)
		if m.TokensPerSecond > 0 {
			fmt.Fprintf(&b, ", %.0f tok/s", m.TokensPerSecond)
		}
		fmt.Fprintf(&b, ", measured %s ago\n", roughly(e.At.Sub(m.LastMeasured)))
	}
	return b.String()
}

func writeCounts(b *strings.Builder, title string, counts []OutcomeCount) {
	if len(counts) == 0 {
		return
	}
	parts := make([]string, 0, len(counts))
	for _, c := range counts {
		parts = append(parts, fmt.Sprintf("%d %s", c.Count, c.Outcome))
	}
	fmt.Fprintf(b, "  %s: %s\n", title, strings.Join(parts, ", "))
}

// days writes a half-life.
func days(d time.Duration) string { return fmt.Sprintf("%g days", d.Hours()/24) }

// roughly writes an age as a person would.
func roughly(d time.Duration) string {
	switch {
	case d < time.Second:
		return "a moment"
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
