package quicstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stepper is a handler that writes what the test feeds it.
type stepper struct {
	feed  chan string
	cause chan error
}

func newStepper() *stepper {
	return &stepper{feed: make(chan string), cause: make(chan error, 1)}
}

func (s *stepper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case piece, ok := <-s.feed:
			if !ok {
				return
			}
			if _, err := io.WriteString(w, piece); err != nil {
				s.cause <- err
				return
			}
		case <-r.Context().Done():
			s.cause <- context.Cause(r.Context())
			return
		}
	}
}

func (s *stepper) give(t testing.TB, piece string) {
	t.Helper()
	select {
	case s.feed <- piece:
	case <-time.After(testWait):
		t.Fatal("the handler takes nothing")
	}
}

func (s *stepper) ended(t testing.TB) error {
	t.Helper()
	select {
	case err := <-s.cause:
		return err
	case <-time.After(testWait):
		t.Fatal("the handler was not cancelled")
		return nil
	}
}

func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}
}

// A connection that is lost without a word: the answer goes on, and the client
// takes it up where it stopped.
func TestResumeAfterLostPath(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s, MaxIdle: 500 * time.Millisecond})
	id := NewRequestID().String()
	tr := socket(t)
	first := r.dialFrom(tr, r.client)
	res := r.do(first, post(t, "/", "{}", HeaderRequest, id))
	s.give(t, "hello ")
	expect(t, res.Body, "hello ")
	_ = tr.Close() // nothing more leaves or enters
	_, err := io.ReadAll(res.Body)
	lost, ok := errors.AsType[*LostError](err)
	if !ok || lost.Received != 6 {
		t.Fatalf("error %v", err)
	}
	s.give(t, "world") // made while nobody listens
	wait(t, "end of the first tunnel", first.Done())
	eventually(t, "the miner notices", func() bool { return r.server.Counters().Lost == 1 })

	second := r.dial()
	res = r.do(second, post(t, "/", "{}", HeaderRequest, id, HeaderResume, "6"))
	if res.StatusCode != 200 || res.Header.Get(HeaderResume) != "6" || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	expect(t, res.Body, "world")
	s.give(t, "!")
	close(s.feed)
	if got := readAll(t, res); got != "!" {
		t.Fatalf("%q", got)
	}
	if c := r.server.Counters(); c.Requests != 1 || c.Resumed != 1 {
		t.Errorf("%+v", c)
	}
}

func TestLostClientExpires(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s, MaxIdle: 500 * time.Millisecond, ResumeWindow: 300 * time.Millisecond})
	tr := socket(t)
	res := r.do(r.dialFrom(tr, r.client), post(t, "/", "{}"))
	s.give(t, "token")
	expect(t, res.Body, "token")
	_ = tr.Close()
	at := time.Now()
	if err := s.ended(t); !errors.Is(err, ErrExpired) {
		t.Fatalf("cause %v", err)
	}
	if waited := time.Since(at); waited < 300*time.Millisecond {
		t.Errorf("cancelled after only %v", waited)
	}
	eventually(t, "the memory is given back", func() bool { return r.server.Counters().BufferedBytes == 0 })
	if c := r.server.Counters(); c.Expired != 1 || c.Lost != 1 || c.Cancelled != 0 {
		t.Errorf("%+v", c)
	}
}

// eventually polls what has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(testWait)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		}
	}
}

// Make before break: the second tunnel takes over while the first still
// carries, and closing the first harms nothing.
func TestTakeOver(t *testing.T) {
	for _, code := range []CloseCode{Replaced, Done} {
		t.Run(code.String(), func(t *testing.T) {
			s := newStepper()
			r := newRig(t, ServerConfig{Handler: s})
			id := NewRequestID().String()
			first, second := r.dial(), r.dial()
			res1 := r.do(first, post(t, "/", "{}", HeaderRequest, id))
			s.give(t, "one ")
			expect(t, res1.Body, "one ")
			s.give(t, "two ")
			res2 := r.do(second, post(t, "/", "{}", HeaderRequest, id, HeaderResume, "4"))
			expect(t, res2.Body, "two ")
			_ = first.Close(code)
			s.give(t, "three")
			close(s.feed)
			if got := readAll(t, res2); got != "three" {
				t.Fatalf("%q", got)
			}
		})
	}
}

