package ice

import "net/netip"

// Behavior is how a NAT maps the addresses behind it (RFC 4787 §4.1) or filters
// what comes to them (RFC 4787 §5). A firewall without NAT only filters.
type Behavior uint8

// The behaviors, from open to hard. The zero Behavior is not known.
const (
	Unknown Behavior = iota
	EndpointIndependent
	AddressDependent
	AddressAndPortDependent
)

// String returns RFC 4787's words, in lower case.
func (b Behavior) String() string {
	switch b {
	case EndpointIndependent:
		return "endpoint-independent"
	case AddressDependent:
		return "address-dependent"
	case AddressAndPortDependent:
		return "address and port-dependent"
	default:
		return "unknown"
	}
}

// Family is what is known of a node's network for IPv4 or IPv6. The zero Family
// works, and nothing else is known of it.
type Family struct {
	Mapping, Filtering Behavior
	// Doubtful says that Mapping was measured against a single IP address: a NAT
	// that maps by address looks endpoint-independent then.
	Doubtful bool
	// NoNAT says that the node's own address is the one that others see. With a
	// filtering other than EndpointIndependent there is a firewall.
	NoNAT bool
	// Observed is where the coordinator sees the node; zero when it is not known.
	Observed netip.AddrPort
	// Mapped is an address that the router forwards to the node; zero for none.
	Mapped netip.AddrPort
}

// Network is what is known of a node's network. The zero Network says nothing.
type Network struct {
	V4, V6 *Family // nil: the family does not work, or is not known to
	// UDPBlocked says that nothing comes through but TCP.
	UDPBlocked bool
}

// silent reports whether nothing is known at all.
func (n Network) silent() bool { return n.V4 == nil && n.V6 == nil && !n.UDPBlocked }

// Expectation is what is foreseen for a pair of peers.
type Expectation uint8

// The expectations, with the numbers of the wire protocol.
const (
	Doubtful    Expectation = iota // the relay races the direct path after its head start
	Direct                         // a direct path will work
	RelayNeeded                    // the relay starts at once; direct checks still run
)

// String returns "doubtful", "direct" or "relay".
func (e Expectation) String() string {
	switch e {
	case Direct:
		return "direct"
	case RelayNeeded:
		return "relay"
	default:
		return "doubtful"
	}
}

// Reason says why a path is what it is. The numbers are those of the wire
// protocol's PathReason.
type Reason uint8

// The reasons. Those below 10 are of direct paths, the others of relayed ones.
const (
	NoReason      Reason = 0 // not known
	SameMachine   Reason = 1
	SameNetwork   Reason = 2
	PublicAddress Reason = 3 // one side can be reached by everybody
	PortMapping   Reason = 4 // a router forwards a port
	NATTraversed  Reason = 5
	PortsProbed   Reason = 6 // a NAT that maps per destination, by probing many ports

	BothNATsHard       Reason = 10 // both NATs map per destination
	ClientNATHard      Reason = 11 // the client's maps per destination, the miner's filters by port
	MinerNATHard       Reason = 12 // the other way round
	ClientUDPBlocked   Reason = 13
	MinerUDPBlocked    Reason = 14
	BothUDPBlocked     Reason = 15
	NoCommonFamily     Reason = 16 // one has only IPv4, the other only IPv6
	RelayChosen        Reason = 17 // somebody wanted it so
	SameNetworkBlocked Reason = 18 // behind one address, and nothing passes between the two
	NothingCame        Reason = 19 // no direct packet came through in time
	HandshakeFailed    Reason = 20 // packets came through, the handshake did not
)

var reasonCodes = map[Reason]string{
	SameMachine:        "same-machine",
	SameNetwork:        "same-network",
	PublicAddress:      "public-address",
	PortMapping:        "port-mapping",
	NATTraversed:       "nat-traversed",
	PortsProbed:        "ports-probed",
	BothNATsHard:       "both-nats-hard",
	ClientNATHard:      "client-nat-hard",
	MinerNATHard:       "miner-nat-hard",
	ClientUDPBlocked:   "client-udp-blocked",
	MinerUDPBlocked:    "miner-udp-blocked",
	BothUDPBlocked:     "both-udp-blocked",
	NoCommonFamily:     "no-common-family",
	RelayChosen:        "relay-chosen",
	SameNetworkBlocked: "same-network-blocked",
	NothingCame:        "nothing-came",
	HandshakeFailed:    "handshake-failed",
}

// String returns a short code for metrics and JSON, "unknown" for NoReason and
// for what a newer program may know.
func (r Reason) String() string {
	if s, ok := reasonCodes[r]; ok {
		return s
	}
	return "unknown"
}

