package node

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"mintai/identity"
)

// announce prints every port that was opened, as the system sees it, and the
// links for here, the LAN and the Internet.
func (c *coordinator) announce(w io.Writer, secret identity.Secret, status *statusServer) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("coordinator %s", c.cfg.Key.ID())
	c.announcePorts(p, status)
	switch {
	case len(c.relays.urls) > 0 && c.turn != nil:
		p("  lends       its own relay and the one at %s", strings.Join(c.relays.urls, ", "))
	case c.turn != nil:
	case len(c.relays.urls) > 0:
		p("  lends       the relay at %s", strings.Join(c.relays.urls, ", "))
	default:
		p("  lends       no relay: peers without a direct path will not reach each other")
	}
	if c.cfg.Open {
		p("  admits      everyone (access = \"open\")")
		p("links:")
	} else {
		p("  admits      whoever holds a link, and this user's processes on this machine")
		p("links, each a secret that admits:")
	}
	places := c.places()
	for _, addr := range places.here {
		printLink(p, "here", c.link([]string{addr}, secret))
	}
	if len(places.lan) > 0 {
		printLink(p, "LAN", c.link(places.lan, secret))
	}
	switch {
	case len(places.internet) > 0:
		printLink(p, "Internet", c.link(places.internet, secret))
	case c.home != nil:
		p("  Internet  the router is being asked to forward the ports")
	default:
		p("  Internet  none yet: forward %s to this machine and set [coordinator] public", c.portList())
	}
}

func printLink(p func(string, ...any), name string, link identity.Link) {
	p("  %-9s %s", name, link.String())
}

func (c *coordinator) announcePorts(p func(string, ...any), status *statusServer) {
	p("  listens on  UDP %s (signaling)", c.Addr())
	shared := map[netip.AddrPort]bool{}
	if c.turn != nil {
		for _, addr := range c.turn.Addrs() {
			shared[addr] = true
			p("              UDP %s (STUN and TURN)", addr)
		}
		p("              UDP %d-%d while a relay is lent", c.cfg.TURN.PortMin, c.cfg.TURN.PortMax)
	}
	if c.probes != nil {
		for _, addr := range c.probes.Addrs() {
			wild := netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
			if addr.Addr().Is6() {
				wild = netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
			}
			if !shared[addr] && !shared[wild] {
				p("              UDP %s (STUN)", addr)
			}
		}
	}
	if c.tls != nil {
		p("              TCP %s (TLS: signaling and relay where UDP is blocked)", c.tls.Addr())
	}
	for _, note := range c.tlsNotes {
		p("              %s", note)
	}
	if c.home != nil {
		p("              UDP any free port, for seconds, while the router is asked (UPnP)")
	}
	if status != nil {
		p("              TCP %s (/metrics, /healthz, /miners)", status.ln.Addr())
	}
}

// portList names the ports that others must reach, for a person.
func (c *coordinator) portList() string {
	udp := []string{fmt.Sprint(c.Addr().Port())}
	if port := c.stunPort(); port != 0 {
		udp = append(udp, fmt.Sprintf("%d-%d", port, port+1))
	}
	if c.turn != nil {
		if port := c.turnPort(); port != c.stunPort() {
			udp = append(udp, fmt.Sprint(port))
		}
		udp = append(udp, fmt.Sprintf("%d-%d", c.cfg.TURN.PortMin, c.cfg.TURN.PortMax))
	}
	out := "UDP " + strings.Join(udp, ", ")
	if port := c.tlsPort(); port != 0 {
		out += fmt.Sprintf(" and TCP %d", port)
	}
	return out
}

// turnPort is the UDP port of our own relay.
func (c *coordinator) turnPort() uint16 {
	if addrs := c.turn.Addrs(); len(addrs) > 0 {
		return addrs[0].Port()
	}
	return 0
}

// places are the addresses at which the coordinator can be joined, by distance,
// the best first.
type places struct{ here, lan, internet []string }

func (c *coordinator) places() places {
	at := c.Addr()
	bound := []netip.Addr{at.Addr().Unmap()}
	if at.Addr().IsUnspecified() {
		bound = append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, preferred(localAddrs())...)
	}
	return sortPlaces(bound, at.Port(), c.cfg.Public)
}

// sortPlaces tells addresses apart by their reach. What the configuration names
// is of the Internet, and comes first, in its order.
func sortPlaces(bound []netip.Addr, port uint16, public []string) places {
	var out places
	for _, addr := range bound {
		text := netip.AddrPortFrom(addr, port).String()
		switch {
		case addr.IsLoopback():
			out.here = append(out.here, text)
		case isPublic(addr):
			out.internet = append(out.internet, text)
		default:
			out.lan = append(out.lan, text)
		}
	}
	var named []string
	for _, name := range public {
		if _, _, err := net.SplitHostPort(name); err != nil {
			name = net.JoinHostPort(strings.Trim(name, "[]"), fmt.Sprint(port))
		}
		name = strings.ToLower(name) // as links are
		out.internet = slices.DeleteFunc(out.internet, func(a string) bool { return a == name })
		out.lan = slices.DeleteFunc(out.lan, func(a string) bool { return a == name })
		if !slices.Contains(named, name) {
			named = append(named, name)
		}
	}
	out.internet = append(named, out.internet...)
	return out
}

// preferred puts IPv4 before IPv6, since most others have it, and of each the
// address first that this machine sends from: the others may be of virtual
// networks in it.
func preferred(addrs []netip.Addr) []netip.Addr {
	sends := map[netip.Addr]bool{}
	for _, to := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // no packet is sent
		if conn, err := net.Dial("udp", to); err == nil {
			sends[conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()] = true
			_ = conn.Close()
		}
	}
	rank := func(a netip.Addr) int {
		r := 0
		if a.Is6() {
			r += 2
		}
		if !sends[a] {
			r++
		}
		return r
	}
	out := slices.Clone(addrs)
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}
