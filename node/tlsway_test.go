package node

import (
	"net/netip"
	"slices"
	"testing"

	"mintai/ice"
)

// A coordinator elsewhere cannot have seen a peer on this machine or link, and
// does not answer probes in this network: whatever it says, nothing goes there.
func TestWhatACoordinatorElsewhereMayName(t *testing.T) {
	proven := addrs("30.0.0.1:1", "127.0.0.1:6379", "[::1]:6379", "169.254.169.254:80", "[fe80::1]:9", "192.168.1.1:53")
	servers := append(addrs("30.0.0.2:3478", "[2001:db8::2]:3478", "224.0.0.1:3478", "10.9.9.9:3478", "100.64.0.1:3478"), proven[1:]...)
	everyProven := slices.Clone(proven)
	for _, tt := range []struct {
		at             coordinatorAt
		proven, probed []netip.AddrPort
	}{
		{coordinatorAt{host: "coordinator.example", ip: netip.MustParseAddr("30.0.0.2")}, addrs("30.0.0.1:1", "192.168.1.1:53"), addrs("30.0.0.2:3478", "[2001:db8::2]:3478")},
		{coordinatorAt{host: "coordinator.example", overTLS: true}, addrs("30.0.0.1:1", "192.168.1.1:53"), addrs("30.0.0.2:3478", "[2001:db8::2]:3478")},
		{
			coordinatorAt{host: "10.9.9.9", ip: netip.MustParseAddr("10.9.9.9")},
			addrs("30.0.0.1:1", "192.168.1.1:53"),
			addrs("30.0.0.2:3478", "[2001:db8::2]:3478", "10.9.9.9:3478", "100.64.0.1:3478", "192.168.1.1:53"),
		},
		{
			coordinatorAt{host: "127.0.0.1", overTLS: true},
			addrs("30.0.0.1:1", "127.0.0.1:6379", "[::1]:6379", "192.168.1.1:53"),
			addrs("30.0.0.2:3478", "[2001:db8::2]:3478", "10.9.9.9:3478", "100.64.0.1:3478", "127.0.0.1:6379", "[::1]:6379", "192.168.1.1:53"),
		},
		{
			coordinatorAt{ip: netip.MustParseAddr("169.254.1.1")},
			addrs("30.0.0.1:1", "169.254.169.254:80", "[fe80::1]:9", "192.168.1.1:53"),
			addrs("30.0.0.2:3478", "[2001:db8::2]:3478", "10.9.9.9:3478", "100.64.0.1:3478", "169.254.169.254:80", "[fe80::1]:9", "192.168.1.1:53"),
		},
	} {
		if got := tt.at.believes(proven); !slices.Equal(got, tt.proven) {
			t.Errorf("%+v: proven %v, want %v", tt.at, got, tt.proven)
		}
		if got := tt.at.probed(servers); !slices.Equal(got, tt.probed) {
			t.Errorf("%+v: probed %v, want %v", tt.at, got, tt.probed)
		}
		said := &ice.Policy{Proven: proven, Near: true}
		for _, a := range proven {
			want := slices.Contains(tt.proven, a)
			if got := tt.at.policy(said).Allows(ice.Candidate{Kind: ice.Srflx, Addr: a}) == nil; got != want {
				t.Errorf("%+v: %s allowed: %v", tt.at, a, got)
			}
		}
		if !slices.Equal(proven, everyProven) {
			t.Fatal("the grant was changed")
		}
	}
	many := make([]netip.AddrPort, 0, 3*maxProbed)
	for port := range uint16(3 * maxProbed) {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("30.0.0.1"), port+1))
	}
	if got := (coordinatorAt{}).probed(many); len(got) != maxProbed {
		t.Errorf("%d addresses are probed, want %d", len(got), maxProbed)
	}
}

func TestRelaysOfOperatorsAreElsewhere(t *testing.T) {
	lent := &lentRelay{urls: []string{"turn:relay.example:3478"}}
	for place, want := range map[string]bool{"30.0.0.2": false, "10.0.0.1": false, "127.0.0.1": true} {
		tries := relayOpener{at: coordinatorAt{host: place, ip: netip.MustParseAddr(place)}}.tries(ice.RelayConfig{}, lent)
		if len(tries) != 1 || tries[0].Within == nil || tries[0].Within(netip.MustParseAddr("127.0.0.1")) != want {
			t.Errorf("a coordinator at %s names a relay on loopback: want %v", place, want)
		}
		if !tries[0].Within(netip.MustParseAddr("10.1.1.1")) || tries[0].Within(netip.MustParseAddr("169.254.169.254")) {
			t.Errorf("a coordinator at %s: private or link-local relays", place)
		}
	}
}

// A relayed address is the coordinator's own or a public one; a coordinator on
// this machine has every address of it.
func TestWhereMayRelaysBe(t *testing.T) {
	own := localAddrs()
	for _, a := range own {
		if !(coordinatorAt{ip: netip.MustParseAddr("127.0.0.1")}).mayRelayAt(a) {
			t.Errorf("%s of the coordinator here is refused", a)
		}
		if !isPublic(a) && (coordinatorAt{ip: netip.MustParseAddr("30.0.0.2")}).mayRelayAt(a) {
			t.Errorf("%s of this machine is a relay of a coordinator elsewhere", a)
		}
	}
	for _, tt := range []struct {
		at, relay string
		want      bool
	}{
		{"30.0.0.2", "30.0.0.2", true},
		{"30.0.0.2", "30.0.0.9", true},
		{"30.0.0.2", "::ffff:30.0.0.2", true},
		{"10.9.9.9", "10.9.9.9", true},
		{"10.9.9.9", "10.9.9.8", false},
		{"30.0.0.2", "127.0.0.1", false},
		{"127.0.0.1", "127.0.0.1", true},
		{"127.0.0.1", "10.255.255.253", false},
	} {
		if got := (coordinatorAt{ip: netip.MustParseAddr(tt.at)}).mayRelayAt(netip.MustParseAddr(tt.relay)); got != tt.want {
			t.Errorf("a coordinator at %s relays at %s: %v", tt.at, tt.relay, got)
		}
	}
}
