package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"mintai/api"
)

// modelCard is what Ollama's /api/show says of a model.
type modelCard struct {
	completion, embedding, tools, vision bool
	contextTokens                        int
}

// ollamaTags is the answer to GET /api/tags (Ollama docs/api.md, "List Local
// Models").
type ollamaTags struct {
	Models *[]struct {
		Name       string `json:"name"`
		Digest     string `json:"digest"`
		Size       int64  `json:"size"`
		RemoteHost string `json:"remote_host"` // answered by somebody else's computer
		Details    struct {
			Family       string   `json:"family"`
			Families     []string `json:"families"`
			Quantization string   `json:"quantization_level"`
		} `json:"details"`
	} `json:"models"`
}

// lookOllama lists the models of an Ollama server and what each can do.
func (s *server) lookOllama(ctx context.Context, cfg Config, now time.Time) ([]ModelInfo, error) {
	got, err := s.ask(ctx, http.MethodGet, "/api/tags", nil)
	if err != nil {
		return nil, err
	}
	if err := statusError(got.status); err != nil {
		return nil, err
	}
	var tags ollamaTags
	if json.Unmarshal(got.body, &tags) != nil || tags.Models == nil {
		return nil, errNonsense
	}
	version := "?"
	if v, err := s.ask(ctx, http.MethodGet, "/api/version", nil); err == nil && v.status == http.StatusOK {
		version = string(v.body)
	}
	if err := s.refreshCalls(ctx, version, api.Calls(), now); err != nil {
		return nil, err
	}
	var models []ModelInfo
	cards := make(map[string]modelCard, len(*tags.Models))
	for _, m := range *tags.Models {
		ok, named := cfg.wanted(m.Name)
		if !ok || m.RemoteHost != "" && !named {
			continue
		}
		id := m.Name + "@" + m.Digest
		card, known := s.shown[id]
		if !known {
			if card, err = s.show(ctx, m.Name, append(m.Details.Families, m.Details.Family)); err != nil {
				return nil, err
			}
		}
		cards[id] = card
		info := ModelInfo{
			Name: api.Model(m.Name), ContextTokens: card.contextTokens,
			Tools: card.tools, Vision: card.vision, JSON: card.completion,
			Quantization: m.Details.Quantization, Family: m.Details.Family, SizeBytes: max(m.Size, 0), Backend: s.kind,
		}
		if card.completion {
			info.Calls = s.offers(generatingCalls...)
		}
		if card.embedding {
			info.Calls = append(info.Calls, s.offers(embeddingCalls...)...)
		}
		if len(info.Calls) > 0 {
			models = append(models, info)
		}
	}
	s.shown = cards
	return models, nil
}

// show asks what one model can do. Servers from before capabilities were told
// are judged by the model's family.
func (s *server) show(ctx context.Context, name string, families []string) (modelCard, error) {
	body, err := json.Marshal(map[string]string{"model": name})
	if err != nil {
		return modelCard{}, fmt.Errorf("encoding a model name: %w", err)
	}
	got, err := s.ask(ctx, http.MethodPost, "/api/show", bytes.NewReader(body))
	if err != nil {
		return modelCard{}, err
	}
	if got.status == http.StatusNotFound { // removed since it was listed
		return modelCard{}, nil
	}
	if err := statusError(got.status); err != nil {
		return modelCard{}, err
	}
	var doc struct {
		Capabilities []string                   `json:"capabilities"`
		Parameters   string                     `json:"parameters"`
		ModelInfo    map[string]json.RawMessage `json:"model_info"`
	}
	if json.Unmarshal(got.body, &doc) != nil {
		return modelCard{}, errNonsense
	}
	var card modelCard
	for _, c := range doc.Capabilities {
		switch c {
		case "completion":
			card.completion = true
		case "embedding":
			card.embedding = true
		case "tools":
			card.tools = true
		case "vision":
			card.vision = true
		}
	}
	if len(doc.Capabilities) == 0 {
		card.embedding = isBert(families)
		card.completion = !card.embedding
	}
	for key, raw := range doc.ModelInfo {
		if strings.HasSuffix(key, ".context_length") && !strings.Contains(strings.TrimSuffix(key, ".context_length"), ".") {
			card.contextTokens = tokens(raw)
		}
	}
	for line := range strings.Lines(doc.Parameters) { // PARAMETER num_ctx of the Modelfile wins
		if f := strings.Fields(line); len(f) == 2 && f[0] == "num_ctx" {
			if n := tokens([]byte(f[1])); n > 0 {
				card.contextTokens = n
			}
		}
	}
	return card, nil
}

func isBert(families []string) bool {
	for _, f := range families {
		if strings.Contains(strings.ToLower(f), "bert") {
			return true
		}
	}
	return false
}

// tokens reads a plausible number of tokens; 0: none.
func tokens(raw []byte) int {
	n, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || !(n > 0 && n < 1<<31) {
		return 0
	}
	return int(n)
}

// statusError says what an HTTP status means during discovery.
func statusError(status int) error {
	switch {
	case status == http.StatusOK:
		return nil
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return errUnauthorized
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		return errNotThere
	default:
		return errNonsense
	}
}
