package backend

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"mintai/api"
)

func newPool(t *testing.T, opts Options, cfgs ...Config) *Pool {
	t.Helper()
	p, err := New(cfgs, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.closeIdle)
	p.Refresh(t.Context())
	return p
}

func model(t *testing.T, p *Pool, name api.Model) ModelInfo {
	t.Helper()
	for _, m := range p.Snapshot().Models {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("%q is not offered: %+v", name, p.Snapshot())
	return ModelInfo{}
}

func TestOllamaIsAskedWhatItCanDo(t *testing.T) {
	f := newFake(t, TypeOllama,
		fakeModel{name: "qwen3:8b", caps: []string{"completion", "tools", "thinking"}},
		fakeModel{name: "llava:7b", caps: []string{"completion", "vision"}},
		fakeModel{name: "nomic-embed-text:latest", caps: []string{"embedding"}},
		fakeModel{name: "gpt-oss:120b-cloud", caps: []string{"completion"}, host: "https://ollama.com:443"},
	)
	p := newPool(t, Options{}, Config{Type: TypeOllama, URL: f.URL})
	chat := model(t, p, "qwen3:8b")
	want := ModelInfo{
		Name: "qwen3:8b", ContextTokens: 40960, Tools: true, JSON: true, Quantization: "Q4_K_M", Family: "qwen3", SizeBytes: 5225376047, Backend: "ollama",
		Calls: []api.Call{api.ChatCompletions, api.Completions, api.Responses, api.Messages, api.OllamaChat, api.OllamaGenerate},
	}
	if !reflect.DeepEqual(chat, want) {
		t.Errorf("got  %+v\nwant %+v", chat, want)
	}
	if m := model(t, p, "llava:7b"); !m.Vision || m.Tools {
		t.Errorf("%+v", m)
	}
	embed := model(t, p, "nomic-embed-text:latest")
	if !reflect.DeepEqual(embed.Calls, []api.Call{api.Embeddings, api.OllamaEmbed, api.OllamaEmbeddings}) || embed.JSON {
		t.Errorf("an embedding model offers %v", embed.Calls)
	}
	s := p.Snapshot()
	if len(s.Models) != 3 { // not the one that somebody else's computer answers
		t.Errorf("%+v", s.Models)
	}
	if s.Slots != 1 || s.QueueLimit != 8 || len(s.Problems) != 0 {
		t.Errorf("%+v", s)
	}
	f.take()
	p.Refresh(t.Context())
	for _, r := range f.take() { // known already: two cheap questions
		if r.method != "GET" {
			t.Errorf("asked again: %s %s", r.method, r.target)
		}
	}
	named := newPool(t, Options{}, Config{Type: TypeOllama, URL: f.URL, Models: []string{"gpt-oss:120b-cloud"}})
	model(t, named, "gpt-oss:120b-cloud")
}

func TestOldOllamaWithoutCapabilities(t *testing.T) {
	f := newFake(t, TypeOllama, fakeModel{name: "llama2"})
	p := newPool(t, Options{}, Config{Type: TypeOllama, URL: f.URL + "/v1"})
	if m := model(t, p, "llama2"); !slices.Contains(m.Calls, api.OllamaChat) || slices.Contains(m.Calls, api.OllamaEmbed) {
		t.Errorf("%v", m.Calls)
	}
}

func TestOpenAIServersAreToldApart(t *testing.T) {
	for _, tc := range []struct {
		kind  string
		model fakeModel
		want  ModelInfo
		slots int
	}{
		{kindVLLM, fakeModel{name: "Qwen/Qwen3-8B"}, ModelInfo{
			Name: "Qwen/Qwen3-8B", ContextTokens: 32768, Tools: true, JSON: true, Backend: kindVLLM,
			Calls: []api.Call{api.ChatCompletions, api.Completions, api.Responses, api.Messages},
		}, 16},
		{kindLlamaCpp, fakeModel{name: "model.gguf"}, ModelInfo{
			Name: "model.gguf", ContextTokens: 8192, Tools: true, JSON: true, Vision: true, Backend: kindLlamaCpp, SizeBytes: 4920739840,
			Calls: []api.Call{api.ChatCompletions, api.Completions, api.Messages, api.CountTokens},
		}, 2},
		{kindLMStudio, fakeModel{name: "qwen2.5-vl", typ: "vlm"}, ModelInfo{
			Name: "qwen2.5-vl", ContextTokens: 4096, Tools: true, JSON: true, Vision: true, Backend: kindLMStudio, Family: "qwen2", Quantization: "4bit",
			Calls: []api.Call{api.ChatCompletions, api.Completions, api.Responses},
		}, 1},
		{kindLMStudio, fakeModel{name: "nomic", typ: "embeddings"}, ModelInfo{
			Name: "nomic", ContextTokens: 4096, Backend: kindLMStudio, Family: "qwen2", Quantization: "4bit", Calls: []api.Call{api.Embeddings},
		}, 1},
		{TypeOpenAI, fakeModel{name: "text-embedding-3-small"}, ModelInfo{
			Name: "text-embedding-3-small", Backend: TypeOpenAI, Calls: []api.Call{api.Embeddings},
		}, 4},
	} {
		t.Run(tc.kind+" "+tc.model.name, func(t *testing.T) {
			f := newFake(t, tc.kind, tc.model)
			for _, cfg := range []Config{{Type: TypeOpenAI, URL: f.URL}, {Type: TypeOpenAI, URL: f.URL + "/v1/"}, {Type: TypeAuto, URL: f.URL}} {
				p := newPool(t, Options{}, cfg)
				if got := model(t, p, tc.want.Name); !reflect.DeepEqual(got, tc.want) {
					t.Errorf("%s %s:\n got %+v\nwant %+v", cfg.Type, cfg.URL, got, tc.want)
				}
				if s := p.Snapshot(); s.Slots != tc.slots {
					t.Errorf("%d slots, want %d", s.Slots, tc.slots)
				}
			}
		})
	}
}

func TestModelsAreChosenByPattern(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "org/a:1"}, fakeModel{name: "org/b:2"}, fakeModel{name: "c"}, fakeModel{name: "bad\u0085name"}, fakeModel{name: ""})
	p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL, Models: []string{"org/*", "?"}, Slots: 3})
	var names []api.Model
	for _, m := range p.Snapshot().Models {
		names = append(names, m.Name)
	}
	if !slices.Equal(names, []api.Model{"c", "org/a:1", "org/b:2"}) || p.Snapshot().Slots != 3 {
		t.Errorf("%q, %d slots", names, p.Snapshot().Slots)
	}
	none := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL, Models: []string{"nope"}}).Snapshot()
	if len(none.Models) != 0 || len(none.Problems) != 1 || !strings.Contains(none.Problems[0], `"nope"`) {
		t.Errorf("%+v", none)
	}
}

