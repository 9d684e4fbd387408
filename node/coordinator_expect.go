package node

import (
	"net/netip"
	"slices"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// peerView is one end of a match as the coordinator knows it.
type peerView struct {
	id         identity.NodeID
	network    ice.Network
	relay      signalpb.RelayMode
	observed   netip.AddrPort   // where its signaling comes from
	overTLS    bool             // then observed is of TCP, and perhaps of a proxy
	proven     []netip.AddrPort // the newest first
	told       []netip.AddrPort // what of it means the same to the other end
	candidates []*signalpb.Candidate
	local      bool // admitted as the coordinator's own user
	probes     bool // takes part in hard-NAT probing
	// beside are the addresses at which one on this machine comes to the relay
	// here, other than where it was seen.
	beside []netip.AddrPort
}

// outlook is what the coordinator foresees and allows for a pair.
type outlook struct {
	expect ice.Expectation
	reason ice.Reason
	near   bool // private addresses may be tried
	hidden bool // direct paths are not wanted: nobody learns addresses to try
	lend   bool // a relay may be used
	legs   bool // the miner needs a relay of its own
}

// foresee decides what to expect of a pair and what it may do.
func foresee(client, miner peerView, directOnly bool) outlook {
	const always, never = signalpb.RelayMode_RELAY_MODE_ALWAYS, signalpb.RelayMode_RELAY_MODE_NEVER
	o := outlook{
		near:   isNear(client, miner),
		hidden: client.relay == always || miner.relay == always,
		lend:   client.relay != never && miner.relay != never && !directOnly,
		legs:   miner.network.UDPBlocked,
	}
	c, m := beyond(client.network, miner.network)
	o.expect, o.reason = ice.Predict(c, m, isSame(client.proven, miner.proven))
	if o.hidden {
		o.expect, o.reason = ice.RelayNeeded, ice.RelayChosen
	}
	return o
}

// beyond takes out what the coordinator sees of one node from inside that node's
// own network, or machine, when the other is elsewhere: nothing was seen of the
// NAT between the two then.
func beyond(a, b ice.Network) (ice.Network, ice.Network) {
	inside := func(x, y *ice.Family) *ice.Family {
		if x == nil || y == nil || !x.Observed.IsValid() || isPublic(x.Observed.Addr()) || !isPublic(y.Observed.Addr()) {
			return x
		}
		return &ice.Family{Filtering: x.Filtering, Mapped: x.Mapped}
	}
	return ice.Network{V4: inside(a.V4, b.V4), V6: inside(a.V6, b.V6), UDPBlocked: a.UDPBlocked},
		ice.Network{V4: inside(b.V4, a.V4), V6: inside(b.V6, a.V6), UDPBlocked: b.UDPBlocked}
}

// isPublic reports whether an address means the same machine everywhere.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !isCarrierNAT(a)
}

// isSame reports whether two nodes send from one IP address.
func isSame(a, b []netip.AddrPort) bool {
	return slices.ContainsFunc(a, func(x netip.AddrPort) bool {
		return slices.ContainsFunc(b, func(y netip.AddrPort) bool { return x.Addr() == y.Addr() })
	})
}

// isNear reports whether the private addresses of one are likely the other's
// neighbours: they are seen at one address (in IPv6, where each machine has its
// own, at one /64, which is one network), or are of one user.
func isNear(a, b peerView) bool {
	if a.local && b.local {
		return true
	}
	for _, x := range a.places() {
		for _, y := range b.places() {
			if x == y || x.Is6() && y.Is6() && !x.IsLinkLocalUnicast() && netip.PrefixFrom(x, 64).Masked().Contains(y) {
				return true
			}
		}
	}
	return false
}

// places are the IP addresses at which a node is seen, over whatever it comes.
func (p *peerView) places() []netip.Addr {
	var out []netip.Addr
	if p.observed.IsValid() {
		out = append(out, p.observed.Addr())
	}
	for _, a := range p.proven {
		if !slices.Contains(out, a.Addr()) {
			out = append(out, a.Addr())
		}
	}
	return out
}

// readNetwork puts together what the coordinator has seen of a node's network,
// IPv4 and IPv6, what the node says of it, and its candidates. What the node
// says decides where only the node can know: its filtering, and ports that its
// router forwards, of addresses that it has proven.
func readNetwork(seen [2]*ice.Family, said *signalpb.Network, candidates []*signalpb.Candidate, proven []netip.AddrPort, overTLS bool) ice.Network {
	var families [2]*ice.Family
	for i := range families {
		families[i] = readFamily(seen[i], saidOf(said, i == 1), candidates, proven, i)
	}
	return ice.Network{
		V4: families[0], V6: families[1],
		// A packet over UDP shows that it is not blocked, unless the node knows better.
		UDPBlocked: said.GetUdpBlocked() || overTLS && seen[0] == nil && seen[1] == nil,
	}
}

