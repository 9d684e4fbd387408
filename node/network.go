package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"mintai/ice"
	"mintai/identity"
	"mintai/portmap"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// How often a node looks at its own network.
const (
	// proveEvery is how often a long-lived node shows each of its addresses to
	// the coordinator, which believes them for a minute.
	proveEvery = 20 * time.Second
	// measureEvery is how often a long-lived node measures its NAT anew.
	measureEvery = 10 * time.Minute
	// measurePause is between two measurements that the coordinator causes, by
	// seeing this node elsewhere or by connections that do not last, after the
	// first measureBurst.
	measurePause = 30 * time.Second
	measureBurst = 4
	// measureLimit is for one measurement.
	measureLimit = 4 * time.Second
	// watchEvery is how often the machine's addresses are looked at: it takes some
	// 50 µs.
	watchEvery = 250 * time.Millisecond
	// resolveLimit is for looking up the coordinator's names.
	resolveLimit = 3 * time.Second
)

// network is what a node knows of the network it is in, and how it learns it:
// always beside the work, never before a match.
type network struct {
	networkConfig
	changed chan struct{} // cap 1: there is something new to say
	// hosts are the addresses of the machine's interfaces, as they are now.
	hosts      func() []ice.Candidate
	measureNow chan struct{} // cap 1

	mu      sync.Mutex       // guards what follows
	look    *ice.Look        // nil: not begun
	id      identity.NodeID  // of the coordinator; zero: unknown, and nothing can be proven
	seenAt  netip.Addr       // from where the coordinator saw this node over UDP last; zero: not yet
	servers []netip.AddrPort // where probes are answered, as the coordinator says
	report  *ice.Report      // nil: not measured yet
	said    []netip.AddrPort // forwarded ports that the coordinator was told of
	mapNews chan struct{}    // closed and replaced when forwarded ports change
}

// networkConfig is what newNetwork needs.
type networkConfig struct {
	key         *identity.Key
	socket      *ice.Socket
	coordinator identity.NodeID // zero: not known before the first connection
	addrs       []string        // of its signaling, host:port
	stunPort    uint16          // 0: none
	relay       RelayMode
	probing     bool            // takes part in hard-NAT probing
	mapper      *portmap.Mapper // nil: off
	overTLS     func() bool     // whether signaling came up over TLS only
	loopback    bool            // the socket is bound to loopback
	log         zerolog.Logger
}

func newNetwork(cfg networkConfig) *network {
	return &network{
		networkConfig: cfg, changed: make(chan struct{}, 1), measureNow: make(chan struct{}, 1), hosts: cfg.socket.HostCandidates,
		mapNews: make(chan struct{}), id: cfg.coordinator,
	}
}

// mapperFor asks the router to forward the socket's port; nil when that is off.
func mapperFor(on bool, socket *ice.Socket, loopback bool, log zerolog.Logger) *portmap.Mapper {
	if !on || loopback {
		return nil
	}
	return portmap.New(portmap.Config{
		Ports: []portmap.Port{{Number: socket.LocalAddr().Port()}}, Description: "MintAI", Log: log,
	})
}

// candidates are the socket's addresses and those that a router forwards to it.
func (n *network) candidates() []ice.Candidate {
	mapped := n.mapped()
	n.mu.Lock()
	n.said = mapped
	n.mu.Unlock()
	out := n.hosts()
	for _, addr := range mapped {
		out = append(out, ice.Candidate{Kind: ice.Mapped, Addr: addr})
	}
	return out
}

// unsaid are forwarded ports that came after the coordinator was told the
// candidates; more is closed when there is another.
func (n *network) unsaid() (fresh []ice.Candidate, more <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, addr := range n.mapped() {
		if !slices.Contains(n.said, addr) {
			n.said = append(slices.Clip(n.said), addr)
			fresh = append(fresh, ice.Candidate{Kind: ice.Mapped, Addr: addr})
		}
	}
	return fresh, n.mapNews
}

func (n *network) mapped() []netip.AddrPort {
	if n.mapper == nil {
		return nil
	}
	var out []netip.AddrPort
	for _, m := range n.mapper.Mappings() {
		if isPublic(m.External.Addr()) && !slices.Contains(out, m.External) {
			out = append(out, m.External)
		}
	}
	return out
}

