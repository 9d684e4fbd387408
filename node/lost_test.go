package node

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// losses are the ways in which an answer can break off. Each leaves "first" at
// the client.
var losses = []struct {
	name string
	// answer is the AI server's, lose happens after the first piece has arrived.
	answer func(*aiCall)
	lose   func(l *lab, m *labMiner, ai *aiServer)
	says   string
}{
	{"the AI server dies", func(c *aiCall) { waitAndDie(c) }, func(_ *lab, _ *labMiner, ai *aiServer) { ai.gate() }, "broke off in the middle"},
	{"the AI server ends without an end", func(c *aiCall) { waitGate(c) }, func(_ *lab, _ *labMiner, ai *aiServer) { ai.gate() }, "broke off in the middle"},
	{"the AI server sends an error", func(c *aiCall) {
		waitGate(c)
		_, _ = io.WriteString(c.w, "data: {\"error\":{\"message\":\"out of memory\"}}\n\n")
	}, func(_ *lab, _ *labMiner, ai *aiServer) { ai.gate() }, "out of memory"},
	{"the AI server talks nonsense", func(c *aiCall) {
		waitGate(c)
		_, _ = io.WriteString(c.w, "data: <html>\n\n")
	}, func(_ *lab, _ *labMiner, ai *aiServer) { ai.gate() }, "nonsense"},
	{"the miner dies", waitGate, func(_ *lab, m *labMiner, _ *aiServer) { m.kill() }, "was lost in the middle"},
	{"the miner is stopped for good", waitGate, func(_ *lab, m *labMiner, _ *aiServer) { m.part.stop() }, "in the middle"},
}

// waitGate sends the first piece and waits until the test lets it go on.
func waitGate(c *aiCall) {
	c.piece("first")
	select {
	case <-c.ai.opened:
	case <-c.r.Context().Done():
	}
}

func waitAndDie(c *aiCall) {
	waitGate(c)
	c.die()
}

// An answer that broke off never looks complete.
func TestLostMidway(t *testing.T) {
	t.Parallel()
	for _, c := range losses {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			ai := newAI(t, "m", c.answer)
			m := l.miner("gpu-box", ai)
			p := l.client().ask(t, askOptions{prompt: []string{"?"}})
			p.out.waitFor("first")
			c.lose(l, m, ai)
			got := p.wait()
			if got.exit != ExitLost || got.out != "first" {
				t.Errorf("exit %d, %q", got.exit, got.out)
			}
			if !strings.Contains(got.err, c.says) || !strings.Contains(got.err, "incomplete") || strings.Count(got.err, "\n") != 1 {
				t.Errorf("stderr %q, want %q", got.err, c.says)
			}
		})
	}
}

// endpoint serves the client's local endpoint.
func (c *labClient) endpoint(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	late := &lateClient{}
	late.client.Store(c.client)
	start(t, "the endpoint", func(ctx context.Context) error {
		return serveGateway(ctx, ln, late, &setup{cfg: DefaultConfig(), log: c.log})
	})
	return "http://" + ln.Addr().String()
}

// post sends a chat request to an endpoint as an OpenAI client would.
func post(t *testing.T, ctx context.Context, url, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	tr := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

const streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"?"}]}`

// Through the local endpoint a broken answer ends with an error event and a
// connection that is cut, not closed.
func TestLostMidwayThroughTheEndpoint(t *testing.T) {
	t.Parallel()
	for _, c := range losses {
		if strings.HasSuffix(c.name, "error") || strings.HasSuffix(c.name, "an end") || strings.HasSuffix(c.name, "nonsense") {
			continue // what the AI server says itself is passed on as it is
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			ai := newAI(t, "m", c.answer)
			m := l.miner("gpu-box", ai)
			resp := post(t, t.Context(), l.client().endpoint(t), streamBody)
			body := bufio.NewReader(resp.Body)
			line, err := body.ReadString('\n')
			if err != nil || !strings.Contains(line, `"first"`) {
				t.Fatalf("%q, %v", line, err)
			}
			c.lose(l, m, ai)
			rest, err := io.ReadAll(body)
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the body ended with %v", err)
			}
			if !strings.Contains(string(rest), `data: {"error":`) || !strings.Contains(string(rest), c.says) || strings.Contains(string(rest), "[DONE]") {
				t.Errorf("rest %q", rest)
			}
		})
	}
}

// An answer that is not streamed is not taken for a whole one either.
func TestLostMidwayNotStreamed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", func(c *aiCall) {
		c.w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(c.w, `{"choices":[{"message":{"content":"fir`)
		_ = http.NewResponseController(c.w).Flush()
		c.die()
	})
	l.miner("gpu-box", ai)
	resp := post(t, t.Context(), l.client().endpoint(t), strings.Replace(streamBody, "true", "false", 1))
	if data, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the body ended well: %q", data)
	}
}
