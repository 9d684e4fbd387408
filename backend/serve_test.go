package backend

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"mintai/api"
	"mintai/identity"
)

// newMiner puts the pool behind a server that grants model to everybody.
func newMiner(t *testing.T, p *Pool, model api.Model) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.ServeHTTP(w, r.WithContext(WithGrant(r.Context(), model)))
	}))
	t.Cleanup(s.Close)
	return s
}

func post(t *testing.T, url, body string, fields ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// outcome posts a request and returns how it ended.
func outcome(t *testing.T, url, body string) (int, http.Header) {
	t.Helper()
	resp := post(t, url, body)
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode, resp.Header
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const ask = `{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}`

func TestOnlyTheCheckedBodyReachesTheServer(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	f.key = "sk-canary"
	p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL, APIKey: "sk-canary"})
	miner := newMiner(t, p, "m")
	f.take()
	resp := post(t, miner.URL+"/v1/chat/completions?x=1&y", ` { "model":"m" , "stream":true, "temperature":1.0 } `,
		"Authorization", "Bearer stranger", "Origin", "https://evil.example", "Cookie", "a=b", "X-Forwarded-For", "10.0.0.1",
		"User-Agent", "curl", "Accept-Encoding", "gzip", "Accept", "text/event-stream", api.HeaderSession, "s", api.HeaderRequest, "r", "X-Api-Key", "k",
		"Openai-Organization", "o", "Te", "trailers", "Forwarded", "for=1", "Via", "1.1 x")
	defer func() { _ = resp.Body.Close() }()
	if body := text(t, resp); resp.StatusCode != 200 || !strings.Contains(body, "[DONE]") {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	got := f.take()
	if len(got) != 1 {
		t.Fatalf("%d requests reached the server", len(got))
	}
	want := http.Header{
		"Authorization": {"Bearer sk-canary"}, "Content-Type": {"application/json"}, "Accept": {"text/event-stream"},
		"User-Agent": {"mintai"}, "Content-Length": {"45"},
	}
	if fmt.Sprint(got[0].header) != fmt.Sprint(want) {
		t.Errorf("header %v\nwant   %v", got[0].header, want)
	}
	if got[0].target != "/v1/chat/completions" || got[0].host != strings.TrimPrefix(f.URL, "http://") || got[0].body != `{"model":"m","stream":true,"temperature":1.0}` {
		t.Errorf("%+v", got[0])
	}
}

func TestOnlyWhatMayPassComesBack(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	f.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</x>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "X-Trailer")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Server", "secret/1.0")
		w.Header().Set("Retry-After", "3")
		w.Header().Set(api.HeaderError, "busy")
		_, _ = io.WriteString(w, `{"ok":true}`)
		w.Header().Set("X-Trailer", "t")
		w.Header().Set(http.TrailerPrefix+"X-Late", "t")
	}
	miner := newMiner(t, newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL}), "m")
	var informational int
	req, _ := http.NewRequestWithContext(trace1xx(t.Context(), func(int, string) { informational++ }), http.MethodPost, miner.URL+"/v1/chat/completions", strings.NewReader(ask))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body := text(t, resp); body != `{"ok":true}` {
		t.Errorf("%s", body)
	}
	resp.Header.Del("Date") // the miner's own
	resp.Header.Del("Content-Length")
	if len(resp.Header) != 2 || resp.Header.Get("Retry-After") != "3" || resp.Header.Get("Content-Type") != "application/json" || len(resp.Trailer) != 0 || informational != 0 {
		t.Errorf("header %v, trailer %v, %d informational", resp.Header, resp.Trailer, informational)
	}
}

func TestTokensPassOneByOne(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	next := make(chan struct{})
	f.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d\n", i)
			w.(http.Flusher).Flush()
			<-next // not before the client has the one before
		}
	}
	miner := newMiner(t, newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL}), "m")
	resp := post(t, miner.URL+"/v1/chat/completions", ask)
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) {
			t.Fatalf("line %d: %q", i, lines.Text())
		}
		next <- struct{}{}
	}
}

func TestCancellationReachesTheServer(t *testing.T) {
	for _, stream := range []bool{false, true} {
		f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
		before, began, gone := hang()
		f.answer = before
		if stream {
			f.answer = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, "data: x\n\n")
				w.(http.Flusher).Flush()
				before(w, r)
			}
		}
		p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL})
		miner := newMiner(t, p, "m")
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, miner.URL+"/v1/chat/completions", strings.NewReader(ask))
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			failed <- err
		}()
		await(t, began, "the server to begin")
		if s := p.Snapshot(); s.InFlight != 1 {
			t.Errorf("in flight: %d", s.InFlight)
		}
		cancel()
		await(t, gone, "the server to be let go")
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		miner.Close()
		if s := p.Snapshot(); s.InFlight != 0 {
			t.Errorf("the slot was not given back: %+v", s)
		}
	}
}

func await(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
}