func saidOf(n *signalpb.Network, ipv6 bool) *signalpb.FamilyNetwork {
	for _, f := range n.GetFamilies() {
		if f.GetIpv6() == ipv6 {
			return f
		}
	}
	return nil
}

// readFamily returns nil for a family that the node has not used, does not speak
// of and has no address in.
func readFamily(seen *ice.Family, said *signalpb.FamilyNetwork, candidates []*signalpb.Candidate, proven []netip.AddrPort, index int) *ice.Family {
	own := hostAddrs(candidates, index)
	if seen == nil && said == nil && len(own) == 0 {
		return nil
	}
	f := ice.Family{}
	if seen != nil {
		f = *seen
	}
	if said != nil {
		f.Filtering = readBehavior(said.GetFiltering())
		if mapping := readBehavior(said.GetMapping()); mapping != ice.Unknown && (f.Mapping == ice.Unknown || f.Doubtful && !said.GetDoubtful()) {
			f.Mapping, f.Doubtful = mapping, said.GetDoubtful()
		}
		if addr, ok := readAddress(said.GetMapped()); ok && provenIP(proven, addr.Addr()) {
			f.Mapped = addr
		}
	}
	switch {
	case f.Observed.IsValid() && len(own) > 0:
		f.NoNAT = slices.Contains(own, f.Observed)
	case said != nil:
		f.NoNAT = said.GetNoNat()
	}
	if f.NoNAT {
		f.Mapping, f.Doubtful = ice.EndpointIndependent, false
	}
	return &f
}

// hostAddrs are the addresses of one family that a node's interfaces have, such
// that others might reach it there.
func hostAddrs(candidates []*signalpb.Candidate, index int) []netip.AddrPort {
	var out []netip.AddrPort
	for _, c := range candidates {
		addr, ok := readAddress(c.GetAddress())
		// Private IPv6 addresses are no way into the Internet, private IPv4 ones are
		// behind a NAT.
		if ok && c.GetKind() == signalpb.CandidateKind_CANDIDATE_HOST && familyOf(addr.Addr()) == index &&
			(addr.Addr().IsGlobalUnicast() && !(index == 1 && addr.Addr().IsPrivate()) || addr.Addr().IsLoopback()) {
			out = append(out, addr)
		}
	}
	return out
}

func provenIP(proven []netip.AddrPort, ip netip.Addr) bool {
	return slices.ContainsFunc(proven, func(p netip.AddrPort) bool { return p.Addr() == ip })
}

func readBehavior(b signalpb.Behavior) ice.Behavior {
	switch b {
	case signalpb.Behavior_BEHAVIOR_ENDPOINT_INDEPENDENT:
		return ice.EndpointIndependent
	case signalpb.Behavior_BEHAVIOR_ADDRESS_DEPENDENT:
		return ice.AddressDependent
	case signalpb.Behavior_BEHAVIOR_ADDRESS_AND_PORT_DEPENDENT:
		return ice.AddressAndPortDependent
	case signalpb.Behavior_BEHAVIOR_UNSPECIFIED:
	}
	return ice.Unknown
}

func writeBehavior(b ice.Behavior) signalpb.Behavior {
	switch b {
	case ice.EndpointIndependent:
		return signalpb.Behavior_BEHAVIOR_ENDPOINT_INDEPENDENT
	case ice.AddressDependent:
		return signalpb.Behavior_BEHAVIOR_ADDRESS_DEPENDENT
	case ice.AddressAndPortDependent:
		return signalpb.Behavior_BEHAVIOR_ADDRESS_AND_PORT_DEPENDENT
	case ice.Unknown:
	}
	return signalpb.Behavior_BEHAVIOR_UNSPECIFIED
}

func writeExpectation(e ice.Expectation) signalpb.Expectation {
	switch e {
	case ice.Direct:
		return signalpb.Expectation_EXPECTATION_DIRECT
	case ice.RelayNeeded:
		return signalpb.Expectation_EXPECTATION_RELAY
	case ice.Doubtful:
	}
	return signalpb.Expectation_EXPECTATION_DOUBTFUL
}

// writeReason needs no table: the numbers are one list (ice.Reason).
func writeReason(r ice.Reason) signalpb.PathReason { return signalpb.PathReason(r) }

func writeAddresses(in []netip.AddrPort) []*signalpb.Address {
	out := make([]*signalpb.Address, 0, len(in))
	for _, a := range in {
		out = append(out, writeAddress(a))
	}
	return out
}

// maxCandidates bounds what one peer is told of another.
const maxCandidates = 8

