package builtin

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mintai/api"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTest returns an Engine whose clock stands and whose ids are known.
func newTest(t testing.TB) *Engine {
	t.Helper()
	e, err := New()
	if err != nil {
		t.Fatal(err)
	}
	e.now = func() time.Time { return time.Unix(1_700_000_000, 0) }
	e.id = func() string { return "0123456789abcdef01234567" }
	return e
}

// golden compares got with testdata/golden/name, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// goldenNames are the files that some test compares.
var goldenNames = []string{"answers.txt", "calculations.txt", "honest.txt"}

func TestAnswers(t *testing.T) {
	e := newTest(t)
	tests := []struct {
		file    string
		prompts []string
	}{
		{"answers.txt", []string{
			"What is a tunnel?", "what are tunnels", "define tunnel", "Define: tunnel.", "Meaning of tunnel", "tunnel",
			"to tunnel", "What is the meaning of the word “tunnel”?", "what's an abacus?", "What does ubiquitous mean?",
			"Could you please tell me the definition of 'entropy'?", "What are leaves?", "What is the verb run?",
			"What is hot-dog", "What is France?", "Who was Marie Curie?", "What is saw?", "what is 9/11?",
			"What is meant by laissez-faire?", "explain photosynthesis", "took off", "What is a dwarf star?",
			"What is the capital of France?", "What is running?", "define better",
		}},
		{"calculations.txt", []string{
			"12*7", "What is 12 * 7?", "what's 0.1 + 0.2", "Calculate (2+3)*4.", "How much is 15% of 80?", "7 * 6 =",
			"what is two plus two?", "What is the square root of 2?", "compute 2^100", "What is 1/3", "1 divided by 0",
			"what is 200 + 10%?", "6/2(1+2)", "9^9^9^9", "What is 5!", "0^0", "1,5 + 1", "Please calculate 3 x 4",
			"What is 17 % 5?", "What is the result of 2 + 2?", "what is √(-1)?",
		}},
		{"honest.txt", []string{
			"", "   ", "?", "hello", "Hi!", "Who are you?", "What is it?", "What's up?", "What is the time?",
			"Write a poem about tunnels.", "What is a tunnel used for?", "Why is the sky blue?", "define frobnicate",
			"What is frobnicate?", "What is a tunnle?", "What is 3 apples + 4?", "\x00\xff", "define",
			"What is\na tunnel?\nAnd who built it?", "¿Qué es un túnel?", "何ですか", "\u202edefine", "what is 42 km in miles?",
		}},
	}
	for _, tt := range tests {
		var b strings.Builder
		for i, p := range tt.prompts {
			got := e.Answer(p)
			if i < 3 {
				if again := e.Answer(p); got != again {
					t.Errorf("%q has two answers:\n%s\n%s", p, got, again)
				}
			}
			if got == "" || strings.HasSuffix(got, "\n") {
				t.Errorf("%q: answer %q", p, got)
			}
			fmt.Fprintf(&b, "==== %q\n%s\n\n", p, got)
		}
		golden(t, tt.file, b.String())
	}
}

// TestHonest says what the sentence must hold.
func TestHonest(t *testing.T) {
	for _, part := range []string{"not a language model", "ollama serve", "[[miner.backend]]", "miner.toml"} {
		if !strings.Contains(Honest, part) {
			t.Errorf("Honest lacks %q", part)
		}
	}
	if strings.Contains(Honest, "\n") {
		t.Error("Honest is not one line")
	}
	e := newTest(t)
	if got := e.Answer(strings.Repeat("tunnel ", 1000)); got != Honest {
		t.Errorf("a long prompt: %q", got)
	}
	if got := e.Answer("Is a tunnel long?"); got != Honest {
		t.Errorf("another question: %q", got)
	}
}

func post(e *Engine, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	e.ServeHTTP(w, r)
	return w
}

