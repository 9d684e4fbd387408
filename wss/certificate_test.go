package wss

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) sign(tb testing.TB, public any, names ...string) []byte {
	tb.Helper()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, public, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// write puts a new certificate for name and its key into two files.
func (a *authority) write(tb testing.TB, cert, key, name string) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: a.sign(tb, private.Public(), name)},
		key:  {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
}

func issue(tb testing.TB, name string) (cert, key string, roots *x509.CertPool) {
	tb.Helper()
	a, dir := newAuthority(tb), tb.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	a.write(tb, cert, key, name)
	return cert, key, a.roots()
}

func TestSelfSigned(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	cert := tlsTo(t, s, protocolHTTP).ConnectionState().PeerCertificates[0]
	if err := cert.CheckSignatureFrom(cert); err == nil || len(cert.DNSNames) > 0 || cert.NotAfter.Before(time.Now()) {
		// CheckSignatureFrom wants a CA; this one vouches for nobody.
		t.Errorf("%v, names %v, until %v", err, cert.DNSNames, cert.NotAfter)
	}
}

func TestCertificateFiles(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for _, cfg := range []ServerConfig{
		{CertFile: cert}, {KeyFile: key}, {CertFile: cert, KeyFile: key},
	} {
		cfg.Listen = "127.0.0.1:0"
		if s, err := Listen(cfg); err == nil {
			_ = s.Close()
			t.Errorf("%q, %q: accepted", cfg.CertFile, cfg.KeyFile)
		}
	}
	a.write(t, cert, key, "one.test")
	f, err := openCertificate(cert, key, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	name := func(c *tls.Certificate) string {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(leaf.DNSNames, " ")
	}
	now := time.Now()
	see := func(want string) {
		t.Helper()
		now = now.Add(certificateCheck)
		if got := name(f.get(now)); got != want {
			t.Errorf("certificate for %q, want %q", got, want)
		}
	}
	see("one.test")
	a.write(t, cert, key, "another.test")
	if got := name(f.get(now)); got != "one.test" {
		t.Errorf("%q: looked again within %v", got, certificateCheck)
	}
	see("another.test")
	if err := os.WriteFile(key, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	see("another.test")
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	see("another.test")
	a.write(t, cert, key, "the-third.test")
	see("the-third.test")
}
