package wss

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// proxy is an HTTP proxy that connects to one place whatever it is asked for.
type proxy struct {
	*httptest.Server
	to       string // where all tunnels end
	user     string // "name:password" it wants; empty: anybody may
	status   int    // what it answers instead of connecting; 0: it connects
	asked    atomic.Value
	connects atomic.Int64
}

func newProxy(tb testing.TB, p *proxy, secure bool) *proxy {
	tb.Helper()
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	if secure {
		p.StartTLS()
	} else {
		p.Start()
	}
	tb.Cleanup(p.Close)
	return p
}

func (p *proxy) serve(w http.ResponseWriter, r *http.Request) {
	p.connects.Add(1)
	p.asked.Store(r.Method + " " + r.RequestURI)
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user))
	switch {
	case p.user != "" && r.Header.Get("Proxy-Authorization") != want:
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	case p.status != 0:
		w.WriteHeader(p.status)
		return
	}
	up, err := net.Dial("tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	_, _ = io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(down, up)
		_ = down.Close()
	}()
	_, _ = io.Copy(up, down)
	_ = up.Close()
	<-done
}

// through is a Proxy function for the proxy, with credentials.
func (p *proxy) through(tb testing.TB, userinfo *url.Userinfo) func(*url.URL) (*url.URL, error) {
	tb.Helper()
	u, err := url.Parse(p.URL)
	if err != nil {
		tb.Fatal(err)
	}
	u.User = userinfo
	return func(*url.URL) (*url.URL, error) { return u, nil }
}

const target = "coordinator.test:443"

func TestProxies(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	coordinator, node := newKey(t), newKey(t)
	echo(t, s, coordinator)
	for name, secure := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, &proxy{to: s.Addr().String(), user: "us%er:p@ss:word"}, secure)
			d := &Dialer{Proxy: p.through(t, url.UserPassword("us%er", "p@ss:word"))}
			if secure {
				d.proxyRoots = p.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
			}
			c := connect(t, d, target)
			conn, err := dialQUIC(t, c, node, coordinator.ID(), testWait)
			if err != nil {
				t.Fatal(err)
			}
			if got := ask(t, conn, "x"); got != node.ID().String()+" x" {
				t.Error(got)
			}
			if c.Proxy() == nil || c.Proxy().Host != p.Listener.Addr().String() || c.Proxy().User != nil {
				t.Errorf("proxy %v", c.Proxy())
			}
			if got := p.asked.Load(); got != "CONNECT "+target {
				t.Errorf("asked for %q", got)
			}
			turn, err := d.TURN(patient(t), target)
			if err != nil {
				t.Fatal(err)
			}
			_ = turn.Close()
		})
	}
}

func TestProxyErrors(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for name, c := range map[string]struct {
		proxy  *proxy
		secure bool
		user   *url.Userinfo
		status int
		want   string
	}{
		"no credentials":    {&proxy{user: "a:b"}, false, nil, 407, "asks for credentials (407)"},
		"wrong credentials": {&proxy{user: "a:b"}, false, url.UserPassword("a", "secret"), 407, "did not accept the credentials (407)"},
		"forbidden":         {&proxy{status: 403}, false, nil, 403, "does not connect to coordinator.test:443 (403 Forbidden)"},
		"redirect":          {&proxy{status: 302}, false, nil, 302, "does not connect"},
		"nothing behind it": {&proxy{to: closed.Addr().String()}, false, nil, 502, "does not connect"},
		"untrusted":         {&proxy{to: s.Addr().String()}, true, url.UserPassword("a", "secret"), 0, "has no TLS that this machine trusts"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, c.proxy, c.secure)
			_, err := (&Dialer{Proxy: p.through(t, c.user)}).Packets(patient(t), target)
			var pe *ProxyError
			if !errors.As(err, &pe) || pe.Status != c.status || pe.Target != target || pe.Proxy != p.Listener.Addr().String() {
				t.Fatalf("%#v", err)
			}
			if text := err.Error(); !strings.Contains(text, c.want) || strings.Contains(text, "secret") || strings.Contains(text, "\n") ||
				!strings.Contains(text, pe.Proxy) {
				t.Errorf("%s", text)
			}
			if c.secure && p.connects.Load() != 0 {
				t.Error("a stranger got the password")
			}
		})
	}
	for name, u := range map[string]string{
		"unreachable": "http://user:secret@" + closed.Addr().String(),
		"scheme":      "socks5://user:secret@127.0.0.1:1",
		"no host":     "http://user:secret@:1",
	} {
		t.Run(name, func(t *testing.T) {
			proxy, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			_, err = (&Dialer{Proxy: func(*url.URL) (*url.URL, error) { return proxy, nil }}).TURN(patient(t), target)
			if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "proxy") {
				t.Error(err)
			}
		})
	}
}

