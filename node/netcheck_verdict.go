package node

// netVerdict is what a network's measurements come to, in one word.
type netVerdict string

// The verdicts, from the best to the worst.
const (
	// verdictOpen: every peer with an address of the same family reaches this
	// machine directly.
	verdictOpen netVerdict = "open"
	// verdictDirect: direct paths, but to peers whose NAT maps per destination.
	verdictDirect netVerdict = "direct"
	// verdictHard: direct paths only to peers that everybody, or at least
	// everybody at an address, reaches; the relay to others.
	verdictHard netVerdict = "hard"
	// verdictLocal: the coordinator is in this network, or on this machine. What
	// the router does to others cannot be seen from there.
	verdictLocal netVerdict = "local"
	// verdictUnclear: UDP works, and the NAT's behavior could not be measured.
	verdictUnclear netVerdict = "unclear"
	// verdictRelayed: no UDP. Everything takes the relay, over TLS.
	verdictRelayed netVerdict = "relayed"
	// verdictCaptive: somebody answers in the coordinator's place, as a portal does
	// that wants a login first.
	verdictCaptive netVerdict = "captive-portal"
	// verdictOffline: no coordinator answers, or none is known.
	verdictOffline netVerdict = "offline"
)

// judge fills in what follows from the measurements: the classes in plain words,
// the second NAT, the verdict and the advice. It decides by what was measured and
// nothing else.
func (r *netReport) judge() {
	for _, f := range []*netFamily{r.IPv4, r.IPv6} {
		if f != nil {
			f.Class = f.class()
		}
	}
	r.comparePublic()
	r.Verdict = r.verdict()
	r.Advice = r.advice()
}

// class says in plain words what the behavior of RFC 4787 comes to.
func (f *netFamily) class() string {
	switch {
	case !f.Works, f.NAT == nil:
		return ""
	case !f.public():
		return "the coordinator is inside this network: what its router does to others was not seen"
	case f.Mapping == "" || f.Filtering == "":
		return "not known"
	}
	name := f.cone()
	if !*f.NAT {
		name = f.firewall()
	}
	if f.Doubtful {
		name += ", as far as one address of the coordinator shows"
	}
	return name
}

// cone is the name that the NAT has in everybody's mouth (RFC 3489 §5).
func (f *netFamily) cone() string {
	switch {
	case f.Mapping != behaviorEI:
		return "symmetric NAT"
	case f.Filtering == behaviorEI:
		return "full-cone NAT"
	case f.Filtering == behaviorAD && f.Doubtful:
		return "full-cone or address-restricted cone NAT"
	case f.Filtering == behaviorAD:
		return "address-restricted cone NAT"
	default:
		return "port-restricted cone NAT"
	}
}

// firewall is what stands before a public address.
func (f *netFamily) firewall() string {
	switch {
	case f.Filtering == behaviorEI:
		return "public address, no firewall"
	case f.Filtering == behaviorAD && f.Doubtful:
		return "public address, no firewall or one that goes by addresses"
	default:
		return "public address behind a firewall"
	}
}

// comparePublic compares the router's own outer address, where it told it, with
// the one that the coordinator sees. A router that does not tell is no proof of
// anything.
func (r *netReport) comparePublic() {
	switch {
	case r.PortMapping == nil:
		r.missing("double_nat", "the router was not asked")
		return
	case r.PortMapping.External == "":
		r.missing("double_nat", "the router does not tell its outer address")
		return
	case r.IPv4 == nil || !r.IPv4.Works || !r.IPv4.public():
		r.missing("double_nat", "the coordinator does not see this network from outside over IPv4")
		return
	}
	same := addrOf(r.IPv4.Public) == r.PortMapping.External
	beyond := !same
	r.Double, r.PortMapping.Usable = &beyond, &same
}

// present reports whether this machine has addresses of the family.
func (f *netFamily) present() bool { return f != nil && len(f.Local) > 0 }

// reach is how well others get to a family, from 0: not at all.
type reach int

const (
	reachNone  reach = iota
	reachHard        // only with peers that are open enough
	reachCone        // with all but hard ones
	reachOpen        // by everybody
	reachUnset       // works, but what the NAT does is not known
)

func (f *netFamily) reach() reach {
	switch {
	case f == nil || !f.Works:
		return reachNone
	case !f.public() || f.Mapping == "" || f.Filtering == "":
		return reachUnset
	case f.Mapping != behaviorEI:
		return reachHard
	case f.Filtering == behaviorEI:
		return reachOpen
	}
	return reachCone
}

// mapped reports whether a port of this machine can be opened to everybody.
func (r *netReport) mapped() bool { return r.PortMapping.any() && yes(r.PortMapping.Usable) }

