package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"mintai/api"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// lostError says that the tunnel ended before the answer did.
type lostError struct {
	Miner string
	Bytes uint64 // of the answer that had come
	// Backend says that the tunnel is well and the AI server broke off.
	Backend bool
	Err     error
}

func (e *lostError) Error() string { return fmt.Sprintf("%s was lost: %v", e.Miner, e.Err) }
func (e *lostError) Unwrap() error { return e.Err }

// refusedError says that the miner itself did not take the request.
type refusedError struct {
	Miner      string
	Code       string // of api, or a quicstream.Refusal
	Status     int
	RetryAfter time.Duration
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("%s refused the request (%s)", e.Miner, e.Code)
}

// explain turns any failure of a request into what a person is told.
func explain(err error, c *client) *Error {
	var (
		done    *Error
		noMatch *signal.NoMatchError
		refused *signal.RefusedError
		path    *PathError
		lost    *lostError
		busy    *refusedError
		changed *identity.KeyChangedError
		field   *signal.FieldError
	)
	switch {
	case errors.As(err, &done):
		return done
	case errors.As(err, &noMatch):
		return explainNoMatch(noMatch)
	case errors.As(err, &refused):
		return explainRefused(refused, err)
	case errors.As(err, &path):
		return &Error{
			Exit: ExitNoPath, Code: "no_path", Err: err,
			Message: fmt.Sprintf("no path to %s: %s", path.Miner, path.Reason),
			Hint:    "see what this network lets through: mintai -mode client netcheck",
		}
	case errors.As(err, &busy):
		return explainBusy(busy)
	case errors.Is(err, errFirstByte):
		return &Error{Exit: ExitDeadline, Code: "first_byte", Message: err.Error(), Hint: "the model may be loading; try again, or raise first_byte in [client.deadlines]", Err: err}
	case errors.As(err, &lost):
		if lost.Backend && lost.Bytes == 0 {
			return &Error{Exit: ExitLost, Code: "backend_lost", Message: "the AI server on " + lost.Miner + " ended without an answer", Hint: "its own log may say why; ask again", Err: err}
		}
		if lost.Backend {
			return &Error{Exit: ExitLost, Code: "backend_lost", Message: "the AI server on " + lost.Miner + " broke off in the middle of the answer", Hint: "what is shown is incomplete; ask again", Err: err}
		}
		if lost.Bytes == 0 {
			return &Error{Exit: ExitNoPath, Code: "miner_lost", Message: lost.Miner + " vanished before it answered", Hint: "ask again", Err: err}
		}
		return &Error{Exit: ExitLost, Code: "miner_lost", Message: lost.Miner + " was lost in the middle of the answer", Hint: "what is shown is incomplete; ask again", Err: err}
	case errors.As(err, &changed):
		return &Error{Exit: ExitNoPath, Code: "wrong_coordinator", Message: changed.Error(), Err: err}
	case errors.Is(err, identity.ErrPeer):
		return &Error{
			Exit: ExitNoPath, Code: "wrong_coordinator", Message: "not the coordinator that is named by " + string(c.membership.origin) + ": " + err.Error(), Err: err,
			Hint: "it was set up anew, or somebody stands in between: ask its owner for the current join link",
		}
	case errors.As(err, &field): // of our own request: what was asked for cannot be said
		return &Error{Exit: ExitUsage, Code: "bad_request", Message: fmt.Sprintf("the request cannot be sent: %s: %s", field.Field, field.Reason), Err: err}
	case errors.Is(err, signal.ErrNotConnected):
		return c.unreachable(err)
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Exit: ExitDeadline, Code: "deadline", Message: "the deadline passed before the answer was complete", Hint: "raise -timeout", Err: err}
	case errors.Is(err, context.Canceled):
		return &Error{Exit: ExitInterrupted, Code: "interrupted", Message: "interrupted", Err: err}
	}
	return &Error{Exit: ExitInternal, Code: "internal", Message: err.Error(), Err: err}
}

// unreachable says that no coordinator answers, and why.
func (c *client) unreachable(err error) *Error {
	return unreachableError(c.membership, c.sig.WhyNot(), err)
}

func unreachableError(m membership, why, err error) *Error {
	var asked *signal.UnreachableError
	if errors.As(err, &asked) && asked.Err != nil { // of that very moment
		why = asked.Err
	}
	var refused *signal.RefusedError
	if errors.As(why, &refused) {
		return explainRefused(refused, why)
	}
	e := &Error{
		Exit: ExitNoPath, Code: "no_coordinator", Err: err,
		Message: fmt.Sprintf("no coordinator answers at %s", strings.Join(m.addrs, " or ")),
		Hint:    "is it running? See what this network lets through: mintai -mode client netcheck",
	}
	if why != nil {
		e.Message += fmt.Sprintf(" (%s)", waysFailed(why))
	}
	if m.origin == originRuntime {
		e.Hint = "start it: mintai -mode coordinator"
	}
	return e
}

// waysFailed tells in a line how each of the ways to the coordinator failed: of
// several addresses the one that says more than silence.
func waysFailed(why error) string {
	var told [2]*signal.AttemptError // over UDP, over TLS
	walkErrors(why, func(err error) {
		attempt, ok := err.(*signal.AttemptError) //nolint:errorlint // every layer is visited
		if !ok {
			return
		}
		way := &told[0]
		if attempt.OverTLS {
			way = &told[1]
		}
		if *way == nil || (*way).Silent() && !attempt.Silent() {
			*way = attempt
		}
	})
	reason := func(a *signal.AttemptError) string {
		if a == nil || a.Silent() {
			return "no answer"
		}
		return plainReason(a.Err)
	}
	switch {
	case told[1] != nil:
		return "UDP: " + reason(told[0]) + "; over TLS: " + reason(told[1])
	case told[0] != nil:
		return "UDP: " + reason(told[0])
	}
	return plainReason(why)
}

