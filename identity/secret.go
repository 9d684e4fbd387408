package identity

import (
	"fmt"
	"io"
)

// hidden is what every printed Secret looks like.
const hidden = "[secret]"

// Secret is a string that no formatting verb, encoder or logger prints: a join
// secret, an API key, a password. Empty means none, and prints as nothing.
type Secret string

// Reveal returns the secret itself, for the one place that needs it.
func (s Secret) Reveal() string { return string(s) }

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s == "" }

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// Format hides the secret from every verb of package fmt, %x and %q included.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText hides the secret from encoding/json and its like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