// message is what the node says of its network now.
func (n *network) message() *signalpb.Network {
	n.mu.Lock()
	report := n.report
	n.mu.Unlock()
	out := &signalpb.Network{UdpBlocked: n.overTLS(), Relay: relayModes[n.relay], HardNatProbing: n.probing}
	if report == nil {
		report = n.firstLook()
	}
	mapped := n.mapped()
	for v6, family := range map[bool]*ice.Family{false: report.V4, true: report.V6} {
		f := &signalpb.FamilyNetwork{Ipv6: v6}
		at := slices.IndexFunc(mapped, func(a netip.AddrPort) bool { return a.Addr().Is6() == v6 })
		if family == nil && at < 0 {
			continue
		}
		if family != nil {
			f.Mapping, f.Filtering = signalpb.Behavior(family.Mapping), signalpb.Behavior(family.Filtering)
			f.Doubtful, f.NoNat = family.Doubtful, family.NoNAT
		}
		if at >= 0 {
			f.Mapped = writeAddress(mapped[at])
		}
		out.Families = append(out.Families, f)
	}
	return out
}

var relayModes = map[RelayMode]signalpb.RelayMode{
	RelayAuto: signalpb.RelayMode_RELAY_MODE_AUTO, RelayNever: signalpb.RelayMode_RELAY_MODE_NEVER,
	RelayAlways: signalpb.RelayMode_RELAY_MODE_ALWAYS,
}

// greet shows the node's addresses to the coordinator at once, in parallel with
// the first connection: what arrives there tells how the NAT maps, before the
// first request is matched. It waits only where names have to be looked up.
func (n *network) greet(ctx context.Context) {
	if n.coordinator.IsZero() || n.stunPort == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	servers := n.resolve(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.look = n.socket.Look(n.key, n.coordinator, servers)
}

// named reports whether a name has to be looked up to reach the coordinator.
func (n *network) named() bool {
	return slices.ContainsFunc(n.addrs, func(addr string) bool {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return false
		}
		_, err = netip.ParseAddr(host)
		return err != nil
	})
}

// firstLook is what greet has found out by now.
func (n *network) firstLook() *ice.Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.look == nil {
		return &ice.Report{}
	}
	report := n.look.Report()
	return &report
}

// resolve lists where the coordinator should answer probes.
func (n *network) resolve(ctx context.Context) []netip.AddrPort {
	var out []netip.AddrPort
	add := func(ip netip.Addr) {
		at := netip.AddrPortFrom(ip.Unmap(), n.stunPort)
		if len(out) < maxProbed && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	for _, addr := range n.addrs {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			add(ip)
			continue
		}
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			n.log.Debug().Err(err).Str("host", host).Msg("no probes there")
			continue
		}
		for _, ip := range ips {
			add(ip)
		}
	}
	return out
}

// maxProbed bounds the addresses of a coordinator that are probed.
const maxProbed = 8

// connected takes in what a new connection to the coordinator tells, and where
// probes are answered; a measurement follows.
func (n *network) connected(st signal.Status, servers []netip.AddrPort) {
	n.mu.Lock()
	n.id, n.servers = st.Coordinator, servers
	n.movedLocked(st)
	n.mu.Unlock()
	wake(n.measureNow)
}

// observed takes in from where the coordinator sees this node now. When that is
// another network, or another address of it, what was measured is of the past.
func (n *network) observed(st signal.Status) {
	n.mu.Lock()
	moved := n.movedLocked(st)
	n.mu.Unlock()
	if moved {
		wake(n.measureNow)
	}
}

func (n *network) movedLocked(st signal.Status) bool {
	at := st.Observed.Addr().Unmap()
	if st.OverTLS || !at.IsValid() || at == n.seenAt {
		return false
	}
	moved := n.seenAt.IsValid()
	n.seenAt = at
	if moved {
		n.report = nil
		if n.look != nil {
			n.look.Close()
			n.look = nil
		}
	}
	return moved
}

