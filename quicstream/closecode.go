package quicstream

import "fmt"

// CloseCode is the application error code of a QUIC CONNECTION_CLOSE (RFC 9000
// §19.19). It is a closed list; it lies far from the codes of HTTP/3, which
// share the field (RFC 9114 §8.1).
type CloseCode uint64

const closeBase CloseCode = 0x4d490000 // "MI"

// The close codes.
const (
	// Done: the tunnel is no longer needed. Running answers are cancelled.
	Done CloseCode = closeBase + iota
	// Cancelled: the user gave up. Running answers are cancelled.
	Cancelled
	// Idle: nothing was asked for long. Running answers are cancelled.
	Idle
	// Replaced: another tunnel over a better path took over. Answers that were
	// not re-attached yet are kept for the resume window.
	Replaced
	// GoingAway: this end is shutting down. Answers are kept by a miner that
	// receives it, since the client may come back.
	GoingAway
	// Unauthorized: the client has no live grant, or lost it.
	Unauthorized
	// Misbehaved: the peer broke the protocol or a limit.
	Misbehaved
	// closeEnd is the first value outside the list.
	closeEnd
)

var closeNames = [...]string{"done", "cancelled", "idle", "replaced", "going away", "unauthorized", "misbehaved"}

// Known reports whether the code is on the list.
func (c CloseCode) Known() bool { return c >= closeBase && c < closeEnd }

// String names the code; codes outside the list show their number.
func (c CloseCode) String() string {
	if c.Known() {
		return closeNames[c-closeBase]
	}
	return fmt.Sprintf("code %#x", uint64(c))
}

// ends reports whether a client that closes with this code wants its running
// answers cancelled rather than kept.
func (c CloseCode) ends() bool {
	switch c {
	case Done, Cancelled, Idle, Unauthorized, Misbehaved:
		return true
	case Replaced, GoingAway:
		return false
	case closeEnd:
		return false
	}
	return false // an HTTP/3 code or an unknown one: treat like a lost path
}
