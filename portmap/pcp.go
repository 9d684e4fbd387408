package portmap

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// The wire format of RFC 6887, as far as a client that maps ports needs it.
const (
	pcpVersion    = 2
	pcpHeader     = 24   // §7.1, §7.2
	pcpMapLen     = 60   // §11.1: header and MAP
	pcpMaxLen     = 1100 // §7: "The maximum PCP message length is 1100 octets"
	pcpIsResponse = 0x80

	pcpAnnounce pcpOpcode = 0
	pcpMap      pcpOpcode = 1

	protoTCP = 6
	protoUDP = 17
)

type pcpOpcode uint8

// pcpResult is a result code of RFC 6887 §7.4.
type pcpResult uint8

const (
	pcpSuccess              pcpResult = 0
	pcpUnsupportedVersion   pcpResult = 1
	pcpNotAuthorized        pcpResult = 2
	pcpMalformedRequest     pcpResult = 3
	pcpUnsupportedOpcode    pcpResult = 4
	pcpUnsupportedOption    pcpResult = 5
	pcpMalformedOption      pcpResult = 6
	pcpNetworkFailure       pcpResult = 7
	pcpNoResources          pcpResult = 8
	pcpUnsupportedProtocol  pcpResult = 9
	pcpUserExceededQuota    pcpResult = 10
	pcpCannotProvide        pcpResult = 11
	pcpAddressMismatch      pcpResult = 12
	pcpExcessiveRemotePeers pcpResult = 13
)

func (r pcpResult) String() string {
	names := [...]string{
		"success", "unsupported version", "not authorized", "malformed request", "unsupported opcode",
		"unsupported option", "malformed option", "network failure", "no resources", "unsupported protocol",
		"quota exceeded", "cannot provide this external port", "address mismatch: another NAT is between us and the router",
		"too many remote peers",
	}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("result %d", uint8(r))
}

// nonce ties a mapping to whoever asked for it. "The Mapping Nonce … MUST be
// randomly generated" (§11.1) and stays the same for renewal and deletion.
type nonce [12]byte

func newNonce() (n nonce) {
	_, _ = rand.Read(n[:]) // never fails
	return n
}

// pcpRequest is a MAP or ANNOUNCE request.
type pcpRequest struct {
	opcode   pcpOpcode
	lifetime uint32 // seconds; 0 deletes
	client   netip.Addr
	// MAP only:
	nonce     nonce
	protocol  uint8
	internal  uint16
	suggested uint16
}

func (r pcpRequest) append(b []byte) []byte {
	b = append(b, pcpVersion, byte(r.opcode), 0, 0)
	b = binary.BigEndian.AppendUint32(b, r.lifetime)
	// "The source IPv4 … address in the IP header used by the PCP client when
	// sending this PCP request", IPv4-mapped (§5, §7.1).
	client := r.client.As16()
	b = append(b, client[:]...)
	if r.opcode != pcpMap {
		return b
	}
	b = append(b, r.nonce[:]...)
	b = append(b, r.protocol, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, r.internal)
	b = binary.BigEndian.AppendUint16(b, r.suggested)
	// Any IPv4 address: "::ffff:0:0" (§5).
	anyV4 := netip.IPv4Unspecified().As16()
	return append(b, anyV4[:]...)
}

// pcpResponse is an answer to MAP or ANNOUNCE.
type pcpResponse struct {
	opcode   pcpOpcode
	result   pcpResult
	lifetime uint32 // seconds: of the mapping, or of the error
	epoch    uint32
	// MAP only:
	nonce    nonce
	protocol uint8
	internal uint16
	external netip.AddrPort
}

// errOldVersion is the answer of a gateway that speaks NAT-PMP, or a draft of PCP.
var errOldVersion = errors.New("the gateway speaks NAT-PMP or an older version, not PCP")

