package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mintai/ice"
	"mintai/quicstream"
)

// simR is the round trip of each leg in the simulated network.
const simR = 50 * time.Millisecond

// simNAT is a NAT or firewall of RFC 4787's kinds, in virtual time. All of its
// addresses have one IP; ports are given out in order.
type simNAT struct {
	ip                 netip.Addr
	mapping, filtering ice.Behavior
	mapped             bool // the router forwards a port

	mu    sync.Mutex
	ports map[string]uint16          // by what the mapping depends on
	open  map[uint16]map[string]bool // what each port lets in
	next  uint16
	came  map[netip.AddrPort]bool // through the forwarded port: answers leave by it
}

func newSimNAT(ip string, mapping, filtering ice.Behavior, mapped bool) *simNAT {
	return &simNAT{
		ip: netip.MustParseAddr(ip), mapping: mapping, filtering: filtering, mapped: mapped,
		ports: map[string]uint16{}, open: map[uint16]map[string]bool{}, next: 20000,
		came: map[netip.AddrPort]bool{},
	}
}

func behaviorKey(b ice.Behavior, to netip.AddrPort) string {
	switch b {
	case ice.EndpointIndependent:
		return "any"
	case ice.AddressDependent:
		return to.Addr().String()
	default:
		return to.String()
	}
}

// out passes a packet to the outside and returns the address that it comes from.
func (n *simNAT) out(to netip.AddrPort) netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.came[to] {
		return netip.AddrPortFrom(n.ip, simMapped)
	}
	key := behaviorKey(n.mapping, to)
	port := n.ports[key]
	if port == 0 {
		port = n.next
		n.next++
		n.ports[key] = port
	}
	if n.open[port] == nil {
		n.open[port] = map[string]bool{}
	}
	n.open[port][behaviorKey(n.filtering, to)] = true
	return netip.AddrPortFrom(n.ip, port)
}

// in reports whether a packet gets through to the inside.
func (n *simNAT) in(from, at netip.AddrPort) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mapped && at.Port() == simMapped {
		n.came[from] = true
		return true
	}
	return n.open[at.Port()][behaviorKey(n.filtering, from)]
}

// simMapped is the port that a simulated router forwards.
const simMapped = 9999

func (n *simNAT) candidate(coordinator netip.AddrPort) ice.Candidate {
	if n.mapped {
		n.out(coordinator)
		return ice.Candidate{Kind: ice.Mapped, Addr: netip.AddrPortFrom(n.ip, simMapped)}
	}
	return ice.Candidate{Kind: ice.Srflx, Addr: n.out(coordinator)}
}

// family is what the coordinator knows of it.
func (n *simNAT) family() *ice.Family {
	f := &ice.Family{Mapping: n.mapping, Filtering: n.filtering}
	if n.mapped {
		f.Mapped = netip.AddrPortFrom(n.ip, simMapped)
	}
	return f
}

// simTunnel is a finished handshake.
type simTunnel struct{}

func (*simTunnel) Close(quicstream.CloseCode) error { return nil }

// simLeg is a relay in the coordinator's machine.
type simLeg struct {
	addrs chan ice.Reached
	once  sync.Once
}

func (*simLeg) Addr() netip.AddrPort                         { return netip.MustParseAddrPort("20.0.0.1:49160") }
func (*simLeg) Kind() ice.Kind                               { return ice.RelayUDP }
func (l *simLeg) Addrs() <-chan ice.Reached                  { return l.addrs }
func (*simLeg) Permit(context.Context, netip.AddrPort) error { return nil }
func (l *simLeg) Close() error                               { l.once.Do(func() { close(l.addrs) }); return nil }

var errSimLost = errors.New("lost")

