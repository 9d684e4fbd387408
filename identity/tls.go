package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// ErrPeer is wrapped when a TLS peer is not the node that was expected.
var ErrPeer = errors.New("peer identity")

// Certificate returns a self-signed certificate over the key. Nobody checks its
// names or dates: the key in it is the identity (RFC 5280 v3, RFC 8410).
func (k *Key) Certificate() (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "mintai"},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5: no well-defined end
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.priv.Public(), k.priv)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("self-signed certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.priv}, nil
}

// PeerID returns the NodeID of the other end of a TLS connection. Inside
// VerifyConnection the peer has not yet proved that it holds the key: use the
// result only to refuse, and write nothing under it before the handshake ends.
func PeerID(cs tls.ConnectionState) (NodeID, error) {
	if len(cs.PeerCertificates) != 1 {
		return NodeID{}, fmt.Errorf("%w: %d certificates instead of one", ErrPeer, len(cs.PeerCertificates))
	}
	pub, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return NodeID{}, fmt.Errorf("%w: the certificate's key is %T, not Ed25519", ErrPeer, cs.PeerCertificates[0].PublicKey)
	}
	return NodeIDFromBytes(pub)
}

// ServerTLS returns a TLS 1.3 configuration that demands a client certificate
// and asks allow about the NodeID in it, on full handshakes and resumptions
// alike. A nil allow accepts every node.
func (k *Key) ServerTLS(alpn string, allow func(NodeID) error) (*tls.Config, error) {
	cfg, err := k.config(alpn, allow)
	if err != nil {
		return nil, err
	}
	cfg.ClientAuth = tls.RequireAnyClientCert
	return cfg, nil
}

// ClientTLS returns a TLS 1.3 configuration for dialing. The server must prove
// that it is peer, or, when peer is zero, any NodeID that allow accepts.
func (k *Key) ClientTLS(alpn string, peer NodeID, allow func(NodeID) error) (*tls.Config, error) {
	cfg, err := k.config(alpn, func(id NodeID) error {
		if !peer.IsZero() && id != peer {
			return fmt.Errorf("%w: answered as %s, expected %s", ErrPeer, id.Short(), peer.Short())
		}
		if allow != nil {
			return allow(id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Constant, so that nobody on the wire learns who is called. A session
	// cache must therefore belong to one peer.
	cfg.ServerName = "mintai"
	// The chain is replaced by VerifyConnection below, which compares the key
	// itself. (VerifyPeerCertificate would be skipped on resumption.)
	cfg.InsecureSkipVerify = true
	return cfg, nil
}

func (k *Key) config(alpn string, allow func(NodeID) error) (*tls.Config, error) {
	cert, err := k.Certificate()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{alpn},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := PeerID(cs)
			if err != nil {
				return err
			}
			if allow == nil {
				return nil
			}
			return allow(id)
		},
	}, nil
}
