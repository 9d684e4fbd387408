package quicstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"mintai/identity"
)

var never = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("reached the handler") })

func TestDialRefusesOtherNode(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: never})
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	_, err := Dial(ctx, DialConfig{Transport: socket(t), Addr: r.addr, Key: r.client, Peer: testKey(t).ID()})
	if !errors.Is(err, ErrPeerIdentity) || !errors.Is(err, identity.ErrPeer) {
		t.Fatalf("error %v", err)
	}
}

// A server whose certificate is not over an Ed25519 key is nobody.
func TestDialRefusesOtherCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	tr := socket(t)
	ln, err := tr.Listen(&tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{ALPN},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	_, err = Dial(ctx, DialConfig{Transport: socket(t), Addr: tr.Conn.LocalAddr(), Key: testKey(t), Peer: testKey(t).ID()})
	if !errors.Is(err, ErrPeerIdentity) {
		t.Fatalf("error %v", err)
	}
}

func TestDialRefusesOtherProtocol(t *testing.T) {
	key := testKey(t)
	conf, err := key.ServerTLS("mintai-tunnel/2", nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := socket(t)
	ln, err := tr.Listen(conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	_, err = Dial(ctx, DialConfig{Transport: socket(t), Addr: tr.Conn.LocalAddr(), Key: testKey(t), Peer: key.ID()})
	if !errors.Is(err, ErrProtocol) {
		t.Fatalf("error %v", err)
	}
}

func TestDialNobody(t *testing.T) {
	silent := socket(t) // never reads a packet
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, DialConfig{Transport: socket(t), Addr: silent.Conn.LocalAddr(), Key: testKey(t), Peer: testKey(t).ID()})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	if _, err := Dial(ctx, DialConfig{}); err == nil {
		t.Fatal("dialed nothing")
	}
}

// rawDial connects with any TLS configuration, as a stranger would.
func (r *rig) rawDial(conf *tls.Config) (*quic.Conn, error) {
	r.tb.Helper()
	conf.InsecureSkipVerify = true
	conf.MinVersion = tls.VersionTLS13
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	conn, err := socket(r.tb).Dial(ctx, r.addr, conf, &quic.Config{})
	if err != nil {
		return nil, err
	}
	r.tb.Cleanup(func() { _ = conn.CloseWithError(0, "") })
	return conn, nil
}

func TestServerRefusesStrangers(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: never})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	good, err := testKey(t).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]*tls.Config{
		"no client certificate": {NextProtos: []string{ALPN}},
		"another kind of key":   {NextProtos: []string{ALPN}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		"another protocol":      {NextProtos: []string{"h3"}, Certificates: []tls.Certificate{good}},
		"no protocol":           {Certificates: []tls.Certificate{good}},
		"somebody else's certificate": {NextProtos: []string{ALPN}, Certificates: []tls.Certificate{{
			Certificate: good.Certificate, PrivateKey: testPrivate(t),
		}}},
	}
	for name, conf := range tests {
		t.Run(name, func(t *testing.T) {
			conn, err := r.rawDial(conf)
			if err == nil { // TLS 1.3: the server looks at the client's certificate after the client is done
				wait(t, "refusal", conn.Context().Done())
				err = context.Cause(conn.Context())
			}
			if te, ok := errors.AsType[*quic.TransportError](err); !ok || !te.ErrorCode.IsCryptoError() {
				t.Fatalf("error %v", err)
			}
		})
	}
	if c := r.server.Counters(); c.Tunnels != 0 || len(r.server.Tunnels()) != 0 {
		t.Errorf("%+v", c)
	}
}

// testPrivate is a private key that fits no certificate of the test.
func testPrivate(t *testing.T) any {
	t.Helper()
	other, err := testKey(t).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return other.PrivateKey
}

func TestUnauthorizedClient(t *testing.T) {
	allowed := make(chan bool, 1)
	allowed <- true
	granted := func() bool { v := <-allowed; allowed <- v; return v }
	r := newRig(t, ServerConfig{
		Authorize: func(identity.NodeID) error {
			if !granted() {
				return errors.New("no grant")
			}
			return nil
		},
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
	})
	tunnel := r.dial()
	if res := r.do(tunnel, post(t, "/", "{}")); res.StatusCode != 200 {
		t.Fatalf("status %d", res.StatusCode)
	}
	<-allowed
	allowed <- false // the grant ends while the tunnel lives
	res := r.do(tunnel, post(t, "/", "{}"))
	if res.StatusCode != http.StatusForbidden || res.Header.Get(HeaderError) != string(RefusedUnauthorized) {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	second := r.dial()
	wait(t, "end of the second tunnel", second.Done())
	if err := second.Err(); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("error %v", err)
	}
	_, err := second.RoundTrip(post(t, "/", "{}"))
	if _, ok := errors.AsType[*LostError](err); !ok || !errors.Is(err, ErrUnauthorized) {
		t.Errorf("error %v", err)
	}
	if n := r.server.Counters().RefusedTunnels; n != 1 {
		t.Errorf("%d refused", n)
	}
}

