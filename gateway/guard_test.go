package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"mintai/api"
)

func TestHostNames(t *testing.T) {
	s := serve(t, Config{Hosts: []string{"Box.lan"}})
	for host, want := range map[string]int{
		"127.0.0.1:11500": 200, "127.0.0.1": 200, "localhost": 200, "LOCALHOST:1": 200, "a.localhost": 200,
		"[::1]:11500": 200, "[::1]": 200, "192.168.1.7:11500": 200, "host.docker.internal:11500": 200, "box.lan": 200,
		"evil.example": 403, "evil.example:11500": 403, "127.0.0.1.evil.example": 403, "localhost.evil.example": 403,
		"notlocalhost": 403, "127.0.0.1@evil.example": 403, "localhost.": 403, "box.lan.": 403, "0x7f000001": 403,
	} {
		resp, body := do(t, s, "GET", "/v1/models", "", func(r *http.Request) { r.Host = host })
		if resp.StatusCode != want {
			t.Errorf("Host %s: %d %s, want %d", host, resp.StatusCode, body, want)
		}
		if want == 403 && resp.Header.Get(api.HeaderError) != CodeBadHost {
			t.Errorf("Host %s: code %q", host, resp.Header.Get(api.HeaderError))
		}
	}
	// The request target may name another host than the Host field; Go takes it.
	if got := raw(t, s, "GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"); got != 403 {
		t.Errorf("absolute target: %d", got)
	}
	if got := raw(t, s, "GET /v1/models HTTP/1.0\r\n\r\n"); got != 403 {
		t.Errorf("no Host: %d", got)
	}
}

func TestBrowserOrigins(t *testing.T) {
	f := &transport{answer: respond(200, "application/json", "{}")}
	s := serve(t, Config{Transport: f, Origins: []string{"https://chat.example.org"}})
	self := s.URL
	for _, tt := range []struct {
		name   string
		header http.Header
		want   int
	}{
		{"no browser", nil, 200},
		{"allowed", http.Header{"Origin": {"https://chat.example.org"}, "Sec-Fetch-Site": {"cross-site"}}, 200},
		{"this endpoint", http.Header{"Origin": {self}, "Sec-Fetch-Site": {"same-origin"}}, 200},
		{"typed by the user", http.Header{"Sec-Fetch-Site": {"none"}}, 200},
		{"another page", http.Header{"Origin": {"https://evil.example"}}, 403},
		{"another scheme", http.Header{"Origin": {"http://chat.example.org"}}, 403},
		{"another port", http.Header{"Origin": {"https://chat.example.org:8443"}}, 403},
		{"a page on another local port", http.Header{"Origin": {"http://localhost:3000"}}, 403},
		{"sandboxed", http.Header{"Origin": {"null"}}, 403},
		{"empty", http.Header{"Origin": {""}}, 403},
		{"two", http.Header{"Origin": {"https://chat.example.org", "https://evil.example"}}, 403},
		{"an image of another page", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
	} {
		before := len(f.calls())
		resp, _ := do(t, s, "POST", "/v1/chat/completions", chat, func(r *http.Request) {
			for k, v := range tt.header {
				r.Header[k] = v
			}
		})
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, resp.StatusCode, tt.want)
		}
		if reached := len(f.calls()) > before; reached != (tt.want == 200) {
			t.Errorf("%s: reached the transport: %v", tt.name, reached)
		}
		allowed := resp.Header.Get("Access-Control-Allow-Origin")
		if want := tt.header.Get("Origin"); tt.want == 200 && allowed != want || tt.want != 200 && allowed != "" {
			t.Errorf("%s: Access-Control-Allow-Origin %q", tt.name, allowed)
		}
	}
}

