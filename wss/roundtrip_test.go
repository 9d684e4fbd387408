package wss

import (
	"crypto/tls"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// line is a TCP relay with a delay in each direction, which counts bytes.
type line struct {
	delay    time.Duration
	toServer atomic.Int64
}

type chunk struct {
	at time.Time
	b  []byte
}

// pump moves bytes with the delay. It ends with its source.
func (l *line) pump(from, to net.Conn, count *atomic.Int64) {
	queue := make(chan chunk, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		for c := range queue {
			timer := time.NewTimer(time.Until(c.at))
			<-timer.C
			_, _ = to.Write(c.b)
		}
		_ = to.Close()
	})
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if count != nil {
			count.Add(int64(n))
		}
		queue <- chunk{time.Now().Add(l.delay), b[:n]}
		if err != nil {
			break
		}
	}
	close(queue)
	wg.Wait()
}

// start returns where the line begins; it ends at target.
func (l *line) start(tb testing.TB, target string) string {
	tb.Helper()
	var wg sync.WaitGroup
	at := listen(tb, func(down net.Conn) {
		up, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		wg.Go(func() { l.pump(up, down, nil) })
		l.pump(down, up, &l.toServer)
	})
	tb.Cleanup(wg.Wait)
	return at
}

// After TCP it takes one round trip for TLS and one for everything else, and a
// request in 0-RTT has its answer then. (The line does not delay TCP's own.)
func TestRoundTrips(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	coordinator, node := newKey(t), newKey(t)
	echo(t, s, coordinator)
	const r = time.Second // long, so that a busy machine is not taken for a round trip
	l := &line{delay: r / 2}
	conf, err := node.ClientTLS("test", coordinator.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)

	for _, name := range []string{"first contact", "with a ticket"} {
		at := l.start(t, s.Addr().String())
		begun := time.Now()
		c := connect(t, &Dialer{}, at)
		tr := &quic.Transport{Conn: c}
		conn, err := tr.DialEarly(patient(t), c.Remote(), conf, quicConfig())
		if err != nil {
			t.Fatal(err)
		}
		if name == "first contact" {
			<-conn.HandshakeComplete()
		} else if got := ask(t, conn, "x"); got != node.ID().String()+" x" {
			t.Error(got)
		}
		took := time.Since(begun)
		if took < 2*r || took > 2*r+r*9/10 {
			t.Errorf("%s: %v, which is %.2f round trips", name, took, float64(took)/float64(r))
		}
		t.Logf("%s: %.2f round trips after TCP's, 0-RTT %v", name, float64(took)/float64(r), conn.ConnectionState().Used0RTT)
		if name == "first contact" {
			_ = ask(t, conn, "x") // and the ticket comes
		} else if !conn.ConnectionState().Used0RTT {
			t.Error("no 0-RTT")
		}
		_ = conn.CloseWithError(0, "")
		_ = tr.Close()
		_ = c.Close()
	}
}

// What a datagram of 1200 bytes costs on top: 8 bytes of WebSocket (4 from the
// server, which does not mask), 22 of TLS 1.3, and TCP's headers.
func TestOverhead(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	l := &line{}
	c := connect(t, &Dialer{}, l.start(t, s.Addr().String()))
	send := func(n int) {
		t.Helper()
		for range n {
			if _, err := c.WriteTo(make([]byte, 1200), nil); err != nil {
				t.Fatal(err)
			}
			_, _ = read(t, s.Packets())
		}
	}
	send(1)
	before := l.toServer.Load()
	send(50)
	if each := (l.toServer.Load() - before) / 50; each != 1200+8+22 {
		t.Errorf("%d bytes a datagram", each)
	}
}

// BenchmarkDatagrams moves datagrams to the server, a few at a time.
func BenchmarkDatagrams(b *testing.B) {
	s, _ := startServer(b, ServerConfig{})
	d := &Dialer{Proxy: func(*url.URL) (*url.URL, error) { return nil, nil }}
	c, err := d.Packets(b.Context(), s.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	packet, buf := make([]byte, 1200), make([]byte, MaxDatagram)
	b.SetBytes(1200)
	b.ReportAllocs()
	const window = queueLength / 2
	for i := 0; b.Loop(); i++ {
		if _, err := c.WriteTo(packet, nil); err != nil {
			b.Fatal(err)
		}
		if i >= window {
			if _, _, err := s.Packets().ReadFrom(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
}
