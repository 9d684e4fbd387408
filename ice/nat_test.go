package ice

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// natKinds are the networks of the laboratory (testdata/natlab), as they
// measure from inside.
var natKinds = []struct {
	name string
	is   Network
}{
	{"none", v4(Family{Mapping: EndpointIndependent, Filtering: EndpointIndependent, NoNAT: true})},
	{"none-fw", v4(Family{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent, NoNAT: true})},
	{"eim-eif", v4(Family{Mapping: EndpointIndependent, Filtering: EndpointIndependent})},
	{"eim-adf", v4(Family{Mapping: EndpointIndependent, Filtering: AddressDependent})},
	{"eim-apdf", v4(home)},
	{"adm-apdf", v4(Family{Mapping: AddressDependent, Filtering: AddressAndPortDependent})},
	{"sym", v4(symmetric)},
	{"sym-seq", v4(symmetric)},
	{"sym-pp", v4(symmetric)},
	{"cgnat", v4(home)},
	{"cgnat-sym", v4(symmetric)},
	{"nf", v4(home)},
	{"nf-random", v4(symmetric)},
	{"upnp", v4(Family{
		Mapping: EndpointIndependent, Filtering: AddressAndPortDependent, Mapped: netip.MustParseAddrPort("192.0.2.1:4433"),
	})},
	{"dual", Network{V4: &home, V6: &firewalled}},
	{"ipv6-only", Network{V6: &firewalled}},
	{"udp-blocked", Network{UDPBlocked: true}},
	{"proxy-only", Network{UDPBlocked: true}},
}

var (
	home       = Family{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent}
	symmetric  = Family{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent}
	firewalled = Family{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent, NoNAT: true}
)

func v4(f Family) Network { return Network{V4: &f} }

// The letters of the tables.
var natLetters = map[byte]struct {
	e Expectation
	r Reason
}{
	'P': {Direct, PublicAddress},
	'M': {Direct, PortMapping},
	'N': {Direct, NATTraversed},
	'B': {RelayNeeded, BothNATsHard},
	'C': {RelayNeeded, ClientNATHard},
	'm': {RelayNeeded, MinerNATHard},
	'u': {RelayNeeded, ClientUDPBlocked},
	'v': {RelayNeeded, MinerUDPBlocked},
	'w': {RelayNeeded, BothUDPBlocked},
	'f': {RelayNeeded, NoCommonFamily},
	'?': {Doubtful, NoReason},
	'c': {Doubtful, ClientNATHard},
	'd': {Doubtful, MinerNATHard},
	'b': {Doubtful, BothNATsHard},
}

func checkPrediction(t *testing.T, what string, client, miner Network, letter byte) {
	t.Helper()
	want, ok := natLetters[letter]
	if !ok {
		t.Fatalf("%s: no such letter: %c", what, letter)
	}
	if e, r := Predict(client, miner, false); e != want.e || r != want.r {
		t.Errorf("%s: %s (%s), want %s (%s)", what, e, r, want.e, want.r)
	}
}

// Rows are clients and columns miners, in the order of natKinds.
func TestPredictAllPairs(t *testing.T) {
	for i, row := range []string{
		"PPPPPPPPPPPPPPPfvv", // none
		"PNNNNmmmmNmNmMNfvv", // none-fw
		"PNNNNNNNNNNNNMNfvv", // eim-eif
		"PNNNNNNNNNNNNMNfvv", // eim-adf
		"PNNNNmmmmNmNmMNfvv", // eim-apdf
		"PCNNCBBBBCBCBMCfvv", // adm-apdf
		"PCNNCBBBBCBCBMCfvv", // sym
		"PCNNCBBBBCBCBMCfvv", // sym-seq
		"PCNNCBBBBCBCBMCfvv", // sym-pp
		"PNNNNmmmmNmNmMNfvv", // cgnat
		"PCNNCBBBBCBCBMCfvv", // cgnat-sym
		"PNNNNmmmmNmNmMNfvv", // nf
		"PCNNCBBBBCBCBMCfvv", // nf-random
		"PMMMMMMMMMMMMMMfvv", // upnp
		"PNNNNmmmmNmNmMNNvv", // dual
		"ffffffffffffffNNvv", // ipv6-only
		"uuuuuuuuuuuuuuuuww", // udp-blocked
		"uuuuuuuuuuuuuuuuww", // proxy-only
	} {
		for j := range row {
			client, miner := natKinds[i], natKinds[j]
			checkPrediction(t, client.name+" × "+miner.name, client.is, miner.is, row[j])
		}
	}
}

