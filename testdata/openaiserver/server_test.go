package main

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
	"sync"
	"testing"
	"time"
)

// syncBuffer is a log that the test and the server share.
type syncBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // a line was written
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, key string) (*httptest.Server, *syncBuffer) {
	t.Helper()
	log := &syncBuffer{more: make(chan struct{}, 1)}
	srv := httptest.NewServer(NewServer([]string{"test-small"}, key, NewLog(log)))
	t.Cleanup(srv.Close)
	return srv, log
}

func post(ctx context.Context, t *testing.T, url, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return http.DefaultClient.Do(req)
}

func chat(prompt string, stream bool) string {
	return fmt.Sprintf(`{"model":"test-small","stream":%v,"stream_options":{"include_usage":true},"messages":[{"role":"system","content":"[tokens=1]"},{"role":"user","content":%q}]}`, stream, prompt)
}

// readStream returns the text, the last finish_reason, the completion tokens of
// the usage, and whether [DONE] came.
func readStream(t *testing.T, r io.Reader) (text, finish string, tokens int, done bool, err error) {
	t.Helper()
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			done = true
			continue
		}
		var c struct {
			Object  string
			Choices []struct {
				Delta        struct{ Content string }
				FinishReason *string `json:"finish_reason"`
			}
			Usage *usage
		}
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			t.Fatal(err)
		}
		if c.Object != "chat.completion.chunk" {
			t.Fatalf("object %q", c.Object)
		}
		for _, ch := range c.Choices {
			text += ch.Delta.Content
			if ch.FinishReason != nil {
				finish = *ch.FinishReason
			}
		}
		if c.Usage != nil {
			tokens = c.Usage.Completion
		}
	}
	return text, finish, tokens, done, sc.Err()
}

func TestStreamIsWholeAndKnown(t *testing.T) {
	srv, _ := start(t, "")
	resp, err := post(t.Context(), t, srv.URL+"/v1/chat/completions", chat("hello [tokens=45]", true))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, finish, tokens, done, err := readStream(t, resp.Body)
	if err != nil || !done || finish != "stop" || tokens != 45 {
		t.Errorf("finish %q, %d tokens, done %v, %v", finish, tokens, done, err)
	}
	if want := strings.Join(Answer(45), ""); text != want {
		t.Errorf("got %q, want %q", text, want)
	}
}

func TestWholeAnswerMatchesStream(t *testing.T) {
	srv, _ := start(t, "")
	resp, err := post(t.Context(), t, srv.URL+"/v1/chat/completions", chat("hello", false))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var c struct {
		Object  string
		Choices []struct{ Message struct{ Content string } }
	}
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		t.Fatal(err)
	}
	if c.Object != "chat.completion" || len(c.Choices) != 1 || c.Choices[0].Message.Content != strings.Join(Answer(defaultTokens), "") {
		t.Errorf("%+v", c)
	}
}

func TestAbortCutsTheBody(t *testing.T) {
	srv, log := start(t, "")
	for _, stream := range []bool{true, false} {
		resp, err := post(t.Context(), t, srv.URL+"/v1/chat/completions", chat("[abort=3]", stream))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("stream %v: %v, want an unexpected end", stream, err)
		}
	}
	if n := strings.Count(log.String(), `"event":"aborted"`); n != 2 {
		t.Errorf("%d aborts in the log, want 2", n)
	}
}

func TestCancelIsLogged(t *testing.T) {
	srv, log := start(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := post(ctx, t, srv.URL+"/v1/chat/completions", chat("[tokens=1000] [delay=50ms]", true))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	end := time.After(5 * time.Second)
	for !strings.Contains(log.String(), `"event":"cancelled"`) {
		select {
		case <-log.more:
		case <-end:
			t.Fatalf("no cancellation in the log:\n%s", log.String())
		}
	}
}

func TestRefusals(t *testing.T) {
	srv, log := start(t, "k3y")
	ask := func(path, key, body string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var e struct{ Error struct{ Message string } }
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, e.Error.Message
	}
	for _, c := range []struct {
		path, key, body string
		status          int
	}{
		{"/v1/chat/completions", "wrong", chat("x", false), 401},
		{"/v1/chat/completions", "k3y", `{}`, 400},
		{"/v1/chat/completions", "k3y", `not json`, 400},
		{"/v1/chat/completions", "k3y", `{"model":"test-small"}`, 400},
		{"/v1/chat/completions", "k3y", `{"model":"other","messages":[]}`, 404},
		{"/v1/chat/completions", "k3y", chat("[status=429]", true), 429},
		{"/v1/responses", "k3y", `{}`, 404},
	} {
		status, msg := ask(c.path, c.key, c.body)
		if status != c.status || msg == "" {
			t.Errorf("%s %s: %d %q, want %d", c.path, c.body, status, msg, c.status)
		}
	}
	if strings.Contains(log.String(), "k3y") {
		t.Error("the log holds the key")
	}
}

func TestParseDirectives(t *testing.T) {
	for in, want := range map[string]directives{
		"plain":                      {tokens: defaultTokens, abort: -1},
		"[tokens=3] and [delay=5ms]": {tokens: 3, abort: -1, delay: 5 * time.Millisecond},
		"[tokens=x] [status=200]":    {tokens: defaultTokens, abort: -1},
		"[tokens=999999999]":         {tokens: maxTokens, abort: -1},
		"[first=2h] [think=2]":       {tokens: defaultTokens, abort: -1, first: maxWait, think: 2},
		"[nonsense] [abort=0]":       {tokens: defaultTokens, nonsense: true},
		"[size=2000]":                {tokens: defaultTokens, abort: -1, size: 2000},
		"[size=1000000]":             {tokens: defaultTokens, abort: -1, size: maxSize},
		"[evil]":                     {tokens: defaultTokens, abort: -1, evil: true},
	} {
		if got := parseDirectives(in, 0); got != want {
			t.Errorf("%s: %+v, want %+v", in, got, want)
		}
	}
	if got := parseDirectives("[tokens=50]", 7).tokens; got != 7 {
		t.Errorf("max_tokens: %d tokens, want 7", got)
	}
}

// TestFilledTokens: each is as long as asked, and none looks like another.
func TestFilledTokens(t *testing.T) {
	seen := map[string]bool{}
	for _, token := range (directives{tokens: 100, size: 1500}).answer() {
		if len(token) != 1500 || seen[token] {
			t.Fatalf("%d bytes, seen before: %v", len(token), seen[token])
		}
		seen[token] = true
	}
}