// TestATruncatedAnswerNeverLooksWhole: the server dies midway, in each framing.
func TestATruncatedAnswerNeverLooksWhole(t *testing.T) {
	for _, tc := range []struct{ name, head string }{
		{"chunked", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata: \r\n"},
		{"in a chunk", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ndata: "},
		{"until it is closed", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" +
			"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"},\"finish_reason\":null}]}\n\n"},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"},
		{"of known length", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"choices\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
			f.answer = func(w http.ResponseWriter, _ *http.Request) {
				conn, buf, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = buf.WriteString(tc.head)
				_ = buf.Flush()
				_ = conn.Close()
			}
			var logs bytes.Buffer
			p := newPool(t, Options{Log: zerolog.New(&logs)}, Config{Type: TypeOpenAI, URL: f.URL})
			miner := newMiner(t, p, "m")
			// An abort before the head has left is no answer at all: as good.
			if resp, err := http.Post(miner.URL+"/v1/chat/completions", "application/json", strings.NewReader(ask)); err == nil {
				if b, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("looks whole: %d %q", resp.StatusCode, b)
				}
				_ = resp.Body.Close()
			}
			miner.Close()
			if p.Counters()[api.CodeBackendDied] != 1 || !strings.Contains(logs.String(), "died") || p.Snapshot().InFlight != 0 {
				t.Errorf("%v %+v %s", p.Counters(), p.Snapshot(), logs.String())
			}
			// Without the help of net/http's context, too.
			func() {
				defer func() {
					if err, _ := recover().(error); !errors.Is(err, http.ErrAbortHandler) {
						t.Error("it did not abort")
					}
				}()
				r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(ask))
				r.Header.Set("Content-Type", "application/json")
				p.ServeHTTP(httptest.NewRecorder(), r.WithContext(WithGrant(t.Context(), "m")))
			}()
		})
	}
}

// TestAnAnswerThatEndsByClosing: a server that speaks HTTP/1.0 ends its answers
// so, and its stream says when it is whole.
func TestAnAnswerThatEndsByClosing(t *testing.T) {
	const stream = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"all\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	f.answer = func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = buf.WriteString("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + stream)
		_ = buf.Flush()
		_ = conn.Close()
	}
	miner := newMiner(t, newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL}), "m")
	resp := post(t, miner.URL+"/v1/chat/completions", ask)
	defer func() { _ = resp.Body.Close() }()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != stream {
		t.Errorf("%q, %v", b, err)
	}
}

func TestNonsenseIsNotPassedOn(t *testing.T) {
	raw := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, buf, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			_, _ = buf.WriteString(s)
			_ = buf.Flush()
			_ = conn.Close()
		}
	}
	ok := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		status int
		code   string
	}{
		{"not HTTP", raw("SSH-2.0-OpenSSH canary\r\n"), 502, api.CodeBackendNonsense},
		{"closes", raw(""), 502, api.CodeBackendDown},
		{"web page", raw("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\ncanary"), 502, api.CodeBackendNonsense},
		{"no type", raw("HTTP/1.1 200 OK\r\n\r\ncanary"), 502, api.CodeBackendNonsense},
		{"two types", raw(ok + "Content-Type: text/html\r\n\r\n{}"), 502, api.CodeBackendNonsense},
		{"compressed", raw(ok + "Content-Encoding: gzip\r\n\r\n{}"), 502, api.CodeBackendNonsense},
		{"redirect", raw("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/canary\r\nContent-Length: 0\r\n\r\n"), 502, api.CodeBackendNonsense},
		{"upgrade", raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), 502, api.CodeBackendNonsense},
		{"no content", raw("HTTP/1.1 204 No Content\r\n\r\n"), 502, api.CodeBackendNonsense},
		{"status 999", raw("HTTP/1.1 999 Canary\r\nContent-Length: 0\r\n\r\n"), 502, api.CodeBackendNonsense},
		{"huge header", raw(ok + "X: " + strings.Repeat("x", api.MaxHeader) + "\r\n\r\n{}"), 502, api.CodeBackendNonsense},
		{"text 404", raw("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\ncanary"), 404, api.CodeBackendError},
		{"text 503", raw("HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nRetry-After: 9\r\n\r\ncanary"), 503, api.CodeBackendError},
		{"endless error", raw("HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\r\n" + strings.Repeat("x", 70<<10)), 400, api.CodeBackendError},
		{"401", raw("HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\n\r\n{\"error\":\"canary\"}"), 502, api.CodeBackendAuth},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
			f.answer = tc.answer
			var logs bytes.Buffer
			p := newPool(t, Options{Log: zerolog.New(&logs)}, Config{Type: TypeOpenAI, URL: f.URL})
			miner := newMiner(t, p, "m")
			resp := post(t, miner.URL+"/v1/chat/completions", ask)
			defer func() { _ = resp.Body.Close() }()
			body := text(t, resp)
			if resp.StatusCode != tc.status || resp.Header.Get(api.HeaderError) != tc.code || !json.Valid([]byte(body)) {
				t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
			}
			miner.Close()
			if all := body + fmt.Sprint(resp.Header) + logs.String(); strings.Contains(strings.ToLower(all), "canary") {
				t.Errorf("the server's words got out: %s", all)
			}
			if p.Counters()[tc.code] != 1 || p.Snapshot().InFlight != 0 {
				t.Errorf("%v %+v", p.Counters(), p.Snapshot())
			}
		})
	}
}

