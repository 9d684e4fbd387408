package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"mintai/api"
)

func TestForwardPassesTheCheckedRequestOnly(t *testing.T) {
	f := &transport{answer: func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		req := RequestFromContext(r.Context())
		if req == nil || string(req.Body) != string(body) || req.Model != "m" || req.Call != api.Messages || int64(len(body)) != r.ContentLength {
			t.Errorf("in the context: %v; body of %d bytes, announced %d", req, len(body), r.ContentLength)
		}
		resp, err := respond(200, "application/json; charset=utf-8", `{"ok":true}`)(r)
		resp.Header.Set("Set-Cookie", "a=b")
		resp.Header.Set("Server", "secret-box")
		resp.Header.Set("Openai-Organization", "x")
		return resp, err
	}}
	s := serve(t, Config{Transport: f})
	resp, body := do(t, s, "POST", "/v1/messages?beta=true", chat, func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer sk-canary")
		r.Header.Set("X-Api-Key", "sk-canary")
		r.Header.Set("Cookie", "canary=1")
		r.Header.Set("X-Forwarded-For", "1.2.3.4")
		r.Header.Set("User-Agent", "canary/1")
		r.Header.Set("Accept", "application/json")
		r.Header.Set("Mintai-Session", "canary")
	})
	if resp.StatusCode != 200 || body != `{"ok":true}` || resp.ContentLength != int64(len(body)) {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	for _, name := range []string{"Set-Cookie", "Server", "Openai-Organization"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("%s of the AI server came through", name)
		}
	}
	if got := resp.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
		t.Errorf("Content-Type %q", got)
	}
	calls := f.calls()
	if len(calls) != 1 {
		t.Fatalf("%d calls", len(calls))
	}
	out := calls[0]
	if out.Method != "POST" || out.URL.RequestURI() != "/v1/messages" || out.Host != "miner" {
		t.Errorf("%s %s at %s", out.Method, out.URL, out.Host)
	}
	want := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}, "User-Agent": {""}}
	if fmt.Sprint(out.Header) != fmt.Sprint(want) {
		t.Errorf("header %v", out.Header)
	}
}

// A transport that follows the queue must not send its news to HTTP/1.1
// callers, many of which take a 102 for the answer.
func TestInformationalResponsesStayHere(t *testing.T) {
	f := &transport{answer: func(r *http.Request) (*http.Response, error) {
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(102, textproto.MIMEHeader{api.HeaderQueue: {"2"}}); err != nil {
				return nil, err
			}
		}
		return respond(200, "application/json", "{}")(r)
	}}
	s := serve(t, Config{Transport: f})
	_, _ = do(t, s, "POST", "/v1/chat/completions", chat, func(r *http.Request) {
		*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
				t.Errorf("a %d arrived", code)
				return nil
			},
		}))
	})
}

func TestErrorsInTheShapeOfEachAPI(t *testing.T) {
	errs := []struct {
		err    error
		status int
		retry  string // X-Should-Retry
	}{
		{&api.Error{Status: 404, Code: api.CodeModelNotFound, Message: "no miner offers m", Hint: "try x"}, 404, ""},
		{&api.Error{Status: 503, Code: api.CodeBusy, Message: "all are busy", RetryAfter: 3 * time.Second}, 503, ""},
		{&api.Error{Status: 503, Code: api.CodeNoMiner, Message: "none is free"}, 503, "false"},
		{&api.Error{Status: 502, Code: api.CodeNoPath, Message: "no path to gpu-box"}, 502, "false"},
		{&api.Error{Status: 504, Code: api.CodeTimeout, Message: "too late"}, 504, "false"},
		{fmt.Errorf("x: %w", &api.Error{Status: 403, Code: api.CodeNotAdmitted, Message: "not admitted"}), 403, ""},
		{context.DeadlineExceeded, 504, "false"},
		{errors.New("canary: something of ours"), 500, "false"},
	}
	shapes := map[string]func(t *testing.T, body string) (message, code string){
		"/v1/chat/completions": func(t *testing.T, body string) (string, string) {
			var doc struct {
				Error struct {
					Message, Type, Code string
					Param               *string
				}
			}
			strict(t, body, &doc)
			if doc.Error.Type == "" {
				t.Errorf("no type in %s", body)
			}
			return doc.Error.Message, doc.Error.Code
		},
		"/v1/messages": func(t *testing.T, body string) (string, string) {
			var doc struct {
				Type  string
				Error struct{ Type, Message, Code string }
			}
			strict(t, body, &doc)
			if doc.Type != "error" || doc.Error.Type == "" {
				t.Errorf("not Anthropic's: %s", body)
			}
			return doc.Error.Message, doc.Error.Code
		},
		"/api/chat": func(t *testing.T, body string) (string, string) {
			var doc struct{ Error, Code string }
			strict(t, body, &doc)
			return doc.Error, doc.Code
		},
	}
	for path, read := range shapes {
		for _, tt := range errs {
			f := &transport{answer: func(*http.Request) (*http.Response, error) { return nil, tt.err }}
			resp, body := post(t, serve(t, Config{Transport: f}), path, chat)
			if resp.StatusCode != tt.status || resp.Header.Get("X-Should-Retry") != tt.retry {
				t.Errorf("%s %v: %d, x-should-retry %q", path, tt.err, resp.StatusCode, resp.Header.Get("X-Should-Retry"))
			}
			message, code := read(t, body)
			if message == "" || code == "" || code != resp.Header.Get(api.HeaderError) || strings.Contains(body, "canary") {
				t.Errorf("%s %v: %s", path, tt.err, body)
			}
			var e *api.Error
			if errors.As(tt.err, &e) {
				if want := int(e.RetryAfter.Seconds()); want > 0 && resp.Header.Get("Retry-After") != strconv.Itoa(want) {
					t.Errorf("Retry-After %q", resp.Header.Get("Retry-After"))
				}
				if !strings.Contains(message, e.Message) {
					t.Errorf("%s: %s", path, body)
				}
			}
		}
	}
}

