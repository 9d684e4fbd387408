package builtin

import (
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
const maxBody = 4 << 20

// prompt is a request as the engine understands it.
type prompt struct {
	text string // what is asked
	all  string // all text of the request, for the count of its tokens
	load bool   // Ollama's way to load a model: a request without a prompt

	stream       bool
	includeUsage bool
	maxTokens    int // negative: no limit
	stop         []string
}

// fields are the keys of the four calls that matter here. Others, such as the
// temperature, change nothing about a dictionary.
type fields struct {
	Model    string    `json:"model"`
	Messages []message `json:"messages"`

	Prompt              json.RawMessage `json:"prompt"`
	System              string          `json:"system"`
	Images              []any           `json:"images"`
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
	Images  []any           `json:"images"`
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
	var ok bool
	if p.stop, ok = stringOrList(stop); !ok {
		return nil, badRequest("stop must be a string or a list of strings")
	}
	if call == api.ChatCompletions || call == api.OllamaChat {
		return p, p.fromMessages(f.Messages, ollama)
	}
	return p, p.fromPrompt(f.Prompt, f.System, ollama)
}

// refuse says what the engine cannot do, rather than to answer as if it had.
func (f *fields) refuse() *api.Error {
	switch {
	case f.N != nil && *f.N != 1, f.BestOf != nil && *f.BestOf != 1:
		return badRequest("the built-in reference gives one answer: n and best_of must be 1")
	case f.Echo:
		return badRequest("the built-in reference does not repeat the prompt: echo must be false")
	case f.ResponseFormat != nil && f.ResponseFormat.Type != "" && f.ResponseFormat.Type != "text",
		len(f.Format) > 0 && string(f.Format) != "null" && string(f.Format) != `""`:
		return badRequest("the built-in reference answers in plain text only: no JSON format")
	case len(f.ToolChoice) > 0 && f.ToolChoice[0] == '{', string(f.ToolChoice) == `"required"`:
		return badRequest("the built-in reference calls no tools")
	case len(f.Images) > 0:
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

// fromMessages takes the last message of the user as the question.
func (p *prompt) fromMessages(messages []message, ollama bool) *api.Error {
	if len(messages) == 0 && ollama {
		p.load = true
		return nil
	}
	var all []string
	asked := false
	for _, m := range messages {
		text, err := m.text()
		if err != nil {
			return err
		}
		all = append(all, text)
		if m.Role == "user" {
			p.text, asked = text, true
		}
	}
	if !asked {
		return badRequest("messages holds no message of the role user")
	}
	p.all = strings.Join(all, "\n")
	return nil
}

// text returns the text of a message, whose content is a string or a list of
// parts.
func (m *message) text() (string, *api.Error) {
	if len(m.Images) > 0 {
		return "", errImages
	}
	if len(m.Content) == 0 || string(m.Content) == "null" {
		return "", nil // a message that only calls tools
	}
	var s string
	if json.Unmarshal(m.Content, &s) == nil {
		return s, nil
	}
	var parts []typed
	if json.Unmarshal(m.Content, &parts) != nil {
		return "", badRequest("a message's content must be a string or a list of parts")
	}
	var texts []string
	for _, part := range parts {
		switch {
		case part.Type == "text" && part.Text != nil:
			texts = append(texts, *part.Text)
		case part.Type == "image_url":
			return "", errImages
		default:
			return "", badRequest("the built-in reference reads text only")
		}
	}
	return strings.Join(texts, "\n"), nil
}

func (p *prompt) fromPrompt(raw json.RawMessage, system string, ollama bool) *api.Error {
	list, ok := stringOrList(raw)
	switch {
	case !ok:
		return badRequest("prompt must be a string; lists of tokens have no meaning here")
	case ollama && (len(list) == 0 || list[0] == ""):
		p.load = true
		return nil
	case len(list) != 1:
		return badRequest("exactly one prompt is needed")
	}
	p.text, p.all = list[0], strings.TrimSpace(system+"\n"+list[0])
	return nil
}

// stringOrList reads what may be null, a string or a list of strings.
func stringOrList(raw json.RawMessage) (list []string, ok bool) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, true
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return []string{s}, true
	}
	if json.Unmarshal(raw, &list) == nil {
		return list, true
	}
	return nil, false
}