// TestShapes compares whole responses with the official shapes.
func TestShapes(t *testing.T) {
	e := newTest(t)
	chat := `"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"what is 12*7?"}]`
	tests := []struct{ name, path, body string }{
		{"chat.json", "/v1/chat/completions", `{"model":"builtin",` + chat + `}`},
		{"chat-stream.txt", "/v1/chat/completions", `{"model":"builtin","stream":true,` + chat + `}`},
		{"chat-stream-usage.txt", "/v1/chat/completions", `{"model":"builtin","stream":true,"stream_options":{"include_usage":true},` + chat + `}`},
		{"chat-length.json", "/v1/chat/completions", `{"model":"builtin","max_tokens":2,` + chat + `}`},
		{"chat-stop.json", "/v1/chat/completions", `{"model":"builtin","stop":[" ="],` + chat + `}`},
		{"completion.json", "/v1/completions", `{"model":"builtin","prompt":"12*7"}`},
		{"completion-stream.txt", "/v1/completions", `{"model":"builtin","prompt":["12*7"],"stream":true}`},
		{"ollama-chat.json", "/api/chat", `{"model":"builtin","stream":false,` + chat + `}`},
		{"ollama-chat-stream.txt", "/api/chat", `{"model":"builtin",` + chat + `}`},
		{"ollama-chat-length.txt", "/api/chat", `{"model":"builtin","options":{"num_predict":1,"temperature":0},` + chat + `}`},
		{"ollama-generate.json", "/api/generate", `{"model":"builtin:latest","prompt":"12*7","stream":false,"system":"Be brief."}`},
		{"ollama-generate-stream.txt", "/api/generate", `{"model":"builtin","prompt":"12*7"}`},
		{"ollama-load.json", "/api/generate", `{"model":"builtin","stream":false}`},
		{"ollama-load-chat.txt", "/api/chat", `{"model":"builtin","messages":[]}`},
	}
	names := slices.Clone(goldenNames)
	for _, tt := range tests {
		names = append(names, tt.name)
		w := post(e, tt.path, tt.body)
		if w.Code != http.StatusOK {
			t.Errorf("%s: status %d: %s", tt.name, w.Code, w.Body)
		}
		golden(t, tt.name, "Content-Type: "+w.Header().Get("Content-Type")+"\n\n"+w.Body.String())
	}
	files, err := filepath.Glob(filepath.Join("testdata", "golden", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, f := range files {
		if !slices.Contains(names, filepath.Base(f)) {
			t.Errorf("no test compares %s", f)
		}
	}
}

// TestStreamSaysTheSame joins the pieces of streams.
func TestStreamSaysTheSame(t *testing.T) {
	e := newTest(t)
	want := e.Answer("What is a tunnel?")
	var chat, generate strings.Builder
	pieces := 0
	w := post(e, "/v1/chat/completions", `{"stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"What is a tunnel?"}]}]}`)
	for line := range strings.Lines(w.Body.String()) {
		data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var chunk completion
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			t.Fatal(err)
		}
		if c := chunk.Choices[0].Delta.Content; c != nil {
			chat.WriteString(*c)
			pieces++
		}
	}
	w = post(e, "/api/generate", `{"prompt":"What is a tunnel?"}`)
	for line := range strings.Lines(w.Body.String()) {
		var l struct{ Response *string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		generate.WriteString(*l.Response)
	}
	if chat.String() != want || generate.String() != want {
		t.Errorf("want %q\nchat %q\ngenerate %q", want, chat.String(), generate.String())
	}
	if pieces < 50 {
		t.Errorf("%d pieces only", pieces)
	}
}

func TestRefuses(t *testing.T) {
	e := newTest(t)
	user := `"messages":[{"role":"user","content":"hi"}]`
	tests := []struct {
		name, method, path, body string
		status                   int
		code                     string
	}{
		{"no body", "POST", "/v1/chat/completions", "", 400, api.CodeBadRequest},
		{"no JSON", "POST", "/v1/chat/completions", "hello", 400, api.CodeBadRequest},
		{"a list", "POST", "/api/chat", "[]", 400, api.CodeBadRequest},
		{"cut off", "POST", "/api/chat", `{"messages":[{"role":"user"`, 400, api.CodeBadRequest},
		{"two documents", "POST", "/api/chat", `{} {}`, 400, api.CodeBadRequest},
		{"wrong type", "POST", "/v1/chat/completions", `{"messages":"hi"}`, 400, api.CodeBadRequest},
		{"wrong item", "POST", "/v1/chat/completions", `{"messages":["hi"]}`, 400, api.CodeBadRequest},
		{"wrong content", "POST", "/v1/chat/completions", `{"messages":[{"role":"user","content":7}]}`, 400, api.CodeBadRequest},
		{"no messages", "POST", "/v1/chat/completions", `{}`, 400, api.CodeBadRequest},
		{"no user", "POST", "/v1/chat/completions", `{"messages":[{"role":"system","content":"hi"}]}`, 400, api.CodeBadRequest},
		{"too many messages", "POST", "/v1/chat/completions", `{"messages":[` + strings.Repeat("{},", maxItems) + `{}]}`, 400, api.CodeBadRequest},
		{"image", "POST", "/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]}`, 400, api.CodeBadRequest},
		{"audio", "POST", "/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"input_audio"}]}]}`, 400, api.CodeBadRequest},
		{"Ollama image", "POST", "/api/chat", `{"messages":[{"role":"user","content":"hi","images":["AA=="]}]}`, 400, api.CodeBadRequest},
		{"Ollama image", "POST", "/api/generate", `{"prompt":"hi","images":["AA=="]}`, 400, api.CodeBadRequest},
		{"other model", "POST", "/v1/chat/completions", `{"model":"qwen3:8b",` + user + `}`, 404, api.CodeModelNotFound},
		{"n", "POST", "/v1/chat/completions", `{"n":2,` + user + `}`, 400, api.CodeBadRequest},
		{"best_of", "POST", "/v1/completions", `{"best_of":2,"prompt":"hi"}`, 400, api.CodeBadRequest},
		{"echo", "POST", "/v1/completions", `{"echo":true,"prompt":"hi"}`, 400, api.CodeBadRequest},
		{"JSON mode", "POST", "/v1/chat/completions", `{"response_format":{"type":"json_object"},` + user + `}`, 400, api.CodeBadRequest},
		{"Ollama JSON mode", "POST", "/api/chat", `{"format":"json",` + user + `}`, 400, api.CodeBadRequest},
		{"forced tool", "POST", "/v1/chat/completions", `{"tool_choice":"required",` + user + `}`, 400, api.CodeBadRequest},
		{"negative limit", "POST", "/v1/chat/completions", `{"max_tokens":-1,` + user + `}`, 400, api.CodeBadRequest},
		{"stop", "POST", "/v1/chat/completions", `{"stop":7,` + user + `}`, 400, api.CodeBadRequest},
		{"long stop", "POST", "/v1/chat/completions", `{"stop":["` + strings.Repeat("a", maxStop) + `"],` + user + `}`, 400, api.CodeBadRequest},
		{"no prompt", "POST", "/v1/completions", `{}`, 400, api.CodeBadRequest},
		{"two prompts", "POST", "/v1/completions", `{"prompt":["a","b"]}`, 400, api.CodeBadRequest},
		{"no prompts", "POST", "/v1/completions", `{"prompt":[]}`, 400, api.CodeBadRequest},
		{"tokens", "POST", "/v1/completions", `{"prompt":[1,2,3]}`, 400, api.CodeBadRequest},
		{"too large", "POST", "/v1/completions", `{"prompt":"` + strings.Repeat("a", maxBody) + `"}`, 413, api.CodeTooLarge},
		{"method", "GET", "/v1/chat/completions", "", 404, api.CodeNotOffered},
		{"path", "POST", "/v1/chat/completions/", "{}", 404, api.CodeNotOffered},
		{"spelling", "POST", "/v1//completions", "{}", 404, api.CodeNotOffered},
		{"unknown", "POST", "/api/pull", "{}", 404, api.CodeNotOffered},
		{"embeddings", "POST", "/v1/embeddings", "{}", 404, api.CodeNotOffered},
		{"messages", "POST", "/v1/messages", "{}", 404, api.CodeNotOffered},
	}
	for _, tt := range tests {
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		if w.Code != tt.status || w.Header().Get(api.HeaderError) != tt.code {
			t.Errorf("%s: %d %s, want %d %s", tt.name, w.Code, w.Header().Get(api.HeaderError), tt.status, tt.code)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: body %q", tt.name, w.Body)
		}
	}
}

// TestAccepts holds requests that real clients send.
func TestAccepts(t *testing.T) {
	e := newTest(t)
	for _, body := range []string{
		`{"model":"builtin","messages":[{"role":"user","content":"1+1"}],"temperature":0.7,"tools":[],"tool_choice":"auto","unknown":{"a":[1]}}`,
		`{"model":"builtin","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":null,"tool_calls":[]},{"role":"user","content":"1+1"}],"n":1}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"1"},{"type":"text","text":"+1"}]}],"response_format":{"type":"text"},"stop":null}`,
		`{"messages":[{"role":"user","content":"1+1"}],"max_completion_tokens":100,"max_tokens":null,"stop":"never"}`,
	} {
		w := post(e, "/v1/chat/completions", body)
		var doc completion
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
			continue
		}
		if got := *doc.Choices[0].Message.Content; got != "1 + 1 = 2" {
			t.Errorf("%s: %q", body, got)
		}
	}
}

// TestCancelled checks that nothing is written once nobody listens: the stream
// has no end mark then.
func TestCancelled(t *testing.T) {
	e := newTest(t)
	ctx, cancel := context.WithCancel(t.Context())
	w := &cancelling{ResponseRecorder: httptest.NewRecorder(), cancel: cancel, after: 5}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/chat/completions",
		strings.NewReader(`{"stream":true,"messages":[{"role":"user","content":"tunnel"}]}`))
	e.ServeHTTP(w, r)
	if n := strings.Count(w.Body.String(), "data: "); n != 5 {
		t.Errorf("%d events, want 5", n)
	}
	if strings.Contains(w.Body.String(), "[DONE]") {
		t.Error("a cancelled stream looks complete")
	}
}

// cancelling cancels a request after some writes.
type cancelling struct {
	*httptest.ResponseRecorder
	cancel context.CancelFunc
	after  int
}

func (c *cancelling) Write(b []byte) (int, error) {
	if c.after--; c.after == 0 {
		c.cancel()
	}
	return c.ResponseRecorder.Write(b)
}

// TestOverHTTP streams over a real connection.
func TestOverHTTP(t *testing.T) {
	server := httptest.NewServer(newTest(t))
	defer server.Close()
	defer server.Client().CloseIdleConnections()
	resp, err := server.Client().Post(server.URL+"/api/generate", "application/json", strings.NewReader(`{"prompt":"12*7"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ContentLength != -1 || strings.Count(string(body), "\n") != 6 {
		t.Errorf("length %d, body %s", resp.ContentLength, body)
	}
}

func TestPieces(t *testing.T) {
	for _, s := range []string{"", "a", "a b", " a  b\n\n c ", "   ", "é ü\u00a0x", "\xff \xfe"} {
		got := pieces(s)
		if strings.Join(got, "") != s {
			t.Errorf("pieces(%q) = %q", s, got)
		}
	}
	if got := fmt.Sprintf("%q", pieces("a  b\n\n c ")); got != `["a" "  b" "\n\n c" " "]` {
		t.Error(got)
	}
	if n := countPieces("what is 12*7?"); n != 3 {
		t.Errorf("countPieces = %d", n)
	}
}

func TestNotice(t *testing.T) {
	if !strings.Contains(Notice(), "Princeton University") {
		t.Error("the notice does not name the owner")
	}
	for _, c := range Calls() {
		if !c.Generates() {
			t.Errorf("%s generates nothing", c)
		}
	}
}

// FuzzAnswer asks anything.
func FuzzAnswer(f *testing.F) {
	e := newTest(f)
	for _, s := range []string{"What is a tunnel?", "12*7", "define x", "\x00", "what is the meaning of the the", "İ is", "'a'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if e.Answer(s) == "" {
			t.Fatalf("no answer to %q", s)
		}
	})
}

// FuzzRequest sends any body to each call.
func FuzzRequest(f *testing.F) {
	e := newTest(f)
	for i := range Calls() {
		f.Add(i, `{"model":"builtin","stream":true,"messages":[{"role":"user","content":"1+1"}],"prompt":"1+1"}`)
		f.Add(i, `{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"options":{"num_predict":1,"stop":["a"]},"prompt":["a"]}`)
	}
	f.Fuzz(func(t *testing.T, call int, body string) {
		path := Calls()[uint(call)%uint(len(Calls()))]
		w := post(e, string(path), body)
		if w.Code != http.StatusOK && w.Header().Get(api.HeaderError) == "" {
			t.Fatalf("status %d without a code", w.Code)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	e := newTest(b)
	b.ReportAllocs()
	for b.Loop() {
		_ = e.Answer("What is a tunnel?")
	}
}
