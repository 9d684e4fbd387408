package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// laterAsk is a long answer on a path that begins relayed because one NAT maps per
// destination and the other filters by port: probing ports should turn it direct.
type laterAsk struct {
	First    string  `json:"first"`               // the path at the first token
	Last     string  `json:"last"`                // and at the end
	Code     string  `json:"code,omitempty"`      // the reason for the last
	DirectMS float64 `json:"direct_ms,omitempty"` // from the grant to the direct path in use
	Failure  string  `json:"failure,omitempty"`
}

// directIn is by when, from the grant, the path is to be direct.
const directIn = 5 * time.Second

// runsAMinute is how many runs of hard-NAT probing there may be in a minute towards
// one address and with one node. Coordinator and miner are started anew after so
// many, the miner with another key: who measures more often has more than one of
// each.
const runsAMinute = 3

// turnsDirect reports whether hard-NAT probing may turn a cell's path direct: it
// is relayed for the reason that probing is made for.
func (e expectation) turnsDirect() bool {
	return !e.direct && (e.codes[0] == "client-nat-hard" || e.codes[0] == "miner-nat-hard")
}

// wellMeasured are the pairs of an easy and a hard side for which a figure was
// asked, in both roles: they get so many times the long answers.
var wellMeasured = mustCells("a=sym,b=eim-apdf", "a=eim-apdf,b=sym", "a=sym-seq,b=eim-apdf", "a=eim-apdf,b=sym-seq", "a=nf-random,b=nf", "a=nf,b=nf-random")

const wellTimes = 20

func (s settings) laterFor(c cell) int {
	if !s.alone && slices.ContainsFunc(wellMeasured, func(w cell) bool { return w.String() == c.String() }) {
		return wellTimes * s.later
	}
	return s.later
}

// laterIn is how many long answers a cell gets: none where nothing may change.
func (s settings) laterIn(c cell) int {
	if !expect(c).turnsDirect() {
		return 0
	}
	return s.laterFor(c)
}

