package wss

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/identity"
)

func asTimeout(err error, ne *net.Error) bool { return errors.As(err, ne) && (*ne).Timeout() }

func TestQUICBothWays(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	coordinator, node := newKey(t), newKey(t)
	echo(t, s, coordinator)
	c := connect(t, &Dialer{}, s.Addr().String())
	conn, err := dialQUIC(t, c, node, coordinator.ID(), testWait)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"hello", "", strings.Repeat("0123456789", 1<<16)} {
		if got, want := ask(t, conn, text), node.ID().String()+" "+text; got != want {
			t.Fatalf("%d bytes, want %d", len(got), len(want))
		}
	}
	if c.Proxy() != nil || c.Remote().(*Addr).AddrPort() != s.Addr() || c.Remote().Network() != "wss" {
		t.Errorf("remote %v proxy %v", c.Remote(), c.Proxy())
	}
	if err := conn.CloseWithError(0, ""); err != nil {
		t.Fatal(err)
	}
}

// The coordinator's end of a connection learns at once that it is closed: what
// was written before Close is sent.
func TestCloseSendsTheRest(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	coordinator := newKey(t)
	conf, err := coordinator.ServerTLS("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: s.Packets()}
	defer tr.Close()
	l, err := tr.Listen(conf, quicConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := connect(t, &Dialer{}, s.Addr().String())
	client, err := dialQUIC(t, c, newKey(t), coordinator.ID(), testWait)
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	if a := server.RemoteAddr().(*Addr); a.Network() != Network || a.AddrPort().Addr() != s.Addr().Addr() {
		t.Errorf("remote %v", a)
	}
	_ = client.CloseWithError(7, "bye")
	_ = c.Close()
	<-server.Context().Done()
	var app *quic.ApplicationError
	if err := context.Cause(server.Context()); !errors.As(err, &app) || app.ErrorCode != 7 {
		t.Errorf("the server saw %v", err)
	}
	if _, err := c.WriteTo([]byte("x"), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if _, _, err := c.ReadFrom(make([]byte, 1500)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// Two connections from one machine never share an address or a datagram.
func TestManyConnections(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	coordinator := newKey(t)
	echo(t, s, coordinator)
	const clients = 8
	errs := make(chan error, clients)
	for range clients {
		key := newKey(t)
		c := connect(t, &Dialer{}, s.Addr().String())
		conn, err := dialQUIC(t, c, key, coordinator.ID(), testWait)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for range 20 {
				if got := ask(t, conn, "x"); got != key.ID().String()+" x" {
					errs <- errors.New(got)
					return
				}
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// A middleman whose certificate is as good as any other carries a connection,
// and learns and changes nothing.
func TestMiddleman(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	coordinator, node := newKey(t), newKey(t)
	echo(t, s, coordinator)

	t.Run("honest", func(t *testing.T) {
		at := middleman(t, s.Addr().String(), func(_ bool, b []byte) []byte { return b })
		conn, err := dialQUIC(t, connect(t, &Dialer{}, at), node, coordinator.ID(), testWait)
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(t, conn, "x"); got != node.ID().String()+" x" {
			t.Error(got)
		}
	})
	t.Run("rewrites the handshake", func(t *testing.T) {
		var seen atomic.Int64
		at := middleman(t, s.Addr().String(), func(toServer bool, b []byte) []byte {
			if !toServer {
				seen.Add(1)
				b[len(b)/2] ^= 1
			}
			return b
		})
		_, err := dialQUIC(t, connect(t, &Dialer{}, at), node, coordinator.ID(), time.Second)
		if err == nil || seen.Load() == 0 {
			t.Fatalf("%v after %d rewritten messages", err, seen.Load())
		}
	})
	t.Run("rewrites the answer", func(t *testing.T) {
		var active, changed atomic.Bool
		at := middleman(t, s.Addr().String(), func(toServer bool, b []byte) []byte {
			if !toServer && active.Load() && !changed.Swap(true) {
				b[len(b)-1] ^= 1
			}
			return b
		})
		conn, err := dialQUIC(t, connect(t, &Dialer{}, at), node, coordinator.ID(), testWait)
		if err != nil {
			t.Fatal(err)
		}
		active.Store(true)
		if got := ask(t, conn, "x"); got != node.ID().String()+" x" || !changed.Load() {
			t.Errorf("%q, changed %v", got, changed.Load())
		}
	})
	t.Run("invents messages", func(t *testing.T) {
		at := middleman(t, s.Addr().String(), func(toServer bool, b []byte) []byte {
			if !toServer {
				return []byte("\x40 a grant that nobody gave")
			}
			return b
		})
		if _, err := dialQUIC(t, connect(t, &Dialer{}, at), node, coordinator.ID(), time.Second); err == nil {
			t.Fatal("a connection out of nothing")
		}
	})
}

// A coordinator with another key is refused however good its web certificate is.
func TestWrongKeyWithValidCertificate(t *testing.T) {
	cert, key, roots := issue(t, "coordinator.test")
	s, _ := startServer(t, ServerConfig{CertFile: cert, KeyFile: key})
	echo(t, s, newKey(t))
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "coordinator.test"}}
	valid, err := d.DialContext(patient(t), "tcp", s.Addr().String())
	if err != nil {
		t.Fatalf("the outer certificate is not valid, which this test needs: %v", err)
	}
	_ = valid.Close()
	_, err = dialQUIC(t, connect(t, &Dialer{}, s.Addr().String()), newKey(t), newKey(t).ID(), testWait)
	if err == nil || !strings.Contains(err.Error(), identity.ErrPeer.Error()) {
		t.Fatalf("dialled a stranger: %v", err)
	}
}

// The lost connection is the end, at once and for both.
func TestCutOff(t *testing.T) {
	s, stop := startServer(t, ServerConfig{})
	coordinator := newKey(t)
	echo(t, s, coordinator)
	c := connect(t, &Dialer{}, s.Addr().String())
	conn, err := dialQUIC(t, c, newKey(t), coordinator.ID(), testWait)
	if err != nil {
		t.Fatal(err)
	}
	_ = ask(t, conn, "x")
	stop()
	select {
	case <-conn.Context().Done():
	case <-time.After(testWait):
		t.Fatal("the client's connection goes on")
	}
	if _, _, err := c.ReadFrom(make([]byte, 1500)); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("read: %v", err)
	}
}