// simulate races a client behind a against a miner behind b, both told at the
// same moment, and returns what won and when.
func simulate(t *testing.T, a, b *simNAT, expect ice.Expectation, reason ice.Reason) (*won, time.Duration, error) {
	t.Helper()
	coordinator := netip.MustParseAddrPort("20.0.0.1:4433")
	client, miner := a.candidate(coordinator), b.candidate(coordinator)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	reached := make(chan ice.Reached, 64)
	var mu sync.Mutex
	heard := map[netip.AddrPort]bool{}     // by the client
	known := []netip.AddrPort{client.Addr} // to the miner
	var wg sync.WaitGroup
	wg.Go(func() { // the miner's checks
		for ctx.Err() == nil {
			mu.Lock()
			targets := append([]netip.AddrPort(nil), known...)
			mu.Unlock()
			for _, to := range targets {
				from := b.out(to)
				time.AfterFunc(simR/2, func() {
					if !a.in(from, to) {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if !heard[from] && ctx.Err() == nil {
						heard[from] = true
						reached <- ice.Reached{Addr: from, Kind: ice.Prflx}
					}
				})
			}
			sleep(ctx, 20*time.Millisecond)
		}
	})
	wg.Go(func() { // the client's
		for ctx.Err() == nil {
			mu.Lock()
			targets := []netip.AddrPort{miner.Addr}
			for at := range heard {
				targets = append(targets, at)
			}
			mu.Unlock()
			for _, to := range targets {
				from := a.out(to)
				time.AfterFunc(simR/2, func() {
					if !b.in(from, to) {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					for _, k := range known {
						if k == from {
							return
						}
					}
					known = append(known, from)
				})
			}
			sleep(ctx, 20*time.Millisecond)
		}
	})
	w := ways{
		reached: reached, addRemote: func(trickled) {},
		heard:   func() bool { mu.Lock(); defer mu.Unlock(); return len(heard) > 0 },
		allowed: func(hop) bool { return true },
		dial: func(ctx context.Context, h hop) (tunnel, error) {
			if h.leg != nil {
				if sleep(ctx, 2*simR) {
					return &simTunnel{}, nil
				}
				return nil, errSimLost
			}
			from := a.out(h.addr)
			for { // a lost packet is repeated
				if !sleep(ctx, simR/2) {
					return nil, errSimLost
				}
				if b.in(from, h.addr) {
					back := b.out(from)
					if !sleep(ctx, simR/2) {
						return nil, errSimLost
					}
					if back == h.addr && a.in(back, from) {
						return &simTunnel{}, nil
					}
				}
				if !sleep(ctx, 300*time.Millisecond) {
					return nil, errSimLost
				}
			}
		},
		openRelay: func(ctx context.Context) (relayLeg, error) {
			if !sleep(ctx, simR) {
				return nil, errSimLost
			}
			leg := &simLeg{addrs: make(chan ice.Reached, 4)}
			leg.addrs <- ice.Reached{Addr: b.out(leg.Addr()), Kind: ice.RelayUDP} // its check arrives now
			return leg, nil
		},
	}
	began := time.Now()
	got, err := newRace(w, plan{
		expect: expect, reason: reason, headStart: 250 * time.Millisecond, direct: 3 * time.Second, legWanted: true,
		predictable: b.mapping == ice.EndpointIndependent || b.mapped, candidates: []ice.Candidate{miner}, minerName: "box",
	}).run(ctx)
	took := time.Since(began)
	cancel()
	wg.Wait()
	return got, took, err
}

// sleep reports whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// simKinds are the laboratory's kinds as far as one family of addresses goes.
var simKinds = []struct {
	name               string
	mapping, filtering ice.Behavior
	mapped             bool
}{
	{"none", ice.EndpointIndependent, ice.EndpointIndependent, false},
	{"eim-eif", ice.EndpointIndependent, ice.EndpointIndependent, false},
	{"eim-adf", ice.EndpointIndependent, ice.AddressDependent, false},
	{"eim-apdf", ice.EndpointIndependent, ice.AddressAndPortDependent, false},
	{"adm-apdf", ice.AddressDependent, ice.AddressAndPortDependent, false},
	{"sym", ice.AddressAndPortDependent, ice.AddressAndPortDependent, false},
	{"upnp", ice.EndpointIndependent, ice.AddressAndPortDependent, true},
	{"sym+mapped", ice.AddressAndPortDependent, ice.AddressAndPortDependent, true},
}

// TestEveryPairOfNATs races all pairs in virtual time, with and without knowing
// the NATs' classes: the path is direct wherever it can be, whatever was
// foretold, the reason is right, and nothing waits for what cannot come.
func TestEveryPairOfNATs(t *testing.T) {
	for _, a := range simKinds {
		for _, b := range simKinds {
			for _, known := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s×%s/known=%v", a.name, b.name, known), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						natA, natB := newSimNAT("30.0.0.1", a.mapping, a.filtering, a.mapped), newSimNAT("40.0.0.1", b.mapping, b.filtering, b.mapped)
						truth, why := ice.Predict(ice.Network{V4: natA.family()}, ice.Network{V4: natB.family()}, false)
						expect, reason := truth, why
						if !known {
							expect, reason = ice.Doubtful, ice.NoReason
						}
						got, took, err := simulate(t, natA, natB, expect, reason)
						if err != nil {
							t.Fatal(err)
						}
						limit := 5 * simR / 2 // a check each way and the handshake, with room for a check's pace
						switch {
						case truth == ice.Direct:
							if got.hop.kind.Relayed() {
								t.Fatalf("relayed (%v) after %v, want direct", got.reason, took)
							}
							limit += simR // where the first check is filtered
						case known:
							limit = 3 * simR
						default:
							limit = 250*time.Millisecond + 3*simR
							why = ice.NothingCame
						}
						if truth == ice.RelayNeeded && (!got.hop.kind.Relayed() || got.reason != why) {
							t.Errorf("got %v (%v), want a relay (%v)", got.hop.kind, got.reason, why)
						}
						if took > limit {
							t.Errorf("took %v, limit %v", took, limit)
						}
					})
				})
			}
		}
	}
}