// listen accepts one connection after the other and lets play answer it.
func listen(tb testing.TB, play func(net.Conn)) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			play(c)
			_ = c.Close()
		}
	}()
	tb.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func TestHostileProxy(t *testing.T) {
	for name, answer := range map[string]string{
		"silent":    "",
		"no HTTP":   "220 smtp.test ESMTP\r\n",
		"endless":   "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20),
		"talkative": "HTTP/1.1 200 OK\r\n\r\nand more",
	} {
		t.Run(name, func(t *testing.T) {
			at := listen(t, func(c net.Conn) {
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, answer)
				_, _ = io.Copy(io.Discard, c)
			})
			d := &Dialer{
				Proxy:   func(*url.URL) (*url.URL, error) { return &url.URL{Scheme: "http", Host: at}, nil },
				Timeout: 500 * time.Millisecond,
			}
			_, err := d.Packets(patient(t), target)
			var pe *ProxyError
			if !errors.As(err, &pe) || len(err.Error()) > 300 {
				t.Error(err)
			}
		})
	}
}

func TestNotACoordinator(t *testing.T) {
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, web.URL, http.StatusFound)
	}))
	defer other.Close()
	for at, want := range map[string]string{
		web.Listener.Addr().String():   "404 Not Found",
		other.Listener.Addr().String(): "302 Found",
	} {
		c := connect(t, &Dialer{}, at)
		if _, err := c.WriteTo([]byte("x"), c.Remote()); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(testWait))
		if _, _, err := c.ReadFrom(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		_ = c.Close()
	}
	if _, err := (&Dialer{}).TURN(patient(t), web.Listener.Addr().String()); err == nil {
		t.Error("TURN at a web server")
	}
	plain := listen(t, func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	if _, err := (&Dialer{}).Packets(patient(t), plain); err == nil || !strings.Contains(err.Error(), "TLS with "+plain) {
		t.Error(err)
	}
	if _, err := (&Dialer{}).Packets(patient(t), "no port"); err == nil {
		t.Error("no port")
	}
	// TLS that was opened in between has no ALPN of ours.
	opened, err := tls.Listen("tcp", "127.0.0.1:0", web.TLS)
	if err != nil {
		t.Fatal(err)
	}
	_ = opened.Close()
	noALPN := httptest.NewUnstartedServer(http.NotFoundHandler())
	noALPN.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: web.TLS.Certificates}, nil
	}}
	noALPN.StartTLS()
	defer noALPN.Close()
	if _, err := (&Dialer{}).TURN(patient(t), noALPN.Listener.Addr().String()); !errors.Is(err, ErrNoTURN) {
		t.Error(err)
	}
}

func TestDialIsCancelled(t *testing.T) {
	at := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }) // says nothing
	ctx, cancel := context.WithCancel(context.Background())
	d := &Dialer{Proxy: func(*url.URL) (*url.URL, error) {
		cancel()
		return nil, nil
	}}
	if _, err := d.Packets(ctx, at); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := (&Dialer{}).Packets(ctx, at); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// A Conn that is closed before anything was written, or before the server
// answered, ends at once.
func TestCloseEarly(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	c := connect(t, &Dialer{}, s.Addr().String())
	_ = c.Close()
	_ = c.Close()
	if _, _, err := c.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}

	block := make(chan struct{})
	web := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-block:
		case <-r.Context().Done():
		}
	}))
	defer web.Close()
	defer close(block)
	c = connect(t, &Dialer{}, web.Listener.Addr().String())
	_, _ = c.WriteTo([]byte("x"), c.Remote())
	begun := time.Now()
	_ = c.Close()
	if waited := time.Since(begun); waited > 2*closeTimeout {
		t.Errorf("closed after %v", waited)
	}
}

func TestFromEnvironment(t *testing.T) {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
	get := func(host string) string {
		t.Helper()
		u, err := FromEnvironment(&url.URL{Scheme: "https", Host: host})
		if err != nil {
			t.Fatal(err)
		}
		if u == nil {
			return ""
		}
		return u.String()
	}
	if got := get(target); got != "" {
		t.Errorf("no variables: %q", got)
	}
	t.Setenv("HTTP_PROXY", "http://plain.test:1")
	if got := get(target); got != "" {
		t.Errorf("a proxy for http only: %q", got)
	}
	t.Setenv("all_proxy", "http://all.test:1")
	if got := get(target); got != "http://all.test:1" {
		t.Errorf("all: %q", got)
	}
	t.Setenv("HTTPS_PROXY", "secure.test:3128") // without a scheme it is http
	t.Setenv("NO_PROXY", ".inside.test,192.0.2.0/24")
	for host, want := range map[string]string{
		target: "http://secure.test:3128", "a.inside.test:443": "", "192.0.2.7:443": "", "192.0.3.7:443": "http://secure.test:3128",
		"127.0.0.1:443": "", "localhost:443": "", "[::1]:443": "",
	} {
		if got := get(host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
	t.Setenv("HTTPS_PROXY", "http://user:secret@bad host:1")
	if _, err := FromEnvironment(&url.URL{Scheme: "https", Host: target}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}