// Predict says what to expect of a pair, and why. sameAddress says that the
// coordinator sees both at one IP address.
//
// With Direct the reason is that of the direct path, with RelayNeeded that of
// the relay. With Doubtful it is the one that a relay will have if it comes to
// that, or NoReason where several are possible.
func Predict(client, miner Network, sameAddress bool) (Expectation, Reason) {
	switch {
	case client.UDPBlocked && miner.UDPBlocked:
		return RelayNeeded, BothUDPBlocked
	case client.UDPBlocked:
		return RelayNeeded, ClientUDPBlocked
	case miner.UDPBlocked:
		return RelayNeeded, MinerUDPBlocked
	case sameAddress:
		return predictSame(client, miner)
	case client.silent() || miner.silent():
		return Doubtful, NoReason
	}
	best, why := RelayNeeded, NoCommonFamily
	for _, f := range [...][2]*Family{{client.V4, miner.V4}, {client.V6, miner.V6}} {
		if f[0] == nil || f[1] == nil {
			continue
		}
		e, r := predictFamily(*f[0], *f[1])
		if why == NoCommonFamily || e == Direct && best != Direct || e == Doubtful && best == RelayNeeded {
			best, why = e, r
		}
	}
	return best, why
}

// predictSame is for two nodes behind one address. What their NAT does to
// others says nothing: mostly they share a network and reach each other in it,
// but it may keep its members apart, or be a carrier's that does not turn
// packets round (RFC 4787 §6). One address without NAT is one machine.
func predictSame(client, miner Network) (Expectation, Reason) {
	for _, f := range [...][2]*Family{{client.V4, miner.V4}, {client.V6, miner.V6}} {
		if f[0] == nil || f[1] == nil {
			continue
		}
		a, b := f[0].Observed.Addr(), f[1].Observed.Addr()
		if a.IsValid() && a == b && (a.IsLoopback() || f[0].NoNAT && f[1].NoNAT) {
			return Direct, SameMachine
		}
	}
	return Doubtful, SameNetworkBlocked
}

// side is a network in one family as far as a punch cares.
type side struct {
	hard   bool // maps per destination: peers see an address that nobody could tell them
	closed bool // filters by port: lets in only addresses that were sent to before
}

// possible returns what a family may be, given what is known of it.
func (f Family) possible() []side {
	if f.Mapped.IsValid() {
		return []side{{}} // a forwarded port is one address, open to everybody
	}
	hard := []bool{f.Mapping != EndpointIndependent}
	switch {
	case f.NoNAT:
		hard = []bool{false}
	case f.Mapping == Unknown || f.Mapping == EndpointIndependent && f.Doubtful:
		hard = []bool{false, true}
	}
	closed := []bool{f.Filtering == AddressAndPortDependent}
	if f.Filtering == Unknown {
		closed = []bool{false, true}
	}
	out := make([]side, 0, len(hard)*len(closed))
	for _, h := range hard {
		for _, c := range closed {
			out = append(out, side{hard: h, closed: c})
		}
	}
	return out
}

// public reports whether everybody reaches the node at its own address.
func (f Family) public() bool { return f.NoNAT && f.Filtering == EndpointIndependent }

// predictFamily decides within one family. It is certain only when all that
// the two networks may be leads to the same.
func predictFamily(client, miner Family) (Expectation, Reason) {
	var direct, relayed bool
	why := NoReason
	for _, c := range client.possible() {
		for _, m := range miner.possible() {
			ok, r := punch(c, m)
			switch {
			case ok:
				direct = true
			case !relayed:
				relayed, why = true, r
			case why != r:
				why = NoReason
			}
		}
	}
	switch {
	case direct && relayed:
		return Doubtful, why
	case relayed:
		return RelayNeeded, why
	case client.public() || miner.public():
		return Direct, PublicAddress
	case client.Mapped.IsValid() || miner.Mapped.IsValid():
		return Direct, PortMapping
	default:
		return Direct, NATTraversed
	}
}

// punch decides for two known networks. Each side's first packet opens its own
// filter for the address that it was told. Where both are where they were told,
// the next packets pass. A side that maps per destination comes from another
// port: its packets pass a filter that looks at the IP address or at nothing,
// and from then on the other side knows where it is.
func punch(client, miner side) (bool, Reason) {
	switch {
	case client.hard && miner.hard:
		return false, BothNATsHard
	case client.hard && miner.closed:
		return false, ClientNATHard
	case miner.hard && client.closed:
		return false, MinerNATHard
	default:
		return true, NoReason
	}
}
