package node

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"mintai/ice"
	"mintai/identity"
)

const (
	// provenFor is how long an address counts as a node's after a packet that
	// the node authenticated came from there.
	provenFor = time.Minute
	// behaviorFor is how long what a node's NAT once showed is believed of it.
	behaviorFor = 10 * time.Minute
	// maxProven bounds the addresses of one node that others are told.
	maxProven = 8
	// maxSightings bounds what is kept of one node: each address, as each of the
	// coordinator's own saw it.
	maxSightings = 16
	// maxNews bounds the addresses of one node that are passed on as new within
	// provenFor: one host has 2^64 of IPv6, and each concerns all of its sessions.
	maxNews = 32
	// maxWatched bounds the nodes of which something is kept, half of them may be
	// such that have not joined: anybody can make any number of those.
	maxWatched = 1 << 14
)

// netview remembers from where nodes sent, and what that shows of their NATs.
// It takes the time from its callers.
type netview struct {
	mu      sync.Mutex // guards what follows
	nodes   map[identity.NodeID]*list.Element
	joined  *list.List // of *watched, the longest silent last
	unknown *list.List // of *watched that have not joined, the longest silent last
}

// watched is what is known of one node.
type watched struct {
	id        identity.NodeID
	joined    int // connections of it
	news      int // addresses that were new since newsSince
	newsSince time.Time
	sightings []sighting // one for each pair of from and at
	told      [2]verdict // what peers saw, IPv4 and IPv6
	shown     [2]verdict // what was concluded when there was more to conclude from
}

// sighting is an authenticated packet of a node.
type sighting struct {
	from netip.AddrPort // where it came from
	at   netip.AddrPort // the coordinator's address that it came to; zero: not known
	when time.Time
}

// verdict is a belief about the NAT before an address.
type verdict struct {
	ip       netip.Addr
	mapping  ice.Behavior
	doubtful bool
	when     time.Time
}

func newNetview() *netview {
	return &netview{nodes: make(map[identity.NodeID]*list.Element), joined: list.New(), unknown: list.New()}
}

