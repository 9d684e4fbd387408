package node

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal/signalpb"
)

const (
	// probeRunTime is the longest run of either end: until then it may go on.
	probeRunTime = 6 * time.Second
	// probesAMinute bounds the runs that are proposed with one node, and with one
	// address, in a probeWindow: what nodes bound by themselves, over all of them.
	probesAMinute = 3
	probeWindow   = time.Minute
	// maxProbeParties bounds the memory: four of them take part in a run.
	maxProbeParties = 4 << 12
)

// probeParty is who is part of a run: a node, or an address at which one is. The
// other is zero.
type probeParty struct {
	node identity.NodeID
	at   netip.Addr
}

// probeRuns are the runs of hard-NAT probing that were proposed lately. The zero
// probeRuns has none.
type probeRuns struct {
	mu    sync.Mutex                 // guards begun
	begun map[probeParty][]time.Time // oldest first, at most probesAMinute, of the last probeWindow
}

// begin notes a run of all of the parties, if each may take part in one now.
func (r *probeRuns) begin(now time.Time, parties ...probeParty) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range parties {
		begun := r.begun[p]
		if n := len(begun); n > 0 && now.Sub(begun[n-1]) < probeRunTime || n == probesAMinute && now.Sub(begun[0]) < probeWindow {
			return false
		}
	}
	if len(r.begun)+len(parties) > maxProbeParties {
		maps.DeleteFunc(r.begun, func(_ probeParty, begun []time.Time) bool { return now.Sub(begun[len(begun)-1]) >= probeWindow })
	}
	if len(r.begun)+len(parties) > maxProbeParties {
		return false // the relay carries on
	}
	if r.begun == nil {
		r.begun = make(map[probeParty][]time.Time)
	}
	for i, p := range parties {
		if slices.Contains(parties[:i], p) { // both are behind one address
			continue
		}
		begun := append(r.begun[p], now)
		r.begun[p] = begun[max(0, len(begun)-probesAMinute):]
	}
	return true
}

// probing decides whether the two may find each other by many ports, and who
// does what. Both have to have said that they take part, one's NAT maps per
// destination and the other's does not, and both must have been heard from lately
// at the very addresses. Neither they nor whoever else is at these addresses may
// be at it, or have been too often: a later search may find them free.
func (c *coordinator) probing(client, miner peerView, o outlook, now time.Time) (forClient, forMiner *signalpb.HardNATProbing) {
	hard, easy := &client, &miner
	switch {
	case !client.probes || !miner.probes || o.hidden || o.expect != ice.RelayNeeded:
		return nil, nil
	case o.reason == ice.ClientNATHard:
	case o.reason == ice.MinerNATHard:
		hard, easy = &miner, &client
	default:
		return nil, nil
	}
	toEasy, toHard := c.probed(easy, now), c.probed(hard, now)
	if toEasy == nil || toHard == nil {
		return nil, nil
	}
	if !c.runs.begin(now, probeParty{node: client.id}, probeParty{node: miner.id},
		probeParty{at: client.observed.Addr()}, probeParty{at: miner.observed.Addr()}) {
		return nil, nil
	}
	toEasy.Hard = true
	if hard == &client {
		return toEasy, toHard
	}
	return toHard, toEasy
}

// probed names the address of one end for the other. A signed probe alone does not
// count, for its source may be forged: that end's connection, which takes packets
// in both directions, has to come from there.
func (c *coordinator) probed(v *peerView, now time.Time) *signalpb.HardNATProbing {
	if v.overTLS || v.network.V4 == nil || !isPublic(v.network.V4.Observed.Addr()) {
		return nil
	}
	at := v.network.V4.Observed
	if at.Addr() != v.observed.Addr() {
		return nil
	}
	when, ok := c.view.LastSeen(v.id, at.Addr(), now)
	if !ok {
		return nil
	}
	return &signalpb.HardNATProbing{Target: writeAddress(at), ProvenMsAgo: now.Sub(when).Milliseconds()}
}

// LastSeen is when the node was last heard from at an IP address, if that is
// still proven.
func (v *netview) LastSeen(id identity.NodeID, at netip.Addr, now time.Time) (when time.Time, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.nodes[id]
	if e == nil {
		return time.Time{}, false
	}
	for _, s := range e.Value.(*watched).sightings {
		if s.fresh(now) && s.from.Addr() == at && s.when.After(when) {
			when, ok = s.when, true
		}
	}
	return when, ok
}