// strict decodes body and accepts the fields of into, and "hint", only.
func strict(t *testing.T, body string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
}

func TestExplainComesFirst(t *testing.T) {
	mine := errors.New("mine")
	f := &transport{answer: func(*http.Request) (*http.Response, error) { return nil, mine }}
	s := serve(t, Config{Transport: f, Explain: func(err error) *api.Error {
		if errors.Is(err, mine) {
			return errLost
		}
		return nil
	}})
	resp, body := post(t, s, "/v1/chat/completions", chat)
	if resp.StatusCode != 502 || !strings.Contains(body, "gpu-box was lost") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// What the AI server itself refuses passes with its own words.
func TestErrorsOfTheAIServerPass(t *testing.T) {
	const own = `{"error":{"message":"context too long","type":"invalid_request_error","param":null,"code":"x"}}`
	f := &transport{answer: func(r *http.Request) (*http.Response, error) {
		resp, err := respond(429, "application/json", own)(r)
		resp.Header.Set("Retry-After", "7")
		return resp, err
	}}
	resp, body := post(t, serve(t, Config{Transport: f}), "/v1/chat/completions", chat)
	if resp.StatusCode != 429 || body != own || resp.Header.Get("Retry-After") != "7" || resp.Header.Get("X-Should-Retry") != "" {
		t.Errorf("%d %s %v", resp.StatusCode, body, resp.Header)
	}
	for _, status := range []int{101, 302, 999} {
		f := &transport{answer: respond(status, "text/html", "canary")}
		resp, body := post(t, serve(t, Config{Transport: f}), "/v1/chat/completions", chat)
		if resp.StatusCode != 502 || strings.Contains(body, "canary") {
			t.Errorf("status %d: %d %s", status, resp.StatusCode, body)
		}
	}
}

// Each event reaches the caller when it is there, not when the next one is.
func TestEventsAreFlushedOneByOne(t *testing.T) {
	for _, tt := range []struct{ contentType, path, event string }{
		{"text/event-stream", "/v1/chat/completions", "data: {\"n\":%d}\n\n"},
		{"application/x-ndjson", "/api/chat", "{\"n\":%d}\n"},
	} {
		reader, writer := io.Pipe()
		f := &transport{answer: func(*http.Request) (*http.Response, error) {
			return &http.Response{
				StatusCode: 200, Header: http.Header{"Content-Type": {tt.contentType}}, Body: reader, ContentLength: -1,
			}, nil
		}}
		s := serve(t, Config{Transport: f})
		r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+tt.path, strings.NewReader(chat))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := s.Client().Do(r) // the head comes before the first event
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(resp.Body)
		for n := range 5 {
			event := fmt.Sprintf(tt.event, n)
			// In two parts, as a network might cut it.
			for _, part := range []string{event[:3], event[3:]} {
				if _, err := io.WriteString(writer, part); err != nil {
					t.Fatal(err)
				}
			}
			got := ""
			for len(got) < len(event) {
				line, err := lines.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				got += line
			}
			if got != event {
				t.Errorf("got %q, want %q", got, event)
			}
		}
		_ = writer.Close()
		if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
			t.Errorf("at the end: %q, %v", rest, err)
		}
		_ = resp.Body.Close()
	}
}

