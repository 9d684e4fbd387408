package portmap

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/libp2p/go-netroute"
)

// link is where the router is and how it is reached. Two links that are equal
// are the same network as far as mappings go.
type link struct {
	gateway netip.Addr
	local   netip.Addr // our address towards the gateway: the mapping's target
	index   int        // of the interface
	name    string
}

func (l link) String() string { return fmt.Sprintf("%s via %s from %s", l.gateway, l.name, l.local) }

// somewhere names the default route: an address of the public Internet that no
// host or VPN has a route of its own for, as a rule (a root name server). No
// packet is sent to it.
var somewhere = netip.AddrFrom4([4]byte{198, 41, 0, 4})

// route asks the operating system for the gateway on the way to an address.
func route(toward netip.Addr) (link, error) {
	toward = toward.Unmap()
	if !toward.Is4() {
		toward = somewhere
	}
	table, err := netroute.New()
	if err != nil {
		return link{}, fmt.Errorf("%w: %v", ErrNoGateway, err)
	}
	iface, gateway, local, err := table.Route(toward.AsSlice())
	if err != nil {
		return link{}, fmt.Errorf("%w: %v", ErrNoGateway, err)
	}
	return makeLink(iface, gateway, local)
}

// makeLink checks what a routing table said.
func makeLink(iface *net.Interface, gateway, local net.IP) (link, error) {
	if iface == nil {
		return link{}, fmt.Errorf("%w: the route has no interface", ErrNoGateway)
	}
	g, ok := netip.AddrFromSlice(gateway)
	g = g.Unmap()
	if !ok || !g.Is4() || g.IsUnspecified() {
		return link{}, fmt.Errorf("%w on %s", ErrNoGateway, iface.Name)
	}
	l, ok := netip.AddrFromSlice(local)
	l = l.Unmap()
	if !ok || !l.Is4() || l.IsUnspecified() {
		return link{}, fmt.Errorf("%w: %s has no IPv4 address", ErrNoGateway, iface.Name)
	}
	return link{gateway: g, local: l, index: iface.Index, name: iface.Name}, nil
}
