package wss

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// acmeCA is as much of RFC 8555 as one certificate takes, with the challenge
// tls-alpn-01 really checked at the server.
type acmeCA struct {
	*httptest.Server
	tb testing.TB
	ca *authority

	mu      sync.Mutex // guards what follows
	server  string     // host:port where challenges are checked
	domains []string   // that certificates were ordered for
	valid   bool
	chain   []byte
	token   string
}

func newACMECA(tb testing.TB) *acmeCA {
	tb.Helper()
	c := &acmeCA{tb: tb, ca: newAuthority(tb), token: "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"}
	c.Server = httptest.NewServer(c)
	tb.Cleanup(c.Close)
	return c
}

func (c *acmeCA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Replay-Nonce", "nonce")
	var jws struct{ Payload string }
	body, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(body, &jws)
	payload, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
	say := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	state := map[bool]string{true: "valid", false: "pending"}[c.valid]
	order := map[string]any{"status": state, "authorizations": []string{c.URL + "/authz"}, "finalize": c.URL + "/finalize"}
	if c.valid {
		order["status"] = "ready"
	}
	if c.chain != nil {
		order["status"], order["certificate"] = "valid", c.URL+"/cert"
	}
	switch r.URL.Path {
	case "/directory":
		say(200, map[string]any{
			"newNonce": c.URL + "/nonce", "newAccount": c.URL + "/account", "newOrder": c.URL + "/order", "revokeCert": c.URL + "/revoke",
			"keyChange": c.URL + "/change", "meta": map[string]string{"termsOfService": "https://ca.test/terms"},
		})
	case "/nonce":
	case "/account":
		w.Header().Set("Location", c.URL+"/account/1")
		say(201, map[string]string{"status": "valid"})
	case "/order":
		var asked struct {
			Identifiers []struct{ Value string }
		}
		_ = json.Unmarshal(payload, &asked)
		for _, id := range asked.Identifiers {
			c.domains = append(c.domains, id.Value)
		}
		c.valid, c.chain = false, nil
		order["status"] = "pending"
		delete(order, "certificate")
		w.Header().Set("Location", c.URL+"/order/1")
		say(201, order)
	case "/order/1":
		say(200, order)
	case "/authz":
		say(200, map[string]any{
			"status": state, "identifier": map[string]string{"type": "dns", "value": c.domains[len(c.domains)-1]},
			"challenges": []map[string]string{{"type": "tls-alpn-01", "url": c.URL + "/challenge", "token": c.token, "status": state}},
		})
	case "/challenge":
		if err := c.checkLocked(c.domains[len(c.domains)-1]); err != nil {
			c.tb.Errorf("challenge: %v", err)
		} else {
			c.valid = true
		}
		say(200, map[string]string{"type": "tls-alpn-01", "url": c.URL + "/challenge", "token": c.token, "status": "processing"})
	case "/finalize":
		var asked struct{ CSR string }
		_ = json.Unmarshal(payload, &asked)
		der, _ := base64.RawURLEncoding.DecodeString(asked.CSR)
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			say(400, map[string]string{"detail": err.Error()})
			return
		}
		for _, block := range [][]byte{c.ca.sign(c.tb, csr.PublicKey, csr.DNSNames...), c.ca.cert.Raw} {
			c.chain = append(c.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block})...)
		}
		order["status"], order["certificate"] = "valid", c.URL+"/cert"
		w.Header().Set("Location", c.URL+"/order/1")
		say(200, order)
	case "/cert":
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(c.chain)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// checkLocked is the CA's side of RFC 8737 §3.
func (c *acmeCA) checkLocked(domain string) error {
	conn, err := tls.Dial("tcp", c.server, &tls.Config{ServerName: domain, NextProtos: []string{acme.ALPNProto}, InsecureSkipVerify: true})
	if err != nil {
		return err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	leaf := state.PeerCertificates[0]
	if state.NegotiatedProtocol != acme.ALPNProto || !slices.Equal(leaf.DNSNames, []string{domain}) {
		return errors.New("not a challenge's certificate")
	}
	for _, e := range leaf.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}) && len(e.Value) == sha256.Size+2 {
			return nil
		}
	}
	return errors.New("no acmeIdentifier")
}

