package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"mintai/api"
)

var offered = []ModelEntry{
	{Model: "qwen3:8b", Miner: "gpu-box", Calls: []api.Call{api.ChatCompletions}, ContextTokens: 32768, Tools: true, Family: "qwen3", SizeBytes: 5 << 30},
	{Model: "org/embed", Miner: "gpu-box", Calls: []api.Call{api.Embeddings}},
	{Model: "qwen3:8b", Miner: "mac", Calls: []api.Call{api.OllamaChat}, ContextTokens: 8192, Vision: true, Quantization: "Q4_K_M", InFlight: 1},
	{Model: "llama3:latest", Miner: "mac"},
}

func withModels(entries []ModelEntry) Config {
	return Config{Models: func(context.Context) ([]ModelEntry, error) { return entries, nil }}
}

// exact decodes with unknown fields refused, so that the test's type is the
// whole shape.
func exact(t *testing.T, body string, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader([]byte(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
}

func TestModelsInOpenAIsShape(t *testing.T) {
	s := serve(t, withModels(offered))
	// The fields of openai-python's types/model.py are all required.
	type model struct {
		ID            *string `json:"id"`
		Created       *int64  `json:"created"`
		Object        *string `json:"object"`
		OwnedBy       *string `json:"owned_by"`
		ContextLength int     `json:"context_length"`
	}
	var doc struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}
	resp, body := do(t, s, "GET", "/v1/models", "", nil)
	exact(t, body, &doc)
	if resp.Header.Get("Content-Type") != "application/json" || doc.Object != "list" || len(doc.Data) != 3 {
		t.Errorf("%v %s", resp.Header, body)
	}
	for _, m := range doc.Data {
		if m.ID == nil || m.Created == nil || m.Object == nil || *m.Object != "model" || m.OwnedBy == nil {
			t.Errorf("a required field is missing: %s", body)
		}
	}
	if *doc.Data[2].ID != "qwen3:8b" || doc.Data[2].ContextLength != 32768 {
		t.Errorf("%s", body)
	}

	for path, want := range map[string]int{
		"/v1/models/qwen3:8b": 200, "/v1/models/qwen3%3A8b": 200, "/v1/models/org/embed": 200, "/v1/models/org%2Fembed": 200,
		"/v1/models/llama3": 200, "/v1/models/none": 404, "/v1/models/": 404, "/v1/models/..": 404,
	} {
		resp, body := do(t, s, "GET", path, "", nil)
		if resp.StatusCode != want {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
		if want == 404 && (resp.Header.Get(api.HeaderError) != api.CodeModelNotFound || !strings.Contains(body, `"error":{`)) {
			t.Errorf("%s: %s", path, body)
		}
	}
	if resp, body := do(t, serve(t, Config{}), "GET", "/v1/models", "", nil); resp.StatusCode != 200 || !strings.Contains(body, `"data":[]`) {
		t.Errorf("without models: %d %s", resp.StatusCode, body)
	}
}

func TestModelsInAnthropicsShape(t *testing.T) {
	s := serve(t, withModels(offered))
	_, body := do(t, s, "GET", "/v1/models?limit=20", "", func(r *http.Request) { r.Header.Set("Anthropic-Version", "2023-06-01") })
	var doc struct {
		Data []struct {
			ID, Type, DisplayName string
			CreatedAt             time.Time `json:"created_at"`
		}
		HasMore *bool   `json:"has_more"`
		FirstID *string `json:"first_id"`
		LastID  *string `json:"last_id"`
	}
	strict(t, body, &doc)
	if len(doc.Data) != 3 || doc.Data[0].Type != "model" || doc.Data[0].CreatedAt.IsZero() || doc.HasMore == nil || *doc.HasMore ||
		doc.FirstID == nil || *doc.FirstID != "llama3:latest" || doc.LastID == nil || *doc.LastID != "qwen3:8b" {
		t.Errorf("%s", body)
	}
}

// The types of Ollama's own Go client (api/types.go), as far as the lists go.
type listModel struct {
	Name       string    `json:"name"`
	Model      string    `json:"model"`
	ModifiedAt time.Time `json:"modified_at"`
	Size       int64     `json:"size"`
	Digest     string    `json:"digest"`
	Details    struct {
		ParentModel       string   `json:"parent_model"`
		Format            string   `json:"format"`
		Family            string   `json:"family"`
		Families          []string `json:"families"`
		ParameterSize     string   `json:"parameter_size"`
		QuantizationLevel string   `json:"quantization_level"`
	} `json:"details"`
	ExpiresAt     time.Time `json:"expires_at"`
	SizeVRAM      int64     `json:"size_vram"`
	ContextLength int       `json:"context_length"`
}

func TestModelsInOllamasShape(t *testing.T) {
	s := serve(t, withModels(offered))
	var tags, ps struct {
		Models []listModel `json:"models"`
	}
	_, body := do(t, s, "GET", "/api/tags", "", nil)
	exact(t, body, &tags)
	if len(tags.Models) != 3 {
		t.Fatalf("%s", body)
	}
	for _, m := range tags.Models {
		// "ollama list" prints the first 12 characters of the digest.
		if len(m.Digest) != 64 || m.Name == "" || m.Model != m.Name || m.ModifiedAt.IsZero() {
			t.Errorf("%+v", m)
		}
	}
	if m := tags.Models[2]; m.Size != 5<<30 || m.Details.Family != "qwen3" || m.Details.QuantizationLevel != "Q4_K_M" {
		t.Errorf("not merged of both miners: %+v", m)
	}
	_, body = do(t, s, "GET", "/api/ps", "", nil)
	exact(t, body, &ps)
	if len(ps.Models) != 1 || ps.Models[0].Name != "qwen3:8b" || !ps.Models[0].ExpiresAt.After(time.Now()) || ps.Models[0].ContextLength != 32768 {
		t.Errorf("%s", body)
	}
	_, body = do(t, s, "GET", "/api/version", "", nil)
	var version struct{ Version string }
	exact(t, body, &version)
	if version.Version == "" {
		t.Errorf("%s", body)
	}
	for _, method := range []string{"GET", "HEAD"} {
		if resp, _ := do(t, s, method, "/", "", nil); resp.StatusCode != 200 {
			t.Errorf("%s /: %d", method, resp.StatusCode)
		}
	}
	if _, body := do(t, serve(t, Config{}), "GET", "/api/tags", "", nil); body != "{\"models\":[]}\n" {
		t.Errorf("without models: %q", body)
	}
}

func TestShow(t *testing.T) {
	s := serve(t, withModels(offered))
	for body, want := range map[string]int{
		`{"model":"qwen3:8b"}`: 200, `{"name":"qwen3:8b","verbose":true}`: 200, `{"model":"llama3"}`: 200,
		`{"model":"none"}`: 404, `{}`: 404, `x`: 400, ``: 400, `{"model":5}`: 400, `{"model":"` + strings.Repeat("x", maxShowBody) + `"}`: 400,
	} {
		resp, got := post(t, s, "/api/show", body)
		if resp.StatusCode != want {
			t.Errorf("%.40s: %d %s", body, resp.StatusCode, got)
		}
		if want != 200 && !strings.HasPrefix(got, `{"error":"`) {
			t.Errorf("%.40s: not Ollama's shape: %s", body, got)
		}
	}
	_, got := post(t, s, "/api/show", `{"model":"qwen3:8b"}`)
	var doc struct {
		Capabilities []string
		ModelInfo    map[string]any `json:"model_info"`
	}
	strict(t, got, &doc)
	if strings.Join(doc.Capabilities, " ") != "completion tools vision" || doc.ModelInfo["qwen3.context_length"] != 32768.0 {
		t.Errorf("%s", got)
	}
	if _, got := post(t, s, "/api/show", `{"model":"org/embed"}`); !strings.Contains(got, `"capabilities":["embedding"]`) {
		t.Errorf("%s", got)
	}
}

func TestModelListFailures(t *testing.T) {
	s := serve(t, Config{Models: func(context.Context) ([]ModelEntry, error) {
		return nil, &api.Error{Status: 503, Code: api.CodeNoCoordinator, Message: "no coordinator"}
	}})
	for path, want := range map[string]string{"/v1/models": `{"error":{`, "/v1/models/m": `{"error":{`, "/api/tags": `{"error":"`, "/api/ps": `{"error":"`} {
		resp, body := do(t, s, "GET", path, "", nil)
		if resp.StatusCode != 503 || !strings.HasPrefix(body, want) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}