// familyOf is the index of an address's family in watched.
func familyOf(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// plain is the one spelling of an address, without a zone.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// Saw notes that an authenticated packet of the node came from an address, and
// reports whether that one was not among the proven ones before. Peers go by
// the IP address, and on one machine by the port as well.
func (v *netview) Saw(id identity.NodeID, from, at netip.AddrPort, now time.Time) (isNew bool) {
	return v.SawEarlier(id, from, at, now, now)
}

// SawEarlier is Saw for a packet that came some time before now.
func (v *netview) SawEarlier(id identity.NodeID, from, at netip.AddrPort, when, now time.Time) (isNew bool) {
	from, at = plain(from), plain(at)
	if !from.IsValid() || from.Port() == 0 || from.Addr().IsUnspecified() || from.Addr().IsMulticast() {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.watchLocked(id)
	isNew = !slices.ContainsFunc(w.sightings, func(s sighting) bool {
		return s.fresh(now) && (s.from == from || s.from.Addr() == from.Addr() && !from.Addr().IsLoopback())
	})
	w.see(sighting{from: from, at: at, when: when}, now)
	return isNew && w.mayTell(now)
}

// mayTell reports whether others may be told of one more new address.
func (w *watched) mayTell(now time.Time) bool {
	if now.Sub(w.newsSince) >= provenFor {
		w.news, w.newsSince = 0, now
	}
	w.news++
	return w.news <= maxNews
}

func (s sighting) fresh(now time.Time) bool { return now.Sub(s.when) < provenFor }

// see keeps a sighting in place of an older one, of what is no longer proven, or
// of the oldest from the address that has the most.
func (w *watched) see(s sighting, now time.Time) {
	if !s.fresh(now) {
		return
	}
	for _, o := range w.sightings {
		if o.from == s.from && o.at == s.at && o.when.After(s.when) {
			return // what happened is told late
		}
	}
	w.sightings = slices.DeleteFunc(w.sightings, func(o sighting) bool {
		return o.from == s.from && o.at == s.at || !o.fresh(now)
	})
	if len(w.sightings) == maxSightings {
		count := map[netip.Addr]int{}
		for _, o := range w.sightings {
			count[o.from.Addr()]++
		}
		worst := 0
		for i, o := range w.sightings { // the oldest first
			if count[o.from.Addr()] > count[w.sightings[worst].from.Addr()] {
				worst = i
			}
		}
		w.sightings = slices.Delete(w.sightings, worst, worst+1)
	}
	w.sightings = append(w.sightings, s)
}

// watchLocked finds a node or begins to watch it, which may cost another one.
func (v *netview) watchLocked(id identity.NodeID) *watched {
	if e := v.nodes[id]; e != nil {
		w := e.Value.(*watched)
		v.listOf(w).MoveToFront(e)
		return w
	}
	w := &watched{id: id}
	v.nodes[id] = v.unknown.PushFront(w)
	v.boundLocked()
	return w
}

func (v *netview) listOf(w *watched) *list.List {
	if w.joined > 0 {
		return v.joined
	}
	return v.unknown
}

// boundLocked lets those go that were silent for the longest time: strangers
// first.
func (v *netview) boundLocked() {
	for v.unknown.Len() > maxWatched/2 || v.unknown.Len()+v.joined.Len() > maxWatched {
		from := v.unknown
		if from.Len() <= 1 { // the one that just came
			from = v.joined
		}
		w := from.Remove(from.Back()).(*watched)
		delete(v.nodes, w.id)
	}
}

// Joined notes a connection of the node, Left its end.
func (v *netview) Joined(id identity.NodeID) { v.connected(id, 1) }

// Left notes that a connection of the node has ended. What is known of it stays
// until others need the room.
func (v *netview) Left(id identity.NodeID) { v.connected(id, -1) }

func (v *netview) connected(id identity.NodeID, n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n < 0 && v.nodes[id] == nil {
		return
	}
	w := v.watchLocked(id)
	v.listOf(w).Remove(v.nodes[id])
	w.joined = max(0, w.joined+n)
	v.nodes[id] = v.listOf(w).PushFront(w)
	v.boundLocked()
}

// HasJoined reports whether the node has a connection.
func (v *netview) HasJoined(id identity.NodeID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.nodes[id]
	return e != nil && e.Value.(*watched).joined > 0
}

// Proven lists the addresses from which the node was heard within the last
// minute: the newest of each IP address first, then their other ports.
func (v *netview) Proven(id identity.NodeID, now time.Time) []netip.AddrPort {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.nodes[id]
	if e == nil {
		return nil
	}
	var first, more []netip.AddrPort
	seen := map[netip.Addr]bool{}
	for _, s := range slices.Backward(e.Value.(*watched).sightings) {
		switch {
		case !s.fresh(now), slices.Contains(first, s.from), slices.Contains(more, s.from):
		case seen[s.from.Addr()]:
			more = append(more, s.from)
		default:
			seen[s.from.Addr()] = true
			first = append(first, s.from)
		}
	}
	out := append(first, more...)
	return out[:min(len(out), maxProven)]
}

// PeerSaw takes a peer's word for where the node came from. It counts only at an
// IP address that the node has proven, and only where the coordinator's own view
// leaves a doubt, so that a peer that lies can do no more than start a relay too
// early or too late.
func (v *netview) PeerSaw(id identity.NodeID, addr netip.AddrPort, now time.Time) {
	addr = plain(addr)
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.nodes[id]
	if e == nil {
		return
	}
	w := e.Value.(*watched)
	said := ice.Unknown
	for _, s := range w.sightings {
		switch {
		case !s.fresh(now) || s.from.Addr() != addr.Addr():
		case s.from == addr:
			said = ice.EndpointIndependent
		case said == ice.Unknown:
			said = ice.AddressDependent
		}
	}
	if said != ice.Unknown {
		w.told[familyOf(addr.Addr())] = verdict{ip: addr.Addr(), mapping: said, when: now}
	}
}

// Family says what the coordinator has seen of the node's network in one
// family; nil when nothing came from it. Filtering cannot be seen from here.
func (v *netview) Family(id identity.NodeID, ipv6 bool, now time.Time) *ice.Family {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.nodes[id]
	if e == nil {
		return nil
	}
	w := e.Value.(*watched)
	var of []sighting
	for _, s := range slices.Backward(w.sightings) { // the newest is where the node is now
		if s.fresh(now) && s.from.Addr().Is6() == ipv6 && (len(of) == 0 || s.from.Addr() == of[0].from.Addr()) {
			of = append(of, s)
		}
	}
	if len(of) == 0 {
		return nil
	}
	f := &ice.Family{Observed: of[0].from}
	f.Mapping, f.Doubtful = classify(of)
	w.remember(f, now)
	return f
}

// remember completes what the coordinator saw just now by what it saw earlier,
// and by what peers said. Its own view counts more, and what is certain more
// than what is not.
func (w *watched) remember(f *ice.Family, now time.Time) {
	i, ip := familyOf(f.Observed.Addr()), f.Observed.Addr()
	if f.Mapping != ice.Unknown && !f.Doubtful {
		w.shown[i] = verdict{ip: ip, mapping: f.Mapping, when: now}
		return
	}
	for _, known := range []verdict{w.shown[i], w.told[i]} {
		if known.ip == ip && known.mapping != ice.Unknown && !known.doubtful && now.Sub(known.when) < behaviorFor {
			f.Mapping, f.Doubtful = known.mapping, false
			return
		}
	}
	if f.Mapping != ice.Unknown {
		w.shown[i] = verdict{ip: ip, mapping: f.Mapping, doubtful: f.Doubtful, when: now}
	} else if known := w.shown[i]; known.ip == ip && now.Sub(known.when) < behaviorFor {
		f.Mapping, f.Doubtful = known.mapping, known.doubtful
	}
}

// classify concludes from sightings of one IP address how the NAT before it
// maps (RFC 4787 §4.1). Several processes of a node share its key and send from
// ports of their own. So one port that was seen at two places is proof of one
// mapping for both; only where there is no such port, the mappings differ.
func classify(sightings []sighting) (mapping ice.Behavior, doubtful bool) {
	type place struct {
		addr netip.Addr
		from netip.AddrPort
	}
	ports := map[netip.Addr]map[uint16]bool{} // of the coordinator's, by its addresses
	seen := map[place]map[uint16]bool{}
	addrs := map[netip.AddrPort]map[netip.Addr]bool{} // of the coordinator's, by the node's
	for _, s := range sightings {
		at := s.at.Addr()
		if !at.IsValid() || at.IsUnspecified() {
			continue
		}
		add(ports, at, s.at.Port())
		add(seen, place{at, s.from}, s.at.Port())
		add(addrs, s.from, at)
	}
	sameAddr := slices.ContainsFunc(sightings, func(s sighting) bool { return len(addrs[s.from]) > 1 })
	samePort := slices.ContainsFunc(sightings, func(s sighting) bool { return len(seen[place{s.at.Addr(), s.from}]) > 1 })
	severalPorts := slices.ContainsFunc(sightings, func(s sighting) bool { return len(ports[s.at.Addr()]) > 1 })
	switch {
	case severalPorts && !samePort && !sameAddr:
		return ice.AddressAndPortDependent, false
	case sameAddr:
		return ice.EndpointIndependent, false
	case len(ports) > 1:
		return ice.AddressDependent, false // or by port, too
	case samePort:
		return ice.EndpointIndependent, true // or by address: it was seen at one only
	default:
		return ice.Unknown, false
	}
}

func add[K, V comparable](m map[K]map[V]bool, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]bool{}
	}
	m[k][v] = true
}

// Len is the number of nodes of which something is kept.
func (v *netview) Len() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.nodes)
}
