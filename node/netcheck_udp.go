package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mintai/ice"
	"mintai/identity"
)

// measure does what needs the coordinator's STUN addresses: the classes, the
// hairpin and the MTU, side by side, each from sockets of its own, so that none
// opens the NAT for another.
func (n *netcheck) measure(ctx context.Context, to contact) {
	if len(to.stun) == 0 || to.id.IsZero() {
		why := "the coordinator answers no address probes"
		if !to.answered {
			why = "the coordinator does not answer"
		}
		for _, field := range []string{"ipv4", "ipv6", "hairpin", "mtu", "stun", "relay.udp"} {
			n.report.missing(field, why)
		}
		return
	}
	key, err := identity.NewKey()
	if err != nil {
		n.report.missing("stun", err.Error())
		return
	}
	rtt := to.rtt
	if rtt == 0 {
		rtt = netGuessRTT
	}
	ctx, cancel := context.WithTimeout(ctx, min(netMeasure+netMeasureRounds*rtt, netMostTime))
	defer cancel()
	p := &prober{netcheck: n, to: to, key: key, rto: rtoOf(rtt), giveUp: func() {}}
	if to.overTLS {
		p.giveUp = cancel // see mtu
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.classes(ctx) })
	wg.Go(func() { p.hairpin(ctx) })
	wg.Go(func() { p.mtu(ctx) })
	wg.Go(func() { p.relay(ctx) })
	wg.Wait()
	if n.report.IPv4.NAT != nil && !*n.report.IPv4.NAT {
		n.report.Hairpin = nil
		n.report.missing("hairpin", "there is no NAT")
	}
}

// prober measures by probes to the coordinator's STUN addresses.
type prober struct {
	*netcheck
	to     contact
	key    *identity.Key
	rto    time.Duration
	giveUp func()
}

func (p *prober) config(filtering bool, servers []netip.AddrPort) ice.ProbeConfig {
	return ice.ProbeConfig{Key: p.key, Coordinator: p.to.id, Servers: servers, Filtering: filtering, RTO: p.rto}
}

// classes measures mapping and filtering (RFC 5780 §4.3 and §4.4).
func (p *prober) classes(ctx context.Context) {
	socket, err := ice.Listen(ice.SocketConfig{Log: p.log})
	if err != nil {
		p.report.missing("stun", err.Error())
		return
	}
	defer func() { _ = socket.Close() }()
	found, _ := socket.Probe(ctx, p.config(true, p.to.stun)) // silence shows in what was found
	for _, at := range p.to.stun {
		s := netSTUN{Addr: at.String()}
		if rtt, ok := found.RTT[at]; ok {
			s.RTT = new(milliseconds(rtt))
		}
		p.report.STUN = append(p.report.STUN, s)
	}
	sortSTUN(p.report.STUN)
	for _, f := range []struct {
		field  string
		family *netFamily
		seen   *ice.Family
		is4    bool
	}{{"ipv4", p.report.IPv4, found.V4, true}, {"ipv6", p.report.IPv6, found.V6, false}} {
		addrs := map[netip.Addr]bool{}
		for _, at := range p.to.stun {
			if at.Addr().Is4() == f.is4 {
				addrs[at.Addr()] = true
			}
		}
		f.family.classify(f.seen, len(addrs))
		if len(addrs) == 0 {
			p.report.missing(f.field, "the coordinator has no such address")
		}
	}
}

// relay looks for a TURN server at the coordinator's STUN addresses.
func (p *prober) relay(ctx context.Context) {
	ctx, found := context.WithCancel(ctx) // one is enough
	defer found()
	var is atomic.Bool
	var wg sync.WaitGroup
	for _, at := range p.to.stun {
		wg.Go(func() {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			if ice.CheckTURN(ctx, conn, p.rto) == nil {
				is.Store(true)
				found()
			}
		})
	}
	wg.Wait()
	p.report.Relay.UDP = new(is.Load())
}

// v4 are the STUN addresses of IPv4.
func (p *prober) v4() []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(p.to.stun), func(at netip.AddrPort) bool { return !at.Addr().Is4() })
}

