package reputation

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"mintai/api"
	"mintai/identity"
)

// ErrBadReceipt is wrapped by every error that Record returns for a receipt
// that cannot be true, whoever sent it.
var ErrBadReceipt = errors.New("bad receipt")

// Bounds of what a receipt may claim. They are far beyond what a machine of
// today does and only keep nonsense out of the averages.
const (
	maxDuration        = 24 * time.Hour
	maxTokensPerSecond = 1e6
	maxModelName       = 256
	maxPrincipal       = 256
)

// RequestID names one request of a session: the 128 random bits of the
// Mintai-Request header. The zero RequestID stands for the session's own
// set-up, when no request was sent because no path was found.
type RequestID [16]byte

// String returns 32 hexadecimal digits.
func (id RequestID) String() string { return hex.EncodeToString(id[:]) }

// From says which end of a session wrote a receipt.
type From uint8

// The two ends of a session. The zero From is invalid.
const (
	FromClient From = iota + 1
	FromMiner
)

// String returns "client" or "miner".
func (f From) String() string {
	switch f {
	case FromClient:
		return "client"
	case FromMiner:
		return "miner"
	}
	return fmt.Sprintf("From(%d)", uint8(f))
}

// Outcome is how a request ended, as one end saw it. The numbers are those of
// signalpb.Outcome, so that a conversion is a cast; they are also stored.
type Outcome uint8

// The closed list of outcomes. The zero Outcome is invalid.
const (
	OK           Outcome = iota + 1 // a whole answer
	NoPath                          // never connected
	Lost                            // the miner vanished midway
	BackendError                    // the AI server failed
	Refused                         // the AI server refused the request (4xx): nobody's fault
	Cancelled                       // the client gave up
	Busy                            // the miner declined although its lease promised room
	Timeout                         // no first byte in time
	outcomes                        // one past the last
)

// String returns the outcome in words that stand after a number: "3 lost midway".
func (o Outcome) String() string {
	switch o {
	case OK:
		return "answered"
	case NoPath:
		return "without a path"
	case Lost:
		return "lost midway"
	case BackendError:
		return "failed at the AI server"
	case Refused:
		return "refused by the AI server"
	case Cancelled:
		return "cancelled"
	case Busy:
		return "declined as busy"
	case Timeout:
		return "without a first token in time"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Receipt is one end's account of one request. It never carries text. Session,
// Miner, Client and ClientPrincipal must come from the coordinator's own table
// of sessions and never from the sender.
type Receipt struct {
	Session identity.SessionID
	Request RequestID
	Miner   identity.NodeID // who answered
	Client  identity.NodeID // who asked

	// ClientPrincipal is the account behind the client, by which the weight of
	// its reports is limited; empty: the client's NodeID.
	ClientPrincipal string

	Model   api.Model
	From    From // the end that wrote this account
	Outcome Outcome

	FirstToken      time.Duration // from the request's start; 0: none came
	Total           time.Duration // from the request's start to its end
	Tokens          uint64        // of the answer; 0: unknown or none
	TokensPerSecond float64       // while the answer ran; 0: worked out from the other fields
	Bytes           uint64        // of the answer's body
	PathKind        string        // "host", "srflx", "prflx", "mapped", "relay-udp", "relay-tls"; empty: unknown

	// At is when the coordinator received the account, by its own clock.
	At time.Time
}

// check refuses what cannot be true, so that one receipt never poisons a
// record with NaN, an endless duration or a nameless miner.
func (r *Receipt) check() error {
	switch {
	case r.Miner.IsZero():
		return fmt.Errorf("%w: no miner", ErrBadReceipt)
	case r.Client.IsZero():
		return fmt.Errorf("%w: no client", ErrBadReceipt)
	case r.Miner == r.Client:
		return fmt.Errorf("%w: miner %s reports about itself as a client", ErrBadReceipt, r.Miner.Short())
	case r.From != FromClient && r.From != FromMiner:
		return fmt.Errorf("%w: from neither client nor miner", ErrBadReceipt)
	case r.Outcome == 0 || r.Outcome >= outcomes:
		return fmt.Errorf("%w: unknown outcome %d", ErrBadReceipt, r.Outcome)
	case r.At.IsZero():
		return fmt.Errorf("%w: no time", ErrBadReceipt)
	case r.FirstToken < 0 || r.FirstToken > maxDuration || r.Total < 0 || r.Total > maxDuration:
		return fmt.Errorf("%w: a duration outside 0 to %v", ErrBadReceipt, maxDuration)
	case r.Total > 0 && r.FirstToken > r.Total:
		return fmt.Errorf("%w: the first token came after the end", ErrBadReceipt)
	case math.IsNaN(r.TokensPerSecond) || r.TokensPerSecond < 0 || r.TokensPerSecond > maxTokensPerSecond:
		return fmt.Errorf("%w: impossible tokens per second", ErrBadReceipt)
	case len(r.Model) > maxModelName:
		return fmt.Errorf("%w: model name of %d bytes", ErrBadReceipt, len(r.Model))
	case len(r.ClientPrincipal) > maxPrincipal:
		return fmt.Errorf("%w: principal of %d bytes", ErrBadReceipt, len(r.ClientPrincipal))
	}
	return nil
}

// principal is the account whose reports share one allowance.
func (r *Receipt) principal() string {
	if r.ClientPrincipal != "" {
		return r.ClientPrincipal
	}
	return r.Client.String()
}

// minSpeedTokens is the shortest answer whose tokens per second mean anything.
const minSpeedTokens = 4

// speed returns the tokens per second that the receipt shows; 0: none.
func (r *Receipt) speed() float64 {
	if r.Tokens < minSpeedTokens {
		return 0
	}
	if r.TokensPerSecond > 0 {
		return r.TokensPerSecond
	}
	if ran := r.Total - r.FirstToken; r.FirstToken > 0 && ran > 0 {
		return min(float64(r.Tokens)/ran.Seconds(), maxTokensPerSecond)
	}
	return 0
}
