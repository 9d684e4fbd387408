package api

import (
	"bufio"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestLookupTakesExactlyTheList(t *testing.T) {
	for _, c := range Calls() {
		got, err := Lookup(http.MethodPost, string(c))
		if err != nil || got != c {
			t.Errorf("Lookup(POST, %s) = %q, %v", c, got, err)
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "post", ""} {
			if _, err := Lookup(method, string(c)); !errors.Is(err, ErrNotOffered) {
				t.Errorf("Lookup(%q, %s) = %v, want ErrNotOffered", method, c, err)
			}
		}
	}
}

// forbidden are paths that reach something at one AI server or another, and
// spellings that some router takes for a path on the list.
var forbidden = []string{
	"", "/", "*", "/v1", "/v1/", "/v1/models", "/api/tags", "/api/show", "/api/ps", "/api/version",
	"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:00", "/api/me", "/api/signout",
	"/slots", "/slots/0?action=erase", "/props", "/lora-adapters", "/metrics", "/health", "/models/load", "/models/unload",
	"/pause", "/sleep", "/reset_prefix_cache", "/collective_rpc", "/v1/load_lora_adapter", "/update_weights",
	"/v1/files", "/v1/images/generations", "/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/messages/batches",
	"/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions", "/v1/chat//completions",
	"/./v1/chat/completions", "/v1/./chat/completions", "/v1/../v1/chat/completions", "/v1/chat/completions/..", "/v1/chat/completions/.",
	"/v1/chat/%63ompletions", "/v1/chat%2Fcompletions", "/v1/chat%2fcompletions", "/%76%31/chat/completions", "/v1/%2e/chat/completions",
	"/v1/%2e%2e/v1/chat/completions", "/v1/%2E%2E/api/pull", "/v1/chat/completions%2f..%2f..%2fapi%2fpull", "/v1/chat/completions/../../../api/delete",
	"/v1/chat/completions%00", "/v1/chat/completions%20", "/v1/chat/completions ", "/v1/chat/completions;x=1", "/v1/chat/completions?x=1", "/v1/chat/completions#x",
	"/V1/chat/completions", "/v1/Chat/Completions", "/API/chat", "/api/Chat", "/api/chat/", "/api/chat%2f", "/api\\chat", "/api/chat\x00",
	"v1/chat/completions", "http://127.0.0.1/v1/chat/completions", "/v1/chat/completions\r\nX: y", "/v1/chat/completionſ",
}

func TestLookupRefusesEveryOtherSpelling(t *testing.T) {
	for _, p := range forbidden {
		if c, err := Lookup(http.MethodPost, p); !errors.Is(err, ErrNotOffered) || c != "" {
			t.Errorf("Lookup(POST, %q) = %q, %v", p, c, err)
		}
	}
}

// TestLookupRequestAsAServerReadsIt parses real request heads, as net/http does
// for a stranger's bytes.
func TestLookupRequestAsAServerReadsIt(t *testing.T) {
	head := func(line string, fields ...string) *http.Request {
		t.Helper()
		raw := line + "\r\nHost: miner\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return nil // not even a request
		}
		return r
	}
	for _, p := range forbidden {
		if p == "" || strings.ContainsAny(p, " \r\n") || strings.Contains(p, "?x=1") || strings.HasPrefix(p, "http:") {
			continue
		}
		if r := head("POST " + p + " HTTP/1.1"); r != nil {
			if c, err := LookupRequest(r); err == nil {
				t.Errorf("%q was taken for %s", p, c)
			}
		}
	}
	for _, tc := range []struct {
		name string
		r    *http.Request
	}{
		{"CONNECT authority", head("CONNECT 127.0.0.1:11434 HTTP/1.1")},
		{"CONNECT path", head("CONNECT /v1/chat/completions HTTP/1.1")},
		{"upgrade", head("POST /v1/chat/completions HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket")},
		{"upgrade among tokens", head("POST /v1/chat/completions HTTP/1.1", "Connection: keep-alive, uPGRADE")},
		{"h2c", head("POST /v1/chat/completions HTTP/1.1", "Upgrade: h2c")},
		{"asterisk", head("OPTIONS * HTTP/1.1")},
		{"user info", &http.Request{Method: "POST", URL: &url.URL{User: url.User("x"), Path: "/v1/chat/completions"}}},
		{"opaque", &http.Request{Method: "POST", URL: &url.URL{Opaque: "/v1/chat/completions"}}},
		{"no URL", &http.Request{Method: "POST"}},
	} {
		if tc.r == nil {
			t.Fatalf("%s: the test's request does not parse", tc.name)
		}
		if _, err := LookupRequest(tc.r); !errors.Is(err, ErrNotOffered) {
			t.Errorf("%s: %v, want ErrNotOffered", tc.name, err)
		}
	}
	if c, err := LookupRequest(head("POST /v1/messages?beta=true HTTP/1.1")); err != nil || c != Messages {
		t.Errorf("a query beside the path: %q, %v", c, err)
	}
}

func FuzzLookup(f *testing.F) {
	for _, p := range forbidden {
		f.Add("POST", p)
	}
	for _, c := range Calls() {
		f.Add("POST", string(c))
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		c, err := Lookup(method, path)
		if err == nil && (method != "POST" || string(c) != path) {
			t.Fatalf("Lookup(%q, %q) = %q", method, path, c)
		}
		if err != nil && (!errors.Is(err, ErrNotOffered) || c != "") {
			t.Fatalf("Lookup(%q, %q) = %q, %v", method, path, c, err)
		}
		u, uerr := url.ParseRequestURI(path)
		if uerr != nil {
			return
		}
		if c, err := LookupRequest(&http.Request{Method: method, URL: u}); err == nil && u.Path != string(c) {
			t.Fatalf("LookupRequest(%q, %q) = %q", method, path, c)
		}
	})
}

func TestFilterResponseHeader(t *testing.T) {
	src := http.Header{
		"Content-Type":   {"Text/Event-Stream; Charset=UTF-8"},
		"Retry-After":    {"7"},
		"Set-Cookie":     {"a=b"},
		"Server":         {"uvicorn"},
		"Location":       {"http://10.0.0.1/"},
		"Authorization":  {"Bearer k"},
		"X-Request-Id":   {"1"},
		"Content-Length": {"5"},
		HeaderError:      {"busy"},
	}
	dst := http.Header{}
	FilterResponseHeader(dst, src)
	if len(dst) != 2 || dst.Get("Content-Type") != "text/event-stream; charset=utf-8" || dst.Get("Retry-After") != "7" {
		t.Errorf("passed on: %v", dst)
	}
	for _, ct := range []string{"text/html", "application/octet-stream", "text/plain", "application/json; charset=utf-16", "application/json,text/html", "json", strings.Repeat("a", 300)} {
		dst := http.Header{}
		if FilterResponseHeader(dst, http.Header{"Content-Type": {ct}}); len(dst) != 0 {
			t.Errorf("%q passed as %v", ct, dst)
		}
	}
	for _, ra := range []string{"-1", "1.5", "soon", "007", "99999999999999", "1\r\nX: y", strings.Repeat("1", 80)} {
		dst := http.Header{}
		if FilterResponseHeader(dst, http.Header{"Retry-After": {ra}}); len(dst) != 0 {
			t.Errorf("Retry-After %q passed", ra)
		}
	}
	if FilterResponseHeader(dst, http.Header{"Retry-After": {"Fri, 31 Dec 1999 23:59:59 GMT"}}); dst.Get("Retry-After") == "7" {
		t.Error("a date in Retry-After did not pass")
	}
}
