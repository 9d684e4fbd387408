package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"mintai/identity"
)

// aiServer stands for an AI server with OpenAI's API, whose answers a test
// writes.
type aiServer struct {
	*httptest.Server
	model  string
	slots  int // that its miner hands out
	key    identity.Secret
	answer func(*aiCall)

	began  chan *aiCall  // each question that arrives
	opened chan struct{} // closed by gate
	gate   func()

	mu            sync.Mutex
	calls         []*aiCall
	running, most int
}

// aiCall is one question at the AI server.
type aiCall struct {
	ai     *aiServer
	w      http.ResponseWriter
	r      *http.Request
	body   []byte
	prompt string // the last message
	begun  bool
}

// newAI starts an AI server that offers one model.
func newAI(t testing.TB, model string, answer func(*aiCall)) *aiServer {
	t.Helper()
	ai := &aiServer{model: model, slots: 4, answer: answer, began: make(chan *aiCall, 64), opened: make(chan struct{})}
	ai.gate = sync.OnceFunc(func() { close(ai.opened) })
	ai.Server = httptest.NewServer(ai)
	t.Cleanup(func() {
		ai.CloseClientConnections()
		ai.Close()
	})
	return ai
}

// ServeHTTP answers discovery and the questions.
func (ai *aiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/v1/models":
		_, _ = fmt.Fprintf(w, `{"object":"list","data":[{"id":%q,"object":"model"}]}`, ai.model)
		return
	case r.URL.Path != "/v1/chat/completions":
		http.Error(w, `{"error":{"message":"no such path"}}`, http.StatusNotFound)
		return
	case strings.TrimSpace(string(body)) == "{}": // a miner finds out what is offered
		http.Error(w, `{"error":{"message":"messages are missing"}}`, http.StatusBadRequest)
		return
	}
	c := &aiCall{ai: ai, w: w, r: r, body: body}
	var ask chatRequest
	if err := json.Unmarshal(body, &ask); err == nil && len(ask.Messages) > 0 {
		c.prompt = ask.Messages[len(ask.Messages)-1].Content
	}
	ai.mu.Lock()
	ai.calls = append(ai.calls, c)
	ai.running++
	ai.most = max(ai.most, ai.running)
	ai.mu.Unlock()
	defer func() {
		ai.mu.Lock()
		ai.running--
		ai.mu.Unlock()
	}()
	ai.began <- c
	ai.answer(c)
}

// count is how many questions arrived.
func (ai *aiServer) count() int {
	ai.mu.Lock()
	defer ai.mu.Unlock()
	return len(ai.calls)
}

// piece sends one piece of the answer, at once.
func (c *aiCall) piece(text string) {
	if !c.begun {
		c.begun = true
		c.w.Header().Set("Content-Type", "text/event-stream")
	}
	quoted, _ := json.Marshal(text) // a string: never fails
	_, _ = fmt.Fprintf(c.w, "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":%s},\"finish_reason\":null}]}\n\n", quoted)
	_ = http.NewResponseController(c.w).Flush()
}

// end ends the answer well.
func (c *aiCall) end() {
	_, _ = io.WriteString(c.w, "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
}

// refuse answers with an error.
func (c *aiCall) refuse(status int, message string) {
	quoted, _ := json.Marshal(message) // a string: never fails
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_, _ = fmt.Fprintf(c.w, "{\"error\":{\"message\":%s}}", quoted)
}

// die breaks the connection off, as a server that is killed does.
func (c *aiCall) die() { panic(http.ErrAbortHandler) }

// says answers with the pieces.
func says(pieces ...string) func(*aiCall) {
	return func(c *aiCall) {
		for _, p := range pieces {
			c.piece(p)
		}
		c.end()
	}
}

// saysAfter sends the first piece, waits until the gate opens or the question
// is cancelled, and sends the rest.
func saysAfter(gate <-chan struct{}, first string, rest ...string) func(*aiCall) {
	return func(c *aiCall) {
		if first != "" {
			c.piece(first)
		}
		select {
		case <-gate:
		case <-c.r.Context().Done():
			return
		}
		for _, p := range rest {
			c.piece(p)
		}
		c.end()
	}
}