// relocated takes in that this machine's addresses have changed: what was
// measured is of another network. The coordinator is shown the new addresses at
// once, which also tells it and its NAT where signaling is from now on.
func (n *network) relocated() {
	n.mu.Lock()
	n.report = nil
	if n.look != nil {
		n.look.Close()
		n.look = nil
	}
	n.mu.Unlock()
	n.prove()
	wake(n.measureNow)
}

// online reports whether this machine has an address with which it could reach
// anybody.
func (n *network) online() bool { return n.loopback || len(localAddrs()) > 0 }

// watch calls moved each time that this machine's addresses have changed, until
// ctx ends.
func (n *network) watch(ctx context.Context, moved func()) {
	before := localAddrs()
	every(ctx, watchEvery, func(time.Time) {
		if now := localAddrs(); !slices.Equal(now, before) {
			before = now
			if len(now) > 0 {
				moved()
			}
		}
	})
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // it has been told already
	}
}

// Run keeps the knowledge fresh until ctx ends, for a node that lives long.
func (n *network) Run(ctx context.Context) error {
	prove := time.NewTicker(proveEvery)
	defer prove.Stop()
	again := time.NewTicker(measureEvery)
	defer again.Stop()
	pace := rate.NewLimiter(rate.Every(measurePause), measureBurst)
	var later <-chan time.Time
	var news <-chan struct{}
	if n.mapper != nil {
		news = n.mapper.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-prove.C:
			n.prove()
		case <-again.C:
			n.measure(ctx)
		case <-n.measureNow:
			if !pace.Allow() {
				later = time.After(measurePause)
				continue
			}
			n.measure(ctx)
		case <-later:
			later = nil
			n.measure(ctx)
		case <-news:
			n.mu.Lock()
			close(n.mapNews)
			n.mapNews = make(chan struct{})
			n.mu.Unlock()
			wake(n.changed)
		}
	}
}

// mapPorts keeps ports forwarded until ctx ends, and then takes them back.
func (n *network) mapPorts(ctx context.Context) error {
	if n.mapper == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return n.mapper.Run(ctx)
}

// prove shows each family's address, at one address of the coordinator.
func (n *network) prove() {
	var to []netip.AddrPort
	n.mu.Lock()
	for _, v6 := range []bool{false, true} {
		if at := slices.IndexFunc(n.servers, func(a netip.AddrPort) bool { return a.Addr().Is6() == v6 }); at >= 0 {
			to = append(to, n.servers[at])
		}
	}
	id := n.id
	n.mu.Unlock()
	n.socket.Prove(n.key, id, to)
}

// measure finds out how the NAT behaves, and says so when that is news.
func (n *network) measure(ctx context.Context) {
	n.mu.Lock()
	servers, id, at := n.servers, n.id, n.seenAt
	n.mu.Unlock()
	if len(servers) == 0 || n.overTLS() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	report, err := n.socket.Probe(ctx, ice.ProbeConfig{Key: n.key, Coordinator: id, Servers: servers, Filtering: true})
	if err != nil {
		n.log.Debug().Err(err).Msg("the network could not be measured")
		return
	}
	n.mu.Lock()
	stale := n.seenAt != at // another measurement follows
	if !stale {
		if n.report != nil {
			refine(report.V4, n.report.V4)
			refine(report.V6, n.report.V6)
		}
		n.report = &report
	}
	n.mu.Unlock()
	if stale {
		return
	}
	n.log.Debug().Interface("ipv4", report.V4).Interface("ipv6", report.V6).Msg("network measured")
	wake(n.changed)
}

// refine completes a measurement by an earlier one of the same address. What was
// sent to the probe server the first time may have opened the NAT for it, so that
// a second measurement often cannot tell how it filters.
func refine(newer, older *ice.Family) {
	if newer == nil || older == nil || newer.Observed.Addr() != older.Observed.Addr() {
		return
	}
	if newer.Filtering == ice.Unknown {
		newer.Filtering = older.Filtering
	}
	if newer.Mapping == ice.Unknown {
		newer.Mapping, newer.Doubtful = older.Mapping, older.Doubtful
	}
}