// Bulk that is taken over again and again arrives whole.
func TestTakeOverBulk(t *testing.T) {
	body := make([]byte, 24<<20)
	for i := range body {
		body[i] = byte(i ^ i>>8 ^ i>>16)
	}
	r := newRig(t, ServerConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for p := body; len(p) > 0; {
			n := min(len(p), 100+len(p)%40000)
			if _, err := w.Write(p[:n]); err != nil {
				return
			}
			p = p[n:]
		}
	})})
	id := NewRequestID().String()
	var got bytes.Buffer
	for step := 1; ; step++ {
		tunnel := r.dial()
		req := post(t, "/", "{}", HeaderRequest, id)
		if got.Len() > 0 {
			req.Header.Set(HeaderResume, strconv.Itoa(got.Len()))
		}
		res := r.do(tunnel, req)
		if res.StatusCode != http.StatusOK {
			t.Fatalf("step %d: status %d at %d", step, res.StatusCode, got.Len())
		}
		if step < 6 {
			if _, err := io.CopyN(&got, res.Body, 3_000_001); err != nil {
				t.Fatal(err)
			}
			if step%2 == 0 {
				_ = tunnel.Close(Replaced)
			}
			continue
		}
		if _, err := io.Copy(&got, res.Body); err != nil {
			t.Fatal(err)
		}
		break
	}
	if !bytes.Equal(got.Bytes(), body) {
		t.Fatalf("%d bytes differ from the %d sent", got.Len(), len(body))
	}
}

// A finished answer stays for a client whose last packets were lost, and a
// request repeated with its ID is not run twice.
func TestFinishedAnswerIsKept(t *testing.T) {
	runs := make(chan struct{}, 10)
	r := newRig(t, ServerConfig{ResumeWindow: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		runs <- struct{}{}
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hello")
	})})
	id := NewRequestID().String()
	tunnel := r.dial()
	for _, header := range [][]string{{}, {HeaderResume, "0"}, {HeaderResume, "2"}, {HeaderResume, "5"}, {}} {
		res := r.do(tunnel, post(t, "/", "{}", append(header, HeaderRequest, id)...))
		want := "hello"
		if len(header) > 0 {
			n, _ := strconv.Atoi(header[1])
			want = want[n:]
		}
		if got := readAll(t, res); got != want {
			t.Fatalf("%v: %q instead of %q", header, got, want)
		}
	}
	if len(runs) != 1 {
		t.Errorf("%d runs", len(runs))
	}
	eventually(t, "the answer is wiped", func() bool { return r.server.Counters().BufferedBytes == 0 })
	if res := r.do(tunnel, post(t, "/", "{}", HeaderRequest, id, HeaderResume, "0")); res.StatusCode != http.StatusNotFound {
		t.Errorf("status %d after the window", res.StatusCode)
	}
}

