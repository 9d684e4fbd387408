package node

import (
	"net/netip"
	"slices"
	"testing"

	"mintai/ice"
	"mintai/signal/signalpb"
)

const (
	hostKind   = signalpb.CandidateKind_CANDIDATE_HOST
	srflxKind  = signalpb.CandidateKind_CANDIDATE_SRFLX
	mappedKind = signalpb.CandidateKind_CANDIDATE_MAPPED
	relayKind  = signalpb.CandidateKind_CANDIDATE_RELAY
)

func candidate(kind signalpb.CandidateKind, addr string) *signalpb.Candidate {
	return &signalpb.Candidate{Kind: kind, Address: writeAddress(at(addr))}
}

func addrs(texts ...string) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(texts))
	for _, t := range texts {
		out = append(out, at(t))
	}
	return out
}

// texts shows candidates as kind and address.
func texts(in []*signalpb.Candidate) []string {
	out := []string{}
	for _, c := range in {
		addr, _ := readAddress(c.GetAddress())
		out = append(out, candidateKinds[c.GetKind()].String()+" "+addr.String())
	}
	return out
}

func TestReadNetwork(t *testing.T) {
	easy := &ice.Family{Mapping: ice.EndpointIndependent, Observed: at("30.0.0.1:1")}
	doubtful := &ice.Family{Mapping: ice.EndpointIndependent, Doubtful: true, Observed: at("30.0.0.1:1")}
	none := &ice.Family{Observed: at("30.0.0.1:1")}
	const ei, ad, apd = signalpb.Behavior_BEHAVIOR_ENDPOINT_INDEPENDENT, signalpb.Behavior_BEHAVIOR_ADDRESS_DEPENDENT, signalpb.Behavior_BEHAVIOR_ADDRESS_AND_PORT_DEPENDENT
	families := func(f ...*signalpb.FamilyNetwork) *signalpb.Network { return &signalpb.Network{Families: f} }
	lan := []*signalpb.Candidate{candidate(hostKind, "192.168.1.2:1")}
	tests := []struct {
		name       string
		seen       [2]*ice.Family
		said       *signalpb.Network
		candidates []*signalpb.Candidate
		overTLS    bool
		v4, v6     *ice.Family
		blocked    bool
	}{
		{name: "nothing"},
		{name: "seen", seen: [2]*ice.Family{easy}, v4: easy},
		{name: "an own address of a family that is not heard yet", seen: [2]*ice.Family{easy}, candidates: []*signalpb.Candidate{candidate(hostKind, "[2001:db8::7]:1")}, v4: easy, v6: &ice.Family{}},
		{name: "a private IPv6 address is no way out", seen: [2]*ice.Family{easy}, candidates: []*signalpb.Candidate{candidate(hostKind, "[fd00::7]:1"), candidate(hostKind, "[fe80::7]:1")}, v4: easy},
		{
			name: "the node knows its filtering", seen: [2]*ice.Family{easy}, said: families(&signalpb.FamilyNetwork{Filtering: apd, Mapping: ad}),
			v4: &ice.Family{Mapping: ice.EndpointIndependent, Filtering: ice.AddressAndPortDependent, Observed: easy.Observed},
		},
		{
			name: "its mapping where nothing was seen", seen: [2]*ice.Family{none}, said: families(&signalpb.FamilyNetwork{Mapping: ad}),
			v4: &ice.Family{Mapping: ice.AddressDependent, Observed: easy.Observed},
		},
		{
			name: "its mapping against a doubt", seen: [2]*ice.Family{doubtful}, said: families(&signalpb.FamilyNetwork{Mapping: ad}),
			v4: &ice.Family{Mapping: ice.AddressDependent, Observed: easy.Observed},
		},
		{name: "a doubt against a doubt", seen: [2]*ice.Family{doubtful}, said: families(&signalpb.FamilyNetwork{Mapping: ei, Doubtful: true}), v4: doubtful},
		{
			name: "a mapped port of a proven address", seen: [2]*ice.Family{easy}, said: families(&signalpb.FamilyNetwork{Mapped: writeAddress(at("30.0.0.1:99"))}),
			v4: &ice.Family{Mapping: ice.EndpointIndependent, Observed: easy.Observed, Mapped: at("30.0.0.1:99")},
		},
		{name: "a mapped port of another address", seen: [2]*ice.Family{easy}, said: families(&signalpb.FamilyNetwork{Mapped: writeAddress(at("30.0.0.2:99"))}), v4: easy},
		{
			name: "no NAT", seen: [2]*ice.Family{none}, candidates: []*signalpb.Candidate{candidate(hostKind, "30.0.0.1:1")},
			v4: &ice.Family{Mapping: ice.EndpointIndependent, NoNAT: true, Observed: easy.Observed},
		},
		{name: "a NAT, whatever it says", seen: [2]*ice.Family{easy}, candidates: lan, said: families(&signalpb.FamilyNetwork{NoNat: true}), v4: easy},
		{
			name: "no NAT, it says", seen: [2]*ice.Family{none}, said: families(&signalpb.FamilyNetwork{NoNat: true}),
			v4: &ice.Family{Mapping: ice.EndpointIndependent, NoNAT: true, Observed: easy.Observed},
		},
		{name: "over TLS", candidates: lan, overTLS: true, v4: &ice.Family{}, blocked: true},
		{name: "over TLS, but UDP came", seen: [2]*ice.Family{easy}, overTLS: true, v4: easy},
		{name: "blocked, it says", seen: [2]*ice.Family{easy}, said: &signalpb.Network{UdpBlocked: true}, v4: easy, blocked: true},
	}
	for _, tt := range tests {
		got := readNetwork(tt.seen, tt.said, tt.candidates, addrs("30.0.0.1:1"), tt.overTLS)
		if !sameFamily(got.V4, tt.v4) || !sameFamily(got.V6, tt.v6) || got.UDPBlocked != tt.blocked {
			t.Errorf("%s: %+v %+v %v\nwant %+v %+v %v", tt.name, got.V4, got.V6, got.UDPBlocked, tt.v4, tt.v6, tt.blocked)
		}
	}
}

