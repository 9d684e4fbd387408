package identity

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ErrBadLink is wrapped by every error of ParseLink.
var ErrBadLink = errors.New("not a join link")

const (
	// DefaultPort is the UDP port of a coordinator when a link names none.
	DefaultPort = 4433
	// DefaultSTUNPort is the UDP port at which a coordinator answers address
	// probes when a link names none. It answers on the next port as well.
	DefaultSTUNPort = 3478

	linkScheme   = "mintai://"
	linkChars    = "abcdefghijklmnopqrstuvwxyz0123456789:/.-[]?=&"
	maxLink      = 2048
	maxLinkAddrs = 16
	maxSecret    = 128
	unknownID    = "-" // stands for the NodeID in a link that has a secret but no NodeID
)

// Link says where a coordinator is, who it is, and what admits to it:
//
//	mintai://host:4433/<NodeID>/<secret>?addr=[2001:db8::1]:4433&tls=443&stun=3478
//
// Only the host is required. A link with a secret but without a NodeID has "-"
// in its place. Links use the characters a-z0-9:/.-[]?=& only, so that they
// survive chats, double clicks and QR codes.
type Link struct {
	Addrs   []string // host:port, the primary one first; IPv6 in brackets
	TLSPort uint16   // where the coordinator also answers on TCP; 0: nowhere
	// STUNPort is the first of the two UDP ports at which the coordinator answers
	// address probes; 0: nowhere. A link that does not say means DefaultSTUNPort.
	STUNPort uint16
	ID       NodeID // zero: trust on first use
	Secret   Secret // admits; empty: none
}

// NewSecret returns a random secret of 130 bits in a link's characters.
func NewSecret() Secret { return Secret(strings.ToLower(rand.Text())) }

// ParseLink reads what String writes, and what a person may type: white space
// around it is ignored, a missing port is DefaultPort, and the NodeID and the
// secret may be missing. Query keys that it does not know are ignored, for
// links made by newer coordinators. Errors wrap ErrBadLink, are one line, and
// never repeat the secret.
func ParseLink(s string) (Link, error) {
	s = strings.TrimSpace(s)
	if len(s) > maxLink {
		return Link{}, badLink("it is longer than %d characters", maxLink)
	}
	rest, ok := strings.CutPrefix(s, linkScheme)
	if !ok {
		return Link{}, badLink("it must start with %s", linkScheme)
	}
	for i := range len(s) {
		if strings.IndexByte(linkChars, s[i]) >= 0 {
			continue
		}
		if 'A' <= s[i] && s[i] <= 'Z' {
			return Link{}, badLink("character %d is upper case; links are lower case", i+1)
		}
		return Link{}, badLink("character %d is none of a-z 0-9 : / . - [ ] ? = &", i+1)
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")

	var l Link
	addr, err := parseAddr(authority)
	if err != nil {
		return Link{}, badLink("the address after %s: %w", linkScheme, err)
	}
	l.Addrs = []string{addr}
	if err := l.parsePath(path); err != nil {
		return Link{}, err
	}
	if err := l.parseQuery(query); err != nil {
		return Link{}, err
	}
	return l, nil
}

func badLink(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrBadLink, fmt.Errorf(format, args...))
}

// parsePath reads "", "<NodeID>", "<NodeID>/<secret>" or "-/<secret>", each
// with or without a slash at the end.
func (l *Link) parsePath(path string) error {
	id, secret, _ := strings.Cut(strings.TrimSuffix(path, "/"), "/")
	if id != "" && id != unknownID {
		parsed, err := ParseNodeID(id)
		if err != nil {
			// What stands there may be the secret: do not repeat it.
			return badLink("the part after the address: %w (a secret without a NodeID is written %shost/%s/secret)",
				err, linkScheme, unknownID)
		}
		if parsed.IsZero() {
			return badLink("its NodeID is all zero")
		}
		l.ID = parsed
	}
	if id == "" && secret != "" {
		return badLink("the NodeID is missing (a secret without a NodeID is written %shost/%s/secret)", linkScheme, unknownID)
	}
	if len(secret) > maxSecret {
		return badLink("its secret is longer than %d characters", maxSecret)
	}
	for i := range len(secret) {
		if strings.IndexByte(":/.[]=&", secret[i]) >= 0 {
			return badLink("its secret has a character outside a-z 0-9 -")
		}
	}
	l.Secret = Secret(secret)
	return nil
}

