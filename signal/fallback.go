package signal

import (
	"errors"
	"net"
)

// FallbackConn carries the packets of one connection where UDP is blocked. It
// has one remote end. WriteTo must not block and may drop; an error of ReadFrom
// or WriteTo ends the connection at once. Close ends a ReadFrom, and sends what
// WriteTo took before if that takes no long time.
type FallbackConn interface {
	net.PacketConn
	// Remote is the only address that ReadFrom returns and WriteTo takes. When it
	// has a method AddrPort() netip.AddrPort, Status.Remote is its result.
	Remote() net.Addr
}

// ErrMoved is the reason that Handler.Disconnected gets when the Node leaves a
// connection over TLS because UDP answered. Connected follows at once, and
// messages go over UDP already.
var ErrMoved = errors.New("signal: moved over to UDP")