func sameFamily(a, b *ice.Family) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// behind is an end behind a NAT of one address.
func behind(addr string, mapping, filtering ice.Behavior) peerView {
	return peerView{
		id: nodeNumber(int(at(addr).Port())), observed: at(addr), proven: addrs(addr),
		network: ice.Network{V4: &ice.Family{Observed: at(addr), Mapping: mapping, Filtering: filtering}},
	}
}

func TestForesee(t *testing.T) {
	const ei, apd = ice.EndpointIndependent, ice.AddressAndPortDependent
	const auto, never, always = signalpb.RelayMode_RELAY_MODE_AUTO, signalpb.RelayMode_RELAY_MODE_NEVER, signalpb.RelayMode_RELAY_MODE_ALWAYS
	easy, hard := behind("30.0.0.1:1", ei, apd), behind("40.0.0.1:2", apd, apd)
	neighbour, unknown := behind("30.0.0.1:9", ei, apd), behind("40.0.0.1:3", ice.Unknown, ice.Unknown)
	blocked := peerView{observed: at("50.0.0.1:5"), overTLS: true, network: ice.Network{UDPBlocked: true}}
	inside := behind("192.168.1.2:1", ei, ei)
	inside.network.V4.NoNAT = true
	with := func(v peerView, mode signalpb.RelayMode) peerView { v.relay = mode; return v }
	local := func(v peerView) peerView { v.local = true; return v }
	tests := []struct {
		name          string
		client, miner peerView
		directOnly    bool
		want          outlook
	}{
		{"both easy", easy, behind("40.0.0.1:2", ei, apd), false, outlook{expect: ice.Direct, reason: ice.NATTraversed, lend: true}},
		{"hard and closed", easy, hard, false, outlook{expect: ice.RelayNeeded, reason: ice.MinerNATHard, lend: true}},
		{"both hard", hard, hard, false, outlook{expect: ice.Doubtful, reason: ice.SameNetworkBlocked, lend: true, near: true}}, // one address
		{"not known", easy, unknown, false, outlook{expect: ice.Doubtful, reason: ice.MinerNATHard, lend: true}},
		{"one address", easy, neighbour, false, outlook{expect: ice.Doubtful, reason: ice.SameNetworkBlocked, lend: true, near: true}},
		{"one user", local(easy), local(hard), false, outlook{expect: ice.RelayNeeded, reason: ice.MinerNATHard, lend: true, near: true}},
		{"one of them a user", local(easy), hard, false, outlook{expect: ice.RelayNeeded, reason: ice.MinerNATHard, lend: true}},
		{"miner blocked", easy, blocked, false, outlook{expect: ice.RelayNeeded, reason: ice.MinerUDPBlocked, lend: true, legs: true}},
		{"client blocked", blocked, easy, false, outlook{expect: ice.RelayNeeded, reason: ice.ClientUDPBlocked, lend: true}},
		{"both blocked, behind one address", blocked, blocked, false, outlook{expect: ice.RelayNeeded, reason: ice.BothUDPBlocked, lend: true, legs: true, near: true}},
		{"client wants relays", with(easy, always), easy, false, outlook{expect: ice.RelayNeeded, reason: ice.RelayChosen, lend: true, hidden: true, near: true}},
		{"miner wants relays", easy, with(hard, always), false, outlook{expect: ice.RelayNeeded, reason: ice.RelayChosen, lend: true, hidden: true}},
		{"client wants none", with(easy, never), hard, false, outlook{expect: ice.RelayNeeded, reason: ice.MinerNATHard}},
		{"miner wants none", with(easy, auto), with(hard, never), false, outlook{expect: ice.RelayNeeded, reason: ice.MinerNATHard}},
		{"they disagree", with(easy, always), with(hard, never), false, outlook{expect: ice.RelayNeeded, reason: ice.RelayChosen, hidden: true}},
		{"direct only", easy, hard, true, outlook{expect: ice.RelayNeeded, reason: ice.MinerNATHard}},
		{"one inside the coordinator's network", inside, hard, false, outlook{expect: ice.Doubtful, reason: ice.BothNATsHard, lend: true}},
		{"both inside", inside, behind("192.168.1.3:1", ei, ei), false, outlook{expect: ice.Direct, reason: ice.PublicAddress, lend: true}},
	}
	for _, tt := range tests {
		if got := foresee(tt.client, tt.miner, tt.directOnly); got != tt.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.name, got, tt.want)
		}
	}
}

