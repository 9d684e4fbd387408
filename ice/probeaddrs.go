package ice

import (
	"net"
	"net/netip"
	"slices"
)

// maxAnnounced bounds the addresses of one family that nodes are told of: two
// tell how a NAT maps, more add nothing.
const maxAnnounced = 4

// ifaceAddr is one address of this machine.
type ifaceAddr struct {
	addr  netip.Addr
	iface string
}

// machineAddrs lists the unicast addresses of the interfaces that are up.
func machineAddrs() []ifaceAddr {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []ifaceAddr
	for _, i := range ifaces {
		addrs, err := i.Addrs()
		if i.Flags&net.FlagUp == 0 || err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(n.IP); ok && !addr.Unmap().IsLinkLocalUnicast() {
					out = append(out, ifaceAddr{addr.Unmap(), i.Name})
				}
			}
		}
	}
	return out
}

// announcedAddrs picks the addresses of one family at which nodes elsewhere may
// find this machine. Public ones are enough where there are any. Otherwise the
// machine is in a private network or behind a one-to-one NAT, and those count
// that are on the interface from which it reaches the world: others, such as
// a bridge of containers, answer nobody. routed is the address of that
// interface, zero when there is none. Loopback is for machines without anything
// else.
func announcedAddrs(all []ifaceAddr, v6 bool, routed netip.Addr) []netip.Addr {
	var public, near, private, loopback []netip.Addr
	out := ""
	for _, a := range all {
		if a.addr == routed {
			out = a.iface
		}
	}
	for _, a := range all {
		switch {
		case a.addr.Is6() != v6:
		case a.addr.IsLoopback():
			loopback = append(loopback, a.addr)
		case !a.addr.IsPrivate() && !carrierNAT.Contains(a.addr):
			public = append(public, a.addr)
		case out != "" && a.iface == out:
			near = append(near, a.addr)
		default:
			private = append(private, a.addr)
		}
	}
	for _, pick := range [][]netip.Addr{public, near, private, loopback} {
		if len(pick) > 0 {
			slices.SortFunc(pick, netip.Addr.Compare)
			pick = slices.Compact(pick)
			return pick[:min(len(pick), maxAnnounced)]
		}
	}
	return nil
}

// carrierNAT is the shared address space of RFC 6598 §7.
var carrierNAT = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)

// worldAddr is an address that no interface has (RFC 5737 §3, RFC 3849 §4): what
// is sent to it would take the default route.
func worldAddr(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8::1")
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, 1})
}

// announceableAddrs lists what announcedAddrs picks of this machine now.
func announceableAddrs(v6 bool) []netip.Addr {
	return announcedAddrs(machineAddrs(), v6, routeSource(worldAddr(v6)))
}