func TestServerWithoutAListServesWhatIsWritten(t *testing.T) {
	f := newFake(t, TypeOpenAI)
	f.broken = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/chat/completions" {
			writeJSON(w, 422, `{"detail":"messages"}`)
			return
		}
		http.NotFound(w, r)
	}
	p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL, Models: []string{"written", "pattern*"}})
	if m := model(t, p, "written"); !slices.Equal(m.Calls, []api.Call{api.ChatCompletions}) || len(p.Snapshot().Models) != 1 {
		t.Errorf("%+v", p.Snapshot())
	}
}

func TestChangesAreSeenAndSaid(t *testing.T) {
	f := newFake(t, TypeOllama, fakeModel{name: "a", caps: []string{"completion"}})
	p := newPool(t, Options{ProbeTimeout: 200 * time.Millisecond}, Config{Type: TypeOllama, URL: f.URL})
	news := func() bool {
		select {
		case <-p.Changed():
			return true
		default:
			return false
		}
	}
	if !news() || news() {
		t.Fatal("the first look is one piece of news")
	}
	if p.Refresh(t.Context()); news() {
		t.Error("news although nothing changed")
	}
	f.set(func() { f.models = append(f.models, fakeModel{name: "b", caps: []string{"completion"}}) })
	if p.Refresh(t.Context()); !news() || len(p.Snapshot().Models) != 2 {
		t.Errorf("a new model was not seen: %+v", p.Snapshot())
	}
	f.set(func() { f.models = f.models[:1] })
	if p.Refresh(t.Context()); !news() || len(p.Snapshot().Models) != 1 {
		t.Errorf("a removed model was not seen: %+v", p.Snapshot())
	}

	// Too busy to answer: kept for a few looks. Nonsense: gone at once.
	f.set(func() { f.broken = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } })
	for range maxFailures {
		if p.Refresh(t.Context()); len(p.Snapshot().Models) != 1 || !strings.Contains(p.Snapshot().Problems[0], "in time") {
			t.Errorf("%+v", p.Snapshot())
		}
	}
	if p.Refresh(t.Context()); len(p.Snapshot().Models) != 0 {
		t.Error("a wedged server is offered for ever")
	}
	f.set(func() { f.broken = nil })
	if p.Refresh(t.Context()); len(p.Snapshot().Models) != 1 || len(p.Snapshot().Problems) != 0 {
		t.Errorf("it did not come back: %+v", p.Snapshot())
	}
	f.set(func() {
		f.broken = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>hello")) }
	})
	if p.Refresh(t.Context()); len(p.Snapshot().Models) != 0 || !strings.Contains(p.Snapshot().Problems[0], "something else than the API") {
		t.Errorf("%+v", p.Snapshot())
	}
	f.Close()
	if p.Refresh(t.Context()); len(p.Snapshot().Models) != 0 || !strings.Contains(p.Snapshot().Problems[0], "connection refused") || !strings.Contains(p.Snapshot().Problems[0], "ollama serve") {
		t.Errorf("%+v", p.Snapshot())
	}
}