// punched is what a plain hole punch over IPv4 measured in the laboratory
// ("natlab punch --rtt 50"): + connected, - did not. Rows and columns are the
// kinds from none to dual. It is the floor: what it connects must be foreseen
// as direct. What it does not connect must be foreseen as relayed, unless a
// forwarded port helps, which it does not ask for.
var punched = []string{
	"+++++++++++++++", // none
	"+++++----+-+-++", // none-fw
	"+++++++++++++++", // eim-eif
	"+++++++++++++++", // eim-adf
	"+++++----+-+-++", // eim-apdf
	"+-++-----------", // adm-apdf
	"+-++-----------", // sym
	"+-++-----------", // sym-seq
	"+-++-----------", // sym-pp
	"+++++----+-+-++", // cgnat
	"+-++-----------", // cgnat-sym
	"+++++----+-+-++", // nf
	"+-++-----------", // nf-random
	"+++++----+-+-++", // upnp
	"+++++----+-+-++", // dual
}

func TestPredictMeasuredFloor(t *testing.T) {
	for i, row := range punched {
		for j := range row {
			client, miner := natKinds[i], natKinds[j]
			e, _ := Predict(client.is, miner.is, false)
			forwarded := client.name == "upnp" || miner.name == "upnp"
			want := RelayNeeded
			if row[j] == '+' || forwarded {
				want = Direct
			}
			if e != want {
				t.Errorf("%s × %s: %s, and the punch says %c", client.name, miner.name, e, row[j])
			}
		}
	}
}

// A fresh client knows its mapping at most: the coordinator saw it at two of
// its addresses. The columns are the miners in the order of natKinds.
func TestPredictFreshClient(t *testing.T) {
	for _, tc := range []struct {
		name string
		is   Network
		row  string
	}{
		{"endpoint-independent mapping", v4(Family{Mapping: EndpointIndependent}), "PNNNNddddNdNdMNfvv"},
		{"seen at one address only", v4(Family{Mapping: EndpointIndependent, Doubtful: true}), "PcNNc????c?c?Mcfvv"},
		{"address-dependent mapping", v4(Family{Mapping: AddressDependent}), "PCNNCBBBBCBCBMCfvv"},
		{"hard mapping", v4(Family{Mapping: AddressAndPortDependent}), "PCNNCBBBBCBCBMCfvv"},
		{"hard mapping, seen at one address only", v4(Family{Mapping: AddressAndPortDependent, Doubtful: true}), "PCNNCBBBBCBCBMCfvv"},
		{"no NAT, perhaps a firewall", v4(Family{NoNAT: true}), "PNNNNddddNdNdMNfvv"},
		{"a forwarded port", v4(Family{Mapped: netip.MustParseAddrPort("192.0.2.1:1")}), "PMMMMMMMMMMMMMMfvv"},
		{"IPv4 works", v4(Family{}), "PcNNc????c?c?Mcfvv"},
		{"both work", Network{V4: &Family{}, V6: &Family{}}, "PcNNc????c?c?Mccvv"},
		{"nothing", Network{}, "????????????????vv"},
	} {
		for j := range tc.row {
			checkPrediction(t, tc.name+" × "+natKinds[j].name, tc.is, natKinds[j].is, tc.row[j])
		}
	}
}

// Whatever is said with certainty about a family that is partly known holds for
// all that it may turn out to be, and what holds for all of them is said.
func TestPredictIsCertainOnlyWhenAllAgree(t *testing.T) {
	behaviors := []Behavior{Unknown, EndpointIndependent, AddressDependent, AddressAndPortDependent}
	var all []Family
	for _, m := range behaviors {
		for _, f := range behaviors {
			for _, doubtful := range []bool{false, true} {
				for _, noNAT := range []bool{false, true} {
					all = append(all, Family{Mapping: m, Filtering: f, Doubtful: doubtful, NoNAT: noNAT})
				}
			}
		}
	}
	var known []Family
	for _, f := range all {
		if f.Mapping != Unknown && f.Filtering != Unknown && !f.Doubtful {
			known = append(known, f)
		}
	}
	// matches reports whether a partly known family may turn out to be full.
	matches := func(part, full Family) bool {
		if part.NoNAT != full.NoNAT || part.Filtering != Unknown && part.Filtering != full.Filtering {
			return false
		}
		return part.NoNAT || part.Mapping == Unknown || part.Mapping == full.Mapping ||
			part.Doubtful && part.Mapping == EndpointIndependent && full.Mapping == AddressDependent
	}
	for _, c := range all {
		for _, m := range all {
			var seen [3]bool
			for _, fc := range known {
				for _, fm := range known {
					if matches(c, fc) && matches(m, fm) {
						e, _ := predictFamily(fc, fm)
						seen[e] = true
					}
				}
			}
			want := Doubtful
			switch {
			case seen[Doubtful]:
				t.Fatal("two known families are in doubt")
			case seen[Direct] && !seen[RelayNeeded]:
				want = Direct
			case seen[RelayNeeded] && !seen[Direct]:
				want = RelayNeeded
			}
			if e, _ := predictFamily(c, m); e != want {
				t.Fatalf("%+v × %+v: %s, want %s", c, m, e, want)
			}
		}
	}
}

