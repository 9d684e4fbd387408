package backend

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"mintai/api"
)

// fake imitates an AI server, down to how it refuses what it does not know.
type fake struct {
	*httptest.Server
	kind string // TypeOllama or one of the OpenAI kinds
	key  string // demanded as bearer token; empty: none

	mu     sync.Mutex // guards everything below
	models []fakeModel
	seen   []seen
	answer http.HandlerFunc // replaces the answer to complete requests; nil: a short one
	broken http.HandlerFunc // replaces everything
	slots  int              // llama.cpp
}

type fakeModel struct {
	name string
	caps []string // of Ollama: completion, embedding, tools, vision
	host string   // of Ollama: remote_host
	typ  string   // of LM Studio: llm, vlm, embeddings
}

// seen is one request that reached the fake.
type seen struct {
	method, target, host string
	header               http.Header
	body                 string
}

func newFake(t *testing.T, kind string, models ...fakeModel) *fake {
	t.Helper()
	f := &fake{kind: kind, models: models, slots: 2}
	f.Server = httptest.NewServer(f)
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.seen = append(f.seen, seen{r.Method, r.RequestURI, r.Host, r.Header.Clone(), string(body)})
	broken, answer := f.broken, f.answer
	f.mu.Unlock()
	switch {
	case broken != nil:
		broken(w, r)
	case f.key != "" && r.Header.Get("Authorization") != "Bearer "+f.key:
		writeJSON(w, 401, `{"error":{"message":"Incorrect API key provided: `+r.Header.Get("Authorization")+`","type":"invalid_request_error","code":"invalid_api_key"}}`)
	case r.Method == http.MethodPost && strings.Contains(string(body), `"model"`) && r.URL.Path != "/api/show" && f.knows(r.URL.Path):
		if answer != nil {
			answer(w, r)
			return
		}
		f.reply(w, r.URL.Path, string(body))
	case f.kind == TypeOllama:
		f.ollama(w, r, string(body))
	default:
		f.openAI(w, r)
	}
}

func (f *fake) knows(path string) bool {
	switch f.kind {
	case TypeOllama:
		return path != "/v1/messages/count_tokens" && api.Call(path) != "" && strings.Contains(offeredByOllama, path+" ")
	case kindVLLM:
		return strings.Contains("/v1/chat/completions /v1/completions /v1/responses /v1/messages ", path+" ")
	case kindLlamaCpp:
		return strings.Contains("/v1/chat/completions /v1/completions /v1/messages /v1/messages/count_tokens ", path+" ")
	default:
		return strings.Contains("/v1/chat/completions /v1/completions /v1/embeddings /v1/responses ", path+" ")
	}
}

const offeredByOllama = "/v1/chat/completions /v1/completions /v1/embeddings /v1/responses /v1/messages /api/chat /api/generate /api/embed /api/embeddings "

// reply is a short answer to a complete request.
func (f *fake) reply(w http.ResponseWriter, path, body string) {
	if strings.HasPrefix(path, "/v1/") {
		if strings.Contains(body, `"stream":true`) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}\n\n"+
				"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
			return
		}
		writeJSON(w, 200, `{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}`)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	_, _ = io.WriteString(w, "{\"message\":{\"content\":\"Hi\"},\"done\":true,\"done_reason\":\"stop\"}\n")
}