// askLater asks for answers that last, in cells in which that may change the path.
func (s settings) askLater(ctx context.Context, l *lab, m *measurement) error {
	for i := range s.laterIn(l.cell) {
		if i > 0 && i%runsAMinute == 0 {
			if err := l.renew(ctx); err != nil {
				return err
			}
		}
		a, err := s.askLong(ctx, l, fmt.Sprintf("later%d", i))
		if err != nil {
			a.Failure = err.Error()
		}
		m.Later = append(m.Later, a)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (s settings) askLong(ctx context.Context, l *lab, name string) (laterAsk, error) {
	r, err := s.askFor(ctx, l, name, "long")
	if err != nil {
		return laterAsk{}, err
	}
	return longAnswer(r)
}

// longAnswer is what the report of a long answer says. It fails where no time after
// the grant is given for a direct path.
func longAnswer(r report) (laterAsk, error) {
	a := laterAsk{First: r.PathFirst.Kind, Last: r.Path.Kind, Code: r.Path.Code}
	if isRelay(a.Last) {
		return a, nil
	}
	if r.MatchMS <= 0 || r.Path.Since <= r.MatchMS {
		return a, fmt.Errorf("the report says no time for the direct path: granted at %v ms, in use since %v ms", r.MatchMS, r.Path.Since)
	}
	a.DirectMS = r.Path.Since - r.MatchMS
	return a, nil
}

func (a laterAsk) inTime() bool {
	return a.Failure == "" && !isRelay(a.Last) && a.DirectMS > 0 && a.DirectMS <= float64(directIn.Milliseconds())
}

// fault is what is wrong with an answer, however long the direct path took; empty:
// nothing. Probing finds an address that nobody has named, a peer-reflexive
// candidate (RFC 8445 §5.1.3.1), and only what it found has its reason. Some are
// direct at first: the filter may still be open where a run before has probed.
func (a laterAsk) fault() string {
	const found, probed = "prflx", "ports-probed"
	switch {
	case a.Failure != "":
		return a.Failure
	case a.First == "":
		return "no path at first"
	case !isRelay(a.First) && a.Code != probed:
	case !isRelay(a.First):
		return "the path is " + a.First + " at first, and nobody has probed yet"
	case (a.Last == found) != (a.Code == probed):
		return fmt.Sprintf("reason %s of a path %s", a.Code, a.Last)
	}
	return ""
}

// directInTime is how many of the long answers were direct in time.
func (m *measurement) directInTime() int {
	n := 0
	for _, a := range m.Later {
		if a.inTime() {
			n++
		}
	}
	return n
}

// laterFaults are none when at least 95 % were direct in time, of a few all but one,
// and nothing else is wrong with any.
func (m *measurement) laterFaults() []string {
	n := len(m.Later)
	if n == 0 {
		return nil
	}
	var bad []string
	least := min(n-1, (95*n+99)/100)
	if n == 1 {
		least = 1
	}
	if ok := m.directInTime(); ok < least {
		bad = append(bad, fmt.Sprintf("%d of %d long answers direct within %v of the grant", ok, n, directIn))
	}
	for _, a := range m.Later {
		if fault := a.fault(); fault != "" {
			bad = append(bad, "a long answer: "+fault)
			break
		}
	}
	return bad
}

// times are how long it took, sorted, of those that became direct.
func (m *measurement) times() []float64 {
	var ms []float64
	for _, a := range m.Later {
		if a.DirectMS > 0 {
			ms = append(ms, a.DirectMS)
		}
	}
	slices.Sort(ms)
	return ms
}

func (m *measurement) laterWords() string {
	ms := m.times()
	if len(ms) == 0 {
		return fmt.Sprintf("direct later %d/%d", m.directInTime(), len(m.Later))
	}
	return fmt.Sprintf("direct later %d/%d, median %.0f ms, most %.0f ms", m.directInTime(), len(m.Later), quantile(ms, 0.5), ms[len(ms)-1])
}

// quantile is the nearest rank of sorted values.
func quantile(sorted []float64, q float64) float64 {
	i := int(q * float64(len(sorted)))
	return sorted[min(i, len(sorted)-1)]
}

// laterRows is the table of what probing ports has turned direct.
func laterRows(b *strings.Builder, results []*measurement) {
	var cells []*measurement
	asks, ok, atFirst := 0, 0, 0
	var all []float64
	for _, m := range results {
		if len(m.Later) > 0 {
			cells = append(cells, m)
			asks, ok = asks+len(m.Later), ok+m.directInTime()
			all = append(all, m.times()...)
			for _, a := range m.Later {
				if a.Failure == "" && !isRelay(a.First) {
					atFirst++
				}
			}
		}
	}
	if len(cells) == 0 {
		return
	}
	slices.Sort(all)
	fmt.Fprintf(b, "\n## Relayed at first, direct later\n\n")
	fmt.Fprintf(b, "Where one NAT maps per destination and the other filters by port, the relay carries the answer while ports are probed. Measured with answers of %.1f s: %d of %d were direct within %v of the grant", 6.5, ok, asks, directIn)
	if len(all) > 0 {
		fmt.Fprintf(b, "; median %.2f s, nine in ten within %.2f s, all within %.2f s", quantile(all, 0.5)/1000, quantile(all, 0.9)/1000, all[len(all)-1]/1000)
	}
	if atFirst > 0 {
		fmt.Fprintf(b, "; %d at first, where the filter was still open from a run before", atFirst)
	}
	fmt.Fprintf(b, ". A node probes towards one address %d times a minute at most, and a coordinator proposes no more with an address, so both are started anew after %d of them. A cell holds when 95 %% are direct in time (of a few: all but one).\n\n", runsAMinute, runsAMinute)
	b.WriteString("| cell | direct in time | median s | p90 | max | path | reason |\n| --- | ---: | ---: | ---: | ---: | --- | --- |\n")
	for _, m := range cells {
		ms := m.times()
		if len(ms) == 0 {
			ms = []float64{0}
		}
		last, code := map[string]int{}, map[string]int{}
		for _, a := range m.Later {
			last[a.First+" → "+a.Last]++
			code[a.Code]++
		}
		fmt.Fprintf(b, "| `%s` | %d/%d | %.2f | %.2f | %.2f | %s | %s |\n", m.Cell, m.directInTime(), len(m.Later),
			quantile(ms, 0.5)/1000, quantile(ms, 0.9)/1000, ms[len(ms)-1]/1000, commonest(last), commonest(code))
	}
}
