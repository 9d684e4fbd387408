package builtin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"mintai/api"
)

// maxBody is the most bytes of a request: a long conversation, of which the
// engine reads the last message only.
const maxBody = 1 << 20

// prompt is a request as the engine understands it.
type prompt struct {
	text   string // what is asked
	tokens int    // of all the request's text, counted as those of the answer
	load   bool   // Ollama's way to load a model: a request without a prompt

	stream       bool
	includeUsage bool
	maxTokens    int // negative: no limit
	stop         []string
}

// fields are the keys of the four calls that matter here. Others, such as the
// temperature, change nothing about a dictionary.
type fields struct {
	Model               string          `json:"model"`
	Messages            json.RawMessage `json:"messages"`
	Prompt              json.RawMessage `json:"prompt"`
	System              string          `json:"system"`
	Images              json.RawMessage `json:"images"`
	Stream              *bool           `json:"stream"`
	StreamOptions       *streamOptions  `json:"stream_options"`
	MaxTokens           *int            `json:"max_tokens"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Stop                json.RawMessage `json:"stop"`
	N                   *int            `json:"n"`
	BestOf              *int            `json:"best_of"`
	Echo                bool            `json:"echo"`
	ToolChoice          json.RawMessage `json:"tool_choice"`
	ResponseFormat      *typed          `json:"response_format"`
	Format              json.RawMessage `json:"format"`
	Options             *options        `json:"options"`
}

type message struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
	Images  json.RawMessage `json:"images"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

type options struct {
	NumPredict *int            `json:"num_predict"`
	Stop       json.RawMessage `json:"stop"`
}

// typed is an object with a type and perhaps a text.
type typed struct {
	Type string  `json:"type"`
	Text *string `json:"text"`
}

func badRequest(message string) *api.Error {
	return &api.Error{Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: message}
}

// readPrompt reads the body of a call.
func readPrompt(call api.Call, body io.Reader) (*prompt, *api.Error) {
	b, err := io.ReadAll(body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, &api.Error{
				Status: http.StatusRequestEntityTooLarge, Code: api.CodeTooLarge,
				Message: fmt.Sprintf("the built-in reference reads at most %d MiB", maxBody>>20),
			}
		}
		return nil, badRequest("the request's body ended too early")
	}
	var f fields
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, badRequest("the body is not the JSON object that this call takes")
	}
	if m, _ := strings.CutSuffix(f.Model, ":latest"); m != string(Model) && m != "" {
		return nil, &api.Error{
			Status: http.StatusNotFound, Code: api.CodeModelNotFound,
			Message: "this engine has one model only, " + string(Model),
		}
	}
	if err := f.refuse(); err != nil {
		return nil, err
	}
	p := &prompt{maxTokens: -1}
	ollama := call.Flavor() == api.Ollama
	p.stream = ollama
	if f.Stream != nil {
		p.stream = *f.Stream
	}
	p.includeUsage = f.StreamOptions != nil && f.StreamOptions.IncludeUsage
	stop := f.Stop
	if ollama {
		stop = nil
		if f.Options != nil {
			stop = f.Options.Stop
			p.setMax(f.Options.NumPredict)
		}
	} else {
		if f.MaxTokens != nil && *f.MaxTokens < 0 || f.MaxCompletionTokens != nil && *f.MaxCompletionTokens < 0 {
			return nil, badRequest("max_tokens must not be negative")
		}
		p.setMax(f.MaxTokens)
		p.setMax(f.MaxCompletionTokens)
	}
	var refused *api.Error
	if p.stop, refused = stopSequences(stop); refused != nil {
		return nil, refused
	}
	if call == api.ChatCompletions || call == api.OllamaChat {
		refused = p.fromMessages(f.Messages, ollama)
	} else {
		refused = p.fromPrompt(f.Prompt, f.System, ollama)
	}
	if refused != nil {
		return nil, refused
	}
	return p, nil
}

