package node

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// quicPayload is what a path must carry for QUIC to run over it at all.
// RFC 9000 §14: "QUIC MUST NOT be used if the network path cannot support a
// maximum datagram size of at least 1200 bytes."
const quicPayload = 1200

// pathMTUs are the sizes that are tried besides quicPayload: what every IPv4
// network carries, too little for QUIC, and what Ethernet, PPPoE, mobile networks,
// tunnels and VPNs leave, in bytes with all headers.
var pathMTUs = []int{576, 1000, 1200, 1280, 1320, 1360, 1380, 1400, 1420, 1440, 1452, 1460, 1480, 1492, 1500}

// mtuTries is how often a packet that is not answered is sent.
const mtuTries = 3

// udpHeaders is what IP and UDP add to a payload.
func udpHeaders(to netip.Addr) int {
	if to.Unmap().Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// mtuSizes are the payloads that are tried towards an address, ascending.
func mtuSizes(to netip.Addr) []int {
	sizes := []int{quicPayload}
	for _, mtu := range pathMTUs {
		sizes = append(sizes, (mtu-udpHeaders(to))&^3) // STUN messages are multiples of four long
	}
	slices.Sort(sizes)
	return sizes
}

// measureMTU sends STUN requests of several sizes, which no router may cut, and
// returns the largest that was answered; the answers are small. request makes one
// of a given size. It takes at most mtuTries times rto.
func measureMTU(ctx context.Context, server netip.AddrPort, rto time.Duration, request func() []byte) (*netMTU, error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return keepWhole(raw, server.Addr().Unmap().Is6())
	}}
	conn, err := dialer.DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sizes := mtuSizes(server.Addr())
	asked := make(map[stunID]int)
	var packets [][]byte
	for _, size := range sizes {
		p := padSTUN(request(), size)
		packets = append(packets, p)
		asked[stunIDOf(p)] = size
	}
	best := 0
	largest := sizes[len(sizes)-1]
	for range mtuTries {
		for i, p := range packets {
			if sizes[i] > best {
				_, _ = conn.Write(p) // too large for the first link already: no answer will come
			}
		}
		until := time.Now().Add(rto)
		for best < largest && ctx.Err() == nil {
			id, ok := readSTUN(conn, until)
			if ok {
				best = max(best, asked[id])
			} else if !time.Now().Before(until) {
				break
			}
		}
	}
	if best == 0 {
		return nil, errors.New("no packet of any size was answered")
	}
	return &netMTU{Path: best + udpHeaders(server.Addr()), Payload: best, AtLeast: best == largest}, nil
}

// stunID is a STUN transaction ID.
type stunID [12]byte

const stunHeader = 20

func stunIDOf(raw []byte) (id stunID) {
	if len(raw) >= stunHeader {
		copy(id[:], raw[8:stunHeader])
	}
	return id
}

// readSTUN reads one Binding success response, at the latest until then. A datagram
// of another kind, and an error that came by ICMP, are not ok; neither is silence.
func readSTUN(conn net.Conn, until time.Time) (id stunID, ok bool) {
	_ = conn.SetReadDeadline(until)
	var buf [1500]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return id, false
	}
	return stunAnswer(buf[:n])
}

// stunAnswer returns what a Binding success response answers: RFC 8489 §5, its
// class and method are 0x0101. Who answers need not prove anything: a random
// transaction ID is not guessed, and the report would be all that is wrong.
func stunAnswer(raw []byte) (id stunID, ok bool) {
	if len(raw) < stunHeader || binary.BigEndian.Uint16(raw) != 0x0101 {
		return id, false
	}
	return stunIDOf(raw), true
}

// attrPadding is an attribute that every STUN server ignores (RFC 8489 §14:
// comprehension-optional). RFC 5780's PADDING is none of these.
const attrPadding = 0xD4DF

// padSTUN brings a STUN message without FINGERPRINT to a size, which must be a
// multiple of four. One that has it already, or lacks only what no attribute
// fits in, is returned as it is.
func padSTUN(raw []byte, size int) []byte {
	missing := size - len(raw) - 4
	if missing < 0 || missing%4 != 0 {
		return raw
	}
	out := slices.Clone(raw)
	out = binary.BigEndian.AppendUint16(out, attrPadding)
	out = binary.BigEndian.AppendUint16(out, uint16(missing))
	out = append(out, make([]byte, missing)...)
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)-stunHeader))
	return out
}
