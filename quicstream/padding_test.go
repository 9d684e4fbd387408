package quicstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
)

func TestPaddingLengths(t *testing.T) {
	p := padding{}
	for i, c := range []struct{ frame, whole int }{
		{10, 256},
		{254, 256},
		{255, 512},
		{10, 512},
		{600, 768},
		{300, 768},
		{1022, 1024},
		{1, 1024},
		{1023, 1280},
		{1, 1024},
		{5000, 5120},
		{16000, 16128},
	} {
		if got := c.frame + p.after(c.frame); got != c.whole {
			t.Errorf("record %d: %d bytes, want %d", i, got, c.whole)
		}
	}
	off := padding{off: true}
	if n := off.after(100); n != 0 {
		t.Errorf("%d bytes though it is off", n)
	}
}

func TestPaddingFrame(t *testing.T) {
	for n := leastPadding; n <= padSticky; n++ {
		b := appendPadding(nil, n)
		r := bytes.NewReader(b)
		typ, err := quicvarint.Read(r)
		length, lerr := quicvarint.Read(r)
		if err != nil || lerr != nil || len(b) != n || (typ-0x21)%0x1f != 0 || int(length) != r.Len() {
			t.Fatalf("%d bytes: %d, type %d, length %d, %d left", n, len(b), typ, length, r.Len())
		}
	}
}

// sizeConn notes the length of each datagram that is sent.
type sizeConn struct {
	*net.UDPConn
	mu    sync.Mutex
	sizes []int
}

func (c *sizeConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	c.note(len(b))
	return c.UDPConn.WriteMsgUDP(b, oob, addr)
}

func (c *sizeConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	c.note(len(b))
	return c.UDPConn.WriteTo(b, addr)
}

func (c *sizeConn) note(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes = append(c.sizes, n)
}

// take returns the longest datagram since the last call that is no heartbeat.
func (c *sizeConn) take() (longest int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.sizes {
		if n < 1100 {
			longest = max(longest, n)
		}
	}
	c.sizes = c.sizes[:0]
	return longest
}

// event is a token as OpenAI-compatible servers send it.
func event(token string) string {
	return fmt.Sprintf(`data: {"id":"chatcmpl-8f3a","object":"chat.completion.chunk","created":1700000000,"model":"llama3.1:8b","choices":[{"index":0,"delta":{"content":%q},"finish_reason":null}]}`+"\n\n", token)
}

// tokens are of 1 to most letters.
func tokens(n, most int) []string {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]string, n)
	for i := range out {
		out[i] = strings.Repeat("a", 1+r.IntN(most))
	}
	return out
}

// correlation is Pearson's, of at least 1,000 pairs. A size of 0 was not measured:
// its datagram left together with a heartbeat.
func correlation(t *testing.T, lengths, sizes []float64) float64 {
	t.Helper()
	var x, y []float64
	for i, size := range sizes {
		if size > 0 {
			x, y = append(x, lengths[i]), append(y, size)
		}
	}
	if len(x) < 1000 || len(x) < len(lengths)*98/100 {
		t.Fatalf("%d of %d sizes were measured", len(x), len(lengths))
	}
	var mx, my float64
	for i := range x {
		mx += x[i] / float64(len(x))
		my += y[i] / float64(len(y))
	}
	var xy, xx, yy float64
	for i := range x {
		xy += (x[i] - mx) * (y[i] - my)
		xx += (x[i] - mx) * (x[i] - mx)
		yy += (y[i] - my) * (y[i] - my)
	}
	if xx == 0 || yy == 0 {
		return 0 // one of them is always the same: it says nothing
	}
	return xy / math.Sqrt(xx*yy)
}

// sizeRig is a server whose datagrams are measured, and a tunnel to it.
func sizeRig(t *testing.T, noPadding bool, handler http.Handler) (*sizeConn, *Tunnel) {
	t.Helper()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn := &sizeConn{UDPConn: udp}
	tr := &quic.Transport{Conn: conn}
	server, err := NewServer(ServerConfig{Key: testKey(t), Handler: handler, NoPadding: noPadding})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, tr) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_ = tr.Close()
		_ = udp.Close()
	})
	tunnel, err := Dial(t.Context(), DialConfig{Transport: socket(t), Addr: udp.LocalAddr(), Key: testKey(t), Peer: server.cfg.Key.ID(), Relayed: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tunnel.Close(Done) })
	return conn, tunnel
}

