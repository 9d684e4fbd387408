package ice

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"
)

const (
	// maxHostCandidates leaves room, below maxRemote, for the addresses that the
	// coordinator and the router add.
	maxHostCandidates = 6
	// maxPerInterface bounds, for each family, what one interface contributes:
	// an interface with IPv6 privacy extensions has a dozen addresses of one net.
	maxPerInterface = 2
)

// netInterface is what host candidates are made of.
type netInterface struct {
	name     string
	up       bool
	loopback bool
	addrs    []netip.Addr
}

// HostCandidates returns the addresses of the machine's interfaces at which
// the socket can be reached, best first, at most six. Interfaces of containers
// and virtual machines come last. Loopback is offered when the machine has
// nothing else, or when the Socket is bound to it.
func (s *Socket) HostCandidates() []Candidate {
	local := s.LocalAddr()
	if !local.Addr().IsUnspecified() {
		c, err := Candidate{Kind: Host, Addr: local, Priority: Priority(Host, 65535)}.Check()
		if err != nil {
			return nil
		}
		return []Candidate{c}
	}
	return hostCandidates(systemInterfaces(), local.Port(), local.Addr().Is6(), s.cfg.IPFilter)
}

// hostCandidates decides, from what the system has, what is offered.
func hostCandidates(ifaces []netInterface, port uint16, v6 bool, filter func(netip.Addr) bool) []Candidate {
	type ranked struct {
		addr netip.Addr
		rank int
	}
	var useful, loopback []ranked
	for _, iface := range ifaces {
		if !iface.up {
			continue
		}
		var n4, n6 int
		for _, addr := range iface.addrs {
			addr = addr.Unmap()
			count := &n6
			if addr.Is4() {
				count = &n4
			}
			switch {
			case !addr.IsValid(), addr.IsUnspecified(), addr.IsMulticast():
				continue
			case addr.Is6() && (!v6 || addr.IsLinkLocalUnicast()):
				// A link-local IPv6 address needs a zone, which cannot be sent to a peer.
				continue
			case filter != nil && !filter(addr):
				continue
			case addr.IsLoopback() || iface.loopback:
				loopback = append(loopback, ranked{addr, 0})
				continue
			case *count >= maxPerInterface:
				continue
			}
			*count++
			useful = append(useful, ranked{addr, rank(iface.name, addr)})
		}
	}
	if len(useful) == 0 {
		useful = loopback
	}
	slices.SortStableFunc(useful, func(a, b ranked) int { return cmp.Compare(a.rank, b.rank) })
	var out []Candidate
	for _, u := range useful {
		addr := netip.AddrPortFrom(u.addr, port)
		if slices.ContainsFunc(out, func(c Candidate) bool { return c.Addr == addr }) {
			continue
		}
		out = append(out, Candidate{Kind: Host, Addr: addr, Priority: Priority(Host, 65535-uint16(len(out)))})
		if len(out) == maxHostCandidates {
			break
		}
	}
	return out
}

// rank orders host addresses, lower first. RFC 8421 §4 advises to mix the
// families; here a local net comes first, since only a peer on it can use it
// and then it is the best there is.
func rank(iface string, addr netip.Addr) int {
	r := 0
	switch {
	case addr.IsLinkLocalUnicast():
		r = 3
	case addr.Is6() && addr.IsPrivate():
		r = 2 // unique local addresses rarely lead further than IPv4 does
	case addr.Is6():
		r = 1
	}
	if noisy(iface) {
		r += 10
	}
	return r
}

// noisy reports whether an interface belongs to containers or virtual
// machines, whose addresses exist on nearly every developer's machine and lead
// nowhere from outside.
func noisy(name string) bool {
	name = strings.ToLower(name)
	for _, prefix := range []string{
		"docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "lxc", "lxd", "cni", "cbr", "flannel",
		"cali", "podman", "kube", "nerdctl", "vethernet", "bridge", "awdl", "llw", "ap1", "anpi",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// systemInterfaces asks the system; what cannot be read is left out.
func systemInterfaces() []netInterface {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	out := make([]netInterface, 0, len(ifaces))
	for _, iface := range ifaces {
		addrs, err := iface.Addrs()
		if err != nil {
			continue
		}
		ni := netInterface{
			name:     iface.Name,
			up:       iface.Flags&net.FlagUp != 0,
			loopback: iface.Flags&net.FlagLoopback != 0,
		}
		for _, a := range addrs {
			if ipNet, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(ipNet.IP); ok {
					ni.addrs = append(ni.addrs, addr)
				}
			}
		}
		out = append(out, ni)
	}
	return out
}
