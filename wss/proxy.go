package wss

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// maxProxyAnswer bounds what a proxy may say before the connection is through.
const maxProxyAnswer = 16 << 10

// ProxyError says that a proxy did not let a connection through, and why.
type ProxyError struct {
	Proxy  string // host:port
	Target string // host:port, what it was asked for
	Status int    // HTTP status of its answer; 0: it did not get that far
	Reason string // one line
}

func (e *ProxyError) Error() string {
	return fmt.Sprintf("the proxy %s %s", e.Proxy, e.Reason)
}

// FromEnvironment returns the proxy that HTTPS_PROXY, or else ALL_PROXY, names
// for target, unless NO_PROXY excludes it; nil: none. Lower-case names count
// too. Loopback addresses never go through a proxy.
func FromEnvironment(target *url.URL) (*url.URL, error) {
	cfg := httpproxy.FromEnvironment()
	for _, name := range []string{"ALL_PROXY", "all_proxy"} {
		if cfg.HTTPSProxy == "" {
			cfg.HTTPSProxy = os.Getenv(name)
		}
	}
	// httpproxy takes what it cannot read for none, and the connection would go
	// where the user said that it cannot.
	bad := cfg.HTTPSProxy != "" && !readable(cfg.HTTPSProxy)
	if bad {
		cfg.HTTPSProxy = "http://unreadable.invalid"
	}
	proxy, err := cfg.ProxyFunc()(target)
	if err != nil || bad && proxy != nil {
		return nil, errors.New("HTTPS_PROXY or ALL_PROXY is not the URL of a proxy") // it may hold a password
	}
	return proxy, nil
}

// readable reports whether httpproxy understands a proxy's URL, which may lack
// its scheme.
func readable(proxy string) bool {
	if !strings.Contains(proxy, "://") {
		proxy = "http://" + proxy
	}
	u, err := url.Parse(proxy)
	return err == nil && u.Host != ""
}

// proxyAddr returns where to dial, with the scheme's default port.
func proxyAddr(proxy *url.URL) (string, error) {
	port := map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	if port == "" {
		return "", fmt.Errorf("the proxy %s: only http and https proxies are supported, not %q", proxy.Host, proxy.Scheme)
	}
	if proxy.Hostname() == "" {
		return "", errors.New("the proxy's URL names no host")
	}
	if proxy.Port() != "" {
		port = proxy.Port()
	}
	return net.JoinHostPort(proxy.Hostname(), port), nil
}

// redacted is the URL without its password, user name included: some proxies
// take a token there.
func redacted(u *url.URL) *url.URL {
	if u == nil {
		return nil
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}
}

// throughProxy opens a tunnel to target (RFC 9110 §9.3.6). raw is the connection
// to the proxy at addr; it stays the caller's when there is an error.
func (d *Dialer) throughProxy(ctx context.Context, raw net.Conn, proxy *url.URL, addr, target string) (net.Conn, error) {
	fail := func(status int, format string, args ...any) error {
		return &ProxyError{Proxy: addr, Target: target, Status: status, Reason: fmt.Sprintf(format, args...)}
	}
	conn := raw
	if proxy.Scheme == "https" {
		// This certificate is checked: the proxy gets a password.
		secure := tls.Client(raw, &tls.Config{
			ServerName: proxy.Hostname(), RootCAs: d.proxyRoots,
			MinVersion: tls.VersionTLS12, NextProtos: []string{protocolHTTP},
		})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fail(0, "has no TLS that this machine trusts: %v", err)
		}
		conn = secure
	}

	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var request strings.Builder
	fmt.Fprintf(&request, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", target, target)
	password, _ := proxy.User.Password()
	credentials := proxy.User != nil
	if credentials {
		// RFC 7617 §2
		basic := base64.StdEncoding.EncodeToString([]byte(proxy.User.Username() + ":" + password))
		fmt.Fprintf(&request, "Proxy-Authorization: Basic %s\r\n", basic)
	}
	request.WriteString("\r\n")
	if _, err := io.WriteString(conn, request.String()); err != nil {
		return nil, fail(0, "was gone before it heard where to connect: %v", err)
	}
	answer := bufio.NewReader(io.LimitReader(conn, maxProxyAnswer))
	res, err := http.ReadResponse(answer, &http.Request{Method: http.MethodConnect})
	if err != nil {
		if ctx.Err() != nil {
			return nil, fail(0, "did not answer: %v", ctx.Err())
		}
		return nil, fail(0, "gave no HTTP answer: %v", err)
	}
	_ = res.Body.Close()
	switch {
	case res.StatusCode == http.StatusProxyAuthRequired && credentials:
		return nil, fail(res.StatusCode, "did not accept the credentials (407)")
	case res.StatusCode == http.StatusProxyAuthRequired:
		return nil, fail(res.StatusCode, "asks for credentials (407): put them into its URL, http://user:password@%s", addr)
	case res.StatusCode/100 != 2:
		return nil, fail(res.StatusCode, "does not connect to %s (%d %s)", target, res.StatusCode, http.StatusText(res.StatusCode))
	case answer.Buffered() > 0:
		return nil, fail(res.StatusCode, "sent something that is not from %s", target)
	}
	if !stop() {
		return nil, fail(res.StatusCode, "did not answer: %v", ctx.Err())
	}
	return conn, nil
}
