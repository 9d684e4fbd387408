package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"mintai/ice"
	"mintai/identity"
)

// A relay is asked where the coordinator answers, by address and not by a name
// that would have to be looked up again, and by the name at last.
func TestWaysToARelay(t *testing.T) {
	t.Parallel()
	dial := func(context.Context, string) (net.Conn, error) { return nil, net.ErrClosed }
	v4 := netip.MustParseAddr("20.0.0.1")
	for _, tc := range []struct {
		name string
		at   coordinatorAt
		lent lentRelay
		want []string
	}{
		{"a name", coordinatorAt{host: "c.example", ip: v4}, lentRelay{port: 3478, tlsPort: 443}, []string{"20.0.0.1:3478", "tls c.example:443", "c.example:3478"}},
		{"an address", coordinatorAt{host: "20.0.0.1", ip: v4}, lentRelay{port: 3478, tlsPort: 443}, []string{"20.0.0.1:3478", "tls 20.0.0.1:443"}},
		{"IPv6", coordinatorAt{host: "2001:db8::1", ip: netip.MustParseAddr("2001:db8::1")}, lentRelay{port: 3478}, []string{"[2001:db8::1]:3478"}},
		{"over TLS", coordinatorAt{host: "c.example", overTLS: true}, lentRelay{port: 3478, tlsPort: 443}, []string{"tls c.example:443", "c.example:3478"}},
		{"away", coordinatorAt{host: "c.example"}, lentRelay{port: 3478}, []string{"c.example:3478"}},
		{"no TLS", coordinatorAt{host: "c.example", ip: v4}, lentRelay{port: 3478}, []string{"20.0.0.1:3478", "c.example:3478"}},
		{"of others", coordinatorAt{host: "c.example", ip: v4}, lentRelay{urls: []string{"turn:r.example:3478"}}, []string{"turn:r.example:3478"}},
	} {
		var got []string
		for _, try := range (relayOpener{at: tc.at, dialTLS: dial}).tries(ice.RelayConfig{}, &tc.lent) {
			if try.Dial != nil {
				try.Server = "tls " + try.Server
			}
			got = append(got, try.Server)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// Two nodes that both come to relays of their own have no address that says of
// which family those must be. A coordinator that has IPv6 only lends them all
// the same.
func TestRelayOfACoordinatorWithIPv6Only(t *testing.T) {
	t.Parallel()
	if !hasIPv6() {
		t.Log("this machine has no IPv6")
		return
	}
	server, err := ice.StartTURN(ice.TURNConfig{Listen: []netip.AddrPort{netip.MustParseAddrPort("[::1]:0")}, PortMin: 1024, PortMax: 65535})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	id, password := identity.NewSessionID(), ice.NewCredentials().Pwd
	user := server.Allow(ice.TURNSession{ID: id, Password: password, Expires: time.Now().Add(time.Minute)})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	relay, err := relayOpener{at: coordinatorAt{host: "::1", ip: netip.IPv6Loopback()}}.open(ctx, ice.RelayConfig{
		Username: user, Password: password, Realm: server.Realm(), Nonce: server.Nonce(), PeerRelayed: true,
		Local: ice.NewCredentials(), Remote: ice.NewCredentials(),
	}, &lentRelay{port: server.Addrs()[0].Port()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = relay.Close() }()
	if !relay.Addr().Addr().Is6() {
		t.Errorf("relayed at %v", relay.Addr())
	}
}