func (l *Link) parseQuery(query string) error {
	l.STUNPort = DefaultSTUNPort
	if query == "" {
		return nil
	}
	stun := false
	for field := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "addr":
			addr, err := parseAddr(value)
			if err != nil {
				return badLink("addr=: %w", err)
			}
			if slices.Contains(l.Addrs, addr) {
				continue
			}
			if len(l.Addrs) == maxLinkAddrs {
				return badLink("it has more than %d addresses", maxLinkAddrs)
			}
			l.Addrs = append(l.Addrs, addr)
		case "tls":
			port, err := parsePort(value)
			if err != nil {
				return badLink("tls=: %w", err)
			}
			if l.TLSPort != 0 && l.TLSPort != port {
				return badLink("tls= stands there twice")
			}
			l.TLSPort = port
		case "stun":
			port, err := uint16(0), error(nil)
			if value != "0" {
				port, err = parsePort(value)
			}
			if err != nil || port == 65535 { // it needs the next one, too
				return badLink("stun=: a port is a number from 1 to 65534; 0 is none")
			}
			if stun && l.STUNPort != port {
				return badLink("stun= stands there twice")
			}
			l.STUNPort, stun = port, true
		}
	}
	return nil
}

// parseAddr reads host, host:port, 192.0.2.1:port, [2001:db8::1] or
// [2001:db8::1]:port and returns the one spelling of it, with a port.
func parseAddr(s string) (string, error) {
	host, port := s, uint16(DefaultPort)
	bracket := strings.LastIndexByte(s, ']')
	if colon := strings.LastIndexByte(s, ':'); colon > bracket {
		if strings.Count(s, ":") > 1 && bracket < 0 {
			return "", errors.New("an IPv6 address stands in brackets: [2001:db8::1]:4433")
		}
		var err error
		if port, err = parsePort(s[colon+1:]); err != nil {
			return "", err
		}
		host = s[:colon]
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		ip, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !ip.Is6() {
			return "", errors.New("what stands in brackets is no IPv6 address")
		}
		return netip.AddrPortFrom(ip.Unmap(), port).String(), nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(ip, port).String(), nil
	}
	if err := checkHostname(host); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 || s[0] == '0' {
		return 0, errors.New("a port is a number from 1 to 65535")
	}
	return uint16(port), nil
}

// checkHostname demands the letter-digit-hyphen labels of RFC 1123 §2.1, and a
// last label that is not a number, so that 1.2.3.400 is no name.
func checkHostname(s string) error {
	if s == "" {
		return errors.New("the host is missing")
	}
	if len(s) > 253 {
		return errors.New("the host name is longer than 253 characters")
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return errors.New("neither a host name nor an IP address")
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return errors.New("neither a host name nor an IP address")
	}
	return nil
}

// String returns the link with its secret: for the screen of whoever may
// invite, never for a log. The fmt verbs print Redacted instead.
func (l Link) String() string { return l.text(l.Secret.Reveal()) }

// Redacted returns the link without its secret, for logs and errors.
func (l Link) Redacted() string { return l.text(l.Secret.String()) }

// Format prints Redacted for every verb, so that a link cannot be logged whole
// by mistake; call String to show the secret.
func (l Link) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, l.Redacted()) }

// MarshalText writes Redacted, so that encoders do not show the secret either.
func (l Link) MarshalText() ([]byte, error) { return []byte(l.Redacted()), nil }

// IsZero reports whether the link names no coordinator.
func (l Link) IsZero() bool { return len(l.Addrs) == 0 }

func (l Link) text(secret string) string {
	var b strings.Builder
	b.WriteString(linkScheme)
	if len(l.Addrs) > 0 {
		b.WriteString(l.Addrs[0])
	}
	switch {
	case !l.ID.IsZero():
		b.WriteString("/" + l.ID.String())
	case secret != "":
		b.WriteString("/" + unknownID)
	}
	if secret != "" {
		b.WriteString("/" + secret)
	}
	separator := "?"
	for i, addr := range l.Addrs {
		if i > 0 {
			b.WriteString(separator + "addr=" + addr)
			separator = "&"
		}
	}
	if l.TLSPort != 0 {
		b.WriteString(separator + "tls=" + strconv.Itoa(int(l.TLSPort)))
		separator = "&"
	}
	if l.STUNPort != DefaultSTUNPort {
		b.WriteString(separator + "stun=" + strconv.Itoa(int(l.STUNPort)))
	}
	return b.String()
}
