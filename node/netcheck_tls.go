package node

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"mintai/ice"
	"mintai/wss"
)

// netTLSCheck measures what is there for networks without UDP: the coordinator's
// TLS port, the proxy before it, TURN over TLS, and whether somebody else answers
// in the coordinator's place.
type netTLSCheck struct {
	*netcheck
	web []webAnswer
}

// run tries all of it at once, until ctx ends.
func (t *netTLSCheck) run(ctx context.Context) {
	targets := t.member.tlsAddrs()
	targets = targets[:min(len(targets), netMostAddrs)]
	if len(targets) == 0 {
		t.report.missing("tls", "the coordinator has no TLS port")
		t.report.missing("relay.tls", "the coordinator has no TLS port")
		return
	}
	found := make([]tlsFound, len(targets))
	var wg sync.WaitGroup
	for i, target := range targets {
		wg.Go(func() { found[i] = t.ask(ctx, target) })
	}
	wg.Wait()
	relay := false
	for _, f := range found {
		t.report.TLS = append(t.report.TLS, f.netTLS)
		t.web = append(t.web, f.https, f.http)
		relay = relay || f.turn == nil
		if f.proxy != nil && (t.report.Proxy == nil || yes(f.proxy.Works)) {
			t.report.Proxy = f.proxy
		}
	}
	t.report.Relay.TLS = &relay
}

// tlsFound is what one of the coordinator's TLS addresses came to.
type tlsFound struct {
	netTLS
	proxy       *netProxy
	turn        error
	https, http webAnswer
}

func (t *netTLSCheck) ask(ctx context.Context, target string) tlsFound {
	out := tlsFound{netTLS: netTLS{Addr: target}}
	var opened error
	var wg sync.WaitGroup
	wg.Go(func() { out.proxy, opened = t.open(ctx, target) })
	wg.Go(func() { out.turn = t.turn(ctx, target) })
	wg.Go(func() { out.http = askWeb(ctx, &url.URL{Scheme: "http", Host: hostOf(target), Path: wss.Path}, nil) })
	wg.Go(func() {
		started := time.Now()
		out.https = askWeb(ctx, &url.URL{Scheme: "https", Host: target, Path: wss.Path}, wss.FromEnvironment)
		out.TookMS = milliseconds(time.Since(started))
	})
	wg.Wait()
	switch out.Works = out.https == webOurs; {
	case out.Works:
	case opened != nil:
		out.Error = plainReason(opened)
	case out.https == webElsewhere:
		out.Error = "somebody else answers there and leads elsewhere"
	default:
		out.Error = "TLS works, but no WebSocket of a coordinator answers"
	}
	if !out.Works {
		out.TookMS = 0
	}
	return out
}

// open makes a TLS connection as signaling does, for what may be wrong with it.
func (t *netTLSCheck) open(ctx context.Context, target string) (*netProxy, error) {
	through, err := wss.FromEnvironment(&url.URL{Scheme: "https", Host: target})
	if err != nil {
		return &netProxy{Works: new(false), Error: err.Error()}, err
	}
	conn, err := newTLSWay(t.log).signaling(ctx, target)
	if err == nil {
		_ = conn.Close()
	}
	if through == nil {
		return nil, err
	}
	// User name and password may both be secrets.
	proxy := &netProxy{URL: (&url.URL{Scheme: through.Scheme, Host: through.Host}).String(), Works: new(true)}
	if errors.As(err, new(*wss.ProxyError)) {
		proxy.Works, proxy.Error = new(false), plainReason(err)
	}
	return proxy, err
}

// turn opens a connection for TURN and asks who is there.
func (t *netTLSCheck) turn(ctx context.Context, target string) error {
	conn, err := newTLSWay(t.log).turn(ctx, target)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return ice.CheckTURN(ctx, conn, 0)
}

// hostOf is the host of an address as a URL has it.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() {
		return "[" + host + "]"
	}
	return host
}

// webAnswer says what a web request to the coordinator's machine came to.
type webAnswer int

const (
	webSilent    webAnswer = iota // no answer, or none that says anything
	webOurs                       // the coordinator takes a WebSocket
	webElsewhere                  // away to another host, or RFC 6585's 511
)

// askWeb asks like signaling over TLS, or, without TLS, like a browser that does
// not know yet that it has to log in. Who answers need not show a good
// certificate: this is about what stands between, not about trust, and nothing is
// told to it.
func askWeb(ctx context.Context, address *url.URL, proxy func(*url.URL) (*url.URL, error)) webAnswer {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	if proxy != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return webSilent
	}
	if address.Scheme == "https" { // RFC 6455 §4.1, with the key of its example
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "websocket")
		req.Header.Set("Sec-WebSocket-Version", "13")
		req.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		req.Header.Set("Sec-WebSocket-Protocol", wss.Subprotocol)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return webSilent
	}
	_ = resp.Body.Close()
	return readWeb(req.URL, resp.StatusCode, resp.Header)
}

// readWeb decides what an answer says. Another web server on the coordinator's
// machine is no portal, whatever it shows.
func readWeb(asked *url.URL, status int, header http.Header) webAnswer {
	switch {
	case status == http.StatusSwitchingProtocols && header.Get("Sec-WebSocket-Protocol") == wss.Subprotocol:
		return webOurs
	case status == http.StatusNetworkAuthenticationRequired:
		return webElsewhere
	case status >= 300 && status < 400:
		to, err := asked.Parse(header.Get("Location"))
		if err == nil && to.Hostname() != "" && !strings.EqualFold(to.Hostname(), asked.Hostname()) {
			return webElsewhere
		}
	}
	return webSilent
}

// captive tells whether a portal stands between. Where the coordinator was
// reached there is none in its way.
func (t *netTLSCheck) captive(reached bool) *bool {
	switch {
	case reached, slices.Contains(t.web, webOurs):
		return new(false)
	case slices.Contains(t.web, webElsewhere):
		return new(true)
	}
	return nil
}
