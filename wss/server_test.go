package wss

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rs/zerolog"
)

// raise opens a WebSocket as a stranger would who knows the protocol.
func raise(tb testing.TB, s *Server, header http.Header) (*websocket.Conn, *http.Response, error) {
	tb.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	tb.Cleanup(tr.CloseIdleConnections)
	ws, res, err := websocket.Dial(patient(tb), "https://"+s.Addr().String()+Path, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: tr}, HTTPHeader: header, Subprotocols: []string{Subprotocol},
	})
	if err == nil {
		tb.Cleanup(func() { _ = ws.CloseNow() })
	}
	return ws, res, err
}

func read(tb testing.TB, pc net.PacketConn) (string, net.Addr) {
	tb.Helper()
	b := make([]byte, MaxDatagram)
	_ = pc.SetReadDeadline(time.Now().Add(testWait))
	n, from, err := pc.ReadFrom(b)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b[:n]), from
}

func TestFirstFlight(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	ws, res, err := raise(t, s, http.Header{flightHeader: {"b25l,dHdv"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Header.Get(flightHeader); got != "2" {
		t.Errorf("the server took %q", got)
	}
	if err := ws.Write(patient(t), websocket.MessageBinary, []byte("three")); err != nil {
		t.Fatal(err)
	}
	var from net.Addr
	for _, want := range []string{"one", "two", "three"} {
		got, addr := read(t, s.Packets())
		if got != want || from != nil && addr != from {
			t.Errorf("%q from %v, want %q", got, addr, want)
		}
		from = addr
	}
	if _, err := s.Packets().WriteTo([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if _, b, err := ws.Read(patient(t)); string(b) != "answer" {
		t.Errorf("%q %v", b, err)
	}
}

// What is written before the upgrade arrives once, in order, whether it fits the
// request or not, and whether somebody took the header away or not.
func TestFirstFlightOfConn(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	for name, at := range map[string]string{
		"straight":       s.Addr().String(),
		"without header": middleman(t, s.Addr().String(), func(_ bool, b []byte) []byte { return b }),
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, &Dialer{}, at)
			var want []string
			for i := range maxFlight + 2 {
				b := bytes.Repeat([]byte{byte('a' + i)}, 1200)
				want = append(want, string(b))
				if _, err := c.WriteTo(b, c.Remote()); err != nil {
					t.Fatal(err)
				}
			}
			for i := range want {
				if got, _ := read(t, s.Packets()); got != want[i] {
					t.Errorf("datagram %d: %.3s…, %d bytes", i, got, len(got))
				}
			}
			_ = c.Close()
		})
	}
}

func TestRefusals(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	get := func(path string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(patient(t), http.MethodGet, "https://"+s.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	if code, text := get("/"); code != 200 || !strings.Contains(text, "MintAI") || strings.Count(text, "\n") != 1 {
		t.Errorf("/: %d %q", code, text)
	}
	if code, _ := get("/else"); code != 404 {
		t.Errorf("/else: %d", code)
	}
	if code, _ := get(Path); code != http.StatusUpgradeRequired {
		t.Errorf("no upgrade: %d", code)
	}
	upgrade := []string{
		"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13",
		"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==",
	}
	if code, _ := get(Path, append(upgrade, "Sec-WebSocket-Protocol", "mqtt, mintai.2")...); code != http.StatusUpgradeRequired {
		t.Errorf("another subprotocol: %d", code)
	}
	ours := append(upgrade, "Sec-WebSocket-Protocol", Subprotocol)
	for _, bad := range []string{"!", "b25l,", ",", strings.Repeat("b25l,", 9) + "b25l", strings.Repeat("A", 7000)} {
		if code, _ := get(Path, append(ours, flightHeader, bad)...); code != http.StatusBadRequest {
			t.Errorf("flight %.20q: %d", bad, code)
		}
	}
	if code, _ := get("/", "X", strings.Repeat("x", 32<<10)); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a head of 32 KiB: %d", code)
	}
	// A foreign page's Origin is no reason: there is nothing to lend.
	if ws, _, err := raise(t, s, http.Header{"Origin": {"https://elsewhere.test"}}); err != nil {
		t.Error(err)
	} else if err := ws.Write(patient(t), websocket.MessageBinary, nil); err != nil {
		t.Error(err)
	}
}

func TestBadMessages(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	for name, c := range map[string]struct {
		kind websocket.MessageType
		size int
		want websocket.StatusCode
	}{
		"text":    {websocket.MessageText, 10, websocket.StatusUnsupportedData},
		"too big": {websocket.MessageBinary, MaxDatagram + 1, websocket.StatusMessageTooBig},
		"huge":    {websocket.MessageBinary, 1 << 20, websocket.StatusMessageTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			ws, _, err := raise(t, s, nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = ws.Write(patient(t), c.kind, make([]byte, c.size))
			_, _, err = ws.Read(patient(t))
			if got := websocket.CloseStatus(err); got != c.want && c.size < 1<<20 {
				t.Errorf("closed with %v: %v", got, err)
			}
			if err == nil {
				t.Error("the connection goes on")
			}
		})
	}
	ws, _, err := raise(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, MaxDatagram} { // an empty one is nothing
		if err := ws.Write(patient(t), websocket.MessageBinary, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{1, MaxDatagram} {
		if got, _ := read(t, s.Packets()); len(got) != n {
			t.Errorf("%d bytes, want %d", len(got), n)
		}
	}
}

// Who says nothing keeps no place: not before TLS, not before the request, and
// not after it.
func TestIdle(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	ws, _, err := raise(t, s, http.Header{flightHeader: {"b25l"}})
	if err != nil {
		t.Fatal(err)
	}
	_, from := read(t, s.Packets())
	s.endIdle(time.Now().Add(datagramIdle - time.Second))
	if _, err := s.Packets().WriteTo([]byte("there"), from); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ws.Read(patient(t)); err != nil {
		t.Fatal(err)
	}
	s.endIdle(time.Now().Add(datagramIdle + time.Second))
	if _, _, err := ws.Read(patient(t)); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Fatal(err)
	}
	ctx := patient(t)
	for {
		_, err := s.Packets().WriteTo([]byte("gone"), from)
		if errors.Is(err, net.ErrClosed) && s.count() == 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d connections counted, writing to who is gone: %v", s.count(), err)
		}
		runtime.Gosched()
	}
}

func (s *Server) count() int {
	s.limits.mu.Lock()
	defer s.limits.mu.Unlock()
	return s.limits.open
}

func TestSlowRequest(t *testing.T) {
	t.Parallel()
	s, _ := startServer(t, ServerConfig{})
	c := tlsTo(t, s, protocolHTTP)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX: "); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	mustEnd(t, c)
	if waited := time.Since(begun); waited > headerTimeout+2*time.Second {
		t.Errorf("ended after %v", waited)
	}
}

func TestNoTLS(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	mustEnd(t, c)
}

func TestLimits(t *testing.T) {
	s, _ := startServer(t, ServerConfig{PerPrefix: 2, PerPrefixRate: 1000})
	first, second := tlsTo(t, s, protocolTURN), tlsTo(t, s, protocolTURN)
	third, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	mustEnd(t, third)
	_ = first.Close()
	a, err := s.TURN().Accept()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.TURN().Accept()
	if err != nil {
		t.Fatal(err)
	}
	mustEnd(t, a)
	_ = a.Close()
	_ = b.Close()
	mustEnd(t, second)
	if c := tlsTo(t, s, protocolTURN); c.ConnectionState().NegotiatedProtocol != protocolTURN {
		t.Error("no room after the end of the others")
	}
}

func TestAdmission(t *testing.T) {
	l := &admission{max: 5, perPrefix: 3, rate: 1, burst: 4}
	now := time.Unix(1000, 0)
	try := func(a string, want error) {
		t.Helper()
		if err := l.enter(netip.MustParseAddr(a), now); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", a, err, want)
		}
	}
	try("192.0.2.1", nil)
	try("::ffff:192.0.2.200", nil)
	try("192.0.2.3", nil)
	try("192.0.2.4", errPrefix)
	l.leave(netip.MustParseAddr("192.0.2.3"))
	try("192.0.2.4", nil)
	l.leave(netip.MustParseAddr("192.0.2.4"))
	try("192.0.2.4", errRate)
	now = now.Add(time.Second)
	try("192.0.2.4", nil)
	try("2001:db8::1", nil)
	try("2001:db8:0:ff::1", nil) // the same /56
	try("2001:db8:0:100::1", errFull)
	for range 3 {
		l.leave(netip.MustParseAddr("192.0.2.1"))
	}
	l.leave(netip.MustParseAddr("2001:db8::1"))
	l.leave(netip.MustParseAddr("2001:db8::1"))
	if l.open != 0 {
		t.Errorf("%d open", l.open)
	}

	// The table is bounded, and makes room again.
	l = &admission{max: 1 << 20, perPrefix: 3, rate: 1, burst: 4}
	for i := range maxSources {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		if err := l.enter(a, now); err != nil {
			t.Fatal(err)
		}
		l.leave(a)
	}
	try("192.0.2.1", errTable)
	now = now.Add(time.Minute)
	try("192.0.2.1", nil)
	if len(l.sources) != 1 {
		t.Errorf("%d networks kept", len(l.sources))
	}
}

func TestTURNListener(t *testing.T) {
	s, stop := startServer(t, ServerConfig{})
	c, err := (&Dialer{}).TURN(patient(t), s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		t.Fatal(err)
	}
	at, err := s.TURN().Accept()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(at).ReadString('\n')
	if err != nil || line != "ping\n" {
		t.Fatalf("%q %v", line, err)
	}
	if _, err := io.WriteString(at, "pong"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "pong" {
		t.Fatalf("%q %v", b, err)
	}
	if at.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("remote %v, want %v", at.RemoteAddr(), c.LocalAddr())
	}
	stop() // closes what was handed over, too
	mustEnd(t, c)
	if _, err := s.TURN().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after the end: %v", err)
	}
}

func TestLifecycle(t *testing.T) {
	s, err := Listen(ServerConfig{Listen: "127.0.0.1:0", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(ServerConfig{Listen: s.Addr().String()}); err == nil {
		t.Error("listening twice")
	}
	_ = s.Packets().SetReadDeadline(time.Unix(1, 0))
	if _, _, err := s.Packets().ReadFrom(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	_ = s.Packets().SetReadDeadline(time.Time{})
	ended := make(chan error, 1)
	go func() {
		_, _, err := s.Packets().ReadFrom(make([]byte, 10))
		ended <- err
	}()
	if _, err := s.Packets().WriteTo(nil, &net.UDPAddr{}); err == nil {
		t.Error("written to a UDP address")
	}
	_ = s.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := s.Serve(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	_ = s.Close()

	s, stop := startServer(t, ServerConfig{})
	if _, _, err := raise(t, s, nil); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	stop()
}

func TestDeadline(t *testing.T) {
	d := newDeadline()
	open := func() bool {
		select {
		case <-d.wait():
			return false
		default:
			return true
		}
	}
	for i, step := range []struct {
		at   time.Time
		open bool
	}{
		{time.Time{}, true},
		{time.Unix(1, 0), false},
		{time.Unix(2, 0), false},
		{time.Now().Add(time.Hour), true},
		{time.Time{}, true},
		{time.Now().Add(time.Hour), true},
		{time.Unix(1, 0), false},
		{time.Time{}, true},
	} {
		if d.set(step.at); open() != step.open {
			t.Errorf("step %d: open %v", i, open())
		}
	}
	d.set(time.Now().Add(time.Millisecond))
	<-d.wait()
	d.set(time.Time{})
	if !open() {
		t.Error("a fired deadline stays")
	}
}

// A connection that takes nothing holds nobody up and loses its own datagrams.
func TestQueueDrops(t *testing.T) {
	q := newQueue()
	for range 2 * queueLength {
		if err := q.put([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if n := q.dropped.Load(); n != queueLength {
		t.Errorf("%d dropped", n)
	}
	if err := q.put(make([]byte, MaxDatagram+1)); err != nil || len(q.c) != queueLength {
		t.Error(fmt.Sprint(err, len(q.c)))
	}
}

// Who takes nothing is given up, and does not hold the end of the server up.
func TestStalledClient(t *testing.T) {
	s, stop := startServer(t, ServerConfig{})
	_, _, err := raise(t, s, http.Header{flightHeader: {"b25l"}}) // and never reads
	if err != nil {
		t.Fatal(err)
	}
	_, from := read(t, s.Packets())
	q := from.(*Addr).out
	for ctx := patient(t); q.dropped.Load() == 0; runtime.Gosched() {
		if _, err := s.Packets().WriteTo(make([]byte, MaxDatagram), from); err != nil || ctx.Err() != nil {
			t.Fatal(err, ctx.Err())
		}
	}
	begun := time.Now()
	stop()
	if waited := time.Since(begun); waited > 2*closeTimeout {
		t.Errorf("stopped after %v", waited)
	}
}