func TestIsNear(t *testing.T) {
	tests := []struct {
		a, b []netip.AddrPort
		want bool
	}{
		{addrs("30.0.0.1:1"), addrs("30.0.0.1:2"), true},
		{addrs("30.0.0.1:1"), addrs("30.0.0.2:1"), false},
		{addrs("30.0.0.1:1", "[2001:db8:a:b::1]:1"), addrs("40.0.0.1:1", "[2001:db8:a:b:ffff::2]:1"), true},
		{addrs("[2001:db8:a:b::1]:1"), addrs("[2001:db8:a:c::1]:1"), false},
		{addrs("[fe80::1]:1"), addrs("[fe80::2]:1"), false}, // every link has these
		{addrs("127.0.0.1:1"), addrs("127.0.0.1:2"), true},
		{nil, addrs("30.0.0.1:1"), false},
		{nil, nil, false},
	}
	for _, tt := range tests {
		if got := isNear(peerView{proven: tt.a}, peerView{proven: tt.b}); got != tt.want {
			t.Errorf("%v, %v: %v", tt.a, tt.b, got)
		}
	}
	proxied := peerView{observed: at("30.0.0.1:443"), overTLS: true}
	if !isNear(proxied, peerView{proven: addrs("30.0.0.1:1")}) {
		t.Error("a TCP connection comes from a network as well")
	}
}

