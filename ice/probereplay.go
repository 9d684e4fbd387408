package ice

import (
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

// maxReplays bounds the probes of one generation that are remembered.
const maxReplays = 32768

// replays remembers the probes that proved an address, for at least as long as
// their stamps are accepted. It has two generations of twice the window each;
// when one is full the next begins early, so that a flood of throwaway keys
// makes old probes repeatable rather than new ones useless: who can sign can
// forge a source anyway. Nodes that joined have replays of their own, which no
// throwaway key fills.
type replays struct {
	mu        sync.Mutex // guards what follows
	since     time.Time
	now, last map[probeID]seenProbe
}

type probeID struct {
	node        identity.NodeID
	transaction [stun.TransactionIDSize]byte
}

type seenProbe struct{ from, at netip.AddrPort }

// probeAge is what is known of a probe.
type probeAge uint8

const (
	newProbe      probeAge = iota
	repeatedProbe          // sent again, from the same address to the same one
	replayedProbe          // taken from another path
)

// has reports whether the probe was seen.
func (r *replays) has(p ProbeRequest) bool {
	id := probeID{p.Node, p.Transaction}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, now := r.now[id]
	_, last := r.last[id]
	return now || last
}

// see tells a new probe from one that was seen, and remembers it.
func (r *replays) see(p ProbeRequest, from, at netip.AddrPort, now time.Time) probeAge {
	id, seen := probeID{p.Node, p.Transaction}, seenProbe{from, at}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil || now.Sub(r.since) > 2*probeWindow || len(r.now) >= maxReplays {
		r.last, r.now, r.since = r.now, make(map[probeID]seenProbe), now
	}
	before, known := r.now[id]
	if !known {
		before, known = r.last[id]
	}
	switch {
	case !known:
		r.now[id] = seen
		return newProbe
	case before == seen:
		return repeatedProbe
	default:
		return replayedProbe
	}
}