func (r *netReport) verdict() netVerdict {
	v4, v6 := r.IPv4.reach(), r.IPv6.reach()
	works := yes(r.UDP) || v4 != reachNone || v6 != reachNone
	has := func(want reach) bool { return v4 == want || v6 == want }
	switch {
	case !works && yes(r.Captive):
		return verdictCaptive
	case !works && r.refused():
		return verdictUnclear
	case !works && !r.connected():
		return verdictOffline
	case !works:
		return verdictRelayed
	case has(reachOpen), r.mapped():
		return verdictOpen
	case has(reachCone):
		return verdictDirect
	case has(reachHard):
		return verdictHard
	case r.IPv4 != nil && r.IPv4.Works && !r.IPv4.public(), r.IPv6 != nil && r.IPv6.Works && !r.IPv6.public():
		return verdictLocal
	default:
		return verdictUnclear
	}
}

// advice is one line: what to do, or that there is nothing to do.
func (r *netReport) advice() string {
	if r.MTU != nil && r.MTU.Payload < quicPayload && r.Verdict != verdictOffline {
		return "packets of 1200 bytes do not pass, which QUIC needs: raise the MTU of the VPN or tunnel on the way to at least 1280"
	}
	if r.refused() {
		return "the coordinator refuses this node: ask its owner for the current link, then: mintai -mode client join LINK"
	}
	switch r.Verdict {
	case verdictOpen:
		return r.openAdvice()
	case verdictDirect:
		return r.directAdvice()
	case verdictHard:
		return r.hardAdvice()
	case verdictLocal:
		return "nothing to do for peers in this network; to see what the router does to others, check against a coordinator on the Internet"
	case verdictUnclear:
		return "UDP works; what the NAT does could not be measured: the coordinator answers no address probes (UDP 3478 and 3479)"
	case verdictRelayed:
		return r.relayedAdvice()
	case verdictCaptive:
		return "open a web page in a browser and log in to this network, then check again"
	default:
		return r.offlineAdvice()
	}
}

func (r *netReport) openAdvice() string {
	if r.IPv4.reach() == reachOpen || r.IPv6.reach() == reachOpen {
		return "nothing to do: every peer reaches this machine directly"
	}
	return "nothing to do: the router opens a port when it is asked, and every peer reaches this machine directly"
}

func (r *netReport) directAdvice() string {
	switch {
	case r.IPv4.reach() == reachHard:
		return "nothing to do for peers with IPv6, which are reached directly; over IPv4 this NAT maps per destination: " + r.openRouter() + ", or those peers may need the relay"
	case r.IPv4.reach() == reachNone:
		return "nothing to do for peers with IPv6; those with IPv4 alone are reached over the relay" + r.relayNote()
	case r.IPv4.Doubtful && r.IPv4.Filtering == behaviorAD:
		return "nothing to do: direct paths to all peers, or to all but those whose NAT maps per destination"
	case yes(r.IPv4.NAT):
		return "nothing to do: direct paths to all peers but those whose NAT maps per destination; for these too, " + r.openRouter()
	}
	return "nothing to do: direct paths to all peers but those whose NAT maps per destination; for these too, let UDP in through the firewall"
}

func (r *netReport) hardAdvice() string {
	return "this NAT maps per destination, so many paths need the relay" + r.relayNote() + ": " + r.openRouter() + ", or use IPv6"
}

// openRouter says how a port could be opened here.
func (r *netReport) openRouter() string {
	switch {
	case yes(r.Double):
		return "ask the provider for a public address (a second NAT stands behind the router)"
	case r.PortMapping.any():
		return "have the router forward a UDP port (it speaks a port-mapping protocol, but to no use seen from here)"
	}
	return "turn on UPnP, NAT-PMP or PCP in the router"
}

// relayNote warns of a relay that does not answer.
func (r *netReport) relayNote() string {
	switch {
	case yes(r.Relay.UDP), yes(r.Relay.TLS):
		return ""
	case no(r.Relay.UDP) && no(r.Relay.TLS):
		return ", which does not answer either (UDP 3478, TCP 443 at the coordinator)"
	default:
		return ""
	}
}

func (r *netReport) relayedAdvice() string {
	way := "over TLS"
	if r.Proxy != nil && yes(r.Proxy.Works) {
		way = "over TLS through the proxy"
	}
	text := "UDP is blocked here, so everything takes the relay " + way
	if no(r.Relay.TLS) {
		text += ", which does not answer"
	}
	return text + ": for direct paths allow UDP out, to any port"
}

func (r *netReport) offlineAdvice() string {
	switch {
	case len(r.Coordinators) == 0:
		return "join a coordinator to measure the rest: mintai -mode client join LINK"
	case !r.IPv4.present() && !r.IPv6.present():
		return "this machine has no network: connect it"
	case r.Proxy != nil && no(r.Proxy.Works):
		return "the proxy lets nothing through to the coordinator: check its address and its user and password"
	case r.Proxy == nil:
		return "check that the coordinator runs; if this network lets only a proxy out, set HTTPS_PROXY"
	}
	return "check that the coordinator runs and that its UDP port, or TCP 443, can be reached from here"
}