func TestOfferedCandidates(t *testing.T) {
	many := make([]*signalpb.Candidate, 0, 12)
	for i := range uint16(12) {
		many = append(many, &signalpb.Candidate{Kind: hostKind, Address: writeAddress(netip.AddrPortFrom(netip.MustParseAddr("192.168.1.2"), 1000+i))})
	}
	tests := []struct {
		name string
		view peerView
		o    outlook
		want []string
	}{
		{
			"behind a NAT, far",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(hostKind, "192.168.1.2:1")}},
			outlook{},
			[]string{"srflx 30.0.0.1:1"},
		},
		{
			"behind a NAT, near",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(hostKind, "192.168.1.2:1"), candidate(hostKind, "100.64.0.2:1")}},
			outlook{near: true},
			[]string{"srflx 30.0.0.1:1", "host 192.168.1.2:1", "host 100.64.0.2:1"},
		},
		{
			"no NAT",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(hostKind, "30.0.0.1:1")}},
			outlook{},
			[]string{"host 30.0.0.1:1"},
		},
		{
			"a claimed address of a stranger",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(hostKind, "8.8.8.8:53"), candidate(srflxKind, "30.0.0.2:1")}},
			outlook{near: true},
			[]string{"srflx 30.0.0.1:1"},
		},
		{
			"loopback, link-local, multicast",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{
				candidate(hostKind, "127.0.0.1:631"), candidate(hostKind, "169.254.169.254:80"), candidate(hostKind, "224.0.0.1:1"), candidate(hostKind, "[fe80::1]:1"), candidate(hostKind, "[::1]:1"),
			}},
			outlook{near: true},
			[]string{"srflx 30.0.0.1:1"},
		},
		{
			"one machine",
			peerView{observed: at("127.0.0.1:7"), proven: addrs("127.0.0.1:7"), candidates: []*signalpb.Candidate{candidate(hostKind, "127.0.0.1:7"), candidate(hostKind, "127.0.0.1:8")}},
			outlook{near: true},
			[]string{"host 127.0.0.1:7"},
		},
		{
			"a mapped port",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: append(slices.Clone(many), candidate(mappedKind, "30.0.0.1:99"))},
			outlook{near: true},
			[]string{"srflx 30.0.0.1:1", "mapped 30.0.0.1:99", "host 192.168.1.2:1000", "host 192.168.1.2:1001", "host 192.168.1.2:1002", "host 192.168.1.2:1003", "host 192.168.1.2:1004", "host 192.168.1.2:1005"},
		},
		{
			"a mapped port that the NAT chose, too",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(mappedKind, "30.0.0.1:1")}},
			outlook{},
			[]string{"mapped 30.0.0.1:1"},
		},
		{
			"a mapped port behind another NAT",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(mappedKind, "10.0.0.1:99"), candidate(mappedKind, "50.0.0.1:99")}},
			outlook{},
			[]string{"srflx 30.0.0.1:1"},
		},
		{
			"both families",
			peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1", "[2001:db8::7]:1", "30.0.0.1:2"), candidates: []*signalpb.Candidate{candidate(hostKind, "[2001:db8::7]:1")}},
			outlook{},
			[]string{"srflx 30.0.0.1:1", "host [2001:db8::7]:1"},
		},
		{
			"the other family's NAT",
			peerView{observed: at("[2001:db8::7]:1"), proven: addrs("[2001:db8::7]:1", "30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(hostKind, "[2001:db8::7]:1")}},
			outlook{},
			[]string{"host [2001:db8::7]:1", "srflx 30.0.0.1:1"},
		},
		{"over TLS", peerView{observed: at("30.0.0.1:1"), overTLS: true, candidates: []*signalpb.Candidate{candidate(hostKind, "30.0.0.1:1")}}, outlook{}, []string{}},
		{
			"over TLS, near",
			peerView{observed: at("30.0.0.1:1"), overTLS: true, candidates: []*signalpb.Candidate{candidate(hostKind, "192.168.1.2:1")}},
			outlook{near: true},
			[]string{"host 192.168.1.2:1"},
		},
		{"hidden", peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1")}, outlook{hidden: true}, []string{}},
		{"a relay of its own", peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{candidate(relayKind, "30.0.0.1:5")}}, outlook{}, []string{"srflx 30.0.0.1:1"}},
		{"no kind", peerView{observed: at("30.0.0.1:1"), proven: addrs("30.0.0.1:1"), candidates: []*signalpb.Candidate{{Address: writeAddress(at("30.0.0.1:5"))}, {Kind: hostKind}}}, outlook{}, []string{"srflx 30.0.0.1:1"}},
	}
	for _, tt := range tests {
		tt.view.told = tt.view.proven
		if got := texts(tt.view.offered(tt.o)); !slices.Equal(got, tt.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.name, got, tt.want)
		}
	}
}

