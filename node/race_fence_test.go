package node

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal/signalpb"
)

// fence is a world in which nothing answers; it remembers what was tried.
type fence struct {
	mu        sync.Mutex // guards what follows
	dialed    []hop
	permitted []netip.AddrPort
}

// fenceLeg is a relay that notes for whom it is opened.
type fenceLeg struct {
	simLeg
	fence *fence
}

func (l *fenceLeg) Permit(_ context.Context, addr netip.AddrPort) error {
	l.fence.mu.Lock()
	defer l.fence.mu.Unlock()
	l.fence.permitted = append(l.fence.permitted, addr)
	return nil
}

// race runs with what the coordinator sends meanwhile.
func (f *fence) race(t *testing.T, p plan, allowed func(hop) bool, news ...trickled) {
	t.Helper()
	trickle := make(chan trickled, len(news))
	for _, n := range news {
		trickle <- n
	}
	p.trickled, p.headStart, p.direct, p.minerName = trickle, 100*time.Millisecond, time.Second, "box"
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := newRace(ways{
		addRemote: func(trickled) {}, heard: func() bool { return false }, allowed: allowed,
		dial: func(ctx context.Context, h hop) (tunnel, error) {
			f.mu.Lock()
			f.dialed = append(f.dialed, h)
			f.mu.Unlock()
			<-ctx.Done()
			return nil, ctx.Err()
		},
		openRelay: func(context.Context) (relayLeg, error) {
			return &fenceLeg{simLeg{addrs: make(chan ice.Reached)}, f}, nil
		},
	}, p).run(ctx)
	if err == nil {
		t.Error("a tunnel, in a world where nothing answers")
	}
}

// A handshake does not go where a check would not, whatever the coordinator
// names: not blindly to a candidate, and not to an address that is called a
// relay.
func TestNothingIsDialedThatMayNotBe(t *testing.T) {
	host := ice.Candidate{Kind: ice.Srflx, Addr: netip.MustParseAddrPort("20.0.0.9:53")}
	relay := ice.Candidate{Kind: ice.RelayUDP, Addr: netip.MustParseAddrPort("192.168.1.1:5353")}
	for _, allowed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var f fence
			f.race(t, plan{expect: ice.Direct, predictable: true, minerLeg: true, candidates: []ice.Candidate{host}},
				func(hop) bool { return allowed }, trickled{candidate: relay})
			to := map[netip.AddrPort]bool{}
			for _, h := range f.dialed {
				to[h.addr] = true
			}
			if to[host.Addr] != allowed || to[relay.Addr] != allowed {
				t.Errorf("allowed %v: dialed %v", allowed, f.dialed)
			}
		})
	}
}

// What the miner proves late is let in at the relay, also when no candidate
// comes with it; and no coordinator makes the race keep more than its bound.
func TestLateProofsOpenTheRelay(t *testing.T) {
	at := func(n byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, 0, 0, n}), 4433) }
	synctest.Test(t, func(t *testing.T) {
		var f fence
		f.race(t, plan{expect: ice.RelayNeeded, legWanted: true}, nil, trickled{proven: []netip.AddrPort{at(1), at(2)}}, trickled{proven: []netip.AddrPort{at(2)}})
		slices.SortFunc(f.permitted, netip.AddrPort.Compare)
		if want := []netip.AddrPort{at(1), at(2)}; !slices.Equal(f.permitted, want) {
			t.Errorf("permitted %v, want %v", f.permitted, want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var f fence
		var news []trickled
		for n := range byte(100) {
			news = append(news, trickled{candidate: ice.Candidate{Kind: ice.Srflx, Addr: at(n + 1)}, proven: []netip.AddrPort{at(n + 1)}})
		}
		f.race(t, plan{expect: ice.RelayNeeded, legWanted: true}, nil, news...)
		if n := len(f.permitted); n > 2*maxLate {
			t.Errorf("permission was asked for %d addresses", n)
		}
	})
}

// relay = "never" holds whatever the coordinator names.
func TestNoRelayIsUsedThatIsNotWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f fence
		f.race(t, plan{expect: ice.RelayNeeded, relayOff: true, minerLeg: true}, func(hop) bool { return true },
			trickled{candidate: ice.Candidate{Kind: ice.RelayUDP, Addr: netip.MustParseAddrPort("20.0.0.9:49152")}})
		if len(f.dialed) > 0 {
			t.Errorf("dialed %v", f.dialed)
		}
	})
}

func TestWhatMayBeDialedBlindly(t *testing.T) {
	t.Parallel()
	c := &connector{coordinator: func() coordinatorAt { return coordinatorAt{ip: netip.MustParseAddr("10.0.0.1")} }}
	for _, tc := range []struct {
		addr string
		kind ice.Kind
		near bool
		want bool
	}{
		{"20.0.0.9:4433", ice.Srflx, false, true}, // proven
		{"20.0.0.9:999", ice.Mapped, false, true}, // another port of it
		{"20.0.0.8:4433", ice.Srflx, false, false},
		{"192.168.1.1:53", ice.Host, false, false},
		{"192.168.1.1:53", ice.Host, true, true},
		{"127.0.0.1:53", ice.Host, true, false},
		{"127.0.0.1:7000", ice.Host, false, false}, // proven, says a coordinator elsewhere
		{"224.0.0.1:4433", ice.Srflx, true, false},
		{"20.0.0.8:4433", ice.RelayTLS, false, true}, // relays are anywhere in public
		{"10.0.0.1:4433", ice.RelayTLS, false, true}, // or at the coordinator
		{"10.0.0.2:4433", ice.RelayTLS, false, false},
		{"127.0.0.1:4433", ice.RelayTLS, false, false},
		{"239.1.2.3:4433", ice.RelayTLS, false, false},
	} {
		s := &session{policy: readPolicy([]*signalpb.Address{
			writeAddress(netip.MustParseAddrPort("20.0.0.9:4433")), writeAddress(netip.MustParseAddrPort("127.0.0.1:7000")),
		}, tc.near)}
		if got := c.mayDial(s, hop{addr: netip.MustParseAddrPort(tc.addr), kind: tc.kind, blind: true}); got != tc.want {
			t.Errorf("%s %s (near: %v): %v", tc.kind, tc.addr, tc.near, got)
		}
	}
}

// A miner whose UDP is blocked has a relay of its own only where the client may
// use one: else nothing is waited for.
func TestNoRelayOfTheMinerWithoutOne(t *testing.T) {
	t.Parallel()
	c := &connector{relayMode: RelayAuto, coordinator: func() coordinatorAt { return coordinatorAt{} }}
	s := &session{id: identity.NewSessionID(), minerBlocked: true}
	if p := c.plan(s, wanted{}); p.minerLeg {
		t.Error("a relay of the miner is waited for")
	}
	s.relays = []*lentRelay{{}}
	if p := c.plan(s, wanted{}); !p.minerLeg || p.legWanted {
		t.Errorf("%+v", p)
	}
}
