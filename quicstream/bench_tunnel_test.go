package quicstream

import (
	"context"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	bulkBytes = 256 << 20
	bulkPairs = 9
	// bulkWrite and bulkRead are what each side moves at a time, on the raw
	// stream and in the tunnel alike.
	bulkWrite = 256 << 10
	bulkRead  = 256 << 10
)

type sample struct {
	wall, cpu time.Duration
}

func measure(tb testing.TB, run func() int64) sample {
	tb.Helper()
	cpu, start := cpuTime(), time.Now()
	if n := run(); n != bulkBytes {
		tb.Fatalf("%d bytes instead of %d", n, int64(bulkBytes))
	}
	return sample{wall: time.Since(start), cpu: cpuTime() - cpu}
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// writeBulk writes the body in both contestants.
func writeBulk(w io.Writer, piece []byte) error {
	for range bulkBytes / len(piece) {
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// readBulk reads it in both contestants.
func readBulk(tb testing.TB, r io.Reader, buf []byte) int64 {
	var n int64
	for {
		m, err := r.Read(buf)
		n += int64(m)
		if err == io.EOF {
			return n
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkTunnel compares an answer body through a tunnel with a raw QUIC
// stream between sockets and configurations alike, in alternated pairs. x-raw
// is the median ratio of throughputs, cpu-x-raw that of CPU time, both ends and
// the handler together.
func BenchmarkTunnel(b *testing.B) {
	piece := make([]byte, bulkWrite)
	r := newRig(b, ServerConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := writeBulk(w, piece); err != nil {
			b.Error(err)
		}
	})})
	tunnel := r.dial()
	raw := newRawPair(b, r)
	buf := make([]byte, bulkRead)

	overTunnel := func() int64 {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://any/", http.NoBody)
		if err != nil {
			b.Fatal(err)
		}
		res, err := tunnel.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		return readBulk(b, res.Body, buf)
	}
	overRaw := func() int64 { return raw.transfer(b, piece, buf) }
	measure(b, overTunnel) // both have their windows open and their buffers grown
	measure(b, overRaw)

	var speed, cpu, rate, rawRate []float64
	b.SetBytes(2 * bulkPairs * bulkBytes)
	b.ReportAllocs()
	for b.Loop() {
		for i := range bulkPairs {
			var t, w sample
			if i%2 == 0 {
				t, w = measure(b, overTunnel), measure(b, overRaw)
			} else {
				w, t = measure(b, overRaw), measure(b, overTunnel)
			}
			speed = append(speed, float64(w.wall)/float64(t.wall))
			cpu = append(cpu, float64(t.cpu)/float64(w.cpu))
			rate = append(rate, bulkBytes/1e6/t.wall.Seconds())
			rawRate = append(rawRate, bulkBytes/1e6/w.wall.Seconds())
		}
	}
	b.ReportMetric(median(speed), "x-raw")
	b.ReportMetric(median(cpu), "cpu-x-raw")
	b.ReportMetric(median(rate), "tunnel-MB/s")
	b.ReportMetric(median(rawRate), "raw-MB/s")
}

// rawPair is a QUIC connection without HTTP/3 and without an answer buffer.
type rawPair struct {
	client *quic.Conn
	server *quic.Conn
}

func newRawPair(b *testing.B, r *rig) *rawPair {
	b.Helper()
	const alpn = "raw"
	serverTLS, err := r.key.ServerTLS(alpn, nil)
	if err != nil {
		b.Fatal(err)
	}
	clientTLS, err := r.client.ClientTLS(alpn, r.key.ID(), nil)
	if err != nil {
		b.Fatal(err)
	}
	tr := socket(b)
	ln, err := tr.Listen(serverTLS, serverQUIC(DefaultMaxStreams, DefaultMaxIdle))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	client, err := socket(b).Dial(ctx, tr.Conn.LocalAddr(), clientTLS, clientQUIC(false, DefaultMaxIdle))
	if err != nil {
		b.Fatal(err)
	}
	server, err := ln.Accept(ctx)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = client.CloseWithError(0, "")
		_ = ln.Close()
	})
	return &rawPair{client: client, server: server}
}

// transfer asks with one byte and reads the bulk.
func (p *rawPair) transfer(b *testing.B, piece, buf []byte) int64 {
	b.Helper()
	sent := make(chan error, 1)
	go func() {
		str, err := p.server.AcceptStream(context.Background())
		if err == nil {
			if err = writeBulk(str, piece); err == nil {
				err = str.Close()
			}
		}
		sent <- err
	}()
	str, err := p.client.OpenStream()
	if err != nil {
		b.Fatal(err)
	}
	if _, err := str.Write([]byte{1}); err != nil {
		b.Fatal(err)
	}
	_ = str.Close()
	n := readBulk(b, str, buf)
	if err := <-sent; err != nil {
		b.Fatal(err)
	}
	return n
}
