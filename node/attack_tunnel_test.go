package node

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"mintai/api"
	"mintai/identity"
	"mintai/quicstream"
)

// raw dials the miner's socket as the client, past everything that the client
// itself checks.
func (c *labClient) raw(t *testing.T, m *labMiner) (*quic.Conn, *http3.ClientConn) {
	t.Helper()
	tlsConf, err := c.key.ClientTLS(quicstream.ALPN, m.id(), nil)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	transport := &quic.Transport{Conn: socket}
	t.Cleanup(func() {
		_ = transport.Close()
		_ = socket.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	conn, err := transport.Dial(ctx, net.UDPAddrFromAddrPort(m.socket.LocalAddr()), tlsConf, &quic.Config{EnableDatagrams: true})
	if err != nil {
		t.Fatal(err)
	}
	h3 := &http3.Transport{DisableCompression: true}
	return conn, h3.NewClientConn(conn)
}

// A client with a live session reaches nothing but the short list, however it
// spells its requests, and nothing of them but the checked body goes on.
func TestMinerServesTheShortListOnly(t *testing.T) {
	t.Parallel()
	l, m, ai := ready(t, says("ok"))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	s := cl.session(t, m)
	_, h3 := cl.raw(t, m)
	send := func(method, path, body string, headers ...string) (int, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testWait)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "https://miner/", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = path
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(api.HeaderSession, s.id.String())
		req.Header.Set(api.HeaderRequest, quicstream.NewRequestID().String())
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := h3.RoundTrip(req)
		if err != nil {
			return 0, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode, nil
	}
	asked := ai.count()
	refused := func(name string, status int, err error) {
		t.Helper()
		if err == nil && status < 400 {
			t.Errorf("%s: %d", name, status)
		}
		if n := ai.count(); n != asked {
			t.Errorf("%s: it reached the AI server", name)
			asked = n
		}
	}
	// Paths that do not begin with a slash never leave package http3.
	for _, path := range []string{
		"/api/pull", "/api/delete", "/api/create", "/api/blobs/sha256:0", "/slots", "/pause", "/metrics", "/", "*", "/v1/models",
		"/v1/../v1/chat/completions", "/v1/%2e%2e/v1/chat/completions", "/v1/.%2e/chat/completions",
		"/v1//chat/completions", "/v1/./chat/completions", "/v1/chat/completions/", "/v1/chat/completions;x=1", "/v1/chat%2Fcompletions",
		"/v1/chat/completions%00", "/v1/chat/completions%0d%0aX:y", "/V1/chat/completions", "/v1/chat/completions.", "/v1/chat/completions%20",
		"/v1/ch\u0430t/completions", "/v1/%63hat/completions", "/v1/chat/completions/../../../api/pull",
		"/v1/chat/completions#/../../api/pull",
	} {
		status, err := send(http.MethodPost, path, streamBody)
		refused(path, status, err)
	}
	for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "post", "POSTX"} {
		status, err := send(method, "/v1/chat/completions", streamBody)
		refused(method, status, err)
	}
	for name, body := range map[string]string{
		"another model":       `{"model":"other","messages":[]}`,
		"two models":          `{"model":"m","model":"other","messages":[]}`,
		"two spellings":       `{"model":"m","Model":"other","messages":[]}`,
		"an escaped key":      `{"model":"m","\u006dodel":"other","messages":[]}`,
		"a fetched picture":   `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]}`,
		"two documents":       `{"model":"m","messages":[]}{"model":"m"}`,
		"an array":            `[{"model":"m"}]`,
		"a model in an array": `{"model":["m"],"messages":[]}`,
		"nothing":             ``,
	} {
		status, err := send(http.MethodPost, "/v1/chat/completions", body)
		refused(name, status, err)
	}
	for name, headers := range map[string][]string{
		"compressed":          {"Content-Encoding", "gzip"},
		"no JSON":             {"Content-Type", "text/plain"},
		"nobody's session":    {api.HeaderSession, identity.NewSessionID().String()},
		"a malformed session": {api.HeaderSession, "../../etc/passwd"},
		"nothing to resume":   {api.HeaderResume, "0"},
		"a negative offset":   {api.HeaderResume, "-1"},
		"a malformed request": {api.HeaderRequest, "zz"},
	} {
		status, err := send(http.MethodPost, "/v1/chat/completions", streamBody, headers...)
		refused(name, status, err)
	}
	status, err := send(http.MethodPost, "/v1/chat/completions", streamBody, "Cookie", "a=b", "Authorization", "Bearer x", "Origin", "http://evil",
		"X-Forwarded-For", "1.2.3.4", "Referer", "http://evil", "Te", "trailers", "X-Api-Key", "k")
	if err != nil || status != http.StatusOK || ai.count() != asked+1 {
		t.Fatalf("a good request: %d, %v", status, err)
	}
	ai.mu.Lock()
	last := ai.calls[len(ai.calls)-1]
	ai.mu.Unlock()
	for name := range last.r.Header {
		switch name {
		case "Accept", "Accept-Encoding", "Content-Length", "Content-Type", "User-Agent":
		default:
			t.Errorf("%s reached the AI server", name)
		}
	}
	if last.r.RequestURI != "/v1/chat/completions" {
		t.Errorf("%s reached the AI server", last.r.RequestURI)
	}
}

// A client that opens every stream it may and says nothing disturbs nobody else.
func TestSilentStreamsDisturbNobody(t *testing.T) {
	t.Parallel()
	l, m, ai := ready(t, says("ok"))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	conn, _ := cl.raw(t, m)
	opened := 0
	for range 10_000 {
		stream, err := conn.OpenStream()
		if err != nil {
			break // no more are allowed
		}
		opened++
		if _, err := stream.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	if opened < 100 || opened > 2*quicstream.DefaultMaxStreams {
		t.Errorf("%d streams are open", opened)
	}
	if got := l.ask("?").wait(); got.exit != ExitOK || got.out != "ok" || ai.count() != 2 {
		t.Errorf("%+v; %d questions", got, ai.count())
	}
	if n := m.server.Counters().BufferedBytes; n > 1<<20 {
		t.Errorf("%d bytes are kept", n)
	}
}
