package backend

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"mintai/api"
)

// Servers with OpenAI's API that say more about themselves than it prescribes.
const (
	kindLlamaCpp = "llama.cpp"
	kindVLLM     = "vllm"
	kindLMStudio = "lmstudio"
)

// openAIList is the answer to GET /v1/models with the extensions of vLLM
// (max_model_len) and llama.cpp (meta).
type openAIList struct {
	Data *[]struct {
		ID          string          `json:"id"`
		OwnedBy     string          `json:"owned_by"`
		MaxModelLen json.RawMessage `json:"max_model_len"`
		Meta        struct {
			ContextTrained json.RawMessage `json:"n_ctx_train"`
			SizeBytes      json.Number     `json:"size"`
		} `json:"meta"`
	} `json:"data"`
}

// lmStudioList is the answer to LM Studio's own GET /api/v0/models.
type lmStudioList struct {
	Data []lmStudioModel `json:"data"`
}

type lmStudioModel struct {
	ID            string          `json:"id"`
	Type          string          `json:"type"` // llm, vlm, embeddings
	Arch          string          `json:"arch"`
	Quantization  string          `json:"quantization"`
	MaxContext    json.RawMessage `json:"max_context_length"`
	LoadedContext json.RawMessage `json:"loaded_context_length"`
	Capabilities  []string        `json:"capabilities"` // tool_use
}

// llamaProps is the part of llama.cpp's GET /props that matters.
type llamaProps struct {
	TotalSlots int `json:"total_slots"`
	Defaults   struct {
		Context json.RawMessage `json:"n_ctx"`
	} `json:"default_generation_settings"`
	Modalities *struct {
		Vision bool `json:"vision"`
	} `json:"modalities"`
}

// lookOpenAI lists the models of a server with OpenAI's API and what each can
// do, as far as the server tells.
func (s *server) lookOpenAI(ctx context.Context, cfg Config, now time.Time) ([]ModelInfo, error) {
	got, err := s.ask(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return nil, err
	}
	var list openAIList
	err = statusError(got.status)
	if err == nil && (json.Unmarshal(got.body, &list) != nil || list.Data == nil) {
		err = errNonsense
	}
	if err != nil {
		// A server without a list can still serve models that are written down.
		names := cfg.literalModels()
		if !errors.Is(err, errNotThere) || len(names) == 0 || cfg.Type != TypeOpenAI {
			return nil, err
		}
		return s.unlisted(ctx, names, now)
	}
	s.identify(ctx, list)
	var names strings.Builder
	for _, m := range *list.Data {
		names.WriteString(m.ID + "\n")
	}
	if err := s.refreshCalls(ctx, names.String(), openAICalls, now); err != nil {
		return nil, err
	}
	extra := s.lmStudioCards(ctx)
	props := s.llamaProps(ctx)
	var models []ModelInfo
	for _, m := range *list.Data {
		if ok, _ := cfg.wanted(m.ID); !ok {
			continue
		}
		info := s.guess(m.ID)
		info.ContextTokens = tokens(m.MaxModelLen)
		if info.ContextTokens == 0 {
			info.ContextTokens = tokens(m.Meta.ContextTrained)
		}
		if n, err := m.Meta.SizeBytes.Int64(); err == nil && n > 0 {
			info.SizeBytes = n
		}
		if card, ok := extra[m.ID]; ok {
			s.applyLMStudio(&info, card)
		}
		if props != nil {
			if n := tokens(props.Defaults.Context); n > 0 {
				info.ContextTokens = n
			}
			if props.Modalities != nil {
				info.Vision = props.Modalities.Vision
			}
		}
		if len(info.Calls) > 0 {
			models = append(models, info)
		}
	}
	return models, nil
}

func (s *server) unlisted(ctx context.Context, names []string, now time.Time) ([]ModelInfo, error) {
	if err := s.refreshCalls(ctx, strings.Join(names, "\n"), openAICalls, now); err != nil {
		return nil, err
	}
	var models []ModelInfo
	for _, name := range names {
		if info := s.guess(name); len(info.Calls) > 0 {
			models = append(models, info)
		}
	}
	return models, nil
}

