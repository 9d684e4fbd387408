package signal

import (
	"net"

	"github.com/quic-go/quic-go"

	"mintai/identity"
)

// NewTransport returns a QUIC transport over the coordinator's socket, with
// the key for stateless resets that a Server wants. Close it after Serve has
// returned; conn stays the caller's.
func NewTransport(conn net.PacketConn, key *identity.Key) *quic.Transport {
	return &quic.Transport{Conn: conn, StatelessResetKey: ResetKey(key)}
}
