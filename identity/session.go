package identity

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
)

// SessionID names one match, from grant to receipt: 128 random bits.
type SessionID [16]byte

// ErrBadSessionID is wrapped by the parsers of SessionID.
var ErrBadSessionID = errors.New("not a session ID")

// NewSessionID returns a fresh random SessionID.
func NewSessionID() SessionID {
	var id SessionID
	_, _ = rand.Read(id[:]) // never fails: crypto/rand aborts the process instead
	return id
}

// SessionIDFromBytes copies the wire form, which is exactly 16 bytes.
func SessionIDFromBytes(b []byte) (SessionID, error) {
	var id SessionID
	if len(b) != len(id) {
		return SessionID{}, fmt.Errorf("%w: %d bytes instead of %d", ErrBadSessionID, len(b), len(id))
	}
	copy(id[:], b)
	return id, nil
}

// ParseSessionID reads the text form, 32 lower-case hexadecimal digits.
func ParseSessionID(s string) (SessionID, error) {
	var id SessionID
	if len(s) != hex.EncodedLen(len(id)) {
		return SessionID{}, fmt.Errorf("%w: %d characters instead of %d", ErrBadSessionID, len(s), hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil || id.String() != s {
		return SessionID{}, fmt.Errorf("%w: not lower-case hexadecimal", ErrBadSessionID)
	}
	return id, nil
}

// String returns 32 hexadecimal digits.
func (id SessionID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first eight digits, for logs and screens.
func (id SessionID) Short() string { return id.String()[:8] }

// IsZero reports whether the SessionID is not set.
func (id SessionID) IsZero() bool { return id == SessionID{} }