// identify recognises the program behind the API.
func (s *server) identify(ctx context.Context, list openAIList) {
	if s.kind != TypeOpenAI {
		return
	}
	if len(*list.Data) == 0 {
		return
	}
	kind := TypeOpenAI
	switch (*list.Data)[0].OwnedBy {
	case "llamacpp":
		kind = kindLlamaCpp
	case "vllm":
		kind = kindVLLM
	case "organization_owner", "organization-owner": // LM Studio's constant
		got, err := s.ask(ctx, http.MethodGet, "/api/v0/models", nil)
		var cards lmStudioList
		if err == nil && got.status == http.StatusOK && json.Unmarshal(got.body, &cards) == nil && len(cards.Data) > 0 {
			kind = kindLMStudio
		}
	}
	if kind != s.kind {
		s.kind = kind
		if !s.fixed {
			s.limiter.resize(defaultSlots(kind))
		}
	}
}

// lmStudioCards asks LM Studio's own API. Failing is no fault: OpenAI's list
// was there.
func (s *server) lmStudioCards(ctx context.Context) map[string]lmStudioModel {
	if s.kind != kindLMStudio {
		return nil
	}
	got, err := s.ask(ctx, http.MethodGet, "/api/v0/models", nil)
	var list lmStudioList
	if err != nil || got.status != http.StatusOK || json.Unmarshal(got.body, &list) != nil {
		return nil
	}
	cards := make(map[string]lmStudioModel, len(list.Data))
	for _, m := range list.Data {
		cards[m.ID] = m
	}
	return cards
}

func (s *server) applyLMStudio(info *ModelInfo, card lmStudioModel) {
	switch card.Type {
	case "embeddings":
		info.Calls = s.offers(embeddingCalls...)
		info.Tools, info.JSON, info.Vision = false, false, false
	case "llm", "vlm":
		info.Calls = s.offers(generatingCalls...)
		info.JSON, info.Vision = true, card.Type == "vlm"
		if card.Capabilities != nil {
			info.Tools = false
			for _, c := range card.Capabilities {
				info.Tools = info.Tools || c == "tool_use"
			}
		}
	}
	info.Family, info.Quantization = card.Arch, card.Quantization
	if n := tokens(card.MaxContext); n > 0 {
		info.ContextTokens = n
	}
	if n := tokens(card.LoadedContext); n > 0 {
		info.ContextTokens = n
	}
}

// llamaProps asks llama.cpp how many slots it has and whether it can see.
func (s *server) llamaProps(ctx context.Context) *llamaProps {
	if s.kind != kindLlamaCpp {
		return nil
	}
	got, err := s.ask(ctx, http.MethodGet, "/props", nil)
	var props llamaProps
	if err != nil || got.status != http.StatusOK || json.Unmarshal(got.body, &props) != nil {
		return nil
	}
	if !s.fixed && props.TotalSlots > 0 && props.TotalSlots <= 1024 {
		s.limiter.resize(props.TotalSlots)
	}
	return &props
}

// guess describes a model of which only the name is known. Tools and JSON are
// taken for granted where text is generated, as most servers offer both.
func (s *server) guess(name string) ModelInfo {
	info := ModelInfo{Name: api.Model(name), Backend: s.kind}
	lower := strings.ToLower(name)
	switch {
	case containsAny(lower, "whisper", "tts-", "dall-e", "gpt-image", "moderation", "stable-diffusion", "rerank"):
	case containsAny(lower, "embed", "bge-", "e5-", "gte-", "minilm"):
		info.Calls = s.offers(embeddingCalls...)
	default:
		info.Calls = s.offers(generatingCalls...)
		if s.kind == kindLlamaCpp { // refuses embeddings with 501 unless started for them
			info.Calls = append(info.Calls, s.offers(embeddingCalls...)...)
		}
		info.Tools, info.JSON = true, true
		info.Vision = containsAny(lower, "-vl", "vision", "llava", "pixtral", "gpt-4o", "gpt-4.1", "gpt-5", "gemma-3", "internvl", "minicpm-v")
	}
	return info
}

func containsAny(s string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