func TestTrickledCandidates(t *testing.T) {
	relays := []netip.Addr{netip.MustParseAddr("60.0.0.1")}
	sent := []*signalpb.Candidate{
		candidate(mappedKind, "30.0.0.1:99"), candidate(hostKind, "192.168.1.2:1"), candidate(hostKind, "8.8.8.8:53"),
		candidate(relayKind, "60.0.0.1:50000"), candidate(relayKind, "60.0.0.2:50000"), candidate(hostKind, "60.0.0.1:50000"),
	}
	from := peerView{told: addrs("30.0.0.1:1")}
	for _, tt := range []struct {
		name   string
		o      outlook
		relays []netip.Addr
		want   []string
	}{
		{"far", outlook{}, relays, []string{"mapped 30.0.0.1:99", "relay-udp 60.0.0.1:50000"}},
		{"near", outlook{near: true}, relays, []string{"mapped 30.0.0.1:99", "host 192.168.1.2:1", "relay-udp 60.0.0.1:50000"}},
		{"the coordinator's own relay", outlook{}, nil, []string{"mapped 30.0.0.1:99"}},
		{"hidden", outlook{hidden: true, near: true}, relays, []string{"relay-udp 60.0.0.1:50000"}},
	} {
		if got := texts(from.trickled(sent, tt.o, tt.relays)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// The numbers of the wire and of package ice are one list.
func TestReasonsAreThoseOfTheWire(t *testing.T) {
	for number, name := range signalpb.PathReason_name {
		r := ice.Reason(number)
		if (r.String() == "unknown") != (number == 0) {
			t.Errorf("%s is %s", name, r)
		}
		if writeReason(r) != signalpb.PathReason(number) || reasonLabel(signalpb.PathReason(number)) != r.String() {
			t.Errorf("%s: %v, %s", name, writeReason(r), reasonLabel(signalpb.PathReason(number)))
		}
	}
	for _, strange := range []signalpb.PathReason{-1, 99, 256 + 3, 1 << 30} {
		if got := reasonLabel(strange); got != "unknown" {
			t.Errorf("%d: %s", strange, got)
		}
	}
	for _, b := range []ice.Behavior{ice.Unknown, ice.EndpointIndependent, ice.AddressDependent, ice.AddressAndPortDependent} {
		if readBehavior(writeBehavior(b)) != b {
			t.Errorf("%v does not read back", b)
		}
	}
	for e, want := range map[ice.Expectation]signalpb.Expectation{
		ice.Doubtful: signalpb.Expectation_EXPECTATION_DOUBTFUL, ice.Direct: signalpb.Expectation_EXPECTATION_DIRECT, ice.RelayNeeded: signalpb.Expectation_EXPECTATION_RELAY,
	} {
		if writeExpectation(e) != want {
			t.Errorf("%v: %v", e, writeExpectation(e))
		}
	}
}

// An address is told to whom it means the same machine.
func TestMeaningfulAddresses(t *testing.T) {
	ips := func(texts ...string) []netip.Addr {
		var out []netip.Addr
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	tests := []struct {
		name    string
		proven  []netip.AddrPort
		other   []netip.Addr
		near    bool
		outside []netip.Addr
		want    []netip.AddrPort
	}{
		{"public", addrs("30.0.0.1:1"), ips("40.0.0.1"), false, ips("20.0.0.1"), addrs("30.0.0.1:1")},
		{"one machine", addrs("127.0.0.1:1"), ips("127.0.0.1"), true, ips("20.0.0.1"), addrs("127.0.0.1:1")},
		{"on the coordinator's machine, of somebody elsewhere", addrs("127.0.0.1:1"), ips("40.0.0.1"), false, ips("20.0.0.1"), addrs("20.0.0.1:1")},
		{"the same, and nobody knows where that is", addrs("127.0.0.1:1"), ips("40.0.0.1"), false, nil, nil},
		{"the same, and it was heard from there", addrs("127.0.0.1:1", "20.0.0.1:1"), ips("40.0.0.1"), false, ips("20.0.0.1"), addrs("20.0.0.1:1")},
		{"in the coordinator's network, of somebody elsewhere", addrs("192.168.1.2:1"), ips("40.0.0.1"), false, ips("20.0.0.1"), addrs("20.0.0.1:1")},
		{"both in the coordinator's network", addrs("192.168.1.2:1"), ips("192.168.1.3"), false, ips("20.0.0.1"), addrs("192.168.1.2:1")},
		{"one in it, one on its machine", addrs("192.168.1.2:1"), ips("127.0.0.1"), false, nil, addrs("192.168.1.2:1")},
		{"near", addrs("192.168.1.2:1", "[fe80::1]:1"), ips("40.0.0.1"), true, nil, addrs("192.168.1.2:1")},
		{"one link", addrs("[fe80::1]:1"), ips("fe80::2"), false, nil, addrs("[fe80::1]:1")},
	}
	for _, tt := range tests {
		if got := meaningful(tt.proven, tt.other, tt.near, tt.outside); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	view := peerView{proven: addrs("127.0.0.1:1", "20.0.0.1:1"), told: addrs("20.0.0.1:1")}
	for _, tt := range []struct {
		hidden, relay bool
		want          []netip.AddrPort
	}{
		{false, false, addrs("20.0.0.1:1")},
		{false, true, addrs("20.0.0.1:1", "127.0.0.1:1")},
		{true, false, nil},
		{true, true, addrs("127.0.0.1:1", "20.0.0.1:1")},
	} {
		if got := view.expected(outlook{hidden: tt.hidden}, tt.relay); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
