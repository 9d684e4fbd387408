package node

import (
	"net/netip"
	"slices"

	"mintai/ice"
)

// reasonText is a path's reason in people's words, as its client would say it.
func reasonText(r ice.Reason, miner string) string {
	switch r {
	case ice.SameMachine:
		return "same machine"
	case ice.SameNetwork:
		return "same network"
	case ice.PublicAddress:
		return "public address"
	case ice.PortMapping:
		return "port mapping"
	case ice.NATTraversed:
		return "NAT traversed"
	case ice.PortsProbed:
		return "NAT traversed by probing ports"
	case ice.BothNATsHard:
		return "both NATs map per destination"
	case ice.ClientNATHard:
		return "the NAT here maps per destination, and the one of " + miner + " filters by port"
	case ice.MinerNATHard:
		return "the NAT of " + miner + " maps per destination, and the one here filters by port"
	case ice.ClientUDPBlocked:
		return "UDP is blocked here"
	case ice.MinerUDPBlocked:
		return "UDP is blocked at " + miner
	case ice.BothUDPBlocked:
		return "UDP is blocked here and at " + miner
	case ice.NoCommonFamily:
		return "one side has only IPv4, the other only IPv6"
	case ice.RelayChosen:
		return "the relay was asked for"
	case ice.SameNetworkBlocked:
		return "both are behind one address, and that network lets nothing through between them"
	case ice.NothingCame:
		return "no direct packet from " + miner + " came through in time"
	case ice.HandshakeFailed:
		return "packets came through directly, but the handshake did not finish"
	default:
		return "unknown"
	}
}

// directReason says what made the direct path possible. A forwarded port shows
// only in what was expected: the address that answers may be any.
func directReason(h hop, expected ice.Reason) ice.Reason {
	addr, own := h.addr.Addr().Unmap(), localAddrs()
	switch {
	case addr.IsLoopback(), slices.Contains(own, addr):
		return ice.SameMachine
	case addr.IsPrivate(), addr.IsLinkLocalUnicast(), isCarrierNAT(addr), sharePrefix(addr, own):
		return ice.SameNetwork
	case h.kind == ice.Mapped, expected == ice.PortMapping:
		return ice.PortMapping
	case h.kind == ice.Host:
		return ice.PublicAddress
	default:
		return ice.NATTraversed
	}
}

// sharePrefix reports whether an IPv6 address is of a network of this machine,
// which in IPv6 has a prefix of 64 bits (RFC 4291 §2.5.4).
func sharePrefix(addr netip.Addr, own []netip.Addr) bool {
	return addr.Is6() && slices.ContainsFunc(own, func(a netip.Addr) bool {
		return a.Is6() && netip.PrefixFrom(a, 64).Masked().Contains(addr)
	})
}

// isCarrierNAT reports whether addr is of the shared space 100.64.0.0/10 (RFC 6598).
func isCarrierNAT(addr netip.Addr) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10).Contains(addr)
}
