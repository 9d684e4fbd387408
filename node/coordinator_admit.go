package node

import (
	"errors"
	"net/netip"

	"mintai/identity"
	"mintai/signal"
)

// The ways to be admitted, as Welcome.admitted_as says them.
const (
	admittedLocal  = "local"
	admittedMember = "member"
	admittedOpen   = "open"
)

// admit decides about a node that introduces itself (design §2).
func (c *coordinator) admit(j signal.Joining) (admittedAs, principal string, err error) {
	self := c.cfg.Key.ID()
	if !c.cfg.Local.IsZero() && j.Remote.Addr().Unmap().IsLoopback() &&
		identity.CheckProof(j.Hello.GetLocalProof(), identity.LocalProof(c.cfg.Local, j.Node, self)) {
		return admittedLocal, admittedLocal, nil
	}
	if !c.cfg.JoinSecret.IsZero() && identity.CheckProof(j.Hello.GetJoinProof(), identity.JoinProof(c.cfg.JoinSecret, j.Node, self)) {
		return admittedMember, principalOf(j.Remote.Addr()), nil
	}
	if c.cfg.Open {
		return admittedOpen, principalOf(j.Remote.Addr()), nil
	}
	if len(j.Hello.GetJoinProof()) == 0 {
		return "", "", errors.New("it admits only holders of its join link")
	}
	return "", "", errors.New("the join link's secret is not the coordinator's")
}

// principalOf groups nodes that are likely one party: an IPv4 /24, an IPv6 /48.
func principalOf(addr netip.Addr) string {
	bits := 24
	if addr = addr.Unmap(); addr.Is6() {
		bits = 48
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return addr.String()
	}
	return prefix.String()
}