// walkErrors visits an error and all that it wraps.
func walkErrors(err error, visit func(error)) {
	if err == nil {
		return
	}
	visit(err)
	switch e := err.(type) { //nolint:errorlint // every layer is visited
	case interface{ Unwrap() error }:
		walkErrors(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			walkErrors(one, visit)
		}
	}
}

func explainRefused(r *signal.RefusedError, err error) *Error {
	e := &Error{Exit: ExitNotAdmitted, Code: "not_admitted", Message: "the coordinator refuses this node: " + r.Message, Err: err}
	switch r.Close {
	case signal.CloseNotAdmitted:
		e.Hint = "ask its owner for the current join link, then: mintai -mode client join LINK"
	case signal.CloseReplaced:
		e.Code, e.Hint = "replaced", "another process runs with the same key; give each its own -state"
	case signal.CloseTooMany:
		e.Exit, e.Code, e.Hint = ExitNoPath, "too_many", "try again later"
	case signal.CloseShuttingDown:
		e.Exit, e.Code, e.Hint = ExitNoPath, "shutting_down", "try again in a moment"
	default:
		e.Exit, e.Code, e.Hint = ExitInternal, "protocol", "do both sides run the same version?"
	}
	return e
}

// noServerHint is what to do where a miner has nothing to answer with.
const noServerHint = "start Ollama there, or name its server in a [[miner.backend]]"

func explainNoMatch(n *signal.NoMatchError) *Error {
	m := n.NoMatch
	e := &Error{Exit: ExitNoMiner, Code: "no_miner", Message: m.GetMessage(), Err: n}
	if e.Message == "" {
		e.Message = "no miner can take the request"
	}
	switch m.GetCode() {
	case signalpb.NoMatchCode_NO_MATCH_NO_MINER, signalpb.NoMatchCode_NO_MATCH_FILTERED, signalpb.NoMatchCode_NO_MATCH_UNSPECIFIED,
		signalpb.NoMatchCode_NO_MATCH_NO_SESSION, signalpb.NoMatchCode_NO_MATCH_MINER_GONE:
		// the coordinator's sentence says what to do
	case signalpb.NoMatchCode_NO_MATCH_NO_SERVER:
		e.Code, e.Hint = "no_server", noServerHint
	case signalpb.NoMatchCode_NO_MATCH_BUSY:
		e.Code = "busy"
	case signalpb.NoMatchCode_NO_MATCH_BAD_REQUEST:
		e.Exit, e.Code = ExitUsage, "bad_request"
	}
	return e
}

func explainBusy(r *refusedError) *Error {
	e := &Error{Exit: ExitNoMiner, Code: r.Code, Err: r}
	switch r.Code {
	case api.CodeBusy, api.CodeShuttingDown, string(quicstream.RefusedGoingAway):
		e.Code, e.Message, e.Hint = "busy", r.Miner+" takes no more requests now and nobody else offers the model", "try again in a moment"
	case api.CodeModelNotFound:
		e.Message = r.Miner + " no longer offers the model"
	case api.CodeBackendDown:
		e.Message, e.Hint = "the AI server on "+r.Miner+" does not answer", "is it running there?"
	case api.CodeBackendAuth:
		e.Exit, e.Message = ExitRefused, "the AI server on "+r.Miner+" refuses the miner's own API key"
		e.Hint = "its owner sets api_key_env or api_key_file in the [[miner.backend]]"
	case api.CodeBackendNonsense:
		e.Exit, e.Message, e.Hint = ExitRefused, "the AI server on "+r.Miner+" answered nonsense", "is its url in the [[miner.backend]] an AI server's?"
	default:
		e.Exit, e.Message, e.Hint = ExitNoPath, r.Error(), "ask again"
	}
	return e
}

// toAPIError is the failure in the terms of the HTTP APIs.
func toAPIError(e *Error) *api.Error {
	out := &api.Error{Code: e.Code, Message: e.Message, Hint: e.Hint, Status: http.StatusBadGateway}
	switch e.Exit {
	case ExitUsage:
		out.Status = http.StatusBadRequest
	case ExitNotAdmitted:
		out.Status = http.StatusForbidden
	case ExitNoMiner:
		out.Status, out.RetryAfter = http.StatusServiceUnavailable, 5*time.Second
		var none *signal.NoMatchError
		if e.Code == api.CodeModelNotFound {
			out.Status, out.RetryAfter = http.StatusNotFound, 0
		}
		if errors.As(e.Err, &none) && none.NoMatch.GetCode() == signalpb.NoMatchCode_NO_MATCH_FILTERED {
			out.Status, out.RetryAfter, out.Code = http.StatusNotFound, 0, api.CodeModelNotFound // others are there: waiting does not help
		}
	case ExitDeadline:
		out.Status = http.StatusGatewayTimeout
	case ExitInternal:
		out.Status = http.StatusInternalServerError
	case ExitInterrupted:
		out.Status = 499 // client closed request; nobody reads it
	case ExitOK, ExitNoPath, ExitLost, ExitRefused:
	}
	return out
}
