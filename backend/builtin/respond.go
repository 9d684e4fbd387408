package builtin

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"mintai/api"
)

// answer is an answer on its way out.
type answer struct {
	call    api.Call
	id      string
	created time.Time
	took    time.Duration
	pieces  []string
	finish  string // stop, length, load
	prompt  int    // tokens of the prompt
	usage   bool   // the stream shall end with the counts (OpenAI)
}

// pieces cuts text into words, each with the white space before it: they are
// the engine's tokens. Put together again they are text.
func pieces(text string) []string {
	var all []string
	start, word := 0, false
	for i, r := range text {
		if space := unicode.IsSpace(r); space && word {
			all = append(all, text[start:i])
			start, word = i, false
		} else if !space {
			word = true
		}
	}
	if start < len(text) {
		all = append(all, text[start:])
	}
	return all
}

// countPieces is len(pieces(text)) without making them.
func countPieces(text string) int {
	n, word := 0, false
	for _, r := range text {
		if space := unicode.IsSpace(r); space {
			word = false
		} else if !word {
			word = true
			n++
		}
	}
	if n == 0 && text != "" {
		n = 1
	}
	return n
}

// limit cuts text at the first stop sequence and at the prompt's limit of
// tokens, and says why the answer ends.
func limit(text string, p *prompt) (cut []string, finish string) {
	for _, s := range p.stop {
		if before, _, ok := strings.Cut(text, s); ok && s != "" {
			text = before
		}
	}
	cut = pieces(text)
	if p.maxTokens >= 0 && len(cut) > p.maxTokens {
		return cut[:p.maxTokens], "length"
	}
	return cut, "stop"
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

type chatMessage struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

// choice is one entry of OpenAI's choices: a message, a delta or a text.
type choice struct {
	Index        int          `json:"index"`
	Message      *chatMessage `json:"message,omitempty"`
	Delta        *chatMessage `json:"delta,omitempty"`
	Text         *string      `json:"text,omitempty"`
	Logprobs     *struct{}    `json:"logprobs"`
	FinishReason *string      `json:"finish_reason"`
}

// completion is OpenAI's object for a whole answer and for each chunk of it.
type completion struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	Model   string   `json:"model"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage,omitempty"`
}

// ollamaLine is Ollama's object for a whole answer and for each line of it.
type ollamaLine struct {
	Model      string       `json:"model"`
	CreatedAt  string       `json:"created_at"`
	Message    *chatMessage `json:"message,omitempty"`
	Response   *string      `json:"response,omitempty"`
	Done       bool         `json:"done"`
	DoneReason string       `json:"done_reason,omitempty"`
	*ollamaStats
}

type ollamaStats struct {
	TotalDuration      int64 `json:"total_duration"`
	LoadDuration       int64 `json:"load_duration"`
	PromptEvalCount    int   `json:"prompt_eval_count"`
	PromptEvalDuration int64 `json:"prompt_eval_duration"`
	EvalCount          int   `json:"eval_count"`
	EvalDuration       int64 `json:"eval_duration"`
}

func (a *answer) counts() *usage {
	return &usage{a.prompt, len(a.pieces), a.prompt + len(a.pieces)}
}

// openAI returns an OpenAI object with one choice. An empty finish stands for
// "not finished".
func (a *answer) openAI(c choice, chunk bool) *completion {
	doc := &completion{
		ID: "chatcmpl-" + a.id, Object: "chat.completion", Created: a.created.Unix(),
		Model: string(Model), Choices: []choice{c},
	}
	switch {
	case a.call == api.Completions:
		doc.ID, doc.Object = "cmpl-"+a.id, "text_completion"
	case chunk:
		doc.Object = "chat.completion.chunk"
	}
	return doc
}

