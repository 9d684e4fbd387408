package quicstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Shutdown lets a running answer finish, refuses a new one, and ends tunnels
// only when their clients have everything.
func TestShutdownLetsAnswersFinish(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	tunnel, idle := r.dial(), r.dial()
	res := r.do(tunnel, post(t, "/", "{}"))
	s.give(t, "first ")
	expect(t, res.Body, "first ")
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), testWait)
		defer cancel()
		down <- r.server.Shutdown(ctx)
	}()
	wait(t, "end of the idle tunnel", idle.Done())
	eventually(t, "the client hears of it", func() bool { return tunnel.goingAway.Load() })
	if _, err := tunnel.RoundTrip(post(t, "/", "{}")); !errors.Is(err, ErrGoingAway) {
		t.Errorf("error %v", err)
	}
	rest := strings.Repeat("last", 1<<16)
	s.give(t, rest)
	close(s.feed)
	if got := readAll(t, res); got != rest {
		t.Errorf("%d bytes instead of %d", len(got), len(rest))
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	wait(t, "end of the tunnel", tunnel.Done())
	if ce, ok := errors.AsType[*CloseError](tunnel.Err()); !ok || ce.Code != Done || ce.Remote {
		t.Errorf("ended with %v", tunnel.Err())
	}
}

// A client that does not listen to the announcement is refused by the miner.
func TestShutdownRefusesNewRequests(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	tunnel := r.dial()
	id := NewRequestID().String()
	res := r.do(tunnel, post(t, "/", "{}", HeaderRequest, id))
	r.server.mu.Lock()
	r.server.draining = true
	r.server.mu.Unlock()
	refused := r.do(tunnel, post(t, "/", "{}"))
	if refused.StatusCode != http.StatusServiceUnavailable || refused.Header.Get(HeaderError) != string(RefusedGoingAway) {
		t.Errorf("%d %v", refused.StatusCode, refused.Header)
	}
	s.give(t, "token")
	expect(t, res.Body, "token")
	again := r.do(tunnel, post(t, "/", "{}", HeaderRequest, id, HeaderResume, "0")) // what runs may be fetched
	expect(t, again.Body, "token")
}

func TestShutdownDeadline(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	tunnel := r.dial()
	res := r.do(tunnel, post(t, "/", "{}"))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if err := s.ended(t); !errors.Is(err, ErrServerClosed) {
		t.Errorf("cause %v", err)
	}
	_, err := io.ReadAll(res.Body)
	if err == nil {
		t.Error("a cancelled answer looks complete")
	}
	wait(t, "end of the tunnel", tunnel.Done())
	if err := r.server.Shutdown(context.Background()); err != nil {
		t.Errorf("second shutdown: %v", err)
	}
}

func TestKick(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	tunnel, other := r.dial(), r.dialFrom(socket(t), testKey(t))
	res := r.do(tunnel, post(t, "/", "{}"))
	r.server.Kick(r.client.ID())
	if err := s.ended(t); !errors.Is(err, ErrKicked) {
		t.Errorf("cause %v", err)
	}
	wait(t, "end of the tunnel", tunnel.Done())
	if !errors.Is(tunnel.Err(), ErrUnauthorized) {
		t.Errorf("ended with %v", tunnel.Err())
	}
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("a cancelled answer looks complete")
	}
	eventually(t, "one tunnel is left", func() bool { return len(r.server.Tunnels()) == 1 })
	if other.Err() != nil {
		t.Errorf("the other tunnel ended: %v", other.Err())
	}
}

// The client's stalled reader blocks the handler, and the stall ends it.
func TestStalledClient(t *testing.T) {
	cause := make(chan error, 1)
	r := newRig(t, ServerConfig{StallTimeout: 300 * time.Millisecond, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		piece := make([]byte, 64<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				cause <- context.Cause(req.Context())
				return
			}
		}
	})})
	tunnel := r.dial()
	res := r.do(tunnel, post(t, "/", "{}"))
	select {
	case err := <-cause:
		if !errors.Is(err, ErrStalled) {
			t.Errorf("cause %v", err)
		}
	case <-time.After(testWait):
		t.Fatal("the handler runs on")
	}
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("a cancelled answer looks complete")
	}
	if tunnel.Err() != nil {
		t.Errorf("the tunnel ended: %v", tunnel.Err())
	}
}

