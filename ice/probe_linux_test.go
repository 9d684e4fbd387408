package ice

import (
	"net/netip"
	"sync"
	"testing"

	"mintai/identity"
)

// A real socket measures against a real server. Linux owns all of 127/8, which
// makes a server with two addresses.
func TestProbeOverSockets(t *testing.T) {
	var mu sync.Mutex
	var proofs []Proof
	server, err := StartProbes(ProbeServerConfig{
		Coordinator: testCoordinator, Log: testLog(t),
		Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")},
		OnProof: func(p Proof) {
			mu.Lock()
			defer mu.Unlock()
			proofs = append(proofs, p)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	key := newTestKey(t)
	for name, cfg := range map[string]SocketConfig{"wildcard": {}, "gated": {Gate: true}} {
		t.Run(name, func(t *testing.T) {
			s := testSocket(t, cfg)
			r, err := s.Probe(testContext(t), ProbeConfig{
				Key: key, Coordinator: testCoordinator, Servers: server.Addrs(), Filtering: true,
			})
			own := loopback(s).Addr
			want := Family{Mapping: EndpointIndependent, Filtering: EndpointIndependent, NoNAT: true, Observed: own}
			if err != nil || r.V4 == nil || *r.V4 != want || r.V6 != nil || len(r.RTT) == 0 {
				t.Fatalf("%+v %+v, %v", r, r.V4, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(proofs) == 0 || proofs[len(proofs)-1].Node != key.ID() || proofs[len(proofs)-1].From != own {
				t.Errorf("proofs %v", proofs)
			}
			s.demux.mu.Lock()
			defer s.demux.mu.Unlock()
			if len(s.demux.probes) != 0 {
				t.Errorf("%d probes were not forgotten", len(s.demux.probes))
			}
		})
	}
}

// A server of another coordinator does not answer, and the node's sessions do
// not notice that somebody measures.
func TestProbeBesideSessions(t *testing.T) {
	server, err := StartProbes(ProbeServerConfig{
		Coordinator: identity.NodeID{9}, Log: testLog(t), Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	client, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true})
	probed := make(chan error, 1)
	go func() {
		_, err := client.socket.Probe(testContext(t), ProbeConfig{
			Key: client.key, Coordinator: testCoordinator, Servers: server.Addrs(), RTO: leastRTO / 10,
		})
		probed <- err
	}()
	open(t, miner, client, false, loopback(client.socket))
	c := open(t, client, miner, true, loopback(miner.socket))
	await(t, c.Addrs())
	if err := <-probed; err == nil {
		t.Error("another coordinator's server answered")
	}
}
