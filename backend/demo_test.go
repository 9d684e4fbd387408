package backend

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mintai/api"
)

func demoAsk(ctx context.Context, call api.Call, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, string(call), strings.NewReader(body)).WithContext(ctx)
	r.Header.Set("Content-Type", "application/json")
	return r
}

func TestDemoSpeaksEachAPI(t *testing.T) {
	d := &demo{tokens: 5}
	const want = "the load simulator sends these"
	for _, call := range demoCalls {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, demoAsk(t.Context(), call, `{"model":"demo","stream":true,"stream_options":{"include_usage":true}}`))
		dec := api.StreamText(call)
		got, done, err := dec.Feed(w.Body.Bytes())
		if got != want || !done || err != nil || !dec.Complete() || dec.FinishReason() != "stop" {
			t.Errorf("%s: %q, done %v, %v", call, got, done, err)
		}
		w = httptest.NewRecorder()
		d.ServeHTTP(w, demoAsk(t.Context(), call, `{"model":"demo\"","stream":false,"max_tokens":3,"options":{"num_predict":3}}`))
		if body := w.Body.Bytes(); !json.Valid(body) || !strings.Contains(string(body), `"the load simulator"`) || !strings.Contains(string(body), `"length"`) {
			t.Errorf("%s: %s", call, body)
		}
		c := api.NewTokenCounter(call, false)
		_, _ = c.Write(w.Body.Bytes())
		if n, usage := c.Tokens(); n != 3 || !usage {
			t.Errorf("%s: %d tokens, %v", call, n, usage)
		}
	}
	w := httptest.NewRecorder()
	if d.ServeHTTP(w, demoAsk(t.Context(), api.OllamaChat, `{"max_tokens":"many"}`)); w.Code != 400 {
		t.Errorf("%d", w.Code)
	}
}

// stamps notes when each token was written.
type stamps struct {
	http.ResponseWriter
	at []time.Duration
	t0 time.Time
}

func (s *stamps) Write(b []byte) (int, error) {
	s.at = append(s.at, time.Since(s.t0))
	if len(s.at)%7 == 0 {
		time.Sleep(20 * time.Millisecond) // a slow writer, in virtual time
	}
	return len(b), nil
}
func (s *stamps) Flush() {}

func TestDemoKeepsItsPaceWithoutDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &demo{firstToken: 300 * time.Millisecond, pace: 30, tokens: 301}
		s := &stamps{ResponseWriter: httptest.NewRecorder(), t0: time.Now()}
		d.ServeHTTP(s, demoAsk(t.Context(), api.ChatCompletions, `{"model":"demo","stream":true}`))
		if s.at[0] != 300*time.Millisecond {
			t.Errorf("first token after %v", s.at[0])
		}
		if last := s.at[300]; last != 10300*time.Millisecond {
			t.Errorf("token 300 after %v", last)
		}
	})
}

func TestDemoStopsWhenNobodyListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &demo{firstToken: time.Second, pace: 1, tokens: 1000}
		for _, stream := range []string{"true", "false"} {
			ctx, cancel := context.WithTimeout(t.Context(), 5500*time.Millisecond)
			start := time.Now()
			d.ServeHTTP(httptest.NewRecorder(), demoAsk(ctx, api.OllamaGenerate, `{"model":"demo","stream":`+stream+`}`))
			if took := time.Since(start); took != 5500*time.Millisecond {
				t.Errorf("stream %s: stopped after %v", stream, took)
			}
			cancel()
		}
	})
}

func TestDemoInThePool(t *testing.T) {
	p := newPool(t, Options{}, Config{Type: TypeDemo, Tokens: 2, Slots: 7}, Config{Type: TypeDemo, Models: []string{"x", "y*"}})
	s := p.Snapshot()
	if len(s.Models) != 2 || s.Models[0].Name != "demo" || s.Models[1].Name != "x" || s.Slots != 71 {
		t.Errorf("%+v", s)
	}
}
