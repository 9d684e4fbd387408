package match

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"mintai/api"
	"mintai/identity"
)

// Offer is one model at one miner, for listings.
type Offer struct {
	Model           Model
	Miner           identity.NodeID
	Name            string // of the miner
	Reputation      float64
	FirstToken      time.Duration // measured; 0: unknown
	TokensPerSecond float64       // measured; 0: unknown
	Slots           int
	InFlight        int // sessions on their way included
}

// Offers lists what an asker could have now, by model, then by the miner's
// name. Draining miners offer nothing.
func (b *Board) Offers(local bool, now time.Time) []Offer {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Offer
	for _, e := range b.entries {
		if !e.lease.live(now) || e.lease.Draining {
			continue
		}
		for i := range e.lease.Models {
			m := &e.lease.Models[i]
			if !e.lease.shows(m, local) {
				continue
			}
			o := Offer{
				Model: *m, Miner: e.lease.Miner, Name: e.lease.Name, Reputation: 1,
				Slots: e.lease.Slots, InFlight: e.load(now),
			}
			if b.judge != nil {
				o.Reputation, o.FirstToken, o.TokensPerSecond = b.judgedLocked(e, m, now)
			}
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b Offer) int {
		return cmp.Or(cmp.Compare(a.Model.Name, b.Model.Name), cmp.Compare(a.Name, b.Name), slices.Compare(a.Miner[:], b.Miner[:]))
	})
	return out
}

// NoServer lists the connected miners that have nothing for the asker because
// they run no AI server: their names, sorted.
func (b *Board) NoServer(local bool, now time.Time) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, e := range b.entries {
		if e.lease.live(now) && !e.lease.hasServer(local) {
			out = append(out, e.lease.display())
		}
	}
	slices.Sort(out)
	return out
}

// display is what a miner is called on a screen.
func (l *Lease) display() string {
	if l.Name != "" {
		return l.Name
	}
	return l.Miner.Short()
}

// noMatchLocked says what each filter removed.
func (b *Board) noMatchLocked(n *Needs, p *pin, now time.Time) *NoMatchError {
	var removed [steps]int
	offered := make(map[api.Model]struct{})
	e := &NoMatchError{}
	for _, m := range b.entries {
		_, _, failed := b.considerLocked(m, n, p, now)
		removed[failed]++
		if failed == stepServer {
			e.NoServer = append(e.NoServer, m.lease.display())
		}
		if failed == stepSilent {
			continue
		}
		for i := range m.lease.Models {
			if m.lease.shows(&m.lease.Models[i], n.Local) && !m.lease.Draining {
				offered[m.lease.Models[i].Name] = struct{}{}
			}
		}
	}
	live, passing := 0, 0
	for s := stepSilent; s < steps; s++ {
		if removed[s] == 0 {
			continue
		}
		e.Filters = append(e.Filters, Filter{Reason: s.reason(n, removed[s]), Removed: removed[s]})
		if s != stepSilent {
			live += removed[s]
		}
		if s.passing() {
			passing += removed[s]
		}
	}
	e.Offered = slices.Sorted(maps.Keys(offered))
	e.Offered = e.Offered[:min(len(e.Offered), maxOffered)]
	slices.Sort(e.NoServer)
	e.NoServer = e.NoServer[:min(len(e.NoServer), maxNoServer)]
	switch {
	case live == 0:
		e.Code = CodeNoMiner
	case passing > 0:
		e.Code, e.RetryAfter = CodeBusy, busyRetry
	case removed[stepServer] > 0 && removed[stepServer]+removed[stepPin] == live:
		e.Code = CodeNoServer
	default:
		e.Code = CodeFiltered
	}
	return e
}

// busyRetry is when a client should ask again while every miner is taken.
const busyRetry = 5 * time.Second
