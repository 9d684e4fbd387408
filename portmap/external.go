package portmap

import "net/netip"

// notPublic are the IPv4 blocks of IANA's special-purpose registry (RFC 6890 and
// its successors) that no packet from the public Internet reaches, beyond those
// that netip.Addr itself knows.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),       // this network, RFC 791
	netip.MustParsePrefix("100.64.0.0/10"),   // shared: the provider's NAT, RFC 6598
	netip.MustParsePrefix("192.0.0.0/24"),    // protocol assignments: DS-Lite, RFC 6333
	netip.MustParsePrefix("192.0.2.0/24"),    // documentation, RFC 5737
	netip.MustParsePrefix("198.18.0.0/15"),   // benchmarks, RFC 2544
	netip.MustParsePrefix("198.51.100.0/24"), // documentation
	netip.MustParsePrefix("203.0.113.0/24"),  // documentation
	netip.MustParsePrefix("240.0.0.0/4"),     // reserved and broadcast, RFC 1112
}

// Public reports whether an external address can be reached from the public
// Internet, as far as its number tells.
func Public(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
