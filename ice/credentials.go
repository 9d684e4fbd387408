package ice

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"mintai/identity"
)

// Credentials are the short-term credentials of one side of one session
// (RFC 8445 §5.3). Whoever mints them gives each side both pairs, so that no
// answer leg is needed.
type Credentials struct {
	Ufrag string // names the session in every check; not secret
	Pwd   string // signs the checks; secret
}

// ErrBadCredentials is wrapped when credentials are outside RFC 8445 §5.3.
var ErrBadCredentials = errors.New("ICE credentials are malformed")

// RFC 8445 §5.3: "The ufrag MUST be at least 4 ice-chars and the password at
// least 22"; RFC 8839 §5.4 allows at most 256 of each.
const (
	minUfrag, minPwd = 4, 22
	maxCredential    = 256
)

// NewCredentials returns fresh credentials: 72 bits of user name fragment,
// 192 bits of password.
func NewCredentials() Credentials {
	var b [9 + 24]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the process instead
	return Credentials{
		Ufrag: iceChars.EncodeToString(b[:9]),
		Pwd:   iceChars.EncodeToString(b[9:]),
	}
}

// iceChars is base64 in the alphabet of RFC 8839 §5.4, where an ice-char is a
// letter, a digit, "+" or "/".
var iceChars = base64.RawStdEncoding

// String shows neither the name nor the password.
func (c Credentials) String() string { return "[ICE credentials]" }

// GoString shows neither the name nor the password.
func (c Credentials) GoString() string { return c.String() }

// Format shows neither the name nor the password, whatever the verb.
func (c Credentials) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// MarshalText shows neither the name nor the password.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func (c Credentials) check() error {
	if len(c.Ufrag) < minUfrag || len(c.Pwd) < minPwd || len(c.Ufrag) > maxCredential || len(c.Pwd) > maxCredential {
		return fmt.Errorf("%w: wrong length", ErrBadCredentials)
	}
	for _, s := range []string{c.Ufrag, c.Pwd} {
		if strings.IndexFunc(s, notICEChar) >= 0 {
			return fmt.Errorf("%w: a character outside A-Z a-z 0-9 + /", ErrBadCredentials)
		}
	}
	return nil
}

// checkBoth checks the credentials of a session.
func checkBoth(local, remote Credentials) error {
	if err := local.check(); err != nil {
		return err
	}
	if err := remote.check(); err != nil {
		return err
	}
	if local.Ufrag == remote.Ufrag {
		return fmt.Errorf("%w: both sides have one name", ErrBadCredentials)
	}
	return nil
}

func notICEChar(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '+' || r == '/')
}

// RESTCredentials returns the time-limited credentials that coturn and others
// compute from a shared secret (`use-auth-secret`, draft-uberti-behave-turn-rest-00
// §2.2): the user name is "<unix time of expiry>:<session>" and the password
// the base64 HMAC-SHA1 of it. A TURN server refuses even a Refresh after the
// expiry, so it must not lie before the end of the session.
func RESTCredentials(secret string, session identity.SessionID, expires time.Time) (username, password string) {
	username = strconv.FormatInt(expires.Unix(), 10) + ":" + session.String()
	mac := hmac.New(sha1.New, []byte(secret))
	_, _ = mac.Write([]byte(username)) // a hash never fails
	return username, base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