// Serve closes its tunnels as its context says.
func TestServeEndsWithItsCause(t *testing.T) {
	for cause, want := range map[error]CloseCode{
		nil:                         GoingAway,
		errors.New("anything"):      GoingAway,
		&CloseError{Code: Replaced}: Replaced,
	} {
		r := newRig(t, ServerConfig{Handler: never})
		tr := socket(t)
		r.addr = tr.Conn.LocalAddr()
		ctx, cancel := context.WithCancelCause(t.Context())
		served := make(chan error, 1)
		go func() { served <- r.server.Serve(ctx, tr) }()
		tunnel := r.dial()
		eventually(t, "the miner knows of the tunnel", func() bool { return len(r.server.Tunnels()) == 1 })
		cancel(cause)
		wait(t, "the end of the tunnel", tunnel.Done())
		if ce, ok := errors.AsType[*CloseError](tunnel.Err()); !ok || !ce.Remote || ce.Code != want {
			t.Errorf("%v: the tunnel ended with %v", cause, tunnel.Err())
		}
		if err := <-served; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
	}
}

func TestCloseCodes(t *testing.T) {
	seen := make(map[string]bool)
	for c := closeBase; c < closeEnd; c++ {
		if !c.Known() || c.String() == "" || seen[c.String()] {
			t.Errorf("code %d: %q", c-closeBase, c)
		}
		seen[c.String()] = true
	}
	for _, c := range []CloseCode{0, 0x100, closeBase - 1, closeEnd} {
		if c.Known() || !strings.HasPrefix(c.String(), "code 0x") || c.ends() {
			t.Errorf("%#x: %q", uint64(c), c)
		}
	}
	tunnel := newRig(t, ServerConfig{Handler: never}).dial()
	_ = tunnel.Close(Idle)
	_ = tunnel.Close(Done) // does nothing
	if ce, ok := errors.AsType[*CloseError](tunnel.Err()); !ok || ce.Code != Idle || ce.Remote {
		t.Errorf("ended with %v", tunnel.Err())
	}
	if _, err := tunnel.RoundTrip(post(t, "/", "{}")); err == nil {
		t.Error("a closed tunnel took a request")
	}
}

func TestRoundTripLeavesRequestAlone(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Host != "mintai" || req.UserAgent() != "" || req.Header.Get("Accept-Encoding") != "" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = io.WriteString(w, req.Header.Get(HeaderRequest))
	})})
	tunnel := r.dial()
	req := post(t, "/", "{}")
	before := tunnel.LastUsed()
	res := r.do(tunnel, req)
	if _, err := ParseRequestID(readAll(t, res)); err != nil || res.StatusCode != 200 || res.Request != req {
		t.Errorf("%v, status %d", err, res.StatusCode)
	}
	if len(req.Header) != 0 || req.URL.Host != "any" {
		t.Errorf("the request was changed: %v %v", req.Header, req.URL)
	}
	if !tunnel.LastUsed().After(before) {
		t.Error("LastUsed stands still")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("00112233445566778899aabbccddeeff")
	f.Add("9223372036854775807")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseRequestID(s); err == nil && id.String() != s {
			t.Errorf("%q became %q", s, id)
		}
		if n, err := parseOffset(s); err == nil && n < 0 {
			t.Errorf("%q became %d", s, n)
		}
	})
}

// While a request runs the miner is heard of although its model is silent.
func TestHeartbeat(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	tunnel := r.dial()
	r.do(tunnel, post(t, "/", "{}"))
	first := tunnel.LastHeard()
	eventually(t, "a heartbeat", func() bool { return tunnel.LastHeard().After(first) })
}

// shortOnly is a socket whose long packets are lost on the way, once it is told.
type shortOnly struct {
	*net.UDPConn
	lossy atomic.Bool
}

func (c *shortOnly) lost(b []byte) bool { return len(b) > 300 && c.lossy.Load() }