func TestPredictTakesTheBestFamily(t *testing.T) {
	for _, tc := range []struct {
		name          string
		client, miner Network
		letter        byte
	}{
		{"IPv6 saves two hard NATs", Network{V4: &symmetric, V6: &firewalled}, Network{V4: &symmetric, V6: &firewalled}, 'N'},
		{"IPv4 saves them", Network{V4: &home, V6: &symmetric}, Network{V4: &home, V6: &symmetric}, 'N'},
		{"doubt is better than none", Network{V4: &symmetric, V6: &Family{}}, Network{V4: &symmetric, V6: &firewalled}, 'c'},
		{"both in vain", Network{V4: &symmetric, V6: &symmetric}, Network{V4: &symmetric, V6: &home}, 'B'},
		{"no common one", Network{V4: &home}, Network{V6: &home}, 'f'},
		{"UDP is blocked at both", Network{V4: &home, UDPBlocked: true}, Network{V4: &home, UDPBlocked: true}, 'w'},
	} {
		checkPrediction(t, tc.name, tc.client, tc.miner, tc.letter)
	}
}

func TestPredictSameAddress(t *testing.T) {
	seen := func(f Family, at string) *Family {
		f.Observed = netip.MustParseAddrPort(at)
		return &f
	}
	open := Family{NoNAT: true, Filtering: EndpointIndependent}
	for _, tc := range []struct {
		name          string
		client, miner Network
		e             Expectation
		r             Reason
	}{
		{"behind one home router", Network{V4: seen(home, "192.0.2.1:1")}, Network{V4: seen(home, "192.0.2.1:2")}, Doubtful, SameNetworkBlocked},
		{"behind one hard NAT", v4(symmetric), v4(symmetric), Doubtful, SameNetworkBlocked},
		{"a forwarded port", natKinds[13].is, v4(home), Doubtful, SameNetworkBlocked},
		{"on loopback", Network{V4: seen(Family{}, "127.0.0.1:1")}, Network{V4: seen(Family{}, "127.0.0.1:2")}, Direct, SameMachine},
		{"one public machine", Network{V4: seen(open, "192.0.2.1:1")}, Network{V4: seen(open, "192.0.2.1:2")}, Direct, SameMachine},
		{"nothing else is known", Network{}, Network{}, Doubtful, SameNetworkBlocked},
		{"UDP is blocked", Network{UDPBlocked: true}, v4(home), RelayNeeded, ClientUDPBlocked},
	} {
		if e, r := Predict(tc.client, tc.miner, true); e != tc.e || r != tc.r {
			t.Errorf("%s: %s (%s), want %s (%s)", tc.name, e, r, tc.e, tc.r)
		}
	}
}

func TestNATWords(t *testing.T) {
	codes := make(map[string]bool)
	for r := range Reason(32) {
		code := r.String()
		if code == "unknown" {
			continue
		}
		if codes[code] || code != strings.ToLower(code) || strings.ContainsAny(code, " _") {
			t.Errorf("reason %d: %q", r, code)
		}
		codes[code] = true
	}
	if len(codes) != 17 || NoReason.String() != "unknown" || Reason(200).String() != "unknown" {
		t.Errorf("%d codes", len(codes))
	}
	got := fmt.Sprint(Unknown, EndpointIndependent, AddressDependent, AddressAndPortDependent, Behavior(9), Doubtful, Direct, RelayNeeded)
	if want := "unknown endpoint-independent address-dependent address and port-dependent unknown doubtful direct relay"; got != want {
		t.Errorf("%q", got)
	}
}

func BenchmarkPredict(b *testing.B) {
	client, miner := v4(Family{}), v4(Family{})
	b.ReportAllocs()
	for b.Loop() {
		Predict(client, miner, false)
	}
}
