package node

import (
	"net/netip"
	"testing"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal"
)

// A node that comes by a link without a key learns its coordinator's from the
// first connection: without it, its probes would prove nothing.
func TestProbesAreSignedForWhoAnswered(t *testing.T) {
	t.Parallel()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	socket, err := ice.Listen(ice.SocketConfig{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	proofs := make(chan ice.Proof, 4)
	server, err := ice.StartProbes(ice.ProbeServerConfig{
		Coordinator: key.ID(), Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, OnProof: func(p ice.Proof) { proofs <- p },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	own, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	n := newNetwork(networkConfig{key: own, socket: socket})
	n.connected(signal.Status{Coordinator: key.ID()}, server.Addrs())
	n.prove()
	if got := receive(t, "a proof", proofs); got.Node != own.ID() {
		t.Errorf("%+v", got)
	}
}

// What was measured is of the network in which it was: elsewhere nothing is
// claimed until it has been measured again.
func TestWhatWasMeasuredElsewhereIsForgotten(t *testing.T) {
	t.Parallel()
	socket, err := ice.Listen(ice.SocketConfig{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	n := newNetwork(networkConfig{socket: socket, overTLS: func() bool { return false }})
	seen := func(addr string, overTLS bool) signal.Status {
		return signal.Status{Observed: netip.MustParseAddrPort(addr), OverTLS: overTLS}
	}
	n.connected(seen("30.0.0.1:4000", false), nil)
	<-n.measureNow
	measured := &ice.Report{V4: &ice.Family{Mapping: ice.EndpointIndependent}}
	for _, step := range []struct {
		name    string
		status  signal.Status
		kept    bool
		connect bool
	}{
		{"the NAT chose another port", seen("30.0.0.1:4001", false), true, false},
		{"by way of a proxy", seen("30.0.0.9:5000", true), true, true},
		{"the same, connected again", seen("30.0.0.1:4002", false), true, true},
		{"the provider gave another address", seen("30.0.0.2:4000", false), false, false},
		{"another network", seen("30.0.1.1:4000", false), false, true},
	} {
		n.report = measured
		if step.connect {
			n.connected(step.status, nil)
		} else {
			n.observed(step.status)
		}
		if kept := len(n.message().GetFamilies()) > 0; kept != step.kept {
			t.Errorf("%s: kept %v", step.name, kept)
		}
		select {
		case <-n.measureNow:
			if step.kept && !step.connect {
				t.Errorf("%s: measured again", step.name)
			}
		default:
			if !step.kept || step.connect {
				t.Errorf("%s: not measured again", step.name)
			}
		}
	}
}

// The second measurement from one address knows no less than the first.
func TestWhatWasMeasuredBeforeCompletesIt(t *testing.T) {
	t.Parallel()
	at, elsewhere := netip.MustParseAddrPort("30.0.0.1:4000"), netip.MustParseAddrPort("30.0.0.2:4000")
	first := &ice.Family{Observed: at, Mapping: ice.EndpointIndependent, Filtering: ice.AddressDependent, Doubtful: true}
	for _, tc := range []struct {
		name         string
		second, want ice.Family
	}{
		{"no more is known", ice.Family{Observed: at}, *first},
		{"it filters otherwise now", ice.Family{Observed: at, Mapping: ice.EndpointIndependent, Filtering: ice.AddressAndPortDependent}, ice.Family{Observed: at, Mapping: ice.EndpointIndependent, Filtering: ice.AddressAndPortDependent}},
		{"another address", ice.Family{Observed: elsewhere}, ice.Family{Observed: elsewhere}},
	} {
		got := tc.second
		if refine(&got, first); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
	refine(nil, first)
	refine(first, nil)
}
