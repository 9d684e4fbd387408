package gateway

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"mintai/api"
)

// ModelEntry is a model that is offered. Zero fields are unknown.
type ModelEntry struct {
	Model         api.Model
	Miner         string // the name of one that offers it
	Calls         []api.Call
	ContextTokens int
	Tools, Vision bool
	SizeBytes     int64
	Family        string
	Quantization  string
	InFlight      int // requests being answered
}

const (
	// ollamaVersion is the version of the Ollama API whose calls are offered.
	// Clients of it refuse what looks too old.
	ollamaVersion = "0.12.0"
	// shownFor is how long a model counts as loaded in /api/ps: a lease's life.
	shownFor = time.Minute
	// maxShowBody bounds the body of /api/show, in bytes.
	maxShowBody = 64 << 10
)

// serveModels answers what is answered here, and reports whether it was that.
func (g *gateway) serveModels(w http.ResponseWriter, r *http.Request) bool {
	path := r.URL.EscapedPath()
	if r.Method == http.MethodPost && path == "/api/show" {
		g.show(w, r)
		return true
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	switch {
	case path == "/":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "MintAI is running\n")
	case path == "/v1/models":
		g.list(w, r)
	case strings.HasPrefix(path, "/v1/models/"):
		g.one(w, r, api.Model(strings.TrimPrefix(r.URL.Path, "/v1/models/")))
	case path == "/api/tags":
		g.tags(w, r, false)
	case path == "/api/ps":
		g.tags(w, r, true)
	case path == "/api/version":
		writeJSON(w, map[string]string{"version": ollamaVersion})
	default:
		return false
	}
	return true
}

// models lists each model once, sorted by name.
func (g *gateway) models(w http.ResponseWriter, r *http.Request) ([]ModelEntry, bool) {
	if g.Models == nil {
		return nil, true
	}
	entries, err := g.Models(r.Context())
	if err != nil {
		g.refuse(w, api.Call(r.URL.Path), g.explain(err))
		return nil, false
	}
	return merge(entries), true
}

// merge makes one entry of those of the same model: it can what one miner can.
func merge(entries []ModelEntry) []ModelEntry {
	sorted := slices.Clone(entries)
	slices.SortStableFunc(sorted, func(a, b ModelEntry) int { return cmp.Compare(a.Model, b.Model) })
	var out []ModelEntry
	for _, e := range sorted {
		if len(out) == 0 || out[len(out)-1].Model != e.Model {
			e.Calls = slices.Clone(e.Calls)
			out = append(out, e)
			continue
		}
		m := &out[len(out)-1]
		for _, c := range e.Calls {
			if !slices.Contains(m.Calls, c) {
				m.Calls = append(m.Calls, c)
			}
		}
		m.ContextTokens = max(m.ContextTokens, e.ContextTokens)
		m.Tools, m.Vision = m.Tools || e.Tools, m.Vision || e.Vision
		m.SizeBytes = max(m.SizeBytes, e.SizeBytes)
		m.Family = cmp.Or(m.Family, e.Family)
		m.Quantization = cmp.Or(m.Quantization, e.Quantization)
		m.InFlight += e.InFlight
	}
	return out
}

func find(entries []ModelEntry, name api.Model) (ModelEntry, bool) {
	for _, e := range entries {
		// Ollama's clients leave out ":latest", and add it.
		if e.Model == name || e.Model == name+":latest" || e.Model+":latest" == name {
			return e, true
		}
	}
	return ModelEntry{}, false
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // the caller may be gone: nobody is left to tell
}

// openAIModel is the OpenAI API's "model object", with what Anthropic's has
// beside it.
type openAIModel struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	Context     int    `json:"context_length,omitempty"`
	Type        string `json:"type,omitempty"`         // Anthropic
	DisplayName string `json:"display_name,omitempty"` // Anthropic
	CreatedAt   string `json:"created_at,omitempty"`   // Anthropic, RFC 3339
}

func (g *gateway) openAI(e ModelEntry, anthropic bool) openAIModel {
	m := openAIModel{
		ID: string(e.Model), Object: "model", Created: g.started.Unix(),
		OwnedBy: cmp.Or(e.Miner, "mintai"), Context: e.ContextTokens,
	}
	if anthropic {
		m.Type, m.DisplayName, m.CreatedAt = "model", string(e.Model), g.started.UTC().Format(time.RFC3339)
	}
	return m
}

// speaksAnthropic: Anthropic's clients always send this field.
func speaksAnthropic(r *http.Request) bool { return r.Header.Get("Anthropic-Version") != "" }

func (g *gateway) list(w http.ResponseWriter, r *http.Request) {
	entries, ok := g.models(w, r)
	if !ok {
		return
	}
	type list struct {
		Object  string        `json:"object"`
		Data    []openAIModel `json:"data"`
		HasMore *bool         `json:"has_more,omitempty"` // Anthropic
		FirstID *string       `json:"first_id,omitempty"` // Anthropic
		LastID  *string       `json:"last_id,omitempty"`  // Anthropic
	}
	anthropic := speaksAnthropic(r)
	doc := list{Object: "list", Data: []openAIModel{}}
	for _, e := range entries {
		doc.Data = append(doc.Data, g.openAI(e, anthropic))
	}
	if anthropic {
		doc.HasMore = new(bool)
		if n := len(doc.Data); n > 0 {
			doc.FirstID, doc.LastID = &doc.Data[0].ID, &doc.Data[n-1].ID
		}
	}
	writeJSON(w, doc)
}

