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
