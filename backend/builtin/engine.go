// Package builtin is the reference engine that every miner carries: a
// dictionary (WordNet 3.0) and exact arithmetic behind the APIs of a language
// model, so that a first question gets a true answer on a machine without an
// AI server.
//
// It is not a language model and never guesses: what is neither a word of its
// dictionary nor a calculation gets one sentence that says so and how to
// connect a real model. Answers depend on the prompt alone.
//
// The wire shapes are those of the OpenAI API reference (chat completions and
// completions) and of Ollama's docs/api.md (chat and generate).
package builtin

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"slices"
	"time"

	"mintai/api"
	"mintai/backend/builtin/wordnet"
)

// Model is the name under which the engine is offered.
const Model api.Model = "builtin"

// Description says what the engine is, in a phrase that completes "this is".
const Description = "a dictionary and exact arithmetic, not a language model"

// Engine answers prompts. It holds no state besides the dictionary and may be
// used by several goroutines.
type Engine struct {
	words *wordnet.Dictionary
	now   func() time.Time
	id    func() string
}

var _ http.Handler = (*Engine)(nil)

// New returns an Engine on the embedded dictionary. It fails only when the
// program file itself is damaged.
func New() (*Engine, error) {
	words, err := wordnet.Open()
	if err != nil {
		return nil, err
	}
	return &Engine{words: words, now: time.Now, id: randomID}, nil
}

// Calls returns the calls that the engine answers.
func Calls() []api.Call {
	return []api.Call{api.ChatCompletions, api.Completions, api.OllamaChat, api.OllamaGenerate}
}

// Notice returns the copyright notice and licence of the dictionary's data.
func Notice() string { return wordnet.License }

func randomID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// ServeHTTP answers the calls of Calls, streamed or whole, and refuses all
// others in the error shape of their API.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call, err := api.LookupRequest(r)
	if err != nil {
		api.WriteError(w, api.ChatCompletions, api.AsError(err))
		return
	}
	if !slices.Contains(Calls(), call) {
		api.WriteError(w, call, &api.Error{
			Status: http.StatusNotFound, Code: api.CodeNotOffered,
			Message: "the built-in reference does not offer " + string(call),
		})
		return
	}
	p, apiErr := readPrompt(call, http.MaxBytesReader(w, r.Body, maxBody))
	if apiErr != nil {
		api.WriteError(w, call, apiErr)
		return
	}
	started := e.now()
	a := &answer{call: call, id: e.id(), created: started, finish: "stop", usage: p.includeUsage}
	if p.load {
		a.finish = "load"
	} else {
		a.prompt = p.tokens
		a.pieces, a.finish = limit(e.Answer(p.text), p)
	}
	a.took = e.now().Sub(started)
	if p.stream {
		a.stream(r.Context(), w)
		return
	}
	a.whole(w)
}