func (g *gateway) one(w http.ResponseWriter, r *http.Request, name api.Model) {
	entries, ok := g.models(w, r)
	if !ok {
		return
	}
	e, ok := find(entries, name)
	if !ok {
		shape := api.ChatCompletions
		if speaksAnthropic(r) {
			shape = api.Messages
		}
		g.refuse(w, shape, errNoModel())
		return
	}
	writeJSON(w, g.openAI(e, speaksAnthropic(r)))
}

func errNoModel() *api.Error {
	return &api.Error{
		Status: http.StatusNotFound, Code: api.CodeModelNotFound,
		Message: "no miner offers this model", Hint: "GET /v1/models lists what is offered",
	}
}

// ollamaDetails is "details" in Ollama's docs/api.md.
type ollamaDetails struct {
	ParentModel       string   `json:"parent_model"`
	Format            string   `json:"format"`
	Family            string   `json:"family"`
	Families          []string `json:"families"`
	ParameterSize     string   `json:"parameter_size"`
	QuantizationLevel string   `json:"quantization_level"`
}

func details(e ModelEntry) ollamaDetails {
	d := ollamaDetails{Family: e.Family, Families: []string{}, QuantizationLevel: e.Quantization}
	if e.Family != "" {
		d.Families = append(d.Families, e.Family)
	}
	return d
}

// ollamaModel is an element of /api/tags and, with the last three, of /api/ps.
type ollamaModel struct {
	Name       string        `json:"name"`
	Model      string        `json:"model"`
	ModifiedAt *time.Time    `json:"modified_at,omitempty"`
	Size       int64         `json:"size"`
	Digest     string        `json:"digest"`
	Details    ollamaDetails `json:"details"`
	ExpiresAt  *time.Time    `json:"expires_at,omitempty"`
	SizeVRAM   *int64        `json:"size_vram,omitempty"`
	Context    int           `json:"context_length,omitempty"`
}

// tags lists the models in Ollama's shape: all, or those that answer now.
func (g *gateway) tags(w http.ResponseWriter, r *http.Request, running bool) {
	entries, ok := g.models(w, r)
	if !ok {
		return
	}
	models := []ollamaModel{}
	for _, e := range entries {
		m := ollamaModel{
			Name: string(e.Model), Model: string(e.Model), Size: e.SizeBytes,
			Digest: stableDigest(e.Model), Details: details(e),
		}
		if running {
			if e.InFlight == 0 {
				continue
			}
			until := time.Now().UTC().Add(shownFor)
			m.ExpiresAt, m.SizeVRAM, m.Context = &until, &e.SizeBytes, e.ContextTokens
		} else {
			since := g.started.UTC()
			m.ModifiedAt = &since
		}
		models = append(models, m)
	}
	writeJSON(w, map[string]any{"models": models})
}

// stableDigest stands where Ollama has the digest of a model's manifest.
// Clients shorten it and use it as a key, so it must be there; it says nothing
// about the weights.
func stableDigest(m api.Model) string {
	sum := sha256.Sum256([]byte("mintai/model-name/v1\x00" + string(m)))
	return hex.EncodeToString(sum[:])
}

// show answers POST /api/show.
func (g *gateway) show(w http.ResponseWriter, r *http.Request) {
	const shape = api.OllamaChat
	var body struct {
		Model string `json:"model"`
		Name  string `json:"name"` // older clients
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxShowBody)).Decode(&body); err != nil {
		g.refuse(w, shape, &api.Error{
			Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: "the body is not {\"model\": \"…\"}",
		})
		return
	}
	entries, ok := g.models(w, r)
	if !ok {
		return
	}
	e, ok := find(entries, api.Model(cmp.Or(body.Model, body.Name)))
	if !ok {
		g.refuse(w, shape, errNoModel())
		return
	}
	info := map[string]any{}
	if e.Family != "" {
		info["general.architecture"] = e.Family
		if e.ContextTokens > 0 {
			info[e.Family+".context_length"] = e.ContextTokens
		}
	}
	writeJSON(w, map[string]any{
		"modelfile": "", "parameters": "", "template": "", "license": "",
		"details": details(e), "model_info": info, "capabilities": capabilities(e),
		"modified_at": g.started.UTC(),
	})
}

// capabilities uses Ollama's words (types/model/capability.go).
func capabilities(e ModelEntry) []string {
	var caps []string
	if len(e.Calls) == 0 || slices.ContainsFunc(e.Calls, api.Call.Generates) {
		caps = append(caps, "completion")
	}
	if slices.ContainsFunc(e.Calls, func(c api.Call) bool {
		return c == api.Embeddings || c == api.OllamaEmbed || c == api.OllamaEmbeddings
	}) {
		caps = append(caps, "embedding")
	}
	if e.Tools {
		caps = append(caps, "tools")
	}
	if e.Vision {
		caps = append(caps, "vision")
	}
	return caps
}
