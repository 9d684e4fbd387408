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

func (c *coordinator) startTURN() error {
	listen, err := net.ResolveUDPAddr("udp", c.cfg.TURN.Listen)
	if err != nil {
		return &Error{Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("[coordinator.turn] listen = %q: %v", c.cfg.TURN.Listen, err), Err: err}
	}
	addr := listen.AddrPort()
	addrs := []netip.AddrPort{addr}
	if listen.IP == nil || listen.IP.IsUnspecified() { // one listener for each family that this machine has
		addrs = []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())}
		if hasIPv6() {
			addrs = append(addrs, netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port()))
		}
	}
	c.turn, err = ice.StartTURN(ice.TURNConfig{
		Listen: addrs, RelayIP: c.relayIP(), PortMin: c.cfg.TURN.PortMin, PortMax: c.cfg.TURN.PortMax, Realm: "mintai", Log: c.log,
		PeersSpeakFirst: true, Tap: c.cfg.hooks.relay,
	})
	if err != nil {
		return &Error{
			Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("the relay cannot listen on UDP %s: %v", c.cfg.TURN.Listen, err), Err: err,
			Hint: "choose another port with [coordinator.turn] listen, or set enabled = false",
		}
	}
	return nil
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
		host := public
		if h, _, err := net.SplitHostPort(public); err == nil {
			host = h
		}
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
