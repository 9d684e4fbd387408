// Package identity names the parties of MintAI and proves that they are who
// they say: Ed25519 keys, the NodeID derived from them, self-signed TLS
// certificates, remembered coordinators and join links.
//
// It opens no socket and knows no role. What a name may do is decided by the
// packages that use it.
package identity

import (
	"crypto/ed25519"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// encoding is RFC 4648 base32 in lower case without padding, so that a NodeID
// can stand in a URL, a file name and a double-click selection.
var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NodeID is the Ed25519 public key of a node (RFC 8032). It is the node's only
// name in the protocol; people see its short form or a chosen nickname. The
// zero NodeID means "not known".
type NodeID [ed25519.PublicKeySize]byte

// ErrBadNodeID is wrapped by every error of ParseNodeID.
var ErrBadNodeID = errors.New("not a NodeID")

// ParseNodeID reads the text form that String writes: 52 characters a-z2-7.
func ParseNodeID(s string) (NodeID, error) {
	var id NodeID
	if len(s) != encoding.EncodedLen(len(id)) {
		return NodeID{}, fmt.Errorf("%w: %d characters instead of %d", ErrBadNodeID, len(s), encoding.EncodedLen(len(id)))
	}
	b, err := encoding.DecodeString(s)
	if err != nil {
		return NodeID{}, fmt.Errorf("%w: a character outside a-z and 2-7", ErrBadNodeID)
	}
	copy(id[:], b)
	if id.String() != s { // base32 leaves four spare bits: accept one spelling only
		return NodeID{}, fmt.Errorf("%w: not in its canonical form", ErrBadNodeID)
	}
	return id, nil
}

// NodeIDFromBytes copies a raw public key. The length must be exact.
func NodeIDFromBytes(b []byte) (NodeID, error) {
	var id NodeID
	if len(b) != len(id) {
		return NodeID{}, fmt.Errorf("%w: %d bytes instead of %d", ErrBadNodeID, len(b), len(id))
	}
	copy(id[:], b)
	return id, nil
}

// String returns the text form, the lower-case base32 of the key.
func (id NodeID) String() string { return encoding.EncodeToString(id[:]) }

// Short returns the first eight characters of the text form: enough to tell
// nodes apart on a screen, never enough to trust one.
func (id NodeID) Short() string { return id.String()[:8] }

// IsZero reports whether the NodeID is not known.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// MarshalText writes the text form.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the text form.
func (id *NodeID) UnmarshalText(b []byte) error {
	parsed, err := ParseNodeID(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}
