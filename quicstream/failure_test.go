package quicstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// proxyTo is a handler like the miner's: a ReverseProxy in front of an HTTP/1.1
// backend.
func proxyTo(t testing.TB, backend http.Handler) http.Handler {
	t.Helper()
	server := httptest.NewServer(backend)
	t.Cleanup(server.Close)
	target, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1100}
	t.Cleanup(transport.CloseIdleConnections)
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(target) },
	}
}

// A backend that dies midway must never look like the end of the answer, and
// the client gets every byte that was made before.
func TestDyingBackend(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: proxyTo(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: one\n\n")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))})
	tunnel := r.dial()
	for range 20 {
		res := r.do(tunnel, post(t, "/", "{}"))
		body, err := io.ReadAll(res.Body)
		aborted, ok := errors.AsType[*AbortedError](err)
		if !ok || string(body) != "data: one\n\n" || aborted.Received != int64(len(body)) {
			t.Fatalf("%q, error %v", body, err)
		}
	}
	if n := r.server.Counters().BrokenOff; n != 20 {
		t.Errorf("%d broken off", n)
	}
	if n := tunnel.InFlight(); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

func TestHandlerBreaksOff(t *testing.T) {
	handlers := map[string]http.HandlerFunc{
		"panic before the head":   func(http.ResponseWriter, *http.Request) { panic("secret") },
		"panic after WriteHeader": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); panic(http.ErrAbortHandler) },
		"shorter than announced": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "short")
		},
	}
	for name, handler := range handlers {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, ServerConfig{Handler: handler})
			tunnel := r.dial()
			res, err := tunnel.RoundTrip(post(t, "/", "{}"))
			if err == nil {
				_, err = io.ReadAll(res.Body)
				_ = res.Body.Close()
			}
			if _, ok := errors.AsType[*AbortedError](err); !ok {
				t.Fatalf("error %v", err)
			}
			if tunnel.Err() != nil {
				t.Fatalf("the tunnel ended: %v", tunnel.Err())
			}
		})
	}
}

// Cancelling a request reaches a backend behind a ReverseProxy, before the
// first byte as well as midway.
func TestCancelReachesBackend(t *testing.T) {
	for _, midway := range []bool{false, true} {
		t.Run(fmt.Sprintf("midway=%v", midway), func(t *testing.T) {
			started, gone := make(chan struct{}), make(chan time.Time, 1)
			r := newRig(t, ServerConfig{Handler: proxyTo(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				if midway {
					_, _ = io.WriteString(w, "token")
					_ = http.NewResponseController(w).Flush()
				}
				close(started)
				<-req.Context().Done()
				gone <- time.Now()
			}))})
			tunnel := r.dial()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			over := make(chan error, 1)
			go func() {
				res, err := tunnel.RoundTrip(post(t, "/", "{}").WithContext(ctx))
				if err == nil {
					_, err = io.ReadAll(res.Body)
					_ = res.Body.Close()
				}
				over <- err
			}()
			wait(t, "start", started)
			at := time.Now()
			cancel()
			select {
			case end := <-gone:
				t.Logf("the backend knew after %v", end.Sub(at))
				if end.Sub(at) > time.Second {
					t.Errorf("the backend knew only after %v", end.Sub(at))
				}
			case <-time.After(testWait):
				t.Fatal("the backend never knew")
			}
			if err := <-over; !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if n := r.server.Counters().Cancelled; n != 1 {
				t.Errorf("%d cancelled", n)
			}
		})
	}
}

// Closing the body, closing the tunnel and Kick cancel with their own causes.
func TestCancelCauses(t *testing.T) {
	tests := map[string]struct {
		end  func(*rig, *Tunnel, *http.Response)
		want error
	}{
		"body closed":      {func(_ *rig, _ *Tunnel, res *http.Response) { _ = res.Body.Close() }, ErrCancelled},
		"tunnel cancelled": {func(_ *rig, tu *Tunnel, _ *http.Response) { _ = tu.Close(Cancelled) }, ErrCancelled},
		"tunnel done":      {func(_ *rig, tu *Tunnel, _ *http.Response) { _ = tu.Close(Done) }, ErrCancelled},
		"kick":             {func(r *rig, _ *Tunnel, _ *http.Response) { r.server.Kick(r.client.ID()) }, ErrKicked},
		"shutdown": {func(r *rig, _ *Tunnel, _ *http.Response) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = r.server.Shutdown(ctx)
		}, ErrServerClosed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cause := make(chan error, 1)
			r := newRig(t, ServerConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.WriteString(w, "token")
				<-req.Context().Done()
				cause <- context.Cause(req.Context())
			})})
			tunnel := r.dial()
			res := r.do(tunnel, post(t, "/", "{}"))
			test.end(r, tunnel, res)
			select {
			case err := <-cause:
				if !errors.Is(err, test.want) {
					t.Errorf("cause %v, want %v", err, test.want)
				}
			case <-time.After(testWait):
				t.Fatal("not cancelled")
			}
		})
	}
}

