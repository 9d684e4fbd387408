package wss

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
	"golang.org/x/net/idna"
)

// acmeRetries are the pauses after failures, the last one for ever. CAs allow a
// handful of failures an hour, and autocert remembers one for a minute.
var acmeRetries = []time.Duration{2 * time.Minute, 10 * time.Minute, time.Hour}

// acmeCertificates obtains certificates for a fixed list of names (RFC 8555), in
// the background: no handshake ever waits for a CA.
type acmeCertificates struct {
	manager *autocert.Manager
	domains []string
	http    net.Listener // for http-01; nil: none
	stop    context.CancelFunc
	log     zerolog.Logger

	mu    sync.Mutex // guards what follows
	ready map[string]bool
}

// acmeDomain returns the name as certificates have it.
func acmeDomain(name string) (string, error) {
	ascii, err := idna.Lookup.ToASCII(name)
	_, notIP := netip.ParseAddr(name)
	if err != nil || notIP == nil || !strings.Contains(strings.Trim(ascii, "."), ".") {
		return "", fmt.Errorf("%q is no name that a certificate can be obtained for", name)
	}
	return ascii, nil
}

func newACME(cfg ServerConfig) (*acmeCertificates, error) {
	if cfg.ACMECache == "" {
		return nil, errors.New("a folder for the certificates is needed: without it each start asks for new ones, and CAs allow a few a week")
	}
	c := &acmeCertificates{log: cfg.Log, ready: make(map[string]bool)}
	for _, name := range cfg.ACMEDomains {
		domain, err := acmeDomain(name)
		if err != nil {
			return nil, err
		}
		c.domains = append(c.domains, domain)
	}
	if cfg.ACMEHTTP != "" {
		l, err := net.Listen("tcp", cfg.ACMEHTTP)
		if err != nil {
			return nil, err
		}
		c.http = l
	}
	directory := cfg.ACMEDirectory
	if directory == "" {
		directory = autocert.DefaultACMEDirectory
	}
	// autocert's calls take no context; what they wait for is the network.
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.manager = &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(cfg.ACMECache),
		HostPolicy: autocert.HostWhitelist(c.domains...),
		Client: &acme.Client{
			DirectoryURL: directory, UserAgent: "mintai",
			HTTPClient: &http.Client{Timeout: 30 * time.Second, Transport: until(ctx, http.DefaultTransport)},
		},
	}
	return c, nil
}

// get returns the certificate for a handshake; ours says whether it is for ACME
// to answer at all.
func (c *acmeCertificates) get(hello *tls.ClientHelloInfo) (cert *tls.Certificate, ours bool, err error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if !slices.Contains(c.domains, name) {
		return nil, false, nil
	}
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) { // RFC 8737 §3
		cert, err = c.manager.GetCertificate(hello)
		return cert, true, err
	}
	c.mu.Lock()
	ready := c.ready[name]
	c.mu.Unlock()
	if !ready {
		return nil, false, nil
	}
	cert, err = c.manager.GetCertificate(helloFor(name))
	return cert, err == nil, nil
}

// helloFor asks for an ECDSA certificate whatever the client likes: else one
// handshake of a stranger could have an RSA one ordered as well.
func helloFor(name string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:       name,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
}

// run obtains what is missing and answers http-01, until ctx ends. autocert
// renews by itself.
func (c *acmeCertificates) run(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	defer c.stop()
	if c.http != nil {
		server := &http.Server{
			Handler:           c.manager.HTTPHandler(http.NotFoundHandler()),
			ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout,
			MaxHeaderBytes: maxHeader,
			ErrorLog:       log.New(io.Discard, "", 0),
		}
		parts.Go(func() { _ = server.Serve(c.http) })
		defer server.Close()
	}
	for _, domain := range c.domains {
		parts.Go(func() { c.obtain(ctx, domain) })
	}
	<-ctx.Done()
	c.stop()
}

func (c *acmeCertificates) obtain(ctx context.Context, domain string) {
	for try := 0; ; try++ {
		_, err := c.manager.GetCertificate(helloFor(domain))
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			c.mu.Lock()
			c.ready[domain] = true
			c.mu.Unlock()
			c.log.Info().Str("domain", domain).Msg("TLS certificate from ACME ready")
			return
		}
		pause := acmeRetries[min(try, len(acmeRetries)-1)]
		c.log.Warn().Err(err).Str("domain", domain).Dur("again", pause).
			Msg("no TLS certificate from ACME; a self-signed one is used, which nodes accept")
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (c *acmeCertificates) close() {
	c.stop()
	if c.http != nil {
		_ = c.http.Close()
	}
}

// roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// until returns a RoundTripper whose requests end with ctx as well.
func until(ctx context.Context, next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		own, cancel := context.WithCancel(r.Context())
		release := context.AfterFunc(ctx, cancel)
		res, err := next.RoundTrip(r.WithContext(own))
		if err != nil {
			release()
			cancel()
			return nil, err
		}
		res.Body = &releasing{res.Body, func() { release(); cancel() }}
		return res, nil
	})
}

// releasing is a body that frees something when it is closed.
type releasing struct {
	io.ReadCloser
	free func()
}

func (r *releasing) Close() error {
	defer r.free()
	return r.ReadCloser.Close()
}
