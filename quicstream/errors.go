package quicstream

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"mintai/identity"
)

var (
	// ErrPeerIdentity says that the other end is not the node that was dialed.
	ErrPeerIdentity = errors.New("the peer is not the expected node")
	// ErrProtocol says that the other end does not speak this tunnel protocol.
	ErrProtocol = errors.New("the peer does not speak " + ALPN)
	// ErrUnreachable says that nobody answered at the address in time.
	ErrUnreachable = errors.New("no answer from the peer")
	// ErrUnauthorized says that the miner does not accept this client: it has
	// no live grant for it.
	ErrUnauthorized = errors.New("the miner has no live grant for this client")
	// ErrCancelled is the cause of a handler's context when the client gave up.
	ErrCancelled = errors.New("the client cancelled the request")
	// ErrExpired is the cause of a handler's context when the connection was
	// lost and the client did not come back within the resume window.
	ErrExpired = errors.New("the client was lost and did not come back")
	// ErrStalled is the cause of a handler's context when the client kept the
	// tunnel alive but read nothing for too long.
	ErrStalled = errors.New("the client stopped reading")
	// ErrKicked is the cause of a handler's context after Server.Kick.
	ErrKicked = errors.New("the client's grant ended")
	// ErrServerClosed is the cause of a handler's context after the deadline of
	// Server.Shutdown, and the result of Serve after Shutdown.
	ErrServerClosed = errors.New("the tunnel server is closed")
	// ErrGoingAway says that the miner is shutting down and was not sent the
	// request. Running answers go on.
	ErrGoingAway = errors.New("the miner is shutting down")
	// ErrBadMethod refuses CONNECT and protocol upgrades before they are sent.
	ErrBadMethod = errors.New("CONNECT and upgrades do not pass the tunnel")
	// ErrHeaderTooLarge refuses a request head over MaxHeaderBytes before it
	// is sent.
	ErrHeaderTooLarge = errors.New("request header is too large")
)

// CloseError says that an end closed the tunnel on purpose.
type CloseError struct {
	Code   CloseCode
	Remote bool // the peer closed it
}

// Error names the side and the code.
func (e *CloseError) Error() string {
	if e.Remote {
		return "tunnel closed by the peer: " + e.Code.String()
	}
	return "tunnel closed: " + e.Code.String()
}

// Is lets errors.Is recognise ErrUnauthorized.
func (e *CloseError) Is(target error) bool {
	return target == ErrUnauthorized && e.Remote && e.Code == Unauthorized
}

// LostError says that the tunnel ended while a request ran. The answer may be
// continued over another tunnel with HeaderResume set to Received.
type LostError struct {
	Received int64 // body bytes handed to the reader so far
	Err      error // why: *CloseError, or the QUIC error
}

// Error tells what happened and how far the answer came.
func (e *LostError) Error() string {
	return fmt.Sprintf("tunnel lost after %d bytes of the answer: %v", e.Received, e.Err)
}

// Unwrap returns the reason.
func (e *LostError) Unwrap() error { return e.Err }

// AbortedError says that the miner broke off the answer while the tunnel itself
// is well: its backend died or refused to go on. The answer is incomplete.
type AbortedError struct {
	Received int64 // body bytes handed to the reader so far
	Err      error // the stream's reset
}

// Error tells how far the answer came.
func (e *AbortedError) Error() string {
	return fmt.Sprintf("the miner broke off the answer after %d bytes", e.Received)
}

// Unwrap returns the stream's reset.
func (e *AbortedError) Unwrap() error { return e.Err }

// connError translates the end of a QUIC connection.
func connError(err error) error {
	if app, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return &CloseError{Code: CloseCode(app.ErrorCode), Remote: app.Remote}
	}
	if te, ok := errors.AsType[*quic.TransportError](err); ok && te.Remote && te.ErrorCode.IsCryptoError() {
		return fmt.Errorf("%w: %w", ErrUnauthorized, err) // the miner's TLS refused our certificate
	}
	return err
}

// dialError translates a failed handshake.
func dialError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, identity.ErrPeer) || errors.Is(err, identity.ErrBadNodeID) {
		return fmt.Errorf("%w: %w", ErrPeerIdentity, err)
	}
	if te, ok := errors.AsType[*quic.TransportError](err); ok && te.ErrorCode == alertNoProtocol {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if _, ok := errors.AsType[*quic.HandshakeTimeoutError](err); ok {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return connError(err)
}

// alertNoProtocol is CRYPTO_ERROR with the TLS alert no_application_protocol
// (RFC 9001 §4.8: 0x0100 plus the alert; RFC 7301 §3.2: alert 120).
const alertNoProtocol = quic.TransportErrorCode(0x100 + 120)

// isStreamReset reports whether err ended one stream and not the connection.
func isStreamReset(err error) bool {
	if _, ok := errors.AsType[*quic.StreamError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return false
	}
	_, ok := errors.AsType[*http3.Error](err)
	return ok
}

// isConnError reports whether err is the end of a whole connection.
func isConnError(err error) bool {
	if _, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*quic.TransportError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*net.OpError](err); ok { // the socket's: quic-go ends the connection when it cannot send, as without any network
		return true
	}
	return errors.Is(err, net.ErrClosed)
}