func TestInformationalAnswersPass(t *testing.T) {
	r := newRig(t, ServerConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, position := range []string{"8", "4", "2", "1", "1", "1", "1"} { // more than a client accepts
			w.Header().Set("Mintai-Queue", position)
			w.WriteHeader(http.StatusProcessing)
		}
		w.Header().Del("Mintai-Queue")
		_, _ = io.WriteString(w, "done")
	})})
	tunnel := r.dial()
	var got []string
	req := post(t, "/", "{}")
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			got = append(got, strconv.Itoa(code)+" "+header.Get("Mintai-Queue"))
			return nil
		},
	}))
	res := r.do(tunnel, req)
	if body := readAll(t, res); body != "done" || res.Header.Get("Mintai-Queue") != "" {
		t.Fatalf("%q %v", body, res.Header)
	}
	if fmt.Sprint(got) != "[102 8 102 4 102 2 102 1 102 1]" {
		t.Errorf("informational answers %q", got)
	}
}

// A handler may be quicker than the stream that carries its answer: what it
// says meanwhile waits, bounded.
func TestInformationalAnswersWaitForTheirStream(t *testing.T) {
	var cfg ServerConfig
	cfg.setDefaults()
	var stats counters
	a := newAnswer(t.Context(), answerKey{}, &cfg, newRegistry(cfg.BufferPerClient, cfg.BufferTotal), &stats)
	defer a.cancel(nil)
	header := http.Header{}
	for i := range maxInfos + 2 {
		header.Set("Mintai-Queue", strconv.Itoa(i))
		a.inform(http.StatusProcessing, header)
	}
	if len(a.news) != maxInfos {
		t.Fatalf("%d wait", len(a.news))
	}
	for i, n := range a.news {
		if n.code != http.StatusProcessing || n.header.Get("Mintai-Queue") != strconv.Itoa(i) {
			t.Errorf("%d: %+v", i, n)
		}
	}
}

// noRoute is a socket of a machine that may lose its network.
type noRoute struct {
	*net.UDPConn
	down atomic.Bool
}

func (c *noRoute) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	if c.down.Load() {
		return 0, 0, &net.OpError{Op: "write", Net: "udp", Err: syscall.ENETUNREACH}
	}
	return c.UDPConn.WriteMsgUDP(b, oob, to)
}

func (c *noRoute) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.down.Load() {
		return 0, &net.OpError{Op: "write", Net: "udp", Err: syscall.ENETUNREACH}
	}
	return c.UDPConn.WriteTo(b, to)
}

// A machine between two networks cannot send. quic-go ends the connection then,
// and the streams a moment before it: the answer is lost, not broken off.
func TestLostWithoutNetwork(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	var conn *noRoute
	tr := socketOn(t, func(udp *net.UDPConn) net.PacketConn {
		conn = &noRoute{UDPConn: udp}
		return conn
	})
	id := NewRequestID().String()
	for try := range 50 {
		tunnel := r.dialFrom(tr, r.client)
		req := post(t, "/", "{}", HeaderRequest, id)
		if try > 0 {
			req.Header.Set(HeaderResume, "0")
		}
		res := r.do(tunnel, req)
		s.give(t, "token ")
		expect(t, res.Body, strings.Repeat("token ", try+1))
		conn.down.Store(true)
		s.give(t, "")
		go func() { _, _ = tunnel.RoundTrip(post(t, "/", "{}")) }() // so that something is sent at once
		if _, err := io.ReadAll(res.Body); !errors.As(err, new(*LostError)) {
			t.Fatalf("try %d: %T %v", try, err, err)
		}
		<-tunnel.Done()
		conn.down.Store(false)
	}
}
