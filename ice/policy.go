package ice

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// ErrForbidden is wrapped when a session's policy keeps it from an address.
var ErrForbidden = errors.New("the address is not one to send to")

// maxProven bounds the proven addresses of one session, whatever the
// coordinator says.
const maxProven = 32

// Policy says to which addresses a session may send anything. It is there so
// that nobody who takes part, not even the coordinator by mistake, makes a node
// send packets to somebody who takes no part.
type Policy struct {
	// Proven are the addresses from which the coordinator received a packet that
	// the peer had signed. A public address is good for every port, since a NAT
	// may choose another one; loopback and link-local addresses only as they are.
	Proven []netip.AddrPort
	// Near allows private addresses: both peers are seen at one public address,
	// or belong to one principal.
	Near bool
	// Relays are the addresses of relays from which candidates are expected.
	Relays []netip.Addr
}

// shared is the address space of carrier-grade NATs (RFC 6598), as private as
// that of RFC 1918.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// Allows reports whether a candidate may be checked; the error wraps
// ErrForbidden or ErrBadCandidate and says why not. A nil Policy allows every
// unicast address.
func (p *Policy) Allows(c Candidate) error {
	c, err := c.Check()
	if err != nil || p == nil {
		return err
	}
	addr := c.Addr.Addr()
	proven := slices.ContainsFunc(p.Proven, func(q netip.AddrPort) bool { return q.Addr().Unmap() == addr })
	switch {
	case c.Kind.Relayed():
		if !p.relay(addr) {
			return fmt.Errorf("%w: %s is not a relay of this session", ErrForbidden, addr)
		}
	case addr.IsLoopback() || addr.IsLinkLocalUnicast():
		if !slices.ContainsFunc(p.Proven, func(q netip.AddrPort) bool { return canonical(q) == c.Addr }) {
			return fmt.Errorf("%w: the coordinator does not see the peer at %s", ErrForbidden, c.Addr)
		}
	case addr.IsPrivate() || shared.Contains(addr):
		if !p.Near && !proven {
			return fmt.Errorf("%w: %s is private, and nothing says that the peer is near", ErrForbidden, addr)
		}
	case !proven:
		return fmt.Errorf("%w: the peer has not proven that it is at %s", ErrForbidden, addr)
	}
	return nil
}

// allowsAddr is Allows for an address whose kind is not known, such as the
// source of a check.
func (p *Policy) allowsAddr(addr netip.AddrPort) bool {
	if p == nil {
		return true
	}
	return p.Allows(Candidate{Kind: Prflx, Addr: addr}) == nil || p.Allows(Candidate{Kind: RelayUDP, Addr: addr}) == nil
}

func (p *Policy) relay(addr netip.Addr) bool {
	return slices.ContainsFunc(p.Relays, func(r netip.Addr) bool { return r.Unmap() == addr })
}

// prove adds proven addresses, up to maxProven in all.
func (p *Policy) prove(addrs []netip.AddrPort) {
	for _, a := range addrs {
		if a = canonical(a); len(p.Proven) < maxProven && a.IsValid() && !slices.Contains(p.Proven, a) {
			p.Proven = append(p.Proven, a)
		}
	}
}

// clone returns a copy that shares nothing, cut to its bounds.
func (p *Policy) clone() *Policy {
	if p == nil {
		return nil
	}
	c := &Policy{Near: p.Near, Relays: slices.Clone(p.Relays)}
	c.prove(p.Proven)
	return c
}

func canonical(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