func TestPreflight(t *testing.T) {
	s := serve(t, Config{Origins: []string{"https://chat.example.org"}})
	for origin, want := range map[string]int{"https://chat.example.org": 204, "https://evil.example": 403} {
		resp, _ := do(t, s, "OPTIONS", "/v1/chat/completions", "", func(r *http.Request) {
			r.Header.Set("Origin", origin)
			r.Header.Set("Access-Control-Request-Method", "POST")
			r.Header.Set("Access-Control-Request-Headers", "content-type")
		})
		allowed := resp.Header.Get("Access-Control-Allow-Headers")
		if resp.StatusCode != want || strings.Contains(allowed, "Content-Type") != (want == 204) {
			t.Errorf("%s: %d, allowed %q", origin, resp.StatusCode, allowed)
		}
	}
}

// Whatever is outside the list, in whatever spelling, never reaches the
// transport: serve's default one fails the test when it is called.
func TestForbiddenPathsNeverLeave(t *testing.T) {
	s := serve(t, Config{})
	targets := []string{
		"/api/pull", "/api/delete", "/api/create", "/api/push", "/api/copy", "/api/blobs/sha256:0", "/slots", "/pause",
		"/metrics", "/props", "/v1/files", "/v1/chat", "/v1", "//", "/v1/chat/completions/", "//v1/chat/completions",
		"/v1//chat/completions", "/v1/./chat/completions", "/v1/x/../chat/completions", "/../v1/chat/completions",
		"/v1/chat/completions/..", "/v1/chat/completions/../../api/pull", "/v1/chat%2fcompletions", "/v1/chat%2Fcompletions",
		"/v1/%63hat/completions", "/v1/chat/completions%00", "/v1/chat/completions%20", "/v1/chat/completions;x",
		"/v1/chat/completions%3f", "/V1/chat/completions", "/v1/Chat/Completions", "/v1/chat/completions\\", "/v1\\chat\\completions",
		"/%2e%2e/v1/chat/completions", "/v1/chat/completions#x", "*", "v1/chat/completions", "/api/chat/", "/api/chat%2f..%2fpull",
		"http://127.0.0.1/api/pull", "http://127.0.0.1//v1/chat/completions",
	}
	for _, target := range targets {
		request := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", target, len(chat), chat)
		if got := raw(t, s, request); got != 404 && got != 400 {
			t.Errorf("POST %s: %d", target, got)
		}
	}
	for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PRI", "post", "FOO"} {
		request := fmt.Sprintf("%s /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", method)
		if got := raw(t, s, request); got != 404 && got != 400 {
			t.Errorf("%s: %d", method, got)
		}
	}
	for name, request := range map[string]string{
		"CONNECT authority": "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n",
		"CONNECT path":      "CONNECT /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"Upgrade": "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Content-Type: application/json\r\nContent-Length: " + fmt.Sprint(len(chat)) + "\r\n\r\n" + chat,
		"Upgrade in a list": "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, upgrade\r\n" +
			"Content-Type: application/json\r\nContent-Length: " + fmt.Sprint(len(chat)) + "\r\n\r\n" + chat,
	} {
		if got := raw(t, s, request); got != 404 && got != 400 {
			t.Errorf("%s: %d", name, got)
		}
	}
}

func TestBadBodiesNeverLeave(t *testing.T) {
	s := serve(t, Config{})
	for name, tt := range map[string]struct {
		body   string
		change func(*http.Request)
		want   int
	}{
		"not JSON":         {"hi", nil, 400},
		"empty":            {"", nil, 400},
		"duplicate key":    {`{"model":"a","model":"b"}`, nil, 400},
		"case variant":     {`{"model":"a","Model":"b"}`, nil, 400},
		"remote image":     {`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]}`, nil, 400},
		"Content-Encoding": {chat, func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }, 415},
		"a form":           {chat, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 415},
		"long header":      {chat, func(r *http.Request) { r.Header.Set("X", strings.Repeat("x", MaxHeader+8192)) }, 431},
		"announced size":   {chat, func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 }, 400},
	} {
		resp, body := do(t, s, "POST", "/v1/chat/completions", tt.body, tt.change)
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, body, tt.want)
		}
	}
	large := `{"model":"` + strings.Repeat("x", api.MaxBody) + `"}`
	if got := raw(t, s, fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(large), large)); got != 413 && got != 0 {
		t.Errorf("too large: %d", got)
	}
}
