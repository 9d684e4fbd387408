package portmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// The wire format of RFC 6886 §3.2 and §3.3.
const (
	natpmpVersion    = 0
	natpmpHeader     = 4 // of an answer that says no: version, opcode, result
	natpmpAddressLen = 12
	natpmpMapLen     = 16

	natpmpAddress natpmpOpcode = 0
	natpmpMapUDP  natpmpOpcode = 1
	natpmpMapTCP  natpmpOpcode = 2
	natpmpAnswers natpmpOpcode = 128 // is added in a response
)

type natpmpOpcode uint8

// natpmpResult is a result code of RFC 6886 §3.5.
type natpmpResult uint16

func (r natpmpResult) String() string {
	names := [...]string{
		"success", "unsupported version", "not authorized", "the gateway itself has no address yet", "no resources", "unsupported opcode",
	}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("result %d", uint16(r))
}

// natpmpResponse is an answer to either question. An answer that says no may be
// without the rest.
type natpmpResponse struct {
	opcode   natpmpOpcode // of the request
	result   natpmpResult
	address  netip.Addr // natpmpAddress only
	internal uint16     // the others
	external uint16
	lifetime uint32 // seconds
}

// errNotNATPMP is the answer of a gateway that speaks PCP alone (RFC 6887
// appendix A).
var errNotNATPMP = fmt.Errorf("%w: the gateway speaks PCP, not NAT-PMP", ErrRefused)

// parseNATPMP reads a response.
func parseNATPMP(b []byte) (natpmpResponse, error) {
	if len(b) < natpmpHeader || len(b) > pcpMaxLen || b[1] < byte(natpmpAnswers) {
		return natpmpResponse{}, fmt.Errorf("%w: no NAT-PMP response", ErrMalformed)
	}
	if b[0] != natpmpVersion {
		return natpmpResponse{}, errNotNATPMP
	}
	r := natpmpResponse{opcode: natpmpOpcode(b[1]) - natpmpAnswers, result: natpmpResult(binary.BigEndian.Uint16(b[2:]))}
	if r.result != 0 {
		return r, nil
	}
	want := natpmpMapLen
	if r.opcode == natpmpAddress {
		want = natpmpAddressLen
	}
	switch {
	case r.opcode > natpmpMapTCP:
		return natpmpResponse{}, fmt.Errorf("%w: NAT-PMP opcode %d", ErrMalformed, r.opcode)
	case len(b) < want:
		return natpmpResponse{}, fmt.Errorf("%w: %d octets of NAT-PMP", ErrMalformed, len(b))
	case r.opcode == natpmpAddress:
		r.address = netip.AddrFrom4([4]byte(b[8:12]))
	default:
		r.internal = binary.BigEndian.Uint16(b[8:])
		r.external = binary.BigEndian.Uint16(b[10:])
		r.lifetime = binary.BigEndian.Uint32(b[12:])
	}
	return r, nil
}

// natpmpTimes are the waits before each repetition: 250 ms, doubled (§3.1), and
// no more of them than somebody who has to wait would bear.
var natpmpTimes = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second}

// natpmpServer is a gateway that speaks NAT-PMP (RFC 6886).
type natpmpServer struct {
	link link
	port uint16 // 0: 5351
}

var _ router = natpmpServer{}

func (s natpmpServer) protocol() Protocol { return NATPMP }

// find asks for the external address (§3.2), which changes nothing.
func (s natpmpServer) find(ctx context.Context, l link) (answer, error) {
	s.link = l
	external, err := s.external(ctx)
	// A router whose uplink is down says so; it speaks NAT-PMP, but maps nothing.
	if err != nil {
		return answer{}, err
	}
	return answer{router: s, external: external}, nil
}

func (s natpmpServer) external(ctx context.Context) (netip.Addr, error) {
	r, err := s.exchange(ctx, []byte{natpmpVersion, byte(natpmpAddress)}, natpmpTimes, func(r natpmpResponse) bool { return true })
	if err != nil {
		return netip.Addr{}, err
	}
	if r.address.IsUnspecified() {
		return netip.Addr{}, ErrNoExternal
	}
	return r.address, nil
}

func (s natpmpServer) add(ctx context.Context, a ask) (Mapping, error) {
	// The address first: nothing that can fail is left after the mapping was made.
	external, err := s.external(ctx)
	if err != nil {
		return Mapping{}, err
	}
	r, err := s.mapPort(ctx, a, a.external, uint32(a.lifetime/time.Second), natpmpTimes)
	switch {
	case err != nil:
		return Mapping{}, err
	case r.external == 0 || r.lifetime == 0:
		return Mapping{}, fmt.Errorf("%w: a NAT-PMP mapping to port %d for %d s", ErrMalformed, r.external, r.lifetime)
	}
	granted := time.Duration(r.lifetime) * time.Second
	return a.mapping(NATPMP, netip.AddrPortFrom(external, r.external), granted, time.Now()), nil
}

// remove deletes the mapping of the internal port, which is ours alone: lifetime
// and external port are zero (§3.4).
func (s natpmpServer) remove(ctx context.Context, a ask) error {
	_, err := s.mapPort(ctx, a, 0, 0, removeTimes)
	return err
}

func (s natpmpServer) mapPort(ctx context.Context, a ask, external uint16, seconds uint32, waits []time.Duration) (natpmpResponse, error) {
	opcode := natpmpMapUDP
	if a.port.TCP {
		opcode = natpmpMapTCP
	}
	request := []byte{natpmpVersion, byte(opcode), 0, 0}
	request = binary.BigEndian.AppendUint16(request, a.port.Number)
	request = binary.BigEndian.AppendUint16(request, external)
	request = binary.BigEndian.AppendUint32(request, seconds)
	return s.exchange(ctx, request, waits, func(r natpmpResponse) bool { return r.internal == a.port.Number })
}

// exchange sends a request until it is answered. An answer that says no is an
// error; one to another question is not taken.
func (s natpmpServer) exchange(ctx context.Context, request []byte, waits []time.Duration, fits func(natpmpResponse) bool) (natpmpResponse, error) {
	var got natpmpResponse
	err := converse(ctx, s.link, s.port, request, waits, func(b []byte) (bool, error) {
		r, err := parseNATPMP(b)
		switch {
		case err == errNotNATPMP: //nolint:errorlint // it is not wrapped
			return true, err
		case err != nil || byte(r.opcode) != request[1]:
			return false, nil
		case r.result != 0:
			return true, fmt.Errorf("%w: %v", ErrRefused, r.result)
		case !fits(r):
			return false, nil
		}
		got = r
		return true, nil
	})
	return got, err
}