// hairpin lets two sockets of this machine look for each other at their public
// addresses only (RFC 4787 §6), by the same checks that peers use.
func (p *prober) hairpin(ctx context.Context) {
	got, err := p.tryHairpin(ctx)
	if err != nil {
		p.report.missing("hairpin", err.Error())
		return
	}
	p.report.Hairpin = &got
}

// hairpinPatience is how long the checks of both sockets are waited for: no
// packet leaves the router, but a busy one may lose some.
const hairpinPatience = 600 * time.Millisecond

func (p *prober) tryHairpin(ctx context.Context) (bool, error) {
	servers := p.v4()
	if len(servers) == 0 {
		return false, errors.New("the coordinator has no IPv4 address for probes")
	}
	var ends [2]hairpinEnd
	var wg sync.WaitGroup
	for i := range ends {
		wg.Go(func() { ends[i].open(ctx, p, servers[:1]) })
	}
	wg.Wait()
	defer ends[0].close()
	defer ends[1].close()
	for _, e := range ends {
		if e.err != nil {
			return false, e.err
		}
	}
	if !isPublic(ends[0].at.Addr().Unmap()) {
		return false, errors.New("the coordinator is inside this network")
	}
	ctx, cancel := context.WithTimeout(ctx, hairpinPatience)
	defer cancel()
	a, b := ice.NewCredentials(), ice.NewCredentials()
	session := identity.NewSessionID()
	first, err := ends[0].check(session, true, a, b, ends[1].at)
	if err != nil {
		return false, err
	}
	second, err := ends[1].check(session, false, b, a, ends[0].at)
	if err != nil {
		return false, err
	}
	select {
	case <-first.Addrs():
		return true, nil
	case <-second.Addrs():
		return true, nil
	case <-ctx.Done():
		return false, nil
	}
}

// hairpinEnd is one of the two sockets.
type hairpinEnd struct {
	socket *ice.Socket
	at     netip.AddrPort // its public address
	err    error
}

func (e *hairpinEnd) open(ctx context.Context, p *prober, servers []netip.AddrPort) {
	if e.socket, e.err = ice.Listen(ice.SocketConfig{Log: p.log}); e.err != nil {
		return
	}
	found, err := e.socket.Probe(ctx, p.config(false, servers))
	switch {
	case found.V4 != nil:
		e.at = found.V4.Observed
	case err != nil:
		e.err = errors.New("no answer by UDP over IPv4")
	}
}

func (e *hairpinEnd) check(id identity.SessionID, controlling bool, local, remote ice.Credentials, to netip.AddrPort) (*ice.Session, error) {
	return e.socket.Open(ice.SessionConfig{
		ID: id, Controlling: controlling, Local: local, Remote: remote,
		Candidates: []ice.Candidate{{Kind: ice.Srflx, Addr: to}},
	})
}

func (e *hairpinEnd) close() {
	if e.socket != nil {
		_ = e.socket.Close()
	}
}

// mtu measures the path to the coordinator over IPv4, and over IPv6 where that
// does not work. Where signaling had to take TLS and none of these packets, small
// ones among them, was answered either, UDP is blocked: no need to wait for more
// silence.
func (p *prober) mtu(ctx context.Context) {
	var found [2]*netMTU
	var errs [2]error
	var wg sync.WaitGroup
	for i, is4 := range []bool{true, false} {
		at := slices.IndexFunc(p.to.stun, func(at netip.AddrPort) bool { return at.Addr().Is4() == is4 })
		if at < 0 {
			continue
		}
		wg.Go(func() {
			found[i], errs[i] = measureMTU(ctx, p.to.stun[at], p.rto, func() []byte {
				raw, _ := ice.SignProbe(p.key, p.to.id, 0, time.Now())
				return raw
			})
		})
	}
	wg.Wait()
	switch {
	case found[0] != nil:
		p.report.MTU = found[0]
	case found[1] != nil:
		p.report.MTU = found[1]
	default:
		why := errs[0]
		if why == nil {
			why = errs[1]
		}
		p.report.missing("mtu", why.Error())
		p.giveUp()
	}
}