// ollama answers as Ollama's gin router does.
func (f *fake) ollama(w http.ResponseWriter, r *http.Request, body string) {
	f.mu.Lock()
	models := f.models
	f.mu.Unlock()
	switch r.Method + " " + r.URL.Path {
	case "GET /":
		_, _ = io.WriteString(w, "Ollama is running")
	case "GET /api/version":
		writeJSON(w, 200, `{"version":"0.13.5"}`)
	case "GET /api/tags":
		var items []string
		for _, m := range models {
			items = append(items, fmt.Sprintf(`{"name":%q,"model":%q,"remote_host":%q,"modified_at":"2026-01-01T00:00:00Z","size":5225376047,"digest":"d-%s","details":{"format":"gguf","family":"qwen3","families":["qwen3"],"parameter_size":"8.2B","quantization_level":"Q4_K_M"}}`, m.name, m.name, m.host, m.name))
		}
		writeJSON(w, 200, `{"models":[`+strings.Join(items, ",")+`]}`)
	case "POST /api/show":
		var ask struct{ Model string }
		_ = json.Unmarshal([]byte(body), &ask)
		for _, m := range models {
			if m.name == ask.Model {
				caps, _ := json.Marshal(m.caps)
				writeJSON(w, 200, fmt.Sprintf(`{"parameters":"stop \"<|im_end|>\"\ntemperature 0.6","details":{},"model_info":{"general.architecture":"qwen3","qwen3.context_length":40960,"qwen3.rope.context_length":1},"capabilities":%s}`, caps))
				return
			}
		}
		writeJSON(w, 404, `{"error":"model '`+ask.Model+`' not found"}`)
	case "POST /api/chat", "POST /api/embed", "POST /api/embeddings":
		writeJSON(w, 400, `{"error":"model is required"}`)
	case "POST /api/generate":
		writeJSON(w, 404, `{"error":"model '' not found"}`)
	case "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/responses", "POST /v1/messages":
		writeJSON(w, 400, `{"error":{"message":"model is required","type":"invalid_request_error","param":null,"code":null}}`)
	case "GET /v1/models":
		writeJSON(w, 200, `{"object":"list","data":[]}`)
	default:
		http.Error(w, "404 page not found", http.StatusNotFound)
	}
}

func (f *fake) openAI(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	models, slots := f.models, f.slots
	f.mu.Unlock()
	route := r.Method + " " + r.URL.Path
	if route == "GET /v1/models" {
		var items []string
		for _, m := range models {
			extra := map[string]string{
				kindVLLM:     `"owned_by":"vllm","max_model_len":32768`,
				kindLlamaCpp: `"owned_by":"llamacpp","meta":{"n_ctx_train":131072,"size":4920739840}`,
				kindLMStudio: `"owned_by":"organization_owner"`,
				TypeOpenAI:   `"owned_by":"me"`,
			}[f.kind]
			items = append(items, fmt.Sprintf(`{"id":%q,"object":"model","created":1,%s}`, m.name, extra))
		}
		writeJSON(w, 200, `{"object":"list","data":[`+strings.Join(items, ",")+`]}`)
		return
	}
	if r.Method == http.MethodPost && f.knows(r.URL.Path) {
		switch f.kind {
		case kindVLLM:
			writeJSON(w, 400, `{"error":{"message":"[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]","type":"Bad Request","param":null,"code":400}}`)
		case kindLlamaCpp:
			writeJSON(w, 500, `{"error":{"code":500,"message":"[json.exception.out_of_range.403] key 'messages' not found","type":"server_error"}}`)
		default:
			writeJSON(w, 400, `{"error":"'messages' field is required"}`)
		}
		return
	}
	switch {
	case f.kind == kindVLLM:
		writeJSON(w, 404, `{"detail":"Not Found"}`)
	case f.kind == kindLlamaCpp && route == "GET /props":
		writeJSON(w, 200, fmt.Sprintf(`{"default_generation_settings":{"n_ctx":8192},"total_slots":%d,"modalities":{"vision":true,"audio":false}}`, slots))
	case f.kind == kindLlamaCpp && route == "POST /v1/embeddings":
		writeJSON(w, 501, `{"error":{"code":501,"message":"This server does not support embeddings. Start it with `+"`--embeddings`"+`","type":"not_supported_error"}}`)
	case f.kind == kindLlamaCpp:
		writeJSON(w, 404, `{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}`)
	case f.kind == kindLMStudio && route == "GET /api/v0/models":
		var items []string
		for _, m := range models {
			items = append(items, fmt.Sprintf(`{"id":%q,"object":"model","type":%q,"arch":"qwen2","quantization":"4bit","state":"loaded","max_context_length":32768,"loaded_context_length":4096,"capabilities":["tool_use"]}`, m.name, m.typ))
		}
		writeJSON(w, 200, `{"object":"list","data":[`+strings.Join(items, ",")+`]}`)
	case f.kind == kindLMStudio:
		writeJSON(w, 200, `{"error":"Unexpected endpoint or method. (`+route+`)"}`)
	default:
		http.NotFound(w, r)
	}
}

func writeJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// take returns what was seen since the last call.
func (f *fake) take() []seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.seen
	f.seen = nil
	return s
}

// hang answers nothing until the client is gone, and tells when it began and
// when it was let go.
func hang() (h http.HandlerFunc, began, gone chan struct{}) {
	began, gone = make(chan struct{}), make(chan struct{})
	return func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(gone)
	}, began, gone
}
