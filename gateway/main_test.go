package gateway

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"mintai/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// transport is a miner in memory: it keeps what reached it.
type transport struct {
	answer func(*http.Request) (*http.Response, error)

	mu   sync.Mutex // guards seen
	seen []*http.Request
}

func (f *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.seen = append(f.seen, r)
	f.mu.Unlock()
	return f.answer(r)
}

func (f *transport) calls() []*http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*http.Request(nil), f.seen...)
}

// respond is an answer function that always gives the same.
func respond(status int, contentType, body string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: status, Header: http.Header{"Content-Type": {contentType}},
			Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		}, nil
	}
}

// broken is a body that fails with err after its text.
type broken struct {
	io.Reader
	err    error
	closed chan struct{}
	once   sync.Once
}

func newBroken(text string, err error) *broken {
	return &broken{Reader: strings.NewReader(text), err: err, closed: make(chan struct{})}
}

func (b *broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func (b *broken) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// serve starts the gateway on loopback.
func serve(t *testing.T, cfg Config) *httptest.Server {
	t.Helper()
	if cfg.Transport == nil {
		cfg.Transport = &transport{answer: func(*http.Request) (*http.Response, error) {
			t.Error("something reached the transport")
			return nil, io.ErrUnexpectedEOF
		}}
	}
	cfg.Log = zerolog.Nop()
	s := httptest.NewUnstartedServer(New(cfg))
	limits := NewServer(nil)
	s.Config.ReadHeaderTimeout, s.Config.MaxHeaderBytes = limits.ReadHeaderTimeout, limits.MaxHeaderBytes
	s.Start()
	t.Cleanup(s.Close)
	return s
}

const chat = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`

// post sends a JSON call and returns the response with its body read.
func post(t *testing.T, s *httptest.Server, path, body string) (*http.Response, string) {
	t.Helper()
	return do(t, s, http.MethodPost, path, body, nil)
}

func do(t *testing.T, s *httptest.Server, method, path, body string, change func(*http.Request)) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	if change != nil {
		change(r)
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(text)
}

// raw sends bytes as they are and returns the status of the answer, 0 if the
// connection was closed without one.
func raw(t *testing.T, s *httptest.Server, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return 0
	}
	line, err := bufio.NewReader(conn).ReadString('\n') // "HTTP/1.1 404 Not Found"
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if err != nil {
		t.Errorf("status line %q", line)
	}
	return status
}

var errLost = &api.Error{Status: http.StatusBadGateway, Code: api.CodeMinerLost, Message: "gpu-box was lost", Hint: "ask again"}
