package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"mintai/api"
)

// reprobe is how long it is believed which calls a server answers, unless its
// version or its models change before.
const reprobe = 10 * time.Minute

// noSuchPath is a path that no server has. Some answer it with status 200 and a
// sentence (LM Studio), so a call counts as offered only when it is answered
// differently.
const noSuchPath = "/v1/mintai-no-such-call"

// probe finds out which of calls the server truly answers: it sends each an
// empty object, which a server that knows the call refuses as incomplete.
// complete is false when a server was too busy to tell; what was known before
// then stays.
func (s *server) probe(ctx context.Context, calls []api.Call) (found map[api.Call]bool, complete bool, err error) {
	control, err := s.ask(ctx, http.MethodPost, noSuchPath, strings.NewReader("{}"))
	if err != nil {
		return nil, false, err
	}
	found, complete = make(map[api.Call]bool), true
	for _, call := range calls {
		got, err := s.ask(ctx, http.MethodPost, string(call), strings.NewReader("{}"))
		if err != nil {
			if ctx.Err() != nil {
				return nil, false, ctx.Err()
			}
			found[call], complete = s.calls[call], false
			continue
		}
		switch judge(call, got, control) {
		case verdictOffered:
			found[call] = true
		case verdictNot:
		case verdictUnknown:
			found[call], complete = s.calls[call], false
		case verdictUnauthorized:
			return nil, false, errUnauthorized
		}
	}
	return found, complete, nil
}

type verdict int

const (
	verdictNot verdict = iota
	verdictOffered
	verdictUnknown
	verdictUnauthorized
)

// judge decides from the answer to POST {} whether a call is offered.
func judge(call api.Call, got, control answer) verdict {
	switch got.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return verdictUnauthorized
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return verdictUnknown
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return verdictNot
	case http.StatusNotFound:
		// A server that knows the call may answer {} with "model '' not found".
		if !sameAnswer(call, got, control) && json.Valid(got.body) && bytes.Contains(bytes.ToLower(got.body), []byte("model")) {
			return verdictOffered
		}
		return verdictNot
	}
	switch {
	case got.status < 200, got.status >= 300 && got.status < 400:
		return verdictNot
	case got.status < 300 && sameAnswer(call, got, control):
		return verdictNot
	case got.status < 300 && !json.Valid(got.body): // a web page, not an API
		return verdictNot
	case bytes.Contains(bytes.ToLower(got.body), []byte("does not support")):
		return verdictNot // vLLM: "The model does not support Embeddings API"
	}
	return verdictOffered
}

// sameAnswer reports whether two answers differ in no more than the path.
func sameAnswer(call api.Call, got, control answer) bool {
	if got.status != control.status {
		return false
	}
	a := bytes.ReplaceAll(got.body, []byte(call), nil)
	b := bytes.ReplaceAll(control.body, []byte(noSuchPath), nil)
	return bytes.Equal(a, b)
}

// refreshCalls probes when it is due. version is anything that changes when the
// server does.
func (s *server) refreshCalls(ctx context.Context, version string, calls []api.Call, now time.Time) error {
	if s.calls != nil && s.version == version && now.Sub(s.probedAt) < reprobe {
		return nil
	}
	found, complete, err := s.probe(ctx, calls)
	if err != nil {
		return err
	}
	s.calls = found
	if complete {
		s.version, s.probedAt = version, now
	}
	return nil
}

// offers keeps those of calls that the server answers, in their order.
func (s *server) offers(calls ...api.Call) []api.Call {
	var out []api.Call
	for _, c := range calls {
		if s.calls[c] {
			out = append(out, c)
		}
	}
	return out
}

var (
	generatingCalls = []api.Call{
		api.ChatCompletions, api.Completions, api.Responses, api.Messages, api.CountTokens,
		api.OllamaChat, api.OllamaGenerate,
	}
	embeddingCalls = []api.Call{api.Embeddings, api.OllamaEmbed, api.OllamaEmbeddings}
	openAICalls    = []api.Call{
		api.ChatCompletions, api.Completions, api.Embeddings, api.Responses, api.Messages, api.CountTokens,
	}
)

// isVersion recognises Ollama's {"version":"0.12.0"}.
func isVersion(body []byte) bool {
	var doc struct {
		Version string `json:"version"`
	}
	return json.Unmarshal(body, &doc) == nil && doc.Version != ""
}

// isList recognises OpenAI's {"object":"list","data":[…]}.
func isList(body []byte) bool {
	var doc openAIList
	return json.Unmarshal(body, &doc) == nil && doc.Data != nil
}
