package wss

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/rs/zerolog"
)

// ErrNoTURN is returned where TLS was reached that is not the coordinator's own:
// it does not speak TURN. A proxy that opens TLS is in between, or a web server.
var ErrNoTURN = errors.New("the TLS there speaks no TURN")

// Dialer connects to coordinators over TLS. Its zero value works.
//
// The certificate of the TLS connection is not verified, on purpose. It may be
// self-signed, an ACME certificate or a company's proxy's, and none of them
// says that this is the coordinator of the join link. What is said inside is
// protected by itself: Packets carries QUIC, whose handshake proves both NodeIDs
// whatever lies around it, and TURN has credentials that never cross the wire
// and carries ciphertext. Who ends the outer TLS can drop packets, as the owner
// of any network can, and read what an observer of UDP would see.
type Dialer struct {
	// Proxy returns the proxy for a URL, nil for none. Credentials are in its
	// URL. nil is FromEnvironment.
	Proxy func(*url.URL) (*url.URL, error)
	// Timeout bounds everything up to the WebSocket, further than the context
	// does. 0 is 10 s.
	Timeout time.Duration
	Log     zerolog.Logger

	proxyRoots *x509.CertPool // who may vouch for an https proxy; nil: the system's
}

func (d *Dialer) timeout() time.Duration {
	if d.Timeout > 0 {
		return d.Timeout
	}
	return 10 * time.Second
}

// link is a TLS connection and what lies under it.
type link struct {
	*tls.Conn
	raw   net.Conn // the TCP connection
	proxy *url.URL // without credentials; nil: none
}

// dial opens TLS to target (host:port), through a proxy where there is one, with
// one protocol offered.
func (d *Dialer) dial(ctx context.Context, target, protocol string) (*link, error) {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", target, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	which := d.Proxy
	if which == nil {
		which = FromEnvironment
	}
	proxy, err := which(&url.URL{Scheme: "https", Host: target})
	if err != nil {
		return nil, err
	}
	next := target
	if proxy != nil {
		if next, err = proxyAddr(proxy); err != nil {
			return nil, err
		}
	}
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", next)
	if err != nil {
		if proxy != nil {
			return nil, &ProxyError{Proxy: next, Target: target, Reason: fmt.Sprintf("cannot be reached: %v", err)}
		}
		return nil, err
	}
	conn := raw
	if proxy != nil {
		if conn, err = d.throughProxy(ctx, raw, proxy, next, target); err != nil {
			_ = raw.Close()
			return nil, err
		}
	}
	secure := tls.Client(conn, &tls.Config{
		ServerName:         host,
		InsecureSkipVerify: true, // see Dialer
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{protocol},
	})
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS with %s: %w", target, err)
	}
	return &link{Conn: secure, raw: raw, proxy: redacted(proxy)}, nil
}

// TURN returns a connection over which the coordinator at hostport speaks TURN
// (RFC 8656 §2.1): TLS with that very ALPN (RFC 7443), or a WebSocket where
// somebody in between opens TLS and passes on the web only. Closing it is the
// caller's.
func (d *Dialer) TURN(ctx context.Context, hostport string) (net.Conn, error) {
	l, err := d.dial(ctx, hostport, protocolTURN)
	switch {
	case err == nil && l.ConnectionState().NegotiatedProtocol == protocolTURN:
		return l.Conn, nil
	case err == nil:
		_ = l.raw.Close()
	case !refusesTURN(err):
		return nil, err
	}
	return d.turnOverWeb(ctx, hostport)
}

// Packets returns a connection to the coordinator at hostport that carries
// datagrams. It returns once TLS is there; the WebSocket is requested together
// with the first datagrams that are written, which therefore should follow at
// once. When the WebSocket is refused, the Conn ends with the reason.
func (d *Dialer) Packets(ctx context.Context, hostport string) (*Conn, error) {
	l, err := d.dial(ctx, hostport, protocolHTTP)
	if err != nil {
		return nil, err
	}
	return newConn(l, hostport, d.timeout(), d.Log), nil
}
