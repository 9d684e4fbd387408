package quicstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"go.uber.org/goleak"

	"mintai/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testWait = 10 * time.Second

func testKey(tb testing.TB) *identity.Key {
	tb.Helper()
	key, err := identity.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// socket is a plain UDP socket on loopback with the buffers the product uses.
func socket(tb testing.TB) *quic.Transport {
	tb.Helper()
	return socketOn(tb, func(udp *net.UDPConn) net.PacketConn { return udp })
}

// socketOn is socket over what wrap makes of it.
func socketOn(tb testing.TB, wrap func(*net.UDPConn) net.PacketConn) *quic.Transport {
	tb.Helper()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	tr := &quic.Transport{Conn: wrap(udp)}
	tb.Cleanup(func() {
		_ = tr.Close()
		_ = udp.Close()
	})
	return tr
}

// rig is a server on a socket and a client key.
type rig struct {
	tb     testing.TB
	server *Server
	key    *identity.Key // the server's
	addr   net.Addr
	client *identity.Key
	stop   func()
}

func newRig(tb testing.TB, cfg ServerConfig) *rig {
	tb.Helper()
	r := &rig{tb: tb, key: testKey(tb), client: testKey(tb)}
	cfg.Key = r.key
	server, err := NewServer(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	r.server = server
	tr := socket(tb)
	r.addr = tr.Conn.LocalAddr()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, tr) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrServerClosed) {
			r.tb.Errorf("Serve: %v", err)
		}
		done, end := context.WithTimeout(context.Background(), 0)
		defer end()
		if err := server.Shutdown(done); err != nil && done.Err() == nil {
			tb.Error(err)
		}
	}
	tb.Cleanup(r.stop)
	return r
}

func (r *rig) dial() *Tunnel { return r.dialFrom(socket(r.tb), r.client) }

func (r *rig) dialFrom(tr *quic.Transport, key *identity.Key) *Tunnel {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	t, err := Dial(ctx, DialConfig{Transport: tr, Addr: r.addr, Key: key, Peer: r.key.ID()})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() { _ = t.Close(Done) })
	return t
}

// post makes a request that ends with the test at the latest.
func post(tb testing.TB, path, body string, header ...string) *http.Request {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	tb.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://any"+path, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func (r *rig) do(t *Tunnel, req *http.Request) *http.Response {
	r.tb.Helper()
	res, err := t.RoundTrip(req)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func readAll(tb testing.TB, res *http.Response) string {
	tb.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func wait(tb testing.TB, what string, c <-chan struct{}) {
	tb.Helper()
	select {
	case <-c:
	case <-time.After(testWait):
		tb.Fatalf("no %s within %v", what, testWait)
	}
}

func TestEcho(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		peer, _ := PeerFromContext(req.Context())
		w.Header().Set("X-Peer", peer.String())
		w.Header().Set("X-Remote", RemoteFromContext(req.Context()).String())
		_, _ = io.Copy(w, req.Body)
	})})
	tunnel := r.dial()
	for _, body := range []string{"hello", "", strings.Repeat("0123456789", 1<<17)} {
		res := r.do(tunnel, post(t, "/v1/chat/completions", body))
		if got := readAll(t, res); res.StatusCode != 200 || got != body {
			t.Fatalf("status %d, %d bytes instead of %d", res.StatusCode, len(got), len(body))
		}
		if res.Header.Get("X-Peer") != r.client.ID().String() || !strings.HasPrefix(res.Header.Get("X-Remote"), "127.0.0.1:") {
			t.Fatalf("peer %q remote %q", res.Header.Get("X-Peer"), res.Header.Get("X-Remote"))
		}
	}
	if n := tunnel.InFlight(); n != 0 {
		t.Errorf("%d requests in flight", n)
	}
	if s := tunnel.Stats(); s.RTT <= 0 || s.BytesReceived == 0 || s.Remote.String() != r.addr.String() {
		t.Errorf("stats %+v", s)
	}
	if infos := r.server.Tunnels(); len(infos) != 1 || infos[0].Peer != r.client.ID() {
		t.Errorf("tunnels %+v", infos)
	}
}
