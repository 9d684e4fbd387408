// Package api says what a client may call on a miner's AI server, reads such
// calls strictly, and speaks the error shapes of the three APIs behind them:
// OpenAI, Anthropic and Ollama.
//
// It opens no socket and knows no server. The gateway uses it before a request
// leaves the client's machine, the backend again before a request reaches the
// AI server, so that nothing depends on the other end having checked.
//
// Sources: the OpenAI API reference (chat completions, completions, embeddings,
// responses), the Anthropic Messages API reference, Ollama's docs/api.md.
package api

import (
	"net/http"
	"strings"
)

// Model is the name of a model exactly as its server lists it. The empty Model
// means "any".
type Model string

// Call is one API that a stranger may use, named by its path. Calls are always
// POST requests with a JSON object as the body.
type Call string

// The whole list of what may be called. Everything else is ErrNotOffered.
const (
	ChatCompletions  Call = "/v1/chat/completions"      // OpenAI
	Completions      Call = "/v1/completions"           // OpenAI
	Embeddings       Call = "/v1/embeddings"            // OpenAI
	Responses        Call = "/v1/responses"             // OpenAI
	Messages         Call = "/v1/messages"              // Anthropic
	CountTokens      Call = "/v1/messages/count_tokens" // Anthropic
	OllamaChat       Call = "/api/chat"                 // Ollama
	OllamaGenerate   Call = "/api/generate"             // Ollama
	OllamaEmbed      Call = "/api/embed"                // Ollama
	OllamaEmbeddings Call = "/api/embeddings"           // Ollama, superseded by OllamaEmbed but still in use
)

var calls = [...]Call{
	ChatCompletions, Completions, Embeddings, Responses, Messages, CountTokens,
	OllamaChat, OllamaGenerate, OllamaEmbed, OllamaEmbeddings,
}

// Calls returns every call that may be offered, in a fixed order.
func Calls() []Call { return append([]Call(nil), calls[:]...) }

// Flavor is the family that a call belongs to; it decides the shape of errors
// and streams.
type Flavor int

// The three families.
const (
	OpenAI    Flavor = iota // errors {"error":{…}}, streams as server-sent events
	Anthropic               // errors {"type":"error",…}, streams as typed server-sent events
	Ollama                  // errors {"error":"…"}, streams as one JSON object a line
)

// String returns the family's name in lower case.
func (f Flavor) String() string {
	switch f {
	case Anthropic:
		return "anthropic"
	case Ollama:
		return "ollama"
	case OpenAI:
		return "openai"
	}
	return "unknown"
}

// Flavor returns the family of c. Unknown calls count as OpenAI, the shape that
// most clients understand.
func (c Call) Flavor() Flavor {
	switch {
	case c == Messages || c == CountTokens:
		return Anthropic
	case strings.HasPrefix(string(c), "/api/"):
		return Ollama
	default:
		return OpenAI
	}
}

// Generates reports whether c answers with generated text, in contrast to
// embeddings and token counts.
func (c Call) Generates() bool {
	switch c {
	case ChatCompletions, Completions, Responses, Messages, OllamaChat, OllamaGenerate:
		return true
	case Embeddings, CountTokens, OllamaEmbed, OllamaEmbeddings:
		return false
	}
	return false
}

// streamsByDefault: Ollama streams unless told not to, the others the reverse.
func (c Call) streamsByDefault() bool { return c == OllamaChat || c == OllamaGenerate }

// Lookup returns the call that a method and a path name. escapedPath is the
// path as it stood on the wire (url.URL.EscapedPath). Only the one canonical
// spelling of each call matches: no dot segments, percent escapes, doubled or
// trailing slashes, other case or query. Every failure is an *Error for which
// errors.Is(err, ErrNotOffered) holds.
func Lookup(method, escapedPath string) (Call, error) {
	for _, c := range calls {
		if string(c) != escapedPath {
			continue
		}
		if method != http.MethodPost {
			return "", &Error{
				Status: http.StatusNotFound, Code: CodeNotOffered,
				Message: "only POST is offered for " + escapedPath,
			}
		}
		return c, nil
	}
	return "", &Error{
		Status: http.StatusNotFound, Code: CodeNotOffered,
		Message: "this path is not offered",
		Hint:    "offered are POST " + offered,
	}
}

var offered = func() string {
	names := make([]string, len(calls))
	for i, c := range calls {
		names[i] = string(c)
	}
	return strings.Join(names, ", ")
}()

// LookupRequest is Lookup for a request as a server received it. It also
// refuses CONNECT, protocol upgrades (RFC 9110 §7.8), extended CONNECT
// (RFC 9220) and request targets that are not a plain path (RFC 9112 §3.2).
// A query is not part of the path: callers drop it and pass nothing of it on.
func LookupRequest(r *http.Request) (Call, error) {
	switch {
	case r.Method == http.MethodConnect, r.Header.Get("Upgrade") != "", listsUpgrade(r.Header.Values("Connection")):
		return "", &Error{
			Status: http.StatusNotFound, Code: CodeNotOffered,
			Message: "tunnels and protocol upgrades are not offered",
		}
	case r.URL == nil, r.URL.Opaque != "", r.URL.User != nil, r.URL.Fragment != "":
		return "", &Error{
			Status: http.StatusNotFound, Code: CodeNotOffered,
			Message: "the request target is not a plain path",
		}
	}
	return Lookup(r.Method, r.URL.EscapedPath())
}

func listsUpgrade(values []string) bool {
	for _, v := range values {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true
			}
		}
	}
	return false
}