// refuse says what the engine cannot do, rather than to answer as if it had.
func (f *fields) refuse() *api.Error {
	switch {
	case f.N != nil && *f.N != 1, f.BestOf != nil && *f.BestOf != 1:
		return badRequest("the built-in reference gives one answer: n and best_of must be 1")
	case f.Echo:
		return badRequest("the built-in reference does not repeat the prompt: echo must be false")
	case f.ResponseFormat != nil && f.ResponseFormat.Type != "" && f.ResponseFormat.Type != "text",
		!empty(f.Format):
		return badRequest("the built-in reference answers in plain text only: no JSON format")
	case len(f.ToolChoice) > 0 && f.ToolChoice[0] == '{', string(f.ToolChoice) == `"required"`:
		return badRequest("the built-in reference calls no tools")
	case !empty(f.Images):
		return errImages
	}
	return nil
}

var errImages = badRequest("the built-in reference cannot see images")

func (p *prompt) setMax(n *int) {
	if n != nil && *n >= 0 {
		p.maxTokens = *n
	}
}

// empty reports whether a value is absent or says nothing.
func empty(raw json.RawMessage) bool {
	switch string(raw) {
	case "", "null", `""`, "[]":
		return true
	}
	return false
}

// maxItems is the most messages of a request, and parts of a message.
const maxItems = 10_000

// eachItem decodes the JSON list raw item by item, so that a list of many tiny
// items takes no more memory than its text, and calls f after each.
func eachItem[T any](raw json.RawMessage, what string, f func(*T) *api.Error) *api.Error {
	wrong := badRequest(what + " must be a list of objects")
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return wrong
	}
	for n := 0; dec.More(); n++ {
		if n == maxItems {
			return badRequest(fmt.Sprintf("%s holds more than %d items", what, maxItems))
		}
		var item T
		if dec.Decode(&item) != nil {
			return wrong
		}
		if err := f(&item); err != nil {
			return err
		}
	}
	return nil
}

// fromMessages takes the last message of the user as the question.
func (p *prompt) fromMessages(raw json.RawMessage, ollama bool) *api.Error {
	if ollama && empty(raw) {
		p.load = true
		return nil
	}
	asked := false
	err := eachItem(raw, "messages", func(m *message) *api.Error {
		text, err := m.text()
		if err != nil {
			return err
		}
		p.tokens += countPieces(text)
		if m.Role == "user" {
			p.text, asked = text, true
		}
		return nil
	})
	if err == nil && !asked {
		return badRequest("messages holds no message of the role user")
	}
	return err
}

// text returns the text of a message, whose content is a string or a list of
// parts.
func (m *message) text() (string, *api.Error) {
	if !empty(m.Images) {
		return "", errImages
	}
	if empty(m.Content) {
		return "", nil // a message that only calls tools
	}
	var s string
	if json.Unmarshal(m.Content, &s) == nil {
		return s, nil
	}
	var text strings.Builder
	err := eachItem(m.Content, "a message's content", func(part *typed) *api.Error {
		switch {
		case part.Type == "text" && part.Text != nil:
			if text.Len() > 0 {
				text.WriteByte('\n')
			}
			text.WriteString(*part.Text)
			return nil
		case part.Type == "image_url":
			return errImages
		default:
			return badRequest("the built-in reference reads text only")
		}
	})
	return text.String(), err
}

// fromPrompt takes a prompt that is a string or a list of one string.
func (p *prompt) fromPrompt(raw json.RawMessage, system string, ollama bool) *api.Error {
	if ollama && empty(raw) {
		p.load = true
		return nil
	}
	prompts := 0
	if json.Unmarshal(raw, &p.text) == nil && !empty(raw) {
		prompts = 1
	} else if err := eachItem(raw, "prompt", func(s *string) *api.Error {
		p.text = *s
		if prompts++; prompts > 1 {
			return badRequest("exactly one prompt is needed")
		}
		return nil
	}); err != nil {
		return badRequest("prompt must be one string; lists of tokens have no meaning here")
	}
	if prompts != 1 {
		return badRequest("exactly one prompt is needed")
	}
	p.tokens = countPieces(p.text)
	if system != "" {
		p.tokens += countPieces(system)
	}
	return nil
}

// maxStop is the most bytes of the stop sequences of a request.
const maxStop = 4 << 10

// stopSequences reads what may be null, a string or a list of strings.
func stopSequences(raw json.RawMessage) ([]string, *api.Error) {
	if empty(raw) {
		return nil, nil
	}
	if len(raw) > maxStop {
		return nil, badRequest(fmt.Sprintf("stop is longer than %d bytes", maxStop))
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return []string{s}, nil
	}
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	return nil, badRequest("stop must be a string or a list of strings")
}
