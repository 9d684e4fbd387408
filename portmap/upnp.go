package portmap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	igd "github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
)

// wanConnection is what WANIPConnection:1, WANIPConnection:2 and
// WANPPPConnection:1 have in common.
type wanConnection interface {
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
	GetSpecificPortMappingEntryCtx(ctx context.Context, remote string, external uint16, protocol string) (internal uint16, client string, enabled bool, description string, lease uint32, err error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
}

// Error codes of WANIPConnection:2 §2.5 and of UPnP itself.
const (
	igdInvalidArgs       = 402
	igdActionFailed      = 501
	igdNoSuchEntry       = 714
	igdConflict          = 718
	igdSamePortRequired  = 724
	igdOnlyPermanent     = 725
	igdConflictElsewhere = 729
)

// igdRouter is a UPnP gateway.
type igdRouter struct {
	link link
	wan  wanConnection
}

var _ router = igdRouter{}

// openIGD reads a description and finds the connection to the Internet in it.
func openIGD(ctx context.Context, l link, location *url.URL) (answer, error) {
	client := fencedClient(l)
	root, err := describe(ctx, &client, l, location)
	if err != nil {
		return answer{}, err
	}
	wans := connections(root, l, location)
	if len(wans) == 0 {
		return answer{}, fmt.Errorf("%w: the UPnP device has no WAN connection", ErrRefused)
	}
	// A router with several connections tells with the address which one is up.
	var best answer
	for _, wan := range wans {
		r := igdRouter{link: l, wan: wan}
		external, e := r.external(ctx)
		switch {
		case e != nil:
			err = e
		case !best.external.IsValid() || Public(external) && !Public(best.external):
			best = answer{router: r, external: external}
		}
	}
	if best.router == nil {
		return answer{}, err
	}
	return best, nil
}

// connections are the WAN connections of a device whose control URL is on the
// gateway.
func connections(root *goupnp.RootDevice, l link, location *url.URL) []wanConnection {
	var all []wanConnection
	fence := func(c *goupnp.ServiceClient) bool {
		c.SOAPClient.HTTPClient = fencedClient(l)
		return c.Service.ControlURL.Ok && onGateway(&c.SOAPClient.EndpointURL, l.gateway) == nil && len(all) < igdMaxClients
	}
	// These return an error when there is none, and nothing else.
	ip2, _ := igd.NewWANIPConnection2ClientsFromRootDevice(root, location)
	for _, c := range ip2 {
		if fence(c.GetServiceClient()) {
			all = append(all, c)
		}
	}
	ip1, _ := igd.NewWANIPConnection1ClientsFromRootDevice(root, location)
	for _, c := range ip1 {
		if fence(c.GetServiceClient()) {
			all = append(all, c)
		}
	}
	ppp, _ := igd.NewWANPPPConnection1ClientsFromRootDevice(root, location)
	for _, c := range ppp {
		if fence(c.GetServiceClient()) {
			all = append(all, c)
		}
	}
	return all
}

func (r igdRouter) protocol() Protocol { return UPnP }

func (r igdRouter) external(ctx context.Context) (netip.Addr, error) {
	s, err := r.wan.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, igdError(ctx, err)
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Unmap().Is4() || a.Unmap().IsUnspecified() {
		return netip.Addr{}, ErrNoExternal
	}
	return a.Unmap(), nil
}

// add maps the port that is wanted, or some other where that one is taken.
func (r igdRouter) add(ctx context.Context, a ask) (Mapping, error) {
	// The address first: with a router that knows only permanent mappings nothing
	// that can fail may come after the mapping.
	external, err := r.external(ctx)
	if err != nil {
		return Mapping{}, err
	}
	ports := []uint16{a.external, randomPort(), randomPort(), randomPort()}
	for i := 0; i < len(ports); i++ {
		lease, err := r.addExactly(ctx, a, ports[i])
		switch code := igdCode(err); {
		case err == nil:
			return a.mapping(UPnP, netip.AddrPortFrom(external, ports[i]), lease, time.Now()), nil
		case code == igdSamePortRequired && ports[i] != a.port.Number:
			ports = []uint16{a.port.Number}
			i = -1
		case errors.Is(err, errTaken) || code == igdConflict || code == igdConflictElsewhere || code == igdActionFailed:
		default:
			return Mapping{}, igdError(ctx, err)
		}
	}
	return Mapping{}, fmt.Errorf("%w: every external port that was tried is taken", ErrRefused)
}

// randomPort avoids the well-known ports, which many routers refuse.
func randomPort() uint16 { return uint16(1024 + rand.IntN(65536-1024)) }

var errTaken = errors.New("the external port is taken")

// addExactly maps one external port. "If … the same external port, protocol and
// internal client … is overwritten" (WANIPConnection:1 §2.4.16): without looking
// first, a second process on this machine would take the port from the first.
func (r igdRouter) addExactly(ctx context.Context, a ask, external uint16) (lease time.Duration, err error) {
	if _, ours, err := r.entry(ctx, a, external); err == nil && !ours {
		return 0, errTaken
	}
	seconds := uint32(a.lifetime / time.Second)
	add := func() error {
		return r.wan.AddPortMappingCtx(ctx, "", external, upnpProtocol(a), a.port.Number, r.link.local.String(), true, a.description, seconds)
	}
	err = add()
	// "OnlyPermanentLeasesSupported"; some of these say "invalid arguments".
	if code := igdCode(err); code == igdOnlyPermanent || code == igdInvalidArgs {
		seconds = 0
		err = add()
	}
	if err != nil {
		return 0, err
	}
	lease = time.Duration(seconds) * time.Second
	// What was really entered: another process may have been faster between the
	// look and the entry, and the router may grant less than was asked for.
	granted, ours, err := r.entry(ctx, a, external)
	if err == nil && !ours {
		return 0, errTaken
	}
	if err == nil && granted > 0 && (lease == 0 || granted < lease) {
		lease = granted
	}
	return lease, nil
}

// entry looks at what the router has for an external port; an error says that
// there is nothing or that it does not tell.
func (r igdRouter) entry(ctx context.Context, a ask, external uint16) (lease time.Duration, ours bool, err error) {
	internal, client, _, _, seconds, err := r.wan.GetSpecificPortMappingEntryCtx(ctx, "", external, upnpProtocol(a))
	if err != nil {
		return 0, false, err
	}
	addr, err := netip.ParseAddr(client)
	if err != nil { // a name, in the routers of some makers
		return 0, false, fmt.Errorf("%w: the entry's client is %.40q", ErrMalformed, client)
	}
	return time.Duration(seconds) * time.Second, internal == a.port.Number && addr.Unmap() == r.link.local, nil
}

// remove deletes the entry unless it became somebody else's.
func (r igdRouter) remove(ctx context.Context, a ask) error {
	_, ours, err := r.entry(ctx, a, a.external)
	if err == nil && !ours || igdCode(err) == igdNoSuchEntry {
		return nil
	}
	err = r.wan.DeletePortMappingCtx(ctx, "", a.external, upnpProtocol(a))
	if igdCode(err) == igdNoSuchEntry {
		return nil
	}
	return igdError(ctx, err)
}

func upnpProtocol(a ask) string {
	if a.port.TCP {
		return "TCP"
	}
	return "UDP"
}

// igdCode is the UPnP error code of an answer, 0 for other errors and none.
func igdCode(err error) int {
	if fault := (*soap.SOAPFaultError)(nil); errors.As(err, &fault) {
		return fault.Detail.UPnPError.Errorcode
	}
	return 0
}

// igdError makes one of the package's errors of what goupnp returned.
func igdError(ctx context.Context, err error) error {
	switch fault := (*soap.SOAPFaultError)(nil); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &fault):
		return fmt.Errorf("%w: UPnP error %d %.80q", ErrRefused, fault.Detail.UPnPError.Errorcode, fault.Detail.UPnPError.ErrorDescription)
	case errors.Is(err, errTaken):
		return fmt.Errorf("%w: %v", ErrRefused, err)
	}
	return fmt.Errorf("%w: %.200v", ErrMalformed, err)
}