func TestResumeRefused(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	id := NewRequestID().String()
	tunnel, stranger := r.dial(), r.dialFrom(socket(t), testKey(t))
	res := r.do(tunnel, post(t, "/a", "{}", HeaderRequest, id))
	s.give(t, "token")
	expect(t, res.Body, "token")
	tests := map[string]struct {
		tunnel             *Tunnel
		path, body, offset string
		id                 string
		status             int
		why                Refusal
	}{
		"another node":      {stranger, "/a", "{}", "0", id, 404, RefusedUnknownRequest},
		"unknown ID":        {tunnel, "/a", "{}", "0", NewRequestID().String(), 404, RefusedUnknownRequest},
		"another body":      {tunnel, "/a", "{ }", "0", id, 409, RefusedOtherRequest},
		"another path":      {tunnel, "/b", "{}", "0", id, 409, RefusedOtherRequest},
		"past the end":      {tunnel, "/a", "{}", "6", id, 416, RefusedOffset},
		"negative":          {tunnel, "/a", "{}", "-1", id, 400, RefusedMalformed},
		"not a number":      {tunnel, "/a", "{}", "0x1", id, 400, RefusedMalformed},
		"second spelling":   {tunnel, "/a", "{}", "+1", id, 400, RefusedMalformed},
		"overflow":          {tunnel, "/a", "{}", "9223372036854775808", id, 400, RefusedMalformed},
		"malformed ID":      {tunnel, "/a", "{}", "0", "xyz", 400, RefusedMalformed},
		"ID in upper case":  {tunnel, "/a", "{}", "0", "ABCDEF0123456789ABCDEF0123456789", 400, RefusedMalformed},
		"reused for a POST": {tunnel, "/a", "other", "", id, 409, RefusedOtherRequest},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			req := post(t, test.path, test.body, HeaderRequest, test.id)
			if test.offset != "" {
				req.Header.Set(HeaderResume, test.offset)
			}
			res := r.do(test.tunnel, req)
			if res.StatusCode != test.status || res.Header.Get(HeaderError) != string(test.why) {
				t.Errorf("%d %q; want %d %q", res.StatusCode, res.Header.Get(HeaderError), test.status, test.why)
			}
		})
	}
	s.give(t, " more") // none of it disturbed the answer
	expect(t, res.Body, " more")
}

// A request named by its digest is continued without being sent again, and a try
// that was overtaken by a later one carries nothing.
func TestResumeByDigest(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	id := NewRequestID().String()
	first, second := r.dial(), r.dial()
	body := `{"prompt": "a long one"}`
	req := post(t, "/a", body, HeaderRequest, id)
	digest := RequestDigest(req, []byte(body)).String()
	res := r.do(first, req)
	s.give(t, "token")
	expect(t, res.Body, "token")

	resume := func(over *Tunnel, header ...string) *http.Response {
		t.Helper()
		return r.do(over, post(t, "/a", "", append(header, HeaderRequest, id)...))
	}
	res = resume(second, HeaderResume, "2", HeaderDigest, digest, HeaderAttempt, "2")
	if res.StatusCode != http.StatusOK || res.Header.Get(HeaderResume) != "2" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	expect(t, res.Body, "ken")

	other := strings.Repeat("0", len(digest))
	for name, test := range map[string]struct {
		offset, digest, attempt string
		status                  int
		why                     Refusal
	}{
		"another request": {"0", other, "3", 409, RefusedOtherRequest},
		"overtaken":       {"0", digest, "1", 409, RefusedStale},
		"no number":       {"0", digest, "", 409, RefusedStale},
		"past the end":    {"6", digest, "3", 416, RefusedOffset},
		"short digest":    {"0", digest[1:], "3", 400, RefusedMalformed},
		"upper case":      {"0", strings.Repeat("A", len(digest)), "3", 400, RefusedMalformed},
		"signed attempt":  {"0", digest, "+3", 400, RefusedMalformed},
		"huge attempt":    {"0", digest, "4294967296", 400, RefusedMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			header := []string{HeaderResume, test.offset, HeaderDigest, test.digest}
			if test.attempt != "" {
				header = append(header, HeaderAttempt, test.attempt)
			}
			res := resume(first, header...)
			if res.StatusCode != test.status || res.Header.Get(HeaderError) != string(test.why) {
				t.Errorf("%d %q; want %d %q", res.StatusCode, res.Header.Get(HeaderError), test.status, test.why)
			}
		})
	}
	s.give(t, " more") // none of it disturbed the answer
	close(s.feed)
	if got := readAll(t, res); got != " more" {
		t.Errorf("%q", got)
	}
}

