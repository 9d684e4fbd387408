package backend

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"mintai/api"
)

func TestGrantDecidesWhoMayCallWhat(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"}, fakeModel{name: "secret"}, fakeModel{name: "text-embedding-3"})
	p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL})
	f.take()
	for _, tc := range []struct {
		name    string
		granted api.Model
		path    string
		body    string
		status  int
		code    string
	}{
		{"another model", "m", "/v1/chat/completions", `{"model":"secret"}`, 403, api.CodeNotGranted},
		{"no model", "m", "/v1/chat/completions", `{}`, 403, api.CodeNotGranted},
		{"two models", "m", "/v1/chat/completions", `{"model":"m","model":"secret"}`, 400, api.CodeAmbiguous},
		{"two spellings", "m", "/v1/chat/completions", `{"model":"m","Model":"secret"}`, 400, api.CodeAmbiguous},
		{"no grant", "", "/v1/chat/completions", `{"model":"m"}`, 403, api.CodeNotGranted},
		{"gone", "old", "/v1/chat/completions", `{"model":"old"}`, 404, api.CodeModelNotFound},
		{"not its call", "text-embedding-3", "/v1/chat/completions", `{"model":"text-embedding-3"}`, 404, api.CodeNotOffered},
		{"not its API", "m", "/api/chat", `{"model":"m"}`, 404, api.CodeNotOffered},
		{"remote media", "m", "/v1/chat/completions", `{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]}`, 400, api.CodeRemoteMedia},
	} {
		status, header := outcome(t, newMiner(t, p, tc.granted).URL+tc.path, tc.body)
		if status != tc.status || header.Get(api.HeaderError) != tc.code {
			t.Errorf("%s: %d %v", tc.name, status, header)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(ask))
	w := httptest.NewRecorder()
	if p.ServeHTTP(w, r); w.Code != 403 {
		t.Errorf("without any grant: %d", w.Code)
	}
	if got := f.take(); len(got) != 0 {
		t.Errorf("reached the server: %+v", got)
	}
	if n := p.Counters()[api.CodeNotGranted]; n != 4 {
		t.Errorf("counted %d", n)
	}
}

// TestForbiddenPathsReachNoServer sends the bytes that a stranger may send.
func TestForbiddenPathsReachNoServer(t *testing.T) {
	f := newFake(t, TypeOllama, fakeModel{name: "m", caps: []string{"completion"}})
	p := newPool(t, Options{}, Config{Type: TypeOllama, URL: f.URL})
	miner := newMiner(t, p, "m")
	f.take()
	lines := []string{
		"GET / HTTP/1.1", "GET /api/tags HTTP/1.1", "POST /api/show HTTP/1.1", "GET /api/ps HTTP/1.1", "GET /metrics HTTP/1.1", "GET /slots HTTP/1.1",
		"POST /pause HTTP/1.1", "POST /slots/0?action=erase HTTP/1.1", "CONNECT 127.0.0.1:11434 HTTP/1.1", "CONNECT /api/chat HTTP/1.1", "OPTIONS * HTTP/1.1",
		"GET /api/chat HTTP/1.1", "DELETE /api/chat HTTP/1.1", "PUT /api/chat HTTP/1.1", "pOST /api/chat HTTP/1.1",
		"POST http://127.0.0.1:11434/api/pull HTTP/1.1", "POST /api/chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket", "POST /api/chat HTTP/1.1\r\nConnection: upgrade",
	}
	for _, path := range []string{"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:0", "/api/embed/../pull"} {
		for _, spell := range []func(string) string{
			func(s string) string { return s },
			func(s string) string { return "/" + s },
			func(s string) string { return s + "/" },
			func(s string) string { return "/api/chat/.." + strings.TrimPrefix(s, "/api") },
			func(s string) string { return "/api/chat/%2e%2e" + strings.TrimPrefix(s, "/api") },
			func(s string) string { return "/api/chat%2f..%2f" + strings.TrimPrefix(s, "/api/") },
			func(s string) string { return "/api/chat/..%2f" + strings.TrimPrefix(s, "/api/") },
			func(s string) string { return "/api/./" + strings.TrimPrefix(s, "/api/") },
			func(s string) string { return "/api//" + strings.TrimPrefix(s, "/api/") },
			func(s string) string { return "/%61pi/" + strings.TrimPrefix(s, "/api/") },
			func(s string) string { return "/API/" + strings.ToUpper(strings.TrimPrefix(s, "/api/")) },
			func(s string) string { return "/api/chat;" + s },
			func(s string) string { return "/api/chat%00" + s },
			func(s string) string { return "/api\\chat" + s },
			func(s string) string { return "/api/chat" + s },
		} {
			lines = append(lines, "POST "+spell(path)+" HTTP/1.1", "DELETE "+spell(path)+" HTTP/1.1")
		}
	}
	for _, line := range lines {
		conn, err := net.Dial("tcp", miner.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		body := `{"model":"m","name":"evil"}`
		_, _ = fmt.Fprintf(conn, "%s\r\nHost: miner\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", line, len(body), body)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			_ = conn.Close()
			continue
		}
		_ = resp.Body.Close()
		if line != "OPTIONS * HTTP/1.1" && resp.StatusCode != 404 && resp.StatusCode != 400 { // 400: net/http itself; it answers OPTIONS *, too
			t.Errorf("%s: %d", line, resp.StatusCode)
		}
		_ = conn.Close()
	}
	if got := f.take(); len(got) != 0 {
		t.Errorf("reached the server: %+v", got)
	}
	if status, _ := outcome(t, miner.URL+"/api/chat", `{"model":"m"}`); status != 200 { // the way in is open
		t.Errorf("%d", status)
	}
}
