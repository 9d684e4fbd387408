package wss

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/acme"
)

// certificateCheck is how often the files are looked at, at most.
const certificateCheck = 10 * time.Second

// certificates chooses the outer certificate of each handshake: ACME's for its
// domains, the files' if there are any, and otherwise one made here. None of
// them says who the coordinator is; proxies that open TLS and browsers look.
type certificates struct {
	own  *tls.Certificate
	file *fileCertificate  // nil: none
	acme *acmeCertificates // nil: none
}

func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.acme != nil {
		if cert, ours, err := c.acme.get(hello); ours {
			return cert, err
		}
	}
	if c.file != nil {
		return c.file.get(time.Now()), nil
	}
	return c.own, nil
}

// protocols returns the ALPN names that getting certificates needs.
func (c *certificates) protocols() []string {
	if c.acme == nil {
		return nil
	}
	return []string{acme.ALPNProto}
}

// run keeps the certificates valid until ctx ends.
func (c *certificates) run(ctx context.Context) {
	if c.acme != nil {
		c.acme.run(ctx)
	}
}

func (c *certificates) close() {
	if c.acme != nil {
		c.acme.close()
	}
}

// selfSigned returns a certificate whose key never leaves this process.
func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of the TLS certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "mintai"},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5: no well-defined end
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// fileCertificate is a certificate in two files, read again when they changed.
type fileCertificate struct {
	cert, key string // paths
	log       zerolog.Logger

	mu      sync.Mutex // guards what follows
	current *tls.Certificate
	seen    [2]stamp
	checked time.Time
}

// stamp is what tells one state of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

// openCertificate reads the files once; what is wrong with them is an error now
// and a line in the log later.
func openCertificate(cert, key string, log zerolog.Logger) (*fileCertificate, error) {
	f := &fileCertificate{cert: cert, key: key, log: log}
	seen, err := f.stat()
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", cert, key, err)
	}
	f.current, f.seen, f.checked = &pair, seen, time.Now()
	return f, nil
}

func (f *fileCertificate) stat() (seen [2]stamp, err error) {
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return seen, err
		}
		seen[i] = stamp{info.ModTime(), info.Size()}
	}
	return seen, nil
}

// get returns the certificate. Files that are gone or do not belong together, as
// between the writing of one and the other, leave the last good one in use.
func (f *fileCertificate) get(now time.Time) *tls.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.checked) < certificateCheck {
		return f.current
	}
	f.checked = now
	seen, err := f.stat()
	if err == nil && seen == f.seen {
		return f.current
	}
	if err == nil {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(f.cert, f.key); err == nil {
			f.current, f.seen = &pair, seen
			f.log.Info().Str("file", f.cert).Msg("TLS certificate read anew")
			return f.current
		}
	}
	f.log.Warn().Err(err).Str("file", f.cert).Msg("the new TLS certificate cannot be used; the last one stays")
	return f.current
}
