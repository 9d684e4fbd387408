package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/reputation"
)

// openLedger opens the reputation store. One that is damaged has been moved
// aside: that is logged, and an empty one begins.
func openLedger(path string, log zerolog.Logger) (*reputation.Ledger, error) {
	opts := reputation.Options{Log: log}
	ledger, err := reputation.Open(path, opts)
	if errors.Is(err, reputation.ErrCorrupt) {
		log.Error().Err(err).Msg("reputation begins anew")
		ledger, err = reputation.Open(path, opts)
	}
	return ledger, err
}

// listenUDP opens the address, IPv6 and IPv4 alike when it names no host.
func listenUDP(addr, setting string) (*net.UDPConn, error) {
	resolved, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("%s = %q: %v", setting, addr, err), Err: err}
	}
	conn, err := net.ListenUDP("udp", resolved)
	if err != nil {
		return nil, &Error{
			Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("cannot listen on UDP %s: %v", addr, errors.Unwrap(err)), Err: err,
			Hint: fmt.Sprintf("is another coordinator running? Choose another port with %s", setting),
		}
	}
	return conn, nil
}

// lendsOwn reports whether the coordinator runs a relay itself.
func (c *coordinator) lendsOwn() bool {
	return c.cfg.TURN.Enabled && slices.Contains(c.cfg.Relays, RelayOwn)
}

// startProbes answers where nodes find out what kind of network they are in.
func (c *coordinator) startProbes() error {
	if c.cfg.STUN == "" {
		return nil
	}
	const setting = "[coordinator] stun"
	addr, err := net.ResolveUDPAddr("udp", c.cfg.STUN)
	if err != nil {
		return &Error{Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("%s = %q: %v", setting, c.cfg.STUN, err), Err: err}
	}
	cfg := ice.ProbeServerConfig{
		Coordinator: c.cfg.Key.ID(), Addrs: c.cfg.hooks.stun, Shared: c.lendsOwn() && c.cfg.TURN.Listen == c.cfg.STUN,
		OnProof: c.onProof, Known: c.view.HasJoined, Log: c.log,
	}
	if ip, ok := netip.AddrFromSlice(addr.IP); ok && cfg.Addrs == nil {
		cfg.Addrs = []netip.Addr{ip.Unmap()}
	}
	if port := uint16(addr.Port); port != 0 {
		cfg.Ports = [2]uint16{port, port + 1}
	}
	if c.probes, err = ice.StartProbes(cfg); err != nil {
		hint := "choose another port with " + setting
		if cfg.Shared { // the relay would find it taken, too
			hint += " and the same with [coordinator.turn] listen"
		}
		return &Error{
			Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("cannot answer address probes on UDP %s: %v", c.cfg.STUN, err), Err: err, Hint: hint,
		}
	}
	return nil
}

// relaysPerNode bounds the relays of one node: a miner whose network blocks UDP
// has one for each client.
const relaysPerNode = 64

func (c *coordinator) startTURN() error {
	cfg := ice.TURNConfig{
		RelayIP: c.relayIP(), PortMin: c.cfg.TURN.PortMin, PortMax: c.cfg.TURN.PortMax, Realm: "mintai", Log: c.log,
		PeersSpeakFirst: true, MaxPerNode: relaysPerNode, Outside: c.outsideRelays, OnAllocated: c.allocated, Tap: c.cfg.hooks.relay,
	}
	if c.probes != nil && c.cfg.TURN.Listen == c.cfg.STUN {
		cfg.Conns = c.probes.Conns()
	} else {
		var err error
		if cfg.Listen, err = turnListen(c.cfg.TURN.Listen); err != nil {
			return &Error{Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("[coordinator.turn] listen = %q: %v", c.cfg.TURN.Listen, err), Err: err}
		}
	}
	if c.tls != nil {
		cfg.Streams = c.tls.TURN()
	}
	var err error
	if c.turn, err = ice.StartTURN(cfg); err != nil {
		return &Error{
			Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("the relay cannot listen on UDP %s: %v", c.cfg.TURN.Listen, err), Err: err,
			Hint: "choose another port with [coordinator.turn] listen, or set enabled = false",
		}
	}
	return nil
}

// turnListen returns one listener for each family that this machine has, when
// the address names no host.
func turnListen(text string) ([]netip.AddrPort, error) {
	listen, err := net.ResolveUDPAddr("udp", text)
	if err != nil {
		return nil, err
	}
	addr := listen.AddrPort()
	if listen.IP != nil && !listen.IP.IsUnspecified() {
		return []netip.AddrPort{addr}, nil
	}
	addrs := []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())}
	if hasIPv6() {
		addrs = append(addrs, netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port()))
	}
	return addrs, nil
}

// stunAddrs are the addresses at which nodes find the probe server: what the
// Internet sees before what only the local network does, and each with both
// ports.
func (c *coordinator) stunAddrs() []netip.AddrPort {
	if c.probes == nil {
		return nil
	}
	addrs := c.probes.Addrs()
	var ports []uint16
	for _, a := range addrs {
		if !slices.Contains(ports, a.Port()) {
			ports = append(ports, a.Port())
		}
	}
	for _, public := range c.cfg.Public { // a NAT that forwards to this machine
		ip, ok := splitIP(hostOnly(public))
		if !ok || slices.ContainsFunc(addrs, func(a netip.AddrPort) bool { return a.Addr() == ip.Unmap() }) {
			continue
		}
		for _, port := range ports {
			addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), port))
		}
	}
	for _, port := range ports {
		if a := c.home.external(port, false); a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	slices.SortStableFunc(addrs, func(a, b netip.AddrPort) int {
		switch x, y := isPublic(a.Addr()), isPublic(b.Addr()); {
		case x == y:
			return 0
		case x:
			return -1
		default:
			return 1
		}
	})
	return addrs
}

// hostOnly is a host without the port that may follow it.
func hostOnly(public string) string {
	if h, _, err := net.SplitHostPort(public); err == nil {
		return h
	}
	return public
}

// hasIPv6 reports whether a socket of that family can be opened.
func hasIPv6() bool {
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// relayIP is the address that relayed ports are announced with: the configured
// one, else the first public address that is written down; zero leaves it to
// the relay, which takes the address from which the miner is reached.
func (c *coordinator) relayIP() netip.Addr {
	if addr, err := netip.ParseAddr(c.cfg.TURN.RelayIP); err == nil {
		return addr
	}
	for _, public := range c.cfg.Public {
		host := hostOnly(public)
		if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
			return addr.Unmap()
		}
		ips, err := net.LookupIP(host)
		if err != nil {
			c.log.Warn().Err(err).Str("public", public).Msg("this name does not resolve here: set [coordinator.turn] relay_ip if this machine is behind a NAT")
			continue
		}
		for _, ip := range ips {
			if addr, ok := netip.AddrFromSlice(ip); ok && addr.Unmap().Is4() {
				return addr.Unmap()
			}
		}
	}
	return netip.Addr{}
}

// localAddrs lists this machine's usable unicast addresses, sorted.
func localAddrs() []netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range addrs {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(ipnet.IP)
		if ok && addr.Unmap().IsGlobalUnicast() {
			out = append(out, addr.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