func TestRoundTripRefusesUpgrades(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: never})
	tunnel := r.dial()
	upgrade := post(t, "/", "{}", "Connection", "Upgrade", "Upgrade", "websocket")
	connect := post(t, "/", "{}")
	connect.Method = http.MethodConnect
	extended := connect.Clone(connect.Context())
	extended.Proto = "websocket"
	for _, req := range []*http.Request{upgrade, connect, extended} {
		if _, err := tunnel.RoundTrip(req); !errors.Is(err, ErrBadMethod) {
			t.Errorf("%s: %v", req.Method, err)
		}
	}
	large := post(t, "/", "{}", "X-Large", strings.Repeat("a", MaxHeaderBytes))
	if _, err := tunnel.RoundTrip(large); !errors.Is(err, ErrHeaderTooLarge) {
		t.Errorf("large header: %v", err)
	}
	if n := tunnel.InFlight(); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

// A stranger's client does not hold itself back.
func TestServerRefusesBadRequests(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: never, MaxBody: 1 << 10})
	conf, err := r.client.ClientTLS(ALPN, r.key.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := r.rawDial(conf)
	if err != nil {
		t.Fatal(err)
	}
	h3 := (&http3.Transport{DisableCompression: true}).NewClientConn(conn)
	id := NewRequestID().String()
	connect := post(t, "/", "", HeaderRequest, id)
	connect.Method, connect.Body, connect.Host = http.MethodConnect, nil, "127.0.0.1:22"
	extended := connect.Clone(connect.Context())
	extended.Proto, extended.URL.Scheme = "websocket", "https"
	unknown := post(t, "/", strings.Repeat("x", 2<<10), HeaderRequest, id)
	unknown.ContentLength = -1
	tests := map[string]struct {
		req    *http.Request
		status int
	}{
		"no request ID":                {post(t, "/", "{}"), 400},
		"CONNECT":                      {connect, 405},
		"extended CONNECT":             {extended, 405},
		"header too large":             {post(t, "/", "{}", HeaderRequest, id, "X-Large", strings.Repeat("a", 40<<10)), 431},
		"body too large":               {post(t, "/", strings.Repeat("x", 2<<10), HeaderRequest, id), 413},
		"body too large, no length":    {unknown, 413},
		"many header fields too large": {manyFields(post(t, "/", "{}", HeaderRequest, id)), 431},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.req.URL.Scheme = "https"
			res, err := h3.RoundTrip(test.req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			if res.StatusCode != test.status {
				t.Errorf("status %d, want %d", res.StatusCode, test.status)
			}
		})
	}
	if conn.Context().Err() != nil {
		t.Errorf("the tunnel ended: %v", context.Cause(conn.Context()))
	}
	eventually(t, "no memory is charged", func() bool { return r.server.Counters().BufferedBytes == 0 })
}

func manyFields(req *http.Request) *http.Request {
	for range 2000 {
		req.Header.Add("X-A", "b")
	}
	return req
}

// A body that never comes, and one that breaks off, end without the handler.
func TestBodyDoesNotArrive(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: never, BodyTimeout: 100 * time.Millisecond})
	tunnel := r.dial()
	reader, writer := io.Pipe()
	req := post(t, "/", "")
	req.Body, req.ContentLength = reader, 100
	go func() { _, _ = writer.Write([]byte("half")) }()
	res := r.do(tunnel, req)
	if res.StatusCode != http.StatusBadRequest || res.Header.Get(HeaderError) != string(RefusedMalformed) {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	_ = writer.CloseWithError(errors.New("gone"))
	eventually(t, "no memory is charged", func() bool { return r.server.Counters().BufferedBytes == 0 })
}

func TestServerConfig(t *testing.T) {
	if _, err := NewServer(ServerConfig{Handler: never}); err == nil {
		t.Error("no key")
	}
	if _, err := NewServer(ServerConfig{Key: testKey(t)}); err == nil {
		t.Error("no handler")
	}
}