func leafOf(tb testing.TB, s *Server, name string, protocols ...string) (*x509.Certificate, error) {
	tb.Helper()
	d := tls.Dialer{Config: &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols}}
	c, err := d.DialContext(patient(tb), "tcp", s.Addr().String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

func TestACME(t *testing.T) {
	ca := newACMECA(t)
	ca.mu.Lock() // until the server's address is known
	cache := filepath.Join(t.TempDir(), "acme")
	s, stop := startServer(t, ServerConfig{
		ACMEDomains: []string{"Coordinator.test"}, ACMECache: cache, ACMEDirectory: ca.URL + "/directory",
	})
	ca.server = s.Addr().String()
	// While the CA takes its time, a handshake does not wait for it.
	if leaf, err := leafOf(t, s, "coordinator.test"); err != nil || leaf.Subject.CommonName != "mintai" {
		t.Errorf("before the certificate: %v %v", leaf, err)
	}
	ca.mu.Unlock()

	ready := func(s *Server) {
		t.Helper()
		ctx := patient(t)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			leaf, err := leafOf(t, s, "coordinator.test", protocolHTTP)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: ca.ca.roots(), DNSName: "coordinator.test"}); err == nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatal("no certificate")
			}
		}
	}
	ready(s)
	// No other name gets one, and nobody without a name is turned away.
	for _, name := range []string{"", "elsewhere.test", "www.coordinator.test"} {
		if leaf, err := leafOf(t, s, name); err != nil || leaf.Subject.CommonName != "mintai" {
			t.Errorf("%q: %v %v", name, leaf, err)
		}
	}
	if _, err := leafOf(t, s, "coordinator.test", acme.ALPNProto); err == nil {
		t.Error("a challenge that nobody set")
	}
	stop()

	// The next start takes it from the folder.
	s, _ = startServer(t, ServerConfig{
		ACMEDomains: []string{"coordinator.test"}, ACMECache: cache, ACMEDirectory: "http://127.0.0.1:1/nowhere",
		ACMEHTTP: "127.0.0.1:0",
	})
	ready(s)
	ca.mu.Lock()
	if !slices.Equal(ca.domains, []string{"coordinator.test"}) {
		t.Errorf("ordered %v", ca.domains)
	}
	ca.mu.Unlock()
	res, err := http.Get("http://" + s.certs.acme.http.Addr().String() + "/.well-known/acme-challenge/x")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if res.StatusCode == 200 {
		t.Error("an answer to a challenge that nobody set")
	}
}

// A CA that hangs holds neither a handshake nor the end of the server up.
func TestACMEHangs(t *testing.T) {
	block := make(chan struct{})
	ca := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	defer ca.Close()
	defer close(block)
	s, stop := startServer(t, ServerConfig{ACMEDomains: []string{"coordinator.test"}, ACMECache: t.TempDir(), ACMEDirectory: ca.URL})
	if _, err := leafOf(t, s, "coordinator.test"); err != nil {
		t.Error(err)
	}
	begun := time.Now()
	stop()
	if waited := time.Since(begun); waited > testWait/2 {
		t.Errorf("stopped after %v", waited)
	}
}

func TestACMEConfig(t *testing.T) {
	for _, cfg := range []ServerConfig{
		{ACMEDomains: []string{"coordinator.test"}}, // no folder
		{ACMEDomains: []string{"192.0.2.1"}, ACMECache: "x"},
		{ACMEDomains: []string{"*.coordinator.test"}, ACMECache: "x"},
		{ACMEDomains: []string{"localhost"}, ACMECache: "x"},
		{ACMEDomains: []string{""}, ACMECache: "x"},
	} {
		cfg.Listen = "127.0.0.1:0"
		if s, err := Listen(cfg); err == nil {
			_ = s.Close()
			t.Errorf("%v: accepted", cfg.ACMEDomains)
		}
	}
}