// offered lists the candidates of one end that the other may use: first where
// the coordinator sees it, which is its server-reflexive candidate because
// signaling and tunnels share one socket; then forwarded ports; then its own
// addresses; then where else it was heard from. None when it hides.
func (p *peerView) offered(o outlook) []*signalpb.Candidate {
	if o.hidden {
		return nil
	}
	list := candidateList{policy: &ice.Policy{Proven: p.told, Near: o.near}}
	own := hostAddrs(p.candidates, 0)
	own = append(own, hostAddrs(p.candidates, 1)...)
	seen := func(a netip.AddrPort) *signalpb.Candidate {
		kind := signalpb.CandidateKind_CANDIDATE_SRFLX
		for _, c := range p.candidates { // a forwarded port may be the very one that the NAT chose
			if b, ok := readAddress(c.GetAddress()); ok && a == b && c.GetKind() == signalpb.CandidateKind_CANDIDATE_MAPPED {
				kind = c.GetKind()
			}
		}
		if a.Addr().IsLoopback() || slices.Contains(own, a) {
			kind = signalpb.CandidateKind_CANDIDATE_HOST
		}
		return &signalpb.Candidate{Kind: kind, Address: writeAddress(a)}
	}
	if !p.overTLS && p.observed.IsValid() {
		list.add(seen(p.observed))
	}
	for _, mapped := range []bool{true, false} {
		for _, c := range p.candidates {
			if (c.GetKind() == signalpb.CandidateKind_CANDIDATE_MAPPED) == mapped {
				list.add(c)
			}
		}
	}
	for _, a := range p.told { // of one IP address the newest is enough
		if !slices.ContainsFunc(list.addrs, func(b netip.AddrPort) bool { return a.Addr() == b.Addr() }) {
			list.add(seen(a))
		}
	}
	return list.out
}

// meaningful are the proven addresses of one end that lead to it from the other
// end as well. Loopback addresses do on one machine; private ones when the two
// are near, or both inside the coordinator's own network. A node that is inside
// comes out at the coordinator's public addresses, which are given in outside.
func meaningful(proven []netip.AddrPort, other []netip.Addr, near bool, outside []netip.Addr) []netip.AddrPort {
	isInside := func(a netip.Addr) bool { return !isPublic(a) }
	out := make([]netip.AddrPort, 0, len(proven))
	var inside netip.AddrPort
	for _, a := range proven {
		ip := a.Addr()
		switch {
		case isPublic(ip),
			ip.IsLoopback() && slices.ContainsFunc(other, netip.Addr.IsLoopback),
			ip.IsLinkLocalUnicast() && slices.ContainsFunc(other, netip.Addr.IsLinkLocalUnicast),
			!ip.IsLoopback() && !ip.IsLinkLocalUnicast() && (near || slices.ContainsFunc(other, isInside)):
			out = append(out, a)
		case !inside.IsValid():
			inside = a
		}
	}
	if inside.IsValid() {
		for _, ip := range outside {
			if !provenIP(out, ip) && len(out) < maxProven {
				out = append(out, netip.AddrPortFrom(ip, inside.Port()))
			}
		}
	}
	return out
}

// expected are the addresses from which the other end may expect this one, and
// which it permits at a relay of its own: that stands where the coordinator
// does, and has the coordinator's view.
func (p *peerView) expected(o outlook, relay bool) []netip.AddrPort {
	var out []netip.AddrPort
	if !o.hidden {
		out = append(out, p.told...)
	}
	if relay {
		seen := p.proven
		if !slices.Contains(p.told, p.observed) { // the other end is not on this machine too
			seen = append(slices.Clone(p.beside), seen...)
		}
		for _, a := range seen {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out[:min(len(out), signal.MaxAddresses)]
}

// candidateList collects candidates that a policy allows.
type candidateList struct {
	policy *ice.Policy
	out    []*signalpb.Candidate
	addrs  []netip.AddrPort
}

func (l *candidateList) add(c *signalpb.Candidate) {
	addr, ok := readAddress(c.GetAddress())
	kind, known := candidateKinds[c.GetKind()]
	if !ok || !known || len(l.out) == maxCandidates || slices.Contains(l.addrs, addr) ||
		l.policy.Allows(ice.Candidate{Kind: kind, Addr: addr}) != nil {
		return
	}
	l.out, l.addrs = append(l.out, c), append(l.addrs, addr)
}

// trickled filters what one end sends to the other later. Relayed addresses are
// those of relays that the operator named; those of the coordinator's own the
// coordinator tells itself.
func (p *peerView) trickled(candidates []*signalpb.Candidate, o outlook, relays []netip.Addr) []*signalpb.Candidate {
	list := candidateList{policy: &ice.Policy{Proven: p.told, Near: o.near, Relays: relays}}
	for _, c := range candidates {
		if !o.hidden || c.GetKind() == signalpb.CandidateKind_CANDIDATE_RELAY {
			list.add(c)
		}
	}
	return list.out
}

// firstMapping is how the NAT before the first candidate maps.
func (p *peerView) firstMapping(offered []*signalpb.Candidate) ice.Behavior {
	if len(offered) == 0 {
		return ice.Unknown
	}
	addr, _ := readAddress(offered[0].GetAddress())
	family := p.network.V4
	if addr.Addr().Is6() {
		family = p.network.V6
	}
	if family == nil {
		return ice.Unknown
	}
	return family.Mapping
}