// ollama returns an Ollama object that carries text.
func (a *answer) ollama(text string, done bool) *ollamaLine {
	doc := &ollamaLine{Model: string(Model), CreatedAt: a.created.UTC().Format(time.RFC3339Nano), Done: done}
	if a.call == api.OllamaChat {
		doc.Message = &chatMessage{Role: "assistant", Content: &text}
	} else {
		doc.Response = &text
	}
	if done {
		doc.DoneReason = a.finish
		if a.finish != "load" {
			doc.ollamaStats = &ollamaStats{
				TotalDuration: a.took.Nanoseconds(), PromptEvalCount: a.prompt,
				EvalCount: len(a.pieces), EvalDuration: a.took.Nanoseconds(),
			}
		}
	}
	return doc
}

// whole writes the answer as one JSON document.
func (a *answer) whole(w http.ResponseWriter) {
	text := strings.Join(a.pieces, "")
	var doc any
	switch a.call.Flavor() {
	case api.Ollama:
		doc = a.ollama(text, true)
	default:
		c := choice{FinishReason: &a.finish}
		if a.call == api.Completions {
			c.Text = &text
		} else {
			c.Message = &chatMessage{Role: "assistant", Content: &text}
		}
		complete := a.openAI(c, false)
		complete.Usage = a.counts()
		doc = complete
	}
	setHeader(w, "application/json")
	_, _ = w.Write(append(encode(doc), '\n')) // the client may be gone: nobody is left to tell
}

// stream writes the answer piece by piece, each flushed, until ctx ends. An
// answer that is cut off so has no end mark.
func (a *answer) stream(ctx context.Context, w http.ResponseWriter) {
	s := &streamer{w: w, flush: http.NewResponseController(w)}
	if a.call.Flavor() == api.Ollama {
		setHeader(w, "application/x-ndjson")
		for _, piece := range a.pieces {
			s.line(ctx, "", a.ollama(piece, false))
		}
		s.line(ctx, "", a.ollama("", true))
		return
	}
	setHeader(w, "text/event-stream")
	if a.call == api.ChatCompletions {
		empty := ""
		s.event(ctx, a.openAI(choice{Delta: &chatMessage{Role: "assistant", Content: &empty}}, true))
	}
	for _, piece := range a.pieces {
		s.event(ctx, a.openAI(a.part(&piece), true))
	}
	last := a.part(nil)
	last.FinishReason = &a.finish
	s.event(ctx, a.openAI(last, true))
	if a.usage {
		doc := a.openAI(choice{}, true)
		doc.Choices, doc.Usage = []choice{}, a.counts()
		s.event(ctx, doc)
	}
	s.write(ctx, []byte("data: [DONE]\n\n"))
}

// part returns the choice of a chunk that carries piece, or nothing.
func (a *answer) part(piece *string) choice {
	if a.call == api.Completions {
		if piece == nil {
			piece = new(string)
		}
		return choice{Text: piece}
	}
	return choice{Delta: &chatMessage{Content: piece}}
}

// streamer writes until the first failure.
type streamer struct {
	w     http.ResponseWriter
	flush *http.ResponseController
	err   error
}

func (s *streamer) event(ctx context.Context, doc any) { s.line(ctx, "data: ", doc) }

func (s *streamer) line(ctx context.Context, prefix string, doc any) {
	b := append([]byte(prefix), encode(doc)...)
	b = append(b, '\n')
	if prefix != "" {
		b = append(b, '\n')
	}
	s.write(ctx, b)
}

func (s *streamer) write(ctx context.Context, b []byte) {
	if s.err != nil {
		return
	}
	if s.err = ctx.Err(); s.err != nil {
		return
	}
	if _, s.err = s.w.Write(b); s.err == nil {
		s.err = s.flush.Flush()
	}
}

func setHeader(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}

// encode is json.Marshal without the escapes that only HTML needs.
func encode(doc any) []byte {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil { // strings and numbers only: cannot happen
		return []byte("{}")
	}
	return []byte(strings.TrimSuffix(b.String(), "\n"))
}

// truncate cuts s to at most n bytes without splitting a character.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
