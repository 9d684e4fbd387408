package ice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ErrBadCandidate is wrapped when a candidate cannot be checked: no valid
// unicast address, or no port.
var ErrBadCandidate = errors.New("candidate cannot be used")

// Kind says how a candidate's address came about (RFC 8445 §5.1.1). The zero
// Kind is not known.
type Kind uint8

// The kinds of candidates, and of the paths that lead to them.
const (
	Host     Kind = iota + 1 // an address of one of the node's own interfaces
	Srflx                    // server-reflexive: where the coordinator sees the node
	Prflx                    // peer-reflexive: learned from a check of the peer
	Mapped                   // a port that the node's router opened for it
	RelayUDP                 // relayed by a TURN server that the client reaches over UDP
	RelayTLS                 // relayed by a TURN server that the client reaches over TLS
)

// String returns the lower-case name used in logs, statistics and on screens.
func (k Kind) String() string {
	switch k {
	case Host:
		return "host"
	case Srflx:
		return "srflx"
	case Prflx:
		return "prflx"
	case Mapped:
		return "mapped"
	case RelayUDP:
		return "relay-udp"
	case RelayTLS:
		return "relay-tls"
	default:
		return "unknown"
	}
}

// Relayed reports whether a path of this kind passes a TURN server.
func (k Kind) Relayed() bool { return k == RelayUDP || k == RelayTLS }

// preference is the type preference of RFC 8445 §5.1.2.2, which recommends 126
// for host, 110 for peer-reflexive, 100 for server-reflexive and 0 for relayed
// candidates. A mapped port is reflexive too, but sure to be open.
func (k Kind) preference() uint32 {
	switch k {
	case Host:
		return 126
	case Prflx:
		return 110
	case Mapped:
		return 105
	case Srflx:
		return 100
	case RelayUDP:
		return 2
	default:
		return 0
	}
}

// Candidate is one address at which a node may be reached.
type Candidate struct {
	Kind Kind
	Addr netip.AddrPort // IPv4 never in its IPv6-mapped form, no zone
	// Priority orders the checks, higher first (RFC 8445 §5.1.2). Zero means
	// the priority that the kind alone gives.
	Priority uint32
}

// Priority computes RFC 8445 §5.1.2.1: "priority = (2^24)*(type preference) +
// (2^8)*(local preference) + (2^0)*(256 - component ID)", with the one
// component that MintAI has. A higher local preference wins within one kind.
func Priority(kind Kind, local uint16) uint32 {
	return kind.preference()<<24 | uint32(local)<<8 | 255
}

// Check returns the candidate in its canonical form, or an error that wraps
// ErrBadCandidate when nothing should be sent to it.
func (c Candidate) Check() (Candidate, error) {
	addr := c.Addr.Addr().Unmap()
	switch {
	case !addr.IsValid() || addr.IsUnspecified():
		return Candidate{}, fmt.Errorf("%w: no address", ErrBadCandidate)
	case c.Addr.Port() == 0:
		return Candidate{}, fmt.Errorf("%w: no port", ErrBadCandidate)
	case addr.IsMulticast() || addr == broadcast:
		return Candidate{}, fmt.Errorf("%w: %s is not one host", ErrBadCandidate, addr)
	case addr.Zone() != "":
		return Candidate{}, fmt.Errorf("%w: %s means something on one machine only", ErrBadCandidate, addr)
	}
	c.Addr = netip.AddrPortFrom(addr, c.Addr.Port())
	if c.Priority == 0 {
		c.Priority = Priority(c.Kind, 0)
	}
	return c, nil
}

// String returns the kind and the address, such as "srflx 203.0.113.7:4433".
func (c Candidate) String() string { return c.Kind.String() + " " + c.Addr.String() }

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// addrPort returns the canonical form of a UDP address, or the zero AddrPort
// for an address of another type.
func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok || u == nil {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