// parsePCP reads a response. It refuses what §8.3 says to drop: "If the PCP
// client receives … a response with the R bit clear, shorter than 24 octets,
// longer than 1100, or not a multiple of 4".
func parsePCP(b []byte) (pcpResponse, error) {
	// Appendix A: a gateway of NAT-PMP, whose version is 0, answers 8 octets in its
	// own format with result 1, unsupported version. The code is at the same place.
	if len(b) >= 4 && b[0] < pcpVersion && b[1]&pcpIsResponse != 0 && binary.BigEndian.Uint16(b[2:]) == 1 {
		return pcpResponse{}, errOldVersion
	}
	if len(b) < pcpHeader || len(b) > pcpMaxLen || len(b)%4 != 0 {
		return pcpResponse{}, fmt.Errorf("%w: %d octets of PCP", ErrMalformed, len(b))
	}
	if b[0] != pcpVersion || b[1]&pcpIsResponse == 0 {
		return pcpResponse{}, fmt.Errorf("%w: no PCP response", ErrMalformed)
	}
	r := pcpResponse{
		opcode:   pcpOpcode(b[1] &^ pcpIsResponse),
		result:   pcpResult(b[3]),
		lifetime: binary.BigEndian.Uint32(b[4:]),
		epoch:    binary.BigEndian.Uint32(b[8:]),
	}
	switch r.opcode {
	case pcpAnnounce:
	case pcpMap:
		if len(b) < pcpMapLen {
			return pcpResponse{}, fmt.Errorf("%w: MAP of %d octets", ErrMalformed, len(b))
		}
		copy(r.nonce[:], b[24:])
		r.protocol = b[36]
		r.internal = binary.BigEndian.Uint16(b[40:])
		r.external = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[44:60])).Unmap(), binary.BigEndian.Uint16(b[42:]))
	default:
		return pcpResponse{}, fmt.Errorf("%w: PCP opcode %d", ErrMalformed, r.opcode)
	}
	return r, nil
}

// answers reports whether the response belongs to the request (§8.3, §11.4).
func (r pcpResponse) answers(q pcpRequest) bool {
	if r.opcode != q.opcode {
		return false
	}
	return q.opcode != pcpMap || r.nonce == q.nonce && r.protocol == q.protocol && r.internal == q.internal
}

// pcpServer is a gateway that may speak PCP.
type pcpServer struct {
	link link
	port uint16 // 0: 5351
}

var _ router = pcpServer{}

func (s pcpServer) protocol() Protocol { return PCP }

// find asks by ANNOUNCE (§14.1), which every server answers and which changes
// nothing. An error code is an answer too: whoever sends it speaks PCP.
func (s pcpServer) find(ctx context.Context, l link) (answer, error) {
	s.link = l
	r, err := s.exchange(ctx, pcpRequest{opcode: pcpAnnounce, client: l.local}, pcpTimes)
	if err != nil {
		return answer{}, err
	}
	if r.result != pcpSuccess && r.result != pcpUnsupportedOpcode {
		return answer{}, fmt.Errorf("%w: %v", ErrRefused, r.result)
	}
	return answer{router: s}, nil
}

func (s pcpServer) request(a ask) pcpRequest {
	q := pcpRequest{opcode: pcpMap, client: s.link.local, nonce: a.nonce, protocol: protoUDP, internal: a.port.Number}
	if a.port.TCP {
		q.protocol = protoTCP
	}
	return q
}

func (s pcpServer) add(ctx context.Context, a ask) (Mapping, error) {
	q := s.request(a)
	q.suggested, q.lifetime = a.external, uint32(a.lifetime/time.Second)
	r, err := s.exchange(ctx, q, pcpTimes)
	switch {
	case err != nil:
		return Mapping{}, err
	case r.result != pcpSuccess:
		return Mapping{}, fmt.Errorf("%w: %v", ErrRefused, r.result)
	case r.lifetime == 0 || r.external.Port() == 0:
		return Mapping{}, fmt.Errorf("%w: a MAP without lifetime or port", ErrMalformed)
	case !r.external.Addr().Is4() || r.external.Addr().IsUnspecified():
		return Mapping{}, ErrNoExternal
	}
	return a.mapping(PCP, r.external, time.Duration(r.lifetime)*time.Second, time.Now()), nil
}

// remove deletes the mapping: "A lifetime of 0 … delete" (§15.1), with suggested
// address and port zero. The server compares the nonce.
func (s pcpServer) remove(ctx context.Context, a ask) error {
	r, err := s.exchange(ctx, s.request(a), removeTimes)
	if err == nil && r.result != pcpSuccess {
		err = fmt.Errorf("%w: %v", ErrRefused, r.result)
	}
	return err
}

// pcpTimes are the waits before each repetition. RFC 6887 §8.1.1 begins with 3 s,
// which is meant for servers far away too; ours is one hop away, and NAT-PMP,
// the same server as a rule, begins with 250 ms (RFC 6886 §3.1).
var pcpTimes = []time.Duration{100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second}

// exchange sends a request until an answer to it comes from the gateway.
func (s pcpServer) exchange(ctx context.Context, q pcpRequest, waits []time.Duration) (pcpResponse, error) {
	var got pcpResponse
	err := converse(ctx, s.link, s.port, q.append(make([]byte, 0, pcpMapLen)), waits, func(b []byte) (bool, error) {
		r, err := parsePCP(b)
		switch {
		case errors.Is(err, errOldVersion):
			return true, fmt.Errorf("%w: %v", ErrRefused, errOldVersion)
		case err != nil || !r.answers(q):
			return false, nil
		}
		got = r
		return true, nil
	})
	return got, err
}
