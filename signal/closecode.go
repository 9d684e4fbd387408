package signal

import (
	"errors"
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/signal/signalpb"
)

// CloseCode is the application error code with which either end closes the
// connection (RFC 9000 §19.19). The list is closed.
type CloseCode uint64

// The close codes. Who may send them stands in brackets.
const (
	CloseDone         CloseCode = iota // [both] nothing more to say
	CloseBadMessage                    // [both] malformed, oversized, out of order
	CloseNotAdmitted                   // [coordinator] no or wrong join secret
	CloseTooMany                       // [coordinator] a limit is reached
	CloseReplaced                      // [coordinator] the same key connected again
	CloseShuttingDown                  // [coordinator] it stops
	CloseTimeout                       // [both] the Hello or Welcome did not come in time
	CloseSlow                          // [coordinator] the node does not read fast enough
	CloseLostRace                      // [node] another address answered first
	closeCodes
)

// String names the code as logs and metrics show it.
func (c CloseCode) String() string {
	switch c {
	case CloseDone:
		return "done"
	case CloseBadMessage:
		return "bad message"
	case CloseNotAdmitted:
		return "not admitted"
	case CloseTooMany:
		return "too many"
	case CloseReplaced:
		return "replaced"
	case CloseShuttingDown:
		return "shutting down"
	case CloseTimeout:
		return "timeout"
	case CloseSlow:
		return "slow"
	case CloseLostRace:
		return "lost race"
	case closeCodes:
	}
	return fmt.Sprintf("code %d", uint64(c))
}

// refusal is the Refused message's code for c; unspecified when c is no refusal.
func (c CloseCode) refusal() signalpb.RefusalCode {
	switch c {
	case CloseNotAdmitted:
		return signalpb.RefusalCode_REFUSAL_NOT_ADMITTED
	case CloseBadMessage, CloseTimeout:
		return signalpb.RefusalCode_REFUSAL_BAD_MESSAGE
	case CloseTooMany:
		return signalpb.RefusalCode_REFUSAL_TOO_MANY
	case CloseReplaced:
		return signalpb.RefusalCode_REFUSAL_REPLACED
	case CloseSlow:
		return signalpb.RefusalCode_REFUSAL_SLOW
	case CloseShuttingDown:
		return signalpb.RefusalCode_REFUSAL_SHUTTING_DOWN
	case CloseDone, CloseLostRace, closeCodes:
	}
	return signalpb.RefusalCode_REFUSAL_UNSPECIFIED
}

// CloseError says that this end closed the connection, and why.
type CloseError struct {
	Code    CloseCode
	Message string // one line for the other end
	Err     error  // the cause at this end; may be nil
}

// Error describes the close in one line.
func (e *CloseError) Error() string {
	s := "signal: closed: " + e.Code.String()
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Unwrap returns the cause.
func (e *CloseError) Unwrap() error { return e.Err }

// RefusedError says that the coordinator refused this node or ended the
// connection with a reason.
type RefusedError struct {
	Close      CloseCode // why
	Message    string    // one line from the coordinator, not to be shown unsanitised
	RetryAfter time.Duration
}

// Error describes the refusal in one line.
func (e *RefusedError) Error() string {
	if e.Message == "" {
		return "the coordinator refused: " + e.Close.String()
	}
	return "the coordinator refused: " + e.Message
}

// Final reports whether trying again at once cannot help.
func (e *RefusedError) Final() bool {
	switch e.Close {
	case CloseNotAdmitted, CloseBadMessage, CloseReplaced:
		return true
	case CloseDone, CloseTooMany, CloseShuttingDown, CloseTimeout, CloseSlow, CloseLostRace, closeCodes:
	}
	return false
}

func refusedError(r *signalpb.Refused) *RefusedError {
	e := &RefusedError{Message: r.GetMessage(), RetryAfter: time.Duration(r.GetRetryAfterMs()) * time.Millisecond}
	switch r.GetCode() {
	case signalpb.RefusalCode_REFUSAL_NOT_ADMITTED:
		e.Close = CloseNotAdmitted
	case signalpb.RefusalCode_REFUSAL_SHUTTING_DOWN:
		e.Close = CloseShuttingDown
	case signalpb.RefusalCode_REFUSAL_TOO_MANY, signalpb.RefusalCode_REFUSAL_UNSPECIFIED:
		e.Close = CloseTooMany
	case signalpb.RefusalCode_REFUSAL_BAD_MESSAGE:
		e.Close = CloseBadMessage
	case signalpb.RefusalCode_REFUSAL_REPLACED:
		e.Close = CloseReplaced
	case signalpb.RefusalCode_REFUSAL_SLOW:
		e.Close = CloseSlow
	default: // a code from the future
		e.Close = CloseTooMany
	}
	return e
}

// remoteClose returns the code with which the other end closed, if it did.
func remoteClose(err error) (CloseCode, string, bool) {
	var app *quic.ApplicationError
	if errors.As(err, &app) && app.Remote {
		return CloseCode(app.ErrorCode), app.ErrorMessage, true
	}
	return 0, "", false
}
