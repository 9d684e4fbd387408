// Package match keeps the miners' leases and chooses the miner that answers a
// request: it filters by what the request needs, then takes the miner that is
// expected to have the answer first, weighed by its reputation.
//
// It has no socket, no goroutine and no clock: every decision is a function of
// leases, needs and the time it is given, and a lease expires by comparison.
// Speeds and reputation come from a Judge, never from what a miner says about
// itself. The decision proper is the function choose.
package match

import (
	"slices"
	"time"

	"mintai/api"
	"mintai/identity"
)

// Model is one model that a miner offers.
type Model struct {
	Name          api.Model
	Calls         []api.Call // the APIs that it truly answers
	ContextTokens int        // longest context; 0: unknown
	Tools         bool       // can call tools
	Vision        bool       // can see images
	JSON          bool       // can promise structured output

	// SameUserOnly offers the model only to clients that the coordinator
	// admitted as the miner's own user on its own machine: the built-in engine
	// when nobody asked for it.
	SameUserOnly bool

	Quantization string // as the AI server says; empty: unknown
	Family       string // likewise
	SizeBytes    int64  // of the weights; 0: unknown
	Backend      string // "ollama", "openai", "builtin" or "demo"
}

// answers reports whether the model answers a call.
func (m *Model) answers(call api.Call) bool { return slices.Contains(m.Calls, call) }

// The model backends that are not an AI server, see rank.
const (
	backendBuiltin = "builtin"
	backendDemo    = "demo"
)

// rank orders models for a request that names none: an AI server before the
// built-in engine before the load simulator.
func (m *Model) rank() int {
	switch m.Backend {
	case backendBuiltin:
		return 1
	case backendDemo:
		return 2
	}
	return 0
}

// Lease is a miner's expiring statement of readiness. The newest replaces all
// before.
type Lease struct {
	Miner     identity.NodeID
	Name      string // shown to people; chosen by the miner, not unique
	Principal string // the account behind the miner
	// Local says that the coordinator admitted the miner as its own user on
	// its own machine.
	Local  bool
	Models []Model // in the miner's order of preference

	Slots      int  // requests answered at a time; below 1 counts as 1
	InFlight   int  // requests being answered
	Queued     int  // requests waiting for a slot
	QueueLimit int  // requests that may wait; 0: none
	Draining   bool // takes no new session

	// Expires ends the lease: at this moment it is worth nothing.
	Expires time.Time
}

// normalised returns the lease with counts that arithmetic can trust. It keeps
// its own list of models.
func (l Lease) normalised() Lease {
	const most = 1 << 20
	l.Slots = min(max(l.Slots, 1), most)
	l.InFlight = min(max(l.InFlight, 0), most)
	l.Queued = min(max(l.Queued, 0), most)
	l.QueueLimit = min(max(l.QueueLimit, 0), most)
	l.Models = slices.Clone(l.Models)
	return l
}

// live reports whether the lease counts at a moment.
func (l *Lease) live(now time.Time) bool { return now.Before(l.Expires) }

// shows reports whether an asker may see a model of the miner at all.
func (l *Lease) shows(m *Model, local bool) bool {
	return !m.SameUserOnly || local && l.Local
}

// hasServer reports whether the miner has anything for the asker.
func (l *Lease) hasServer(local bool) bool {
	for i := range l.Models {
		if l.shows(&l.Models[i], local) {
			return true
		}
	}
	return false
}
