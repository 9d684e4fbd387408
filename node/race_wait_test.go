package node

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"mintai/ice"
)

// Who waits for whom, in virtual time: a direct handshake under way keeps the
// relay closed until it fails, and a relayed tunnel waits a moment for one.
func TestRaceWaits(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, c := range []struct {
		name         string
		expect       ice.Expectation
		direct       time.Duration // how long the direct handshake takes; it begins at 10 ms
		fails        bool
		relay        bool // the path is relayed
		relayOpened  bool
		least, limit time.Duration
	}{
		{"a slow direct handshake", ice.Doubtful, 400 * ms, false, false, false, 400 * ms, 420 * ms},
		{"one that fails late", ice.Doubtful, 400 * ms, true, true, true, 500 * ms, 700 * ms},
		{"the relay waits for one under way", ice.RelayNeeded, 300 * ms, false, false, true, 300 * ms, 320 * ms},
		{"and not for long", ice.RelayNeeded, 2 * time.Second, false, true, true, 600 * ms, 720 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				defer cancel()
				reached := make(chan ice.Reached, 1)
				time.AfterFunc(10*ms, func() {
					reached <- ice.Reached{Addr: netip.MustParseAddrPort("40.0.0.1:7"), Kind: ice.Prflx}
				})
				opened := false
				began := time.Now()
				got, err := newRace(ways{
					reached: reached, addRemote: func(trickled) {}, heard: func() bool { return true },
					allowed: func(hop) bool { return true },
					dial: func(ctx context.Context, h hop) (tunnel, error) {
						took := c.direct
						if h.leg != nil {
							took = 50 * ms
						}
						if !sleep(ctx, took) || h.leg == nil && c.fails {
							return nil, errSimLost
						}
						return &simTunnel{}, nil
					},
					openRelay: func(ctx context.Context) (relayLeg, error) {
						opened = true
						if !sleep(ctx, 50*ms) {
							return nil, errSimLost
						}
						leg := &simLeg{addrs: make(chan ice.Reached, 1)}
						leg.addrs <- ice.Reached{Addr: netip.MustParseAddrPort("40.0.0.1:8"), Kind: ice.RelayUDP}
						return leg, nil
					},
				}, plan{expect: c.expect, headStart: 250 * ms, direct: 3 * time.Second, legWanted: true, minerName: "box"}).run(ctx)
				took := time.Since(began)
				if err != nil {
					t.Fatal(err)
				}
				if got.hop.kind.Relayed() != c.relay || opened != c.relayOpened {
					t.Errorf("%v, relay opened %v", got.hop.kind, opened)
				}
				if took < c.least || took > c.limit {
					t.Errorf("took %v, want %v to %v", took, c.least, c.limit)
				}
			})
		})
	}
}

// TestRacePrefersTheOwnNetwork: two nodes behind one address reach each other
// within their network where it lets them, also when the way by the router shows
// itself first, and by the router where it does not.
func TestRacePrefersTheOwnNetwork(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	inside, outside := netip.MustParseAddrPort("10.1.2.3:7"), netip.MustParseAddrPort("40.0.0.1:7")
	for _, c := range []struct {
		name   string
		reason ice.Reason
		near   time.Duration // when the address inside shows itself; 0: never
		head   time.Duration // start of the direct path
		want   netip.AddrPort
		limit  time.Duration
	}{
		{"the router first", ice.SameNetworkBlocked, 15 * ms, 250 * ms, inside, 25 * ms},
		{"much later", ice.SameNetworkBlocked, 200 * ms, 250 * ms, outside, 45 * ms},
		{"a network that keeps its members apart", ice.SameNetworkBlocked, 0, 250 * ms, outside, 45 * ms},
		{"peers apart", ice.NATTraversed, 15 * ms, 250 * ms, outside, 20 * ms},
		{"the head start ends meanwhile", ice.SameNetworkBlocked, 0, 20 * ms, outside, 45 * ms},
		{"after a path was lost", ice.SameNetworkBlocked, 0, 0, outside, 20 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				defer cancel()
				reached := make(chan ice.Reached, 2)
				show := func(after time.Duration, addr netip.AddrPort, kind ice.Kind) {
					time.AfterFunc(after, func() { reached <- ice.Reached{Addr: addr, Kind: kind} })
				}
				show(10*ms, outside, ice.Srflx)
				if c.near > 0 {
					show(c.near, inside, ice.Host)
				}
				opened := false
				began := time.Now()
				got, err := newRace(ways{
					reached: reached, addRemote: func(trickled) {}, heard: func() bool { return true },
					allowed: func(hop) bool { return true },
					dial: func(ctx context.Context, h hop) (tunnel, error) {
						took := 5 * ms
						if h.leg != nil {
							took = 25 * ms
						}
						if !sleep(ctx, took) {
							return nil, errSimLost
						}
						return &simTunnel{}, nil
					},
					// A relay beside them: with a yield its handshake would be over before the router's.
					openRelay: func(context.Context) (relayLeg, error) {
						opened = true
						leg := &simLeg{addrs: make(chan ice.Reached, 1)}
						leg.addrs <- ice.Reached{Addr: outside, Kind: ice.RelayUDP}
						return leg, nil
					},
				}, plan{
					expect: ice.Doubtful, reason: c.reason, headStart: c.head, direct: 3 * time.Second, minerName: "box", legWanted: true,
					candidates: []ice.Candidate{{Kind: ice.Srflx, Addr: outside}, {Kind: ice.Host, Addr: inside}},
				}).run(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); got.hop.kind.Relayed() || got.hop.addr != c.want || took > c.limit {
					t.Errorf("%v %v after %v, want %v within %v", got.hop.kind, got.hop.addr, took, c.want, c.limit)
				}
				if opened && c.head > 0 {
					t.Error("a relay was opened while a direct address waited")
				}
				time.Sleep(time.Second) // for what shows itself later
			})
		})
	}
}
