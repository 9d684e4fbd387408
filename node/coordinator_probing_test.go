package node

import (
	"net/netip"
	"testing"
	"time"

	"mintai/ice"
)

// probingPair is a coordinator with a hard client and a closed miner that it may
// introduce to each other by ports.
type probingPair struct {
	*coordinator
	now time.Time
}

func (p *probingPair) view(n byte, ip string, m ice.Behavior) peerView {
	v := behind(netip.AddrPortFrom(netip.MustParseAddr(ip), 1).String(), m, ice.AddressAndPortDependent)
	v.id, v.probes = nodeNumber(int(n)), true
	p.coordinator.view.Saw(v.id, v.network.V4.Observed, netip.AddrPort{}, p.now)
	return v
}

// propose reports whether a run is proposed; both or neither are told.
func (p *probingPair) propose(t *testing.T, client, miner peerView) bool {
	t.Helper()
	a, b := p.probing(client, miner, outlook{expect: ice.RelayNeeded, reason: ice.ClientNATHard}, p.now)
	if (a == nil) != (b == nil) {
		t.Fatalf("%v, %v", a, b)
	}
	return a != nil
}

// However often is asked, by however many: one run at a time, three a minute, for
// each node and each address.
func TestProbingIsProposedSeldom(t *testing.T) {
	const hard, easy = ice.AddressAndPortDependent, ice.EndpointIndependent
	fresh := func() *probingPair {
		return &probingPair{&coordinator{view: newNetview()}, time.Unix(1e9, 0)}
	}
	t.Run("one pair, twenty times a minute", func(t *testing.T) {
		p := fresh()
		begin, last := p.now, time.Time{}
		n := 0
		for range 20 {
			if p.propose(t, p.view(1, "40.0.0.1", hard), p.view(2, "30.0.0.1", easy)) {
				if p.now.Sub(last) < probeRunTime {
					t.Errorf("%s after the one before", p.now.Sub(last))
				}
				n, last = n+1, p.now
			}
			p.now = p.now.Add(3 * time.Second)
		}
		if n != probesAMinute {
			t.Errorf("%d runs", n)
		}
		p.now = begin.Add(time.Minute)
		if !p.propose(t, p.view(1, "40.0.0.1", hard), p.view(2, "30.0.0.1", easy)) {
			t.Error("none when the first is a minute old")
		}
	})
	for name, c := range map[string]struct {
		client, clientIP, miner, minerIP int // how the runs differ: 0: all alike
	}{
		"a hundred clients of one miner":    {client: 1, clientIP: 1},
		"a hundred clients of one address":  {client: 1, miner: 1, minerIP: 1},
		"a client that is seen everywhere":  {clientIP: 1, miner: 1, minerIP: 1},
		"a hundred miners of one address":   {client: 1, clientIP: 1, miner: 1},
		"a miner that is seen everywhere":   {client: 1, clientIP: 1, minerIP: 1},
		"nodes that come anew all the time": {client: 1, miner: 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := fresh()
			try := func(i int) bool {
				at := func(first, differs int) string {
					return netip.AddrFrom4([4]byte{byte(first), 0, 0, byte(i * differs)}).String()
				}
				return p.propose(t, p.view(byte(1+i*c.client), at(40, c.clientIP), hard), p.view(byte(120+i*c.miner), at(30, c.minerIP), easy))
			}
			n := 0
			for i := range 100 {
				if try(i) {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%d runs at once", n)
			}
			for i := range 9 {
				p.now = p.now.Add(probeRunTime)
				if try(i) {
					n++
				}
			}
			if n != probesAMinute {
				t.Errorf("%d runs within a minute", n)
			}
		})
	}
	t.Run("others are free", func(t *testing.T) {
		p := fresh()
		if !p.propose(t, p.view(1, "40.0.0.1", hard), p.view(2, "30.0.0.1", easy)) || !p.propose(t, p.view(3, "40.0.0.2", hard), p.view(4, "30.0.0.2", easy)) {
			t.Error("one pair keeps another from it")
		}
	})
	t.Run("both behind one address", func(t *testing.T) {
		p := fresh()
		n := 0
		for range 9 {
			if p.propose(t, p.view(1, "40.0.0.1", hard), p.view(2, "40.0.0.1", easy)) {
				n++
			}
			p.now = p.now.Add(probeRunTime)
		}
		if n != probesAMinute {
			t.Errorf("%d runs within a minute", n)
		}
	})
}

func TestProbeRunsAreBounded(t *testing.T) {
	var r probeRuns
	now := time.Unix(1e9, 0)
	party := func(i int) probeParty {
		return probeParty{at: netip.AddrFrom4([4]byte{30, byte(i >> 16), byte(i >> 8), byte(i)})}
	}
	for i := range maxProbeParties {
		if !r.begin(now, party(i)) {
			t.Fatalf("party %d", i)
		}
	}
	if r.begin(now, party(maxProbeParties)) {
		t.Error("one too many")
	}
	if now = now.Add(probeWindow); !r.begin(now, party(maxProbeParties)) || len(r.begun) != 1 {
		t.Errorf("a minute later: %d are remembered", len(r.begun))
	}
}
