package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	natpmp "github.com/jackpal/go-nat-pmp"
)

// natpmpTimes are the waits for an answer. The library takes no context: after
// ctx ended it is waited for, so no single wait is long.
var natpmpTimes = [...]time.Duration{250 * time.Millisecond, 450 * time.Millisecond, 450 * time.Millisecond, 450 * time.Millisecond}

// natpmpServer is a gateway that speaks NAT-PMP (RFC 6886).
type natpmpServer struct{ link link }

var _ router = natpmpServer{}

func (s natpmpServer) protocol() Protocol { return NATPMP }

// findNATPMP asks for the external address (§3.2), which changes nothing.
func findNATPMP(ctx context.Context, l link) (answer, error) {
	s := natpmpServer{link: l}
	external, err := s.external(ctx)
	// A router whose uplink is down says so; it speaks NAT-PMP, but maps nothing.
	if err != nil {
		return answer{}, err
	}
	return answer{router: s, external: external}, nil
}

func (s natpmpServer) external(ctx context.Context) (netip.Addr, error) {
	r, err := patiently(ctx, s, (*natpmp.Client).GetExternalAddress)
	if err != nil {
		return netip.Addr{}, err
	}
	external := netip.AddrFrom4(r.ExternalIPAddress)
	if external.IsUnspecified() {
		return netip.Addr{}, ErrNoExternal
	}
	return external, nil
}

func (s natpmpServer) add(ctx context.Context, a ask) (Mapping, error) {
	// The address first: nothing that can fail is left after the mapping was made.
	external, err := s.external(ctx)
	if err != nil {
		return Mapping{}, err
	}
	r, err := s.ask(ctx, a, int(a.external), int(a.lifetime/time.Second))
	switch {
	case err != nil:
		return Mapping{}, err
	case r.InternalPort != a.port.Number || r.MappedExternalPort == 0 || r.PortMappingLifetimeInSeconds == 0:
		return Mapping{}, fmt.Errorf("%w: a NAT-PMP mapping of port %d to %d for %d s", ErrMalformed,
			r.MappedExternalPort, r.InternalPort, r.PortMappingLifetimeInSeconds)
	}
	granted := time.Duration(r.PortMappingLifetimeInSeconds) * time.Second
	return a.mapping(NATPMP, netip.AddrPortFrom(external, r.MappedExternalPort), granted, time.Now()), nil
}

// remove deletes the mapping of the internal port, which is ours alone: lifetime
// and external port are zero (§3.4).
func (s natpmpServer) remove(ctx context.Context, a ask) error {
	_, err := s.ask(ctx, a, 0, 0)
	return err
}

func (s natpmpServer) ask(ctx context.Context, a ask, external, seconds int) (*natpmp.AddPortMappingResult, error) {
	protocol := "udp"
	if a.port.TCP {
		protocol = "tcp"
	}
	return patiently(ctx, s, func(c *natpmp.Client) (*natpmp.AddPortMappingResult, error) {
		return c.AddPortMapping(protocol, int(a.port.Number), external, seconds)
	})
}

// patiently repeats a question until it is answered or ctx ends.
func patiently[T any](ctx context.Context, s natpmpServer, question func(*natpmp.Client) (T, error)) (T, error) {
	var none T
	for _, wait := range natpmpTimes {
		if deadline, ok := ctx.Deadline(); ok {
			wait = min(wait, time.Until(deadline))
		}
		if ctx.Err() != nil || wait <= 0 {
			return none, silent(ctx, context.DeadlineExceeded)
		}
		client := natpmp.NewClientWithLocalAndTimeout(s.link.gateway.AsSlice(), s.link.local.AsSlice(), wait)
		r, err := question(client)
		if err == nil {
			return r, nil
		}
		// The library has no error values. Its "Timed out" is the only one after
		// which asking again makes sense.
		if n := net.Error(nil); errors.As(err, &n) && !n.Timeout() {
			return none, silent(ctx, err)
		} else if n == nil && !strings.HasPrefix(err.Error(), "Timed out") {
			return none, fmt.Errorf("%w: %v", ErrRefused, err)
		}
	}
	return none, ErrSilent
}