func TestLoadingServerIsAskedAgain(t *testing.T) {
	f := newFake(t, kindLlamaCpp, fakeModel{name: "m"})
	loading := true
	f.broken = func(w http.ResponseWriter, r *http.Request) {
		if loading && r.Method == http.MethodPost {
			writeJSON(w, 503, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`)
			return
		}
		f.openAI(w, r)
	}
	p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: f.URL})
	if len(p.Snapshot().Models) != 0 || len(p.Snapshot().Problems) == 0 {
		t.Errorf("offered while loading: %+v", p.Snapshot())
	}
	f.set(func() { loading = false })
	p.Refresh(t.Context())
	model(t, p, "m")
}

func TestAutoFindsServersOrFallsBack(t *testing.T) {
	ollama := newFake(t, TypeOllama, fakeModel{name: "shared", caps: []string{"completion"}})
	vllm := newFake(t, kindVLLM, fakeModel{name: "shared"}, fakeModel{name: "Qwen/Qwen3-8B"})
	web := newFake(t, TypeOpenAI)
	web.broken = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>a web shop")) }
	nobody := "http://127.0.0.1:1"
	builtin := http.NotFoundHandler()

	p := newPool(t, Options{Builtin: builtin, AutoURLs: []string{ollama.URL, vllm.URL, web.URL, nobody}}, Config{})
	s := p.Snapshot()
	if len(s.Models) != 2 || len(s.Problems) != 0 || s.Slots != 17 {
		t.Errorf("%+v", s)
	}
	if m := model(t, p, "shared"); !slices.Contains(m.Calls, api.OllamaChat) || m.ContextTokens != 32768 {
		t.Errorf("of two servers: %+v", m)
	}

	p = newPool(t, Options{Builtin: builtin, AutoURLs: []string{nobody, web.URL}}, Config{Type: TypeAuto}, Config{Type: TypeAuto})
	if s := p.Snapshot(); len(s.Models) != 1 || s.Models[0].Name != "builtin" || !s.Models[0].SameUserOnly || len(s.Problems) != 0 {
		t.Errorf("%+v", s)
	}
	if s := newPool(t, Options{Builtin: builtin}, Config{Type: TypeBuiltin}).Snapshot(); len(s.Models) != 1 || s.Models[0].SameUserOnly {
		t.Errorf("written in the configuration: %+v", s)
	}
	if s := newPool(t, Options{AutoURLs: []string{nobody}}, Config{}).Snapshot(); len(s.Models) != 0 {
		t.Errorf("without an engine: %+v", s)
	}
	// A server that is configured and down is not replaced.
	if s := newPool(t, Options{Builtin: builtin}, Config{Type: TypeOllama, URL: nobody}).Snapshot(); len(s.Models) != 0 || len(s.Problems) != 1 {
		t.Errorf("%+v", s)
	}

	// A server that appears later takes the engine's place, and back.
	late := newFake(t, TypeOllama, fakeModel{name: "m", caps: []string{"completion"}})
	late.broken = web.broken
	p = newPool(t, Options{Builtin: builtin, AutoURLs: []string{late.URL}}, Config{})
	model(t, p, "builtin")
	late.set(func() { late.broken = nil })
	p.Refresh(t.Context())
	if model(t, p, "m"); len(p.Snapshot().Models) != 1 {
		t.Errorf("%+v", p.Snapshot())
	}
	late.Close()
	p.Refresh(t.Context())
	model(t, p, "builtin")
}

func TestConfigurationFaultsAreSaidAtOnce(t *testing.T) {
	_, err := New([]Config{
		{Type: "olama"},
		{Type: TypeOpenAI},
		{Type: TypeOllama, URL: "127.0.0.1:11434"},
		{Type: TypeOpenAI, URL: "http://me:hunter2@x"},
		{Type: TypeOpenAI, URL: "http://x/?key=hunter2"},
		{Slots: -1},
		{Type: TypeDemo, TokensPerSecond: -1},
		{Type: TypeBuiltin},
		{APIKey: "hunter2\n"},
		{Type: TypeOpenAI, URL: "http://x/%zz hunter2"},
	}, Options{})
	if err == nil || strings.Count(err.Error(), ErrConfig.Error()) != 10 || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
	if _, err := New(nil, Options{}); err == nil {
		t.Error("no backend is an error")
	}
}

func TestURLs(t *testing.T) {
	for _, tc := range []struct{ url, typ, path, want string }{
		{"http://h:1", TypeOpenAI, "/v1/models", "http://h:1/v1/models"},
		{"http://h:1/", TypeOpenAI, "/v1/models", "http://h:1/v1/models"},
		{"http://h:1/v1", TypeOpenAI, "/v1/models", "http://h:1/v1/models"},
		{"http://h:1/v1", TypeOpenAI, "/props", "http://h:1/props"},
		{"https://openrouter.ai/api/v1", TypeOpenAI, "/v1/models", "https://openrouter.ai/api/v1/models"},
		{"https://g.com/v1beta/openai/", TypeOpenAI, "/v1/models", "https://g.com/v1beta/openai/models"},
		{"http://h/ollama", TypeOllama, "/api/tags", "http://h/ollama/api/tags"},
		{"http://h/ollama/api", TypeOllama, "/v1/models", "http://h/ollama/v1/models"},
		{"http://h:11434/v1", TypeOllama, "/api/tags", "http://h:11434/api/tags"},
		{"http://[::1]:11434", TypeOllama, "/api/tags", "http://[::1]:11434/api/tags"},
	} {
		b, err := parseBase(tc.url, tc.typ)
		if err != nil || b.at(tc.path).String() != tc.want {
			t.Errorf("%s (%s) %s: %s, %v", tc.url, tc.typ, tc.path, b.at(tc.path), err)
		}
	}
	for url, want := range map[string]bool{"http://127.8.9.1": true, "http://[::1]": true, "http://LOCALHOST:1": true, "http://[::ffff:127.0.0.1]": true, "http://10.0.0.1": false, "http://localhost.evil.com": false} {
		if b, err := parseBase(url, TypeOllama); err != nil || b.loopback() != want {
			t.Errorf("%s: loopback %v, %v", url, b.loopback(), err)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "", true},
		{"*", "a/b:c", true},
		{"", "", true},
		{"", "a", false},
		{"a*", "ba", false},
		{"*:8b", "qwen3:8b", true},
		{"a*b*c", "a/x/b/y/c", true},
		{"a*b*c", "a/x/c", false},
		{"?", "é", true},
		{"??", "é", false},
		{"[a]", "a", false},
		{"a**", "a", true},
	} {
		if matchGlob(tc.pattern, tc.name) != tc.want {
			t.Errorf("%q %q", tc.pattern, tc.name)
		}
	}
	if matchGlob(strings.Repeat("a*", 50)+"b", strings.Repeat("a", 5000)) { // no exponential search
		t.Error("matched")
	}
}
