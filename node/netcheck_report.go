package node

import (
	"net/netip"
	"slices"
	"sync"

	"mintai/ice"
)

// netReport is what `netcheck` found. `netcheck -json` prints it as one object,
// documented in docs/netcheck.md: fields are only ever added. What is null was
// not measured; NotMeasured says why, under the field's name.
type netReport struct {
	V       int        `json:"v"`
	Mode    string     `json:"mode"`    // client or miner: whose coordinator was asked
	Verdict netVerdict `json:"verdict"` // filled in by judge
	Advice  string     `json:"advice"`  // one line; filled in by judge

	UDP    *bool      `json:"udp"` // the coordinator answered over UDP
	IPv4   *netFamily `json:"ipv4"`
	IPv6   *netFamily `json:"ipv6"`
	Double *bool      `json:"double_nat"` // true only where the router's own outer address shows it
	// Hairpin: two sockets of this machine reach each other by their public
	// IPv4 addresses.
	Hairpin     *bool           `json:"hairpin"`
	PortMapping *netPortMapping `json:"port_mapping"`
	MTU         *netMTU         `json:"mtu"`

	Coordinators []netCoordinator `json:"coordinators"`
	STUN         []netSTUN        `json:"stun"`
	TLS          []netTLS         `json:"tls"`
	Proxy        *netProxy        `json:"proxy"` // null: none is set
	Captive      *bool            `json:"captive_portal"`
	Relay        netRelay         `json:"relay"`

	NotMeasured map[string]string `json:"not_measured"`
	ElapsedMS   float64           `json:"elapsed_ms"`
	Error       *jsonError        `json:"error,omitempty"` // with exit code 5: no coordinator answers

	mu sync.Mutex // guards NotMeasured; all else has one writer at a time
}

// netFamily is what is known of IPv4 or IPv6.
type netFamily struct {
	Works bool     `json:"works"`           // the coordinator answered over it, by UDP
	Local []string `json:"local_addresses"` // of this machine's interfaces
	// Public is the address and port at which the coordinator sees a socket of
	// this machine; empty: it does not.
	Public string `json:"public_address"`
	NAT    *bool  `json:"nat"` // Public is an address of another machine
	// The classes of RFC 4787: "endpoint-independent", "address-dependent",
	// "address-and-port-dependent"; empty: not known.
	Mapping   string `json:"mapping"`
	Filtering string `json:"filtering"`
	// Doubtful: the coordinator has one address of this family, so that what
	// depends on the address could not be seen.
	Doubtful bool   `json:"doubtful"`
	Class    string `json:"class"` // in plain words; filled in by judge
}

// netPortMapping says which protocols the router speaks.
type netPortMapping struct {
	UPnP     bool   `json:"upnp"`
	NATPMP   bool   `json:"nat_pmp"`
	PCP      bool   `json:"pcp"`
	Gateway  string `json:"gateway"`          // the router's address in this network
	External string `json:"external_address"` // the router's own outer address, as it says
	// Usable: a port that this router opens can be reached from outside, since
	// External is where the coordinator sees this network; null: not known.
	Usable *bool             `json:"usable"`
	Detail map[string]string `json:"detail"` // what each protocol answered
}

// any reports whether the router opens ports at all.
func (p *netPortMapping) any() bool { return p != nil && (p.UPnP || p.NATPMP || p.PCP) }

// netMTU is the largest packet that came through to the coordinator whole.
type netMTU struct {
	Path    int  `json:"path"`        // with IP and UDP headers, bytes
	Payload int  `json:"udp_payload"` // without, bytes
	AtLeast bool `json:"at_least"`    // larger ones were not tried
}

// netCoordinator is one address of the coordinator.
type netCoordinator struct {
	Addr   string  `json:"address"` // as the link has it
	Remote string  `json:"remote"`  // what answered
	Over   string  `json:"over"`    // udp or tls; empty: no connection
	RTT    float64 `json:"rtt_ms"`
	// Refused: it answered, and does not admit this node.
	Refused bool   `json:"refused"`
	Error   string `json:"error,omitempty"`
}

// netSTUN is one address at which the coordinator answers STUN.
type netSTUN struct {
	Addr string `json:"address"`
	// RTT is null where no request was answered at once, which includes those
	// addresses that there was no reason to ask.
	RTT *float64 `json:"rtt_ms"`
}

// netTLS is one TLS port of the coordinator.
type netTLS struct {
	Addr   string  `json:"address"`
	Works  bool    `json:"works"` // signaling can pass it
	TookMS float64 `json:"took_ms"`
	Error  string  `json:"error,omitempty"`
}

// netProxy is the proxy that the environment names for the coordinator.
type netProxy struct {
	URL   string `json:"url"` // without its password
	Works *bool  `json:"works"`
	Error string `json:"error,omitempty"`
}

// netRelay says how the relay can be reached. Nothing is allocated for that.
type netRelay struct {
	UDP     *bool  `json:"udp"`
	TLS     *bool  `json:"tls"`
	Checked string `json:"checked"` // what the two words above stand for
}

const relayChecked = "whether a TURN server asks for credentials at the coordinator's STUN and TLS ports; nothing was allocated"

// newNetReport returns a report in which nothing has been measured.
func newNetReport(mode string) *netReport {
	return &netReport{
		V: 1, Mode: mode, Coordinators: []netCoordinator{}, STUN: []netSTUN{}, TLS: []netTLS{},
		Relay: netRelay{Checked: relayChecked}, NotMeasured: map[string]string{},
	}
}

// missing notes why a field has no value.
func (r *netReport) missing(field, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.NotMeasured[field] == "" {
		r.NotMeasured[field] = why
	}
}

// connected reports whether the coordinator let this node in at some address.
func (r *netReport) connected() bool {
	return slices.ContainsFunc(r.Coordinators, func(c netCoordinator) bool { return c.Over != "" })
}

// refused reports whether it answered and did not.
func (r *netReport) refused() bool {
	return !r.connected() && slices.ContainsFunc(r.Coordinators, func(c netCoordinator) bool { return c.Refused })
}

// The words for a NAT's behaviour in JSON.
const (
	behaviorEI  = "endpoint-independent"
	behaviorAD  = "address-dependent"
	behaviorAPD = "address-and-port-dependent"
)

func behaviorCode(b ice.Behavior) string {
	switch b {
	case ice.EndpointIndependent:
		return behaviorEI
	case ice.AddressDependent:
		return behaviorAD
	case ice.AddressAndPortDependent:
		return behaviorAPD
	default:
		return ""
	}
}

// classify takes over what probes to so many addresses of the coordinator showed
// of a family; nil: no answer.
func (f *netFamily) classify(seen *ice.Family, addresses int) {
	if seen == nil {
		return
	}
	f.Works = true
	f.Public = seen.Observed.String()
	nat := !seen.NoNAT
	f.NAT = &nat
	f.Mapping, f.Filtering = behaviorCode(seen.Mapping), behaviorCode(seen.Filtering)
	f.Doubtful = seen.Doubtful || addresses < 2 && seen.Filtering == ice.AddressDependent
}

// public reports whether the coordinator sees this family at an address of the
// Internet. Else it is in the same network, and the router was not passed.
func (f *netFamily) public() bool {
	at, err := netip.ParseAddrPort(f.Public)
	return err == nil && isPublic(at.Addr().Unmap())
}

func yes(b *bool) bool { return b != nil && *b }
func no(b *bool) bool  { return b != nil && !*b }
