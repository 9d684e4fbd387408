package quicstream

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// RequestID names one request across every connection that carries it: 128
// random bits, written as 32 lower-case hexadecimal digits.
type RequestID [16]byte

// ErrBadRequestID is wrapped by ParseRequestID.
var ErrBadRequestID = errors.New("not a request ID")

// NewRequestID returns a fresh random RequestID.
func NewRequestID() RequestID {
	var id RequestID
	_, _ = rand.Read(id[:]) // never fails: crypto/rand aborts the process instead
	return id
}

// ParseRequestID reads the text form. Only the spelling of String is accepted.
func ParseRequestID(s string) (RequestID, error) {
	var id RequestID
	if len(s) != hex.EncodedLen(len(id)) {
		return RequestID{}, fmt.Errorf("%w: %d characters instead of %d", ErrBadRequestID, len(s), hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil || id.String() != s {
		return RequestID{}, fmt.Errorf("%w: not lower-case hexadecimal", ErrBadRequestID)
	}
	return id, nil
}

// String returns 32 hexadecimal digits.
func (id RequestID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first eight digits, for logs.
func (id RequestID) Short() string { return id.String()[:8] }

var errBadOffset = errors.New("not a resume offset")

// parseOffset reads a resume offset: decimal digits, one spelling per value.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, errBadOffset
	}
	return n, nil
}