func TestTheServersOwnRefusalIsShown(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	f.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "20")
		writeJSON(w, 400, `{"error":{"message":"context is too long; key sk-canary","type":"x","code":400}}`)
	}
	miner := newMiner(t, newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL, APIKey: "sk-canary"}), "m")
	resp := post(t, miner.URL+"/v1/chat/completions", ask)
	defer func() { _ = resp.Body.Close() }()
	e, own := api.ReadError(resp)
	if own || e.Status != 400 || e.Message != "context is too long; key [secret]" || e.RetryAfter != 20*time.Second {
		t.Errorf("%+v, own %v", e, own)
	}
}

func TestSlowHeaders(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	h, _, gone := hang()
	f.answer = h
	miner := newMiner(t, newPool(t, Options{HeaderTimeout: 50 * time.Millisecond}, Config{Type: TypeOpenAI, URL: f.URL}), "m")
	resp := post(t, miner.URL+"/v1/chat/completions", ask)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != 504 || resp.Header.Get(api.HeaderError) != api.CodeTimeout {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	await(t, gone, "the server to be let go")
}

func TestDeadServerIsLookedAtAgain(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	p := newPool(t, Options{Refresh: time.Hour}, Config{Type: TypeOpenAI, URL: f.URL})
	<-p.Changed()
	miner := newMiner(t, p, "m")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	f.Close()
	for { // Run's own first look may come before or after Close
		status, header := outcome(t, miner.URL+"/v1/chat/completions", ask)
		if code := header.Get(api.HeaderError); code == api.CodeModelNotFound {
			break
		} else if status != 502 || code != api.CodeBackendDown {
			t.Fatalf("%d %v", status, header)
		}
		select {
		case <-p.Changed():
		case <-time.After(10 * time.Second):
			t.Fatal("nobody looked again")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestKeyIsShownNowhere(t *testing.T) {
	const canary = "sk-canary-4711"
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	f.key = "another"
	var logs bytes.Buffer
	p := newPool(t, Options{Log: zerolog.New(&logs).Level(zerolog.TraceLevel)}, Config{Type: TypeOpenAI, URL: f.URL, APIKey: canary})
	s := p.Snapshot()
	if len(s.Models) != 0 || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "refused the API key; set api_key_env") {
		t.Errorf("%+v", s)
	}
	f.set(func() { f.key = canary })
	p.Refresh(t.Context())
	f.set(func() { f.key = "another" })
	miner := newMiner(t, p, "m")
	resp := post(t, miner.URL+"/v1/chat/completions", ask)
	defer func() { _ = resp.Body.Close() }()
	body := text(t, resp)
	if resp.StatusCode != 502 || resp.Header.Get(api.HeaderError) != api.CodeBackendAuth {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	miner.Close()
	everything := body + fmt.Sprint(resp.Header) + logs.String() + fmt.Sprintf("%+v %#v %v", s, p.sources[0].cfg, p.Counters())
	if strings.Contains(everything, canary) {
		t.Errorf("the key got out: %s", everything)
	}
	if identity.Secret(canary).Reveal() != f.take()[0].header.Get("Authorization")[len("Bearer "):] {
		t.Error("the server never got the key")
	}
}

func TestBodiesAreBounded(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL})
	f.take()
	big := io.MultiReader(strings.NewReader(`{"model":"m","x":"`), strings.NewReader(strings.Repeat("x", api.MaxBody)), strings.NewReader(`"}`))
	r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", big)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	if p.ServeHTTP(w, r.WithContext(WithGrant(t.Context(), "m"))); w.Code != 413 || w.Header().Get(api.HeaderError) != api.CodeTooLarge {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if len(f.take()) != 0 {
		t.Error("it reached the server")
	}
}

func TestBuiltinGetsCheckedRequestsOnly(t *testing.T) {
	var got []string
	engine := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.URL.String()+" "+string(b)+" "+r.Header.Get("Origin"))
		writeJSON(w, 200, `{}`)
	})
	p := newPool(t, Options{Builtin: engine}, Config{Type: TypeBuiltin})
	miner := newMiner(t, p, "builtin")
	resp := post(t, miner.URL+"/api/chat?x=1", `{"model" : "builtin"}`, "Origin", "http://x")
	defer func() { _ = resp.Body.Close() }()
	if text(t, resp); resp.StatusCode != 200 || len(got) != 1 || got[0] != `/api/chat {"model":"builtin"} ` {
		t.Errorf("%d %q", resp.StatusCode, got)
	}
	if status, _ := outcome(t, miner.URL+"/v1/embeddings", `{"model":"builtin"}`); status != 404 || len(got) != 1 {
		t.Errorf("%d %q", status, got)
	}
}