func TestFailureMidwayIsSaidAndCutsTheConnection(t *testing.T) {
	lostEvent := func(shape api.Call) string { return strings.TrimSpace(string(api.ErrorBody(shape, errLost))) }
	for _, tt := range []struct {
		name, contentType, path, body, want string
	}{
		{
			"between events", "text/event-stream", "/v1/chat/completions", "data: {}\n\n",
			"data: {}\n\ndata: " + lostEvent(api.ChatCompletions) + "\n\n",
		},
		{
			"within a line", "text/event-stream", "/v1/chat/completions", "data: {}\n\ndata: {\"choi",
			"data: {}\n\ndata: " + lostEvent(api.ChatCompletions) + "\n\n",
		},
		{
			"within an event", "text/event-stream", "/v1/messages", "event: a\ndata: {}\n",
			"event: a\ndata: {}\n\nevent: error\ndata: " + lostEvent(api.Messages) + "\n\n",
		},
		{
			"before the first", "text/event-stream", "/v1/responses", "",
			"data: " + lostEvent(api.Responses) + "\n\n",
		},
		{
			"within a very long line", "text/event-stream", "/v1/chat/completions", "data: " + strings.Repeat("x", 2*maxHeldLine),
			"data: " + strings.Repeat("x", 2*maxHeldLine) + "\n\ndata: " + lostEvent(api.ChatCompletions) + "\n\n",
		},
		{
			"JSON lines", "application/x-ndjson", "/api/generate", "{\"a\":1}\n{\"b\"",
			"{\"a\":1}\n" + lostEvent(api.OllamaGenerate) + "\n",
		},
		{"JSON", "application/json", "/v1/chat/completions", `{"choices":[`, `{"choices":[`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := newBroken(tt.body, errLost)
			f := &transport{answer: func(*http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: 200, Header: http.Header{"Content-Type": {tt.contentType}}, Body: body, ContentLength: -1,
				}, nil
			}}
			s := serve(t, Config{Transport: f})
			r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+tt.path, strings.NewReader(chat))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			resp, err := s.Client().Do(r)
			if err != nil {
				if tt.contentType == "application/json" {
					return // cut before the head was sent: an error as well
				}
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			got, err := io.ReadAll(resp.Body)
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the answer ends with %v, as if it were whole", err)
			}
			// How much of a very long line had passed is not said here.
			runs := regexp.MustCompile("x+")
			if runs.ReplaceAllString(string(got), "x") != runs.ReplaceAllString(tt.want, "x") {
				t.Errorf("got  %.200q\nwant %.200q", got, tt.want)
			}
			select {
			case <-body.closed:
			case <-time.After(5 * time.Second):
				t.Error("the body was not closed")
			}
		})
	}
}

// An error that is not ours midway is still a lost miner, without its text.
func TestFailureMidwayOfUnknownKind(t *testing.T) {
	f := &transport{answer: func(*http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}},
			Body: newBroken("", errors.New("canary")), ContentLength: -1,
		}, nil
	}}
	s := serve(t, Config{Transport: f})
	r, _ := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/v1/chat/completions", strings.NewReader(chat))
	r.Header.Set("Content-Type", "application/json")
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err == nil || !strings.Contains(string(got), api.CodeMinerLost) || strings.Contains(string(got), "canary") {
		t.Errorf("%q, %v", got, err)
	}
}

// The caller hangs up: the answer's body is closed, which cancels the work.
func TestCallerGoneCancels(t *testing.T) {
	for _, when := range []string{"before the head", "midway"} {
		t.Run(when, func(t *testing.T) {
			began, ended := make(chan struct{}), make(chan struct{})
			reader, writer := io.Pipe()
			f := &transport{answer: func(r *http.Request) (*http.Response, error) {
				if when == "before the head" {
					close(began)
					<-r.Context().Done()
					close(ended)
					return nil, r.Context().Err()
				}
				context.AfterFunc(r.Context(), func() {
					_ = writer.CloseWithError(r.Context().Err())
					close(ended)
				})
				return &http.Response{
					StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: reader, ContentLength: -1,
				}, nil
			}}
			s := serve(t, Config{Transport: f})
			conn, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, err = fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(chat), chat)
			if err != nil {
				t.Fatal(err)
			}
			if when == "midway" {
				if _, err := io.WriteString(writer, "data: 1\n\n"); err != nil {
					t.Fatal(err)
				}
				if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			} else {
				<-began
			}
			_ = conn.Close()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Error("the request was not cancelled")
			}
		})
	}
}
