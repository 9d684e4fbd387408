package ice

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"mintai/identity"
)

// shares is a server without sockets that knows one node.
func shares(known identity.NodeID) *ProbeServer {
	return &ProbeServer{
		cfg:    ProbeServerConfig{Known: func(id identity.NodeID) bool { return id == known }},
		checks: [2]*rate.Limiter{rate.NewLimiter(maxVerified, maxVerified), rate.NewLimiter(maxVerified, maxVerified)},
	}
}

// Strangers who send signatures by the ten thousand cost so much and no more,
// and nodes that joined still prove their addresses.
func TestForgedSignaturesShutNobodyOut(t *testing.T) {
	node, coordinator := newKey(t), newKey(t).ID()
	now := time.Now()
	p := shares(node.ID())
	forged, _ := SignProbe(newKey(t), coordinator, 0, now)
	verified := 0
	for range 20_000 {
		if p.mayVerify(forged, now) {
			verified++
		}
	}
	if verified != maxVerified {
		t.Errorf("%d signatures of strangers are verified at once, want %d", verified, maxVerified)
	}
	own, _ := SignProbe(node, coordinator, 0, now)
	if !p.mayVerify(own, now) {
		t.Error("a node that joined is not heard")
	}
	if !p.mayVerify(plainBinding(), now) {
		t.Error("a request without signature waits for others")
	}
	if p.cfg.Known = nil; p.mayVerify(own, now) {
		t.Error("strangers have the share of nodes that joined")
	}
}

// Throwaway keys do not make the probes of others repeatable.
func TestThrowawayKeysDoNotPushReplaysOut(t *testing.T) {
	node := newKey(t).ID()
	now := time.Now()
	from, victim := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.7:2")
	at := netip.MustParseAddrPort("198.51.100.1:3478")
	p := shares(node)
	probe := ProbeRequest{Node: node, Transaction: [12]byte{1}}
	if p.see(probe, from, at, now) != newProbe {
		t.Fatal("the first probe is not new")
	}
	throwaway := ProbeRequest{Node: identity.NodeID{1}}
	for i := range 3 * maxReplays {
		throwaway.Transaction = [12]byte{2, byte(i), byte(i >> 8), byte(i >> 16)}
		p.see(throwaway, from, at, now)
	}
	if got := p.see(probe, victim, at, now); got != replayedProbe {
		t.Errorf("a replay from somewhere else is %d, want %d", got, replayedProbe)
	}
	p.cfg.Known = nil // it left
	if got := p.see(probe, victim, at, now); got != replayedProbe {
		t.Errorf("after it left a replay is %d, want %d", got, replayedProbe)
	}
}

// BenchmarkForgedProbe is what a probe with a wrong signature costs: first while
// there is time for it, then in a flood.
func BenchmarkForgedProbe(b *testing.B) {
	coordinator := newKey(b).ID()
	raw, _ := SignProbe(newKey(b), newKey(b).ID(), 0, time.Now())
	b.Run("verified", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := VerifyProbe(raw, coordinator, time.Now()); err == nil {
				b.Fatal("the signature holds")
			}
		}
	})
	b.Run("dropped", func(b *testing.B) {
		b.ReportAllocs()
		p, now := shares(identity.NodeID{}), time.Now()
		var l requestLimit
		for i := 0; b.Loop(); i++ {
			_ = l.allow(netip.AddrFrom4([4]byte{byte(i), byte(i >> 8), byte(i >> 16), 1}), now) && p.mayVerify(raw, now)
		}
	})
}
