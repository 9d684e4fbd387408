package node

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"mintai/ice"
	"mintai/identity"
)

// The coordinator's addresses in these tests: two of IPv4, one of IPv6.
var (
	stunA, stunA2 = netip.MustParseAddrPort("20.0.0.1:3478"), netip.MustParseAddrPort("20.0.0.1:3479")
	stunB         = netip.MustParseAddrPort("20.0.0.2:3478")
	signalA       = netip.MustParseAddrPort("20.0.0.1:4433")
	stun6         = netip.MustParseAddrPort("[2001:db8::1]:3478")
)

var someTime = time.Unix(1_700_000_000, 0)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func nodeNumber(n int) identity.NodeID {
	var id identity.NodeID
	binary.BigEndian.PutUint64(id[:], uint64(n)+1)
	return id
}

func TestNetviewMapping(t *testing.T) {
	type seen struct {
		from string
		at   netip.AddrPort
	}
	tests := []struct {
		name     string
		seen     []seen
		mapping  ice.Behavior
		doubtful bool
	}{
		{"one packet", []seen{{"30.0.0.1:1", signalA}}, ice.Unknown, false},
		{"one place, again and again", []seen{{"30.0.0.1:1", signalA}, {"30.0.0.1:1", signalA}}, ice.Unknown, false},
		{"two addresses, one port", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:1", stunB}}, ice.EndpointIndependent, false},
		{"two addresses, two ports", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:2", stunB}}, ice.AddressDependent, false},
		{"two ports of one address, one port", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:1", signalA}}, ice.EndpointIndependent, true},
		{"two ports of one address, two ports", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:2", signalA}}, ice.AddressAndPortDependent, false},
		{"by address, not by port", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:1", stunA2}, {"30.0.0.1:2", stunB}}, ice.AddressDependent, false},
		{"by both", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:2", stunA2}, {"30.0.0.1:3", stunB}}, ice.AddressAndPortDependent, false},
		{"two processes, an easy NAT", []seen{{"30.0.0.1:1", signalA}, {"30.0.0.1:1", stunA}, {"30.0.0.1:1", stunB}, {"30.0.0.1:9", signalA}}, ice.EndpointIndependent, false},
		{"two processes, one address", []seen{{"30.0.0.1:1", signalA}, {"30.0.0.1:1", stunA}, {"30.0.0.1:9", signalA}}, ice.EndpointIndependent, true},
		{"rebound midway", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:1", stunB}, {"30.0.0.1:7", signalA}}, ice.EndpointIndependent, false},
		{"another network now", []seen{{"30.0.0.1:1", stunA}, {"30.0.0.1:1", stunB}, {"40.0.0.1:7", signalA}}, ice.Unknown, false},
		{"where it came to is not known", []seen{{"30.0.0.1:1", netip.AddrPort{}}, {"30.0.0.1:1", stunA}}, ice.Unknown, false},
		{"a wildcard is no address", []seen{{"30.0.0.1:1", at("0.0.0.0:1")}, {"30.0.0.1:2", at("0.0.0.0:2")}}, ice.Unknown, false},
		{"mapped spelling", []seen{{"[::ffff:30.0.0.1]:1", stunA}, {"30.0.0.1:1", at("[::ffff:20.0.0.2]:3478")}}, ice.EndpointIndependent, false},
		{"the other family", []seen{{"[2001:db8:a::1]:1", stun6}, {"30.0.0.1:1", stunA}, {"30.0.0.1:1", stunB}}, ice.EndpointIndependent, false},
	}
	for _, tt := range tests {
		v, now := newNetview(), someTime
		for _, s := range tt.seen {
			now = now.Add(time.Millisecond)
			v.Saw(nodeNumber(1), at(s.from), s.at, now)
		}
		f := v.Family(nodeNumber(1), false, now)
		if f == nil || f.Mapping != tt.mapping || f.Doubtful != tt.doubtful {
			t.Errorf("%s: %+v, want %v, doubtful %v", tt.name, f, tt.mapping, tt.doubtful)
		}
	}
}

func TestNetviewForgets(t *testing.T) {
	v, id := newNetview(), nodeNumber(1)
	from := at("30.0.0.1:1")
	if !v.Saw(id, from, stunA, someTime) || v.Saw(id, from, stunB, someTime) {
		t.Error("an address is new once")
	}
	if v.Saw(id, at("30.0.0.1:2"), stunA, someTime) {
		t.Error("another port of a proven address is nothing new")
	}
	if !v.Saw(id, at("127.0.0.1:1"), signalA, someTime) || !v.Saw(id, at("127.0.0.1:2"), signalA, someTime) {
		t.Error("on one machine each port counts")
	}
	for _, bad := range []netip.AddrPort{{}, at("30.0.0.1:0"), at("0.0.0.0:1"), at("224.0.0.1:1"), at("[ff02::1]:1")} {
		if v.Saw(id, bad, stunA, someTime) || slices.Contains(v.Proven(id, someTime), bad) {
			t.Errorf("%v is proven", bad)
		}
	}
	if f := v.Family(id, true, someTime); f != nil {
		t.Errorf("IPv6 is known: %+v", f)
	}
	late := someTime.Add(provenFor - 1)
	if got := v.Proven(id, late); !slices.Contains(got, from) {
		t.Errorf("proven a minute later: %v", got)
	}
	late = someTime.Add(provenFor)
	if got := v.Proven(id, late); len(got) != 0 || v.Family(id, false, late) != nil {
		t.Errorf("proven after its time: %v", got)
	}
	// What its NAT does is remembered for longer, of the same address.
	v.Saw(id, from, stunA, someTime)
	v.Saw(id, from, stunB, someTime)
	v.Family(id, false, someTime)
	late = someTime.Add(behaviorFor - time.Second)
	v.Saw(id, at("30.0.0.1:5"), signalA, late)
	if f := v.Family(id, false, late); f == nil || f.Mapping != ice.EndpointIndependent || f.Doubtful {
		t.Errorf("the mapping was forgotten: %+v", f)
	}
	v.Saw(id, at("40.0.0.1:5"), signalA, late)
	if f := v.Family(id, false, late); f == nil || f.Mapping != ice.Unknown {
		t.Errorf("what one network does is believed of another: %+v", f)
	}
	if v.Proven(nodeNumber(2), someTime) != nil || v.Family(nodeNumber(2), false, someTime) != nil {
		t.Error("a stranger is known")
	}
}

func TestNetviewTakesAPeersWord(t *testing.T) {
	tests := []struct {
		name     string
		seen     []netip.AddrPort // by stunA, signalA, in this order
		peer     string
		mapping  ice.Behavior
		doubtful bool
	}{
		{"nothing said", []netip.AddrPort{at("30.0.0.1:1"), at("30.0.0.1:1")}, "", ice.EndpointIndependent, true},
		{"the very address", []netip.AddrPort{at("30.0.0.1:1"), at("30.0.0.1:1")}, "30.0.0.1:1", ice.EndpointIndependent, false},
		{"another port", []netip.AddrPort{at("30.0.0.1:1"), at("30.0.0.1:1")}, "30.0.0.1:2", ice.AddressDependent, false},
		{"an address that is not proven", []netip.AddrPort{at("30.0.0.1:1"), at("30.0.0.1:1")}, "50.0.0.1:2", ice.EndpointIndependent, true},
		{"against what was seen", []netip.AddrPort{at("30.0.0.1:1"), at("30.0.0.1:2")}, "30.0.0.1:1", ice.AddressAndPortDependent, false},
		{"with nothing to compare", []netip.AddrPort{at("30.0.0.1:1")}, "30.0.0.1:1", ice.EndpointIndependent, false},
	}
	for _, tt := range tests {
		v, id := newNetview(), nodeNumber(1)
		for i, from := range tt.seen {
			v.Saw(id, from, []netip.AddrPort{stunA, signalA}[i], someTime)
		}
		if tt.peer != "" {
			v.PeerSaw(id, at(tt.peer), someTime)
		}
		f := v.Family(id, false, someTime)
		if f.Mapping != tt.mapping || f.Doubtful != tt.doubtful {
			t.Errorf("%s: %+v, want %v, doubtful %v", tt.name, f, tt.mapping, tt.doubtful)
		}
		if len(v.Proven(id, someTime)) != len(slices.Compact(tt.seen)) {
			t.Errorf("%s: a peer's word proves an address: %v", tt.name, v.Proven(id, someTime))
		}
	}
	v := newNetview()
	v.PeerSaw(nodeNumber(1), at("30.0.0.1:1"), someTime)
	if v.Len() != 0 {
		t.Error("a peer's word makes a node known")
	}
}

// Strangers, and one node's many ports, cost others nothing.
func TestNetviewIsBounded(t *testing.T) {
	v := newNetview()
	const members = 100
	for i := range members {
		v.Joined(nodeNumber(i))
		v.Saw(nodeNumber(i), at("30.0.0.1:1"), stunA, someTime)
	}
	for i := range maxWatched {
		v.Saw(nodeNumber(members+i), at("40.0.0.1:1"), stunA, someTime)
	}
	if v.Len() != maxWatched/2+members {
		t.Errorf("%d nodes are watched", v.Len())
	}
	for i := range members {
		if len(v.Proven(nodeNumber(i), someTime)) == 0 {
			t.Fatalf("a node that joined was pushed out")
		}
	}
	if v.Proven(nodeNumber(members), someTime) != nil || v.Proven(nodeNumber(members+maxWatched-1), someTime) == nil {
		t.Error("of strangers the oldest go")
	}
	for i := range 2 * maxWatched {
		v.Joined(nodeNumber(members + i))
	}
	if v.Len() != maxWatched {
		t.Errorf("%d nodes are watched", v.Len())
	}
	for i := range 3 * maxWatched {
		v.Left(nodeNumber(i))
	}
	if v.Len() > maxWatched || v.unknown.Len() > maxWatched/2 || v.joined.Len() != 0 {
		t.Errorf("%d nodes are watched, %d have joined", v.Len(), v.joined.Len())
	}

	id := nodeNumber(1)
	v = newNetview()
	v.Saw(id, at("[2001:db8:a::1]:1"), stun6, someTime)
	v.Saw(id, at("30.0.0.1:1"), stunA, someTime)
	for port := range uint16(200) {
		v.Saw(id, netip.AddrPortFrom(at("30.0.0.1:1").Addr(), port+1), stunB, someTime)
	}
	got := v.Proven(id, someTime)
	if len(got) != maxProven || got[0] != at("30.0.0.1:200") || got[1] != at("[2001:db8:a::1]:1") {
		t.Errorf("proven: %v", got)
	}
}

func FuzzNetview(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Fuzz(func(t *testing.T, script []byte) {
		v, now := newNetview(), someTime
		joined := map[identity.NodeID]int{}
		for len(script) >= 4 {
			op, n, a, b := script[0], script[1], script[2], script[3]
			script = script[4:]
			id := nodeNumber(int(n % 4))
			ip := netip.AddrFrom4([4]byte{30, 0, 0, a % 4})
			if a&0x80 != 0 {
				ip = netip.AddrFrom16([16]byte{0x20, 1, 15: a % 4})
			}
			from, to := netip.AddrPortFrom(ip, uint16(b%8)), []netip.AddrPort{stunA, stunA2, stunB, signalA}[b%4]
			switch op % 6 {
			case 0, 1:
				v.Saw(id, from, to, now)
			case 2:
				v.PeerSaw(id, from, now)
			case 3:
				v.Joined(id)
				joined[id]++
			case 4:
				if joined[id] > 0 {
					v.Left(id)
					joined[id]--
				}
			case 5:
				now = now.Add(time.Duration(b) * time.Second)
			}
			proven := v.Proven(id, now)
			if len(proven) > maxProven {
				t.Fatalf("%d proven addresses", len(proven))
			}
			for _, ipv6 := range []bool{false, true} {
				family := v.Family(id, ipv6, now)
				has := slices.ContainsFunc(proven, func(p netip.AddrPort) bool { return p.Addr().Is6() == ipv6 })
				if (family != nil) != has {
					t.Fatalf("family %v: %+v, proven %v", ipv6, family, proven)
				}
				if family != nil && (!slices.Contains(proven, family.Observed) || family.Doubtful && family.Mapping != ice.EndpointIndependent) {
					t.Fatalf("%+v of %v", family, proven)
				}
			}
		}
		if v.Len() != v.joined.Len()+v.unknown.Len() {
			t.Fatalf("%d nodes, %d and %d in lists", v.Len(), v.joined.Len(), v.unknown.Len())
		}
	})
}

// A host of IPv6 has addresses without end: few of them are news to others.
func TestNetviewTellsOfFewAddresses(t *testing.T) {
	v, id := newNetview(), nodeNumber(1)
	if v.HasJoined(id) {
		t.Error("nobody has joined")
	}
	v.Joined(id)
	if !v.HasJoined(id) {
		t.Error("a node that joined is not known")
	}
	host, told := at("[2001:db8:a::1]:1").Addr(), 0
	for range 20 * maxNews {
		host = host.Next()
		if v.Saw(id, netip.AddrPortFrom(host, 1), stun6, someTime) {
			told++
		}
	}
	if told != maxNews {
		t.Errorf("%d new addresses of one node were told, want %d", told, maxNews)
	}
	if len(v.Proven(id, someTime)) != maxProven {
		t.Error("the newest addresses are not proven")
	}
	if !v.Saw(id, at("30.0.0.1:1"), stunA, someTime.Add(provenFor)) {
		t.Error("a minute later a new address is no news")
	}
	v.Left(id)
	if v.HasJoined(id) {
		t.Error("a node that left has joined")
	}
}
