package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

const testALPN = "mintai-test/1"

// handshake runs both ends of a TLS connection over loopback, with one byte of
// the server's in it so that session tickets arrive. (Over net.Pipe, an alert
// waits for a peer that is writing itself.)
func handshake(t *testing.T, client, server *tls.Config) (clientState, serverState tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	cc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	if err := errors.Join(cc.SetDeadline(deadline), sc.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := tls.Server(sc, server)
		serverErr = s.Handshake()
		if serverErr == nil {
			_, serverErr = s.Write([]byte{1})
		}
		serverState = s.ConnectionState()
		_ = sc.Close()
	}()
	c := tls.Client(cc, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	clientState = c.ConnectionState()
	_ = cc.Close()
	<-done
	return clientState, serverState, clientErr, serverErr
}

func newTestKey(t *testing.T) *Key {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustTLS(t *testing.T, cfg *tls.Config, err error) *tls.Config {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestMutualTLS(t *testing.T) {
	a, b, other := newTestKey(t), newTestKey(t), newTestKey(t)
	refusal := errors.New("not on the list")
	only := func(id NodeID) func(NodeID) error {
		return func(got NodeID) error {
			if got != id {
				return refusal
			}
			return nil
		}
	}
	server := func(allow func(NodeID) error) *tls.Config {
		cfg, err := b.ServerTLS(testALPN, allow)
		return mustTLS(t, cfg, err)
	}
	client := func(peer NodeID, allow func(NodeID) error) *tls.Config {
		cfg, err := a.ClientTLS(testALPN, peer, allow)
		return mustTLS(t, cfg, err)
	}
	cs, ss, cerr, serr := handshake(t, client(b.ID(), nil), server(only(a.ID())))
	if cerr != nil || serr != nil {
		t.Fatalf("client %v, server %v", cerr, serr)
	}
	if id, err := PeerID(cs); err != nil || id != b.ID() {
		t.Errorf("the client sees %v, %v", id, err)
	}
	if id, err := PeerID(ss); err != nil || id != a.ID() {
		t.Errorf("the server sees %v, %v", id, err)
	}
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != testALPN {
		t.Errorf("version %x, %s", cs.Version, cs.NegotiatedProtocol)
	}
	if _, _, err, _ := handshake(t, client(other.ID(), nil), server(nil)); !errors.Is(err, ErrPeer) {
		t.Errorf("another node than the expected one: %v", err)
	}
	if _, _, err, _ := handshake(t, client(NodeID{}, only(other.ID())), server(nil)); !errors.Is(err, refusal) {
		t.Errorf("a node that the client does not allow: %v", err)
	}
	if _, _, _, err := handshake(t, client(b.ID(), nil), server(only(other.ID()))); !errors.Is(err, refusal) {
		t.Errorf("a node that the server does not allow: %v", err)
	}
	wrong := client(b.ID(), nil)
	wrong.NextProtos = []string{"h2"}
	if _, _, err, _ := handshake(t, wrong, server(nil)); err == nil {
		t.Error("another protocol was accepted")
	}
	none := client(b.ID(), nil)
	none.Certificates = nil
	if _, _, _, err := handshake(t, none, server(nil)); err == nil {
		t.Error("a client without a certificate was accepted")
	}
}

// Another node's certificate, which everybody may have seen, is worth nothing
// without its key.
func TestStolenCertificate(t *testing.T) {
	victim, thief, peer := newTestKey(t), newTestKey(t), newTestKey(t)
	stolen, err := victim.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	stolen.PrivateKey = thief.priv
	server, err := thief.ServerTLS(testALPN, nil)
	server = mustTLS(t, server, err)
	server.Certificates = []tls.Certificate{stolen}
	client, err := peer.ClientTLS(testALPN, victim.ID(), nil)
	if _, _, err, _ := handshake(t, mustTLS(t, client, err), server); err == nil {
		t.Error("the client believed it")
	}
	client, err = thief.ClientTLS(testALPN, peer.ID(), nil)
	client = mustTLS(t, client, err)
	client.Certificates = []tls.Certificate{stolen}
	server, err = peer.ServerTLS(testALPN, nil)
	if _, _, _, err := handshake(t, client, mustTLS(t, server, err)); err == nil {
		t.Error("the server believed it")
	}
}

// VerifyConnection runs on resumption as well: a node that was banned meanwhile
// does not come back with an old ticket.
func TestResumptionIsVerified(t *testing.T) {
	a, b := newTestKey(t), newTestKey(t)
	banned := false
	server, err := b.ServerTLS(testALPN, func(NodeID) error {
		if banned {
			return ErrPeer
		}
		return nil
	})
	server = mustTLS(t, server, err)
	client, err := a.ClientTLS(testALPN, b.ID(), nil)
	client = mustTLS(t, client, err)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		cs, _, cerr, serr := handshake(t, client, server)
		if cerr != nil || serr != nil || cs.DidResume != (i == 1) {
			t.Fatalf("connection %d: resumed %v, %v, %v", i, cs.DidResume, cerr, serr)
		}
	}
	banned = true
	if _, _, _, err := handshake(t, client, server); !errors.Is(err, ErrPeer) {
		t.Errorf("banned and resumed: %v", err)
	}
}

func TestPeerIDOfOtherCertificates(t *testing.T) {
	if _, err := PeerID(tls.ConnectionState{}); !errors.Is(err, ErrPeer) {
		t.Errorf("none: %v", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PeerID(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}); !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), "not Ed25519") {
		t.Errorf("ECDSA: %v", err)
	}
	if _, err := PeerID(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert, cert}}); !errors.Is(err, ErrPeer) {
		t.Errorf("two: %v", err)
	}
}