// With too little memory for the whole answer the handler waits while nobody
// listens, and bytes that had to go are refused rather than skipped.
func TestBufferBounds(t *testing.T) {
	const size = 3 << 20
	progress := make(chan int, 1000)
	r := newRig(t, ServerConfig{BufferPerClient: 1 << 20, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 32<<10)
		for n := 0; n < size; n += len(piece) {
			if _, err := w.Write(piece); err != nil {
				return
			}
			progress <- n + len(piece)
		}
	})})
	id := NewRequestID().String()
	first := r.dial()
	res := r.do(first, post(t, "/", "{}", HeaderRequest, id))
	if _, err := io.CopyN(io.Discard, res.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	_ = first.Close(Replaced)
	if used := r.server.Counters().BufferedBytes; used > 1<<20 {
		t.Errorf("%d bytes kept", used)
	}
	second := r.dial()
	if res := r.do(second, post(t, "/", "{}", HeaderRequest, id, HeaderResume, "1")); res.StatusCode != http.StatusGone {
		t.Errorf("status %d for bytes long dropped", res.StatusCode)
	}
	r.server.Kick(r.client.ID())
}

// Finished answers make room; when nothing can go, requests are refused.
func TestBufferFull(t *testing.T) {
	r := newRig(t, ServerConfig{BufferPerClient: 64 << 10, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok")
	})})
	tunnel := r.dial()
	for range 100 {
		if got := readAll(t, r.do(tunnel, post(t, "/", "{}"))); got != "ok" {
			t.Fatalf("%q", got)
		}
	}
	big := string(make([]byte, 100<<10))
	res := r.do(tunnel, post(t, "/", big))
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get(HeaderError) != string(RefusedBusy) || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	if c := r.server.Counters(); c.Busy != 1 || c.BufferedBytes > 64<<10 {
		t.Errorf("%+v", c)
	}
}

// All clients together have a bound of their own: one takes what another would
// get, and gives it back.
func TestBufferTotal(t *testing.T) {
	const total = 96 << 10
	began, done := make(chan struct{}, 1), make(chan struct{})
	r := newRig(t, ServerConfig{BufferPerClient: 64 << 10, BufferTotal: total, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/long" {
			began <- struct{}{}
			<-done
		}
		_, _ = io.WriteString(w, "ok")
	})})
	one, other := r.dial(), r.dialFrom(socket(t), testKey(t))
	big := strings.Repeat("x", 50<<10)
	long := make(chan *http.Response, 1)
	go func() {
		res, err := one.RoundTrip(post(t, "/long", big))
		if err != nil {
			t.Error(err)
		}
		long <- res
	}()
	wait(t, "the first request", began)
	if res := r.do(other, post(t, "/", big)); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get(HeaderError) != string(RefusedBusy) {
		t.Errorf("a second one as long: %d %v", res.StatusCode, res.Header)
	}
	for range 20 { // more than fit: finished answers make room
		if got := readAll(t, r.do(other, post(t, "/", "{}"))); got != "ok" {
			t.Fatalf("a short one: %q", got)
		}
		if used := r.server.Counters().BufferedBytes; used > total {
			t.Fatalf("%d bytes kept in all", used)
		}
	}
	close(done)
	if res := <-long; res != nil {
		if got := readAll(t, res); got != "ok" {
			t.Errorf("the first: %q", got)
		}
	}
	for range 6 { // nearly all that one client may have
		_ = readAll(t, r.do(one, post(t, "/", "{}")))
	}
	if got := readAll(t, r.do(other, post(t, "/", big))); got != "ok" {
		t.Errorf("a long one for which another client's finished answers must go: %q", got)
	}
	if c := r.server.Counters(); c.Busy != 1 {
		t.Errorf("%+v", c)
	}
}
