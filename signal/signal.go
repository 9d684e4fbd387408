// Package signal is the protocol between a node and its coordinator: protobuf
// messages, each behind its length, on one bidirectional QUIC stream a node
// (ALPN "mintai/1"). The messages and their flow stand in signalpb/signal.proto.
//
// Node is the side of miners and clients: it dials, reconnects for ever, and
// asks for matches, in 0-RTT when it holds a session ticket (RFC 9001 §4.6).
// Server is the side of the coordinator: it accepts, admits, keeps order and
// drops what is malformed, replayed or too much.
//
// The package moves messages. It decides no match, keeps no lease, finds no
// path and never sees a prompt or an answer.
package signal

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// ALPN names the protocol in the TLS handshake (RFC 7301). A breaking change
// of the messages gets a new one.
const ALPN = "mintai/1"

const (
	handshakeTimeout = 5 * time.Second  // from the first packet to TLS finished
	helloTimeout     = 5 * time.Second  // from then to the whole Hello
	idleTimeout      = 30 * time.Second // without any packet: the other end is gone
	writeTimeout     = 10 * time.Second // for one batch of messages
	keepAlive        = 15 * time.Second // by the node, whose NAT mapping it also holds
	linger           = 250 * time.Millisecond
)

// NodeID is 32 bytes and a nonce or session 16 in every message.
const nonceSize = 16

// ErrBadAddress says that an Address message names no usable address.
var ErrBadAddress = errors.New("signal: not an address")

// Address converts to the wire form. IPv4-mapped addresses are unmapped, so
// that one address has one spelling.
func Address(a netip.AddrPort) *signalpb.Address {
	return &signalpb.Address{Ip: a.Addr().Unmap().AsSlice(), Port: uint32(a.Port())}
}

// AddrPort converts from the wire form. It refuses a length other than 4 or 16,
// an IPv4-mapped spelling, and port 0.
func AddrPort(a *signalpb.Address) (netip.AddrPort, error) {
	ip, ok := netip.AddrFromSlice(a.GetIp())
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%w: %d bytes instead of 4 or 16", ErrBadAddress, len(a.GetIp()))
	}
	if ip.Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("%w: IPv4 spelled as IPv6", ErrBadAddress)
	}
	if a.GetPort() == 0 || a.GetPort() > 65535 {
		return netip.AddrPort{}, fmt.Errorf("%w: port %d", ErrBadAddress, a.GetPort())
	}
	return netip.AddrPortFrom(ip, uint16(a.GetPort())), nil
}

// ResetKey derives the key for stateless resets (RFC 9000 §10.3) from the
// coordinator's own. Put it into the Transport before its first use: nodes then
// notice within one round trip that a coordinator was killed and restarted,
// instead of after the idle timeout.
func ResetKey(key *identity.Key) *quic.StatelessResetKey {
	// Ed25519 signatures are deterministic, and this one is never sent.
	k := quic.StatelessResetKey(sha256.Sum256(key.Sign([]byte("mintai/stateless-reset/v1"))))
	return &k
}

// networkTLS is the Network of addresses that are reached over TLS.
const networkTLS = "wss"

func overTLS(a net.Addr) bool { return a.Network() == networkTLS }

// addrPortOf reads the address of a QUIC connection; zero when it has none.
func addrPortOf(a net.Addr) netip.AddrPort {
	withPort, ok := a.(interface{ AddrPort() netip.AddrPort }) // *net.UDPAddr, and those over TLS
	if !ok {
		return netip.AddrPort{}
	}
	ap := withPort.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
