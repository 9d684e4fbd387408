package wss

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"mintai/identity"
)

const testWait = 10 * time.Second

func patient(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	tb.Cleanup(cancel)
	return ctx
}

func newKey(tb testing.TB) *identity.Key {
	tb.Helper()
	key, err := identity.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// startServer serves on loopback until the test ends or stop is called.
func startServer(tb testing.TB, cfg ServerConfig) (s *Server, stop func()) {
	tb.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	cfg.Log = zerolog.New(zerolog.NewTestWriter(tb)).Level(zerolog.DebugLevel)
	s, err := Listen(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			tb.Errorf("Serve: %v", err)
		}
	}
	tb.Cleanup(stop)
	return s, stop
}

func quicConfig() *quic.Config {
	return &quic.Config{InitialPacketSize: 1200, Allow0RTT: true, KeepAlivePeriod: 15 * time.Second, HandshakeIdleTimeout: testWait}
}

// echo answers each stream of each connection with what it said, after the
// NodeID that the connection proved.
func echo(tb testing.TB, s *Server, key *identity.Key) {
	tb.Helper()
	conf, err := key.ServerTLS("test", nil)
	if err != nil {
		tb.Fatal(err)
	}
	tr := &quic.Transport{Conn: s.Packets()}
	listener, err := tr.ListenEarly(conf, quicConfig())
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept(ctx)
			if err != nil {
				return
			}
			go answer(ctx, conn)
		}
	}()
	tb.Cleanup(func() {
		cancel()
		_ = listener.Close()
		_ = tr.Close()
		<-done
	})
}

func answer(ctx context.Context, conn *quic.Conn) {
	for {
		str, err := conn.AcceptStream(ctx)
		if err != nil {
			return
		}
		body, err := io.ReadAll(str)
		if err != nil {
			return
		}
		if !conn.ConnectionState().Used0RTT { // its ticket says who it is
			select {
			case <-conn.HandshakeComplete():
			case <-ctx.Done():
				return
			}
		}
		peer, err := identity.PeerID(conn.ConnectionState().TLS)
		if err != nil {
			return
		}
		_, _ = str.Write(append([]byte(peer.String()+" "), body...))
		_ = str.Close()
	}
}

// dialQUIC connects over c and expects the coordinator's key.
func dialQUIC(tb testing.TB, c *Conn, key *identity.Key, peer identity.NodeID, wait time.Duration) (*quic.Conn, error) {
	tb.Helper()
	conf, err := key.ClientTLS("test", peer, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tr := &quic.Transport{Conn: c}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	conn, err := tr.Dial(ctx, c.Remote(), conf, quicConfig())
	tb.Cleanup(func() {
		_ = tr.Close()
		_ = c.Close()
	})
	return conn, err
}

func ask(tb testing.TB, conn *quic.Conn, text string) string {
	tb.Helper()
	str, err := conn.OpenStreamSync(patient(tb))
	if err != nil {
		tb.Fatal(err)
	}
	_ = str.SetDeadline(time.Now().Add(testWait))
	if _, err := io.WriteString(str, text); err != nil {
		tb.Fatal(err)
	}
	_ = str.Close()
	got, err := io.ReadAll(str)
	if err != nil {
		tb.Fatal(err)
	}
	return string(got)
}

func connect(tb testing.TB, d *Dialer, target string) *Conn {
	tb.Helper()
	c, err := d.Packets(patient(tb), target)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// middleman is who opens the outer TLS with a certificate of its own: it ends
// the WebSocket and begins another one, and may change what crosses it. It does
// not know our header.
func middleman(tb testing.TB, target string, change func(toServer bool, b []byte) []byte) string {
	tb.Helper()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		down, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{Subprotocol}})
		if err != nil {
			return
		}
		defer func() { _ = down.CloseNow() }()
		up, _, err := websocket.Dial(ctx, "https://"+target+Path, &websocket.DialOptions{
			Subprotocols: []string{Subprotocol},
			HTTPClient:   &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
		})
		if err != nil {
			return
		}
		defer func() { _ = up.CloseNow() }()
		done := make(chan struct{})
		pump := func(from, to *websocket.Conn, toServer bool) {
			for {
				kind, b, err := from.Read(ctx)
				if err != nil {
					break
				}
				if b = change(toServer, b); b == nil {
					continue
				}
				if to.Write(ctx, kind, b) != nil {
					break
				}
			}
			cancel()
		}
		go func() { defer close(done); pump(up, down, false) }()
		pump(down, up, true)
		<-done
	})
	server := httptest.NewTLSServer(h)
	tb.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func tlsTo(tb testing.TB, s *Server, protocols ...string) *tls.Conn {
	tb.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}}
	c, err := d.DialContext(patient(tb), "tcp", s.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(testWait))
	return c.(*tls.Conn)
}

// mustEnd reads until the other end closes.
func mustEnd(tb testing.TB, c net.Conn) {
	tb.Helper()
	_ = c.SetReadDeadline(time.Now().Add(testWait))
	if _, err := io.Copy(io.Discard, c); err != nil {
		var ne net.Error
		if ok := asTimeout(err, &ne); ok {
			tb.Fatal("the connection stays open")
		}
	}
}