func (c *shortOnly) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	if c.lost(b) {
		return len(b), len(oob), nil
	}
	return c.UDPConn.WriteMsgUDP(b, oob, to)
}

func (c *shortOnly) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.lost(b) {
		return len(b), nil
	}
	return c.UDPConn.WriteTo(b, to)
}

// A path that loses only what is long, and only from the client to the miner,
// passes for silent: acknowledgements go on, requests would not.
func TestHeartbeatOverALossyWayThere(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	var conn *shortOnly
	tr := socketOn(t, func(udp *net.UDPConn) net.PacketConn {
		conn = &shortOnly{UDPConn: udp}
		return conn
	})
	tunnel := r.dialFrom(tr, r.client)
	r.do(tunnel, post(t, "/", "{}"))
	first := tunnel.LastHeard()
	eventually(t, "a heartbeat that was answered", func() bool { return tunnel.LastHeard().Sub(first) > heartbeatPeriod })
	conn.lossy.Store(true)
	eventually(t, "silence", func() bool { return time.Since(tunnel.LastHeard()) > 3*heartbeatPeriod })
	if err := tunnel.Err(); err != nil {
		t.Errorf("the tunnel has ended: %v", err)
	}
	conn.lossy.Store(false)
	eventually(t, "a heartbeat again", func() bool { return time.Since(tunnel.LastHeard()) < heartbeatPeriod })
}

func TestEar(t *testing.T) {
	const ms = time.Millisecond
	at := func(d time.Duration) time.Time { return time.Unix(1000, 0).Add(d) }
	type beat struct {
		at              time.Duration
		packets, echoes uint64
		deaf            bool
	}
	for name, beats := range map[string][]beat{
		"well":                  {{0, 1, 0, false}, {500 * ms, 2, 1, false}, {1000 * ms, 3, 2, false}},
		"nothing comes":         {{0, 1, 0, false}, {500 * ms, 1, 0, true}},
		"nothing comes later":   {{0, 1, 0, false}, {500 * ms, 2, 1, false}, {1000 * ms, 2, 1, true}, {1500 * ms, 3, 2, false}},
		"one echo lost":         {{0, 1, 4, false}, {500 * ms, 2, 4, false}, {1000 * ms, 3, 5, false}},
		"no echo":               {{0, 1, 4, false}, {500 * ms, 2, 4, false}, {1000 * ms, 3, 4, true}, {1500 * ms, 4, 5, false}},
		"one that never echoes": {{0, 1, 0, false}, {500 * ms, 2, 0, false}, {1000 * ms, 3, 0, false}, {1500 * ms, 4, 0, false}},
	} {
		var e ear
		for _, b := range beats {
			if got := e.deaf(at(b.at), b.packets, b.echoes); got != b.deaf {
				t.Errorf("%s, at %v: %v", name, b.at, got)
			}
		}
	}
}

// A client that opens tunnel after tunnel loses its oldest.
func TestTooManyTunnels(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: never})
	tr := socket(t)
	first := r.dialFrom(tr, r.client)
	eventually(t, "the tunnel is accepted", func() bool { return len(r.server.Tunnels()) == 1 })
	for range maxTunnels {
		r.dialFrom(tr, r.client)
	}
	wait(t, "end of the oldest", first.Done())
	if ce, ok := errors.AsType[*CloseError](first.Err()); !ok || ce.Code != Replaced {
		t.Errorf("ended with %v", first.Err())
	}
}

// A tunnel that carries an answer stays when its client opens too many others.
func TestTooManyTunnelsSpareTheBusy(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	tr := socket(t)
	busy := r.dialFrom(tr, r.client)
	r.do(busy, post(t, "/", "{}"))
	idle := r.dialFrom(tr, r.client)
	eventually(t, "the tunnels are accepted", func() bool { return len(r.server.Tunnels()) == 2 })
	for range maxTunnels - 1 {
		r.dialFrom(tr, r.client)
	}
	<-idle.Done()
	if err := busy.Err(); err != nil {
		t.Errorf("the busy one: %v", err)
	}
}
