package match

import (
	"fmt"
	"slices"
	"time"
)

// step is one filter, in the order in which they are applied. A miner is
// counted by the first one that removes it.
type step int

const (
	stepKept step = iota
	stepSilent
	stepPin
	stepServer
	stepModel
	stepCall
	stepTools
	stepVision
	stepJSON
	stepContext
	stepReputation
	stepExclude
	stepDraining
	stepFull
	steps // one past the last
)

// reason says in people's words what a filter removed; it reads on after the
// number of miners.
func (s step) reason(n *Needs, removed int) string {
	is, do, has, runs, was := "is", "does", "has", "runs", "was"
	if removed != 1 {
		is, do, has, runs, was = "are", "do", "have", "run", "were"
	}
	switch s {
	case stepSilent:
		return has + " not been heard of lately"
	case stepPin:
		return is + " not " + n.Miner
	case stepServer:
		return runs + " no AI server"
	case stepModel:
		return fmt.Sprintf("%s not offer %s", do, n.Model)
	case stepCall:
		if n.Model == "" {
			return fmt.Sprintf("%s not answer %s", do, n.Call)
		}
		return fmt.Sprintf("%s not answer %s with %s", do, n.Call, n.Model)
	case stepTools:
		return "cannot call tools"
	case stepVision:
		return "cannot see images"
	case stepJSON:
		return "cannot promise structured output"
	case stepContext:
		return fmt.Sprintf("%s less than %d tokens of context", has, n.ContextTokens)
	case stepReputation:
		return fmt.Sprintf("%s below a reputation of %.2f", is, n.MinReputation)
	case stepExclude:
		return was + " already tried"
	case stepDraining:
		return is + " shutting down"
	case stepFull:
		return is + " full"
	case stepKept, steps:
	}
	return "cannot be used"
}

// passing says whether a filter removes a miner only for a while: then those
// that could answer exist, and trying again helps.
func (s step) passing() bool {
	return s == stepExclude || s == stepDraining || s == stepFull
}

// modelFilters are the filters that look at one model of a miner. A miner goes
// as far as its best model.
var modelFilters = [...]struct {
	step   step
	passes func(n *Needs, m *Model) bool
}{
	{stepModel, func(n *Needs, m *Model) bool { return n.Model == "" || names(n.Model, m.Name) }},
	{stepCall, func(n *Needs, m *Model) bool { return n.Call == "" || m.answers(n.Call) }},
	{stepTools, func(n *Needs, m *Model) bool { return !n.Tools || m.Tools }},
	{stepVision, func(n *Needs, m *Model) bool { return !n.Vision || m.Vision }},
	{stepJSON, func(n *Needs, m *Model) bool { return !n.JSON || m.JSON }},
	{stepContext, func(n *Needs, m *Model) bool { return m.ContextTokens == 0 || m.ContextTokens >= n.ContextTokens }},
}

// fit returns the model of a lease that serves the needs, or the filter at
// which the last model failed. Of several, an AI server's goes before the
// built-in engine's, an exact name before ":latest", and then the miner's own
// order decides, so that requests without a model keep the same one warm.
func fit(l *Lease, n *Needs) (*Model, step) {
	var best *Model
	furthest := stepServer
	for i := range l.Models {
		m := &l.Models[i]
		if !l.shows(m, n.Local) {
			continue
		}
		failed := stepKept
		for _, f := range modelFilters {
			if !f.passes(n, m) {
				failed = f.step
				break
			}
		}
		if failed != stepKept {
			furthest = max(furthest, failed)
			continue
		}
		if best == nil || m.rank() < best.rank() || m.Name == n.Model && best.Name != n.Model {
			best = m
		}
	}
	if best == nil {
		return nil, furthest
	}
	return best, stepKept
}

// consider runs a miner through the filters that its lease alone decides, and
// returns the model that it would serve.
func consider(e *entry, n *Needs, p *pin, now time.Time) (*Model, step) {
	if !e.lease.live(now) {
		return nil, stepSilent
	}
	if n.Miner != "" && !p.means(e) {
		return nil, stepPin
	}
	return fit(&e.lease, n)
}

// room says whether a miner takes a new session just now.
func room(e *entry, load int, n *Needs, now time.Time) step {
	l := &e.lease
	most := l.Slots + l.QueueLimit
	switch {
	case slices.Contains(n.Exclude, l.Miner):
		return stepExclude
	case l.Draining:
		return stepDraining
	case load >= most && e.fairLoad(n.Asker, now) >= most:
		return stepFull
	}
	return stepKept
}
