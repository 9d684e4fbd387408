package signal

import (
	"net"

	"github.com/quic-go/quic-go"

	"mintai/identity"
)

// NewTransport returns a QUIC transport over the coordinator's socket, or over
// what carries datagrams in its place, with the key for stateless resets that a
// Server wants. Close it after Serve has returned; conn stays the caller's.
//
// Of a conn that is no UDP socket quic-go wants the following: ReadFrom returns
// an error only when all is over, WriteTo returns none (either ends connections),
// SetReadDeadline or Close ends a ReadFrom, and the String of a remote address
// names one remote end only.
func NewTransport(conn net.PacketConn, key *identity.Key) *quic.Transport {
	return &quic.Transport{Conn: buffered(conn), StatelessResetKey: ResetKey(key)}
}

// buffered gives conn the methods for socket buffers, if it lacks them: without
// them quic-go prints a warning to the standard logger.
func buffered(conn net.PacketConn) net.PacketConn {
	if _, ok := conn.(interface{ SetReadBuffer(int) error }); ok {
		return conn
	}
	return bufferedConn{conn}
}

// bufferedConn has no socket, and so no buffer whose size could be set.
type bufferedConn struct{ net.PacketConn }

// SetReadBuffer does nothing.
func (bufferedConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing.
func (bufferedConn) SetWriteBuffer(int) error { return nil }
