package ice

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/pion/stun"
)

// ErrNoTURN is returned by CheckTURN when what is at the other end is no TURN
// server, or is silent.
var ErrNoTURN = errors.New("ice: no TURN server answers there")

const (
	// checkSends is how often a request goes out over UDP.
	checkSends = 3
	// checkPadding makes the request so long that the answer with its realm and
	// nonce is less than three times as long: a careful server sends no other.
	checkPadding = 64
	// checkAnswer bounds an answer.
	checkAnswer = 1500
	// protocolUDP is what REQUESTED-TRANSPORT must be (RFC 8656 §18.7).
	protocolUDP = 17
)

// CheckTURN reports whether a TURN server is at the other end of conn, a
// connected UDP socket or a stream, without allocating anything: an Allocate
// without credentials is refused with 401 (RFC 8656 §7.2), by whoever would grant
// one with them. Over UDP the request is sent again after rto, twice. It ends
// with ctx; conn stays open and can be used no more.
func CheckTURN(ctx context.Context, conn net.Conn, rto time.Duration) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest),
		stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{protocolUDP, 0, 0, 0}},
		stun.NewSoftware(strings.Repeat(" ", checkPadding)))
	if err != nil {
		return err
	}
	if _, ok := conn.(*net.UDPConn); ok {
		return checkPackets(ctx, conn, request, rto)
	}
	if _, err := conn.Write(request.Raw); err != nil {
		return fmt.Errorf("%w: %w", ErrNoTURN, err)
	}
	answer, err := readStreamed(conn)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoTURN, err)
	}
	if !asksWho(answer, request) {
		return ErrNoTURN
	}
	return nil
}

func checkPackets(ctx context.Context, conn net.Conn, request *stun.Message, rto time.Duration) error {
	buf := make([]byte, checkAnswer)
	for range checkSends {
		if _, err := conn.Write(request.Raw); err != nil {
			return fmt.Errorf("%w: %w", ErrNoTURN, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(rto))
		if ctx.Err() != nil { // it may have ended just before the deadline was set
			break
		}
		for {
			n, err := conn.Read(buf)
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				break // once more
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrNoTURN, err)
			}
			if asksWho(buf[:n], request) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: %w", ErrNoTURN, context.DeadlineExceeded)
}

// readStreamed reads one STUN message of a stream (RFC 8489 §6.2.2).
func readStreamed(r io.Reader) ([]byte, error) {
	b := make([]byte, stunHeader, checkAnswer)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	end := stunHeader + int(binary.BigEndian.Uint16(b[2:]))
	if !stun.IsMessage(b) || end > cap(b) {
		return nil, errors.New("what answers speaks no STUN")
	}
	_, err := io.ReadFull(r, b[stunHeader:end])
	return b[:end], err
}

// asksWho reports whether b refuses the request for want of credentials.
func asksWho(b []byte, request *stun.Message) bool {
	m := &stun.Message{Raw: b}
	var code stun.ErrorCodeAttribute
	return stun.IsMessage(b) && m.Decode() == nil && m.TransactionID == request.TransactionID &&
		m.Type == stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse) &&
		code.GetFrom(m) == nil && code.Code == stun.CodeUnauthorized
}