// sizesOf streams the tokens one by one and returns the length of the datagram
// that carries each.
func sizesOf(t *testing.T, noPadding bool, tokens []string) []float64 {
	t.Helper()
	feed := make(chan string)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		for e := range feed {
			if _, err := io.WriteString(w, e); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	})
	conn, tunnel := sizeRig(t, noPadding, handler)
	res, err := tunnel.RoundTrip(post(t, "/v1/chat/completions", "{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body := bufio.NewReader(res.Body)
	var sizes []float64
	conn.take()
	for _, token := range tokens {
		select {
		case feed <- event(token):
		case <-time.After(testWait):
			t.Fatal("the handler takes nothing")
		}
		if line, err := body.ReadString('\n'); err != nil || line != strings.TrimSuffix(event(token), "\n") {
			t.Fatalf("%q, %v", line, err)
		}
		_, _ = body.ReadString('\n')
		sizes = append(sizes, float64(conn.take()))
	}
	close(feed)
	if rest, err := io.ReadAll(body); err != nil || len(rest) > 0 {
		t.Fatalf("%q, %v", rest, err)
	}
	return sizes
}

// TestSizesSayNothing: who sees only the lengths of datagrams cannot tell those of
// the tokens. Without padding they can. With up to 700 letters the events lie in
// several steps of the padding, with 60 all in one. An acknowledgement that travels
// along makes some datagrams a little longer; 8,000 tokens are so many that this
// shows by chance as a correlation of 0.011 at most in two of three runs.
func TestSizesSayNothing(t *testing.T) {
	for _, most := range []int{60, 700} {
		t.Run(fmt.Sprintf("up to %d letters", most), func(t *testing.T) { sizesSayNothing(t, tokens(8000, most)) })
	}
}

func sizesSayNothing(t *testing.T, all []string) {
	lengths := make([]float64, len(all))
	for i, token := range all {
		lengths[i] = float64(len(token))
	}
	padded, plain := correlation(t, lengths, sizesOf(t, false, all)), correlation(t, lengths, sizesOf(t, true, all))
	t.Logf("correlation of token length and datagram size over %d tokens: %.3f padded, %.3f without", len(all), padded, plain)
	if math.Abs(padded) > 0.05 {
		t.Errorf("padded: correlation %.3f", padded)
	}
	if plain < 0.9 {
		t.Errorf("without padding: correlation %.3f: this test sees nothing", plain)
	}
}

// What waited for its tunnel, as the first piece of an answer may and all that a
// resumed one catches up with, is padded in the same way. An answer of one piece
// begins its own steps, so all of these lie in one.
func TestSizesOfWhatWaited(t *testing.T) {
	measure := func(noPadding bool, all []string) float64 {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			_, _ = w.Write(body)
		})
		conn, tunnel := sizeRig(t, noPadding, handler)
		var lengths, sizes []float64
		for i, token := range all {
			id := NewRequestID().String()
			for _, header := range [][]string{{}, {HeaderResume, "0"}} {
				conn.take()
				res, err := tunnel.RoundTrip(post(t, "/", event(token), append(header, HeaderRequest, id)...))
				if err != nil {
					t.Fatal(err)
				}
				if got := readAll(t, res); got != event(token) {
					t.Fatalf("token %d: %q", i, got)
				}
				lengths, sizes = append(lengths, float64(len(token))), append(sizes, float64(conn.take()))
			}
		}
		return correlation(t, lengths, sizes)
	}
	const answers = 3000 // each twice: 0.05 is four times the standard error
	padded, plain := measure(false, tokens(answers, 60)), measure(true, tokens(answers/3, 60))
	t.Logf("correlation over %d answers of one piece, and resumed: %.3f padded, %.3f without", answers, padded, plain)
	if math.Abs(padded) > 0.05 {
		t.Errorf("padded: correlation %.3f", padded)
	}
	if plain < 0.5 {
		t.Errorf("without padding: correlation %.3f: this test sees nothing", plain)
	}
}
