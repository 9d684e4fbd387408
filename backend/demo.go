package backend

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"mintai/api"
)

// demoModel is the name under which the load simulator is offered unless the
// configuration names others.
const demoModel = "demo"

const demoTokens = 64

// demo is the load simulator: it answers with a given delay, pace and length.
// The words mean nothing.
type demo struct {
	firstToken time.Duration
	pace       float64 // tokens per second; 0: no waiting
	tokens     int
}

var _ http.Handler = (*demo)(nil)

var demoCalls = []api.Call{api.ChatCompletions, api.Completions, api.OllamaChat, api.OllamaGenerate}

var demoWords = [...]string{
	"the", "load", "simulator", "sends", "these", "words", "at", "a", "steady", "pace", "and", "they",
	"carry", "no", "meaning", "whatever", "was", "asked",
}

func demoWord(i int) string {
	if i == 0 {
		return demoWords[0]
	}
	return " " + demoWords[i%len(demoWords)]
}

// demoRequest is what matters of a request's body.
type demoRequest struct {
	MaxTokens           int `json:"max_tokens"`
	MaxCompletionTokens int `json:"max_completion_tokens"`
	Options             struct {
		NumPredict int `json:"num_predict"`
	} `json:"options"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

// ServeHTTP answers a request that was checked before.
func (d *demo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := api.Call(r.URL.Path)
	req, err := api.ReadRequest(call, r.Header, r.Body)
	if err != nil {
		api.WriteError(w, call, api.AsError(err))
		return
	}
	var ask demoRequest
	if err := json.Unmarshal(req.Body, &ask); err != nil {
		api.WriteError(w, call, &api.Error{
			Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: "a field is not of its type",
		})
		return
	}
	n := d.tokens
	reason := "stop"
	for _, limit := range []int{ask.MaxTokens, ask.MaxCompletionTokens, ask.Options.NumPredict} {
		if limit > 0 && limit < n {
			n, reason = limit, "length"
		}
	}
	a := demoAnswer{
		call: call, model: string(req.Model), start: time.Now(), tokens: n, reason: reason,
		prompt: req.Needs.ContextTokens, usage: ask.StreamOptions.IncludeUsage,
	}
	pace := newPacer(a.start, d.firstToken, d.pace)
	defer pace.stop()
	if req.Stream {
		d.stream(w, r, &a, pace)
		return
	}
	if !pace.wait(r, n-1) {
		return
	}
	var text strings.Builder
	for i := range n {
		text.WriteString(demoWord(i))
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, a.whole(text.String())+"\n") // the client may be gone
}

func (d *demo) stream(w http.ResponseWriter, r *http.Request, a *demoAnswer, pace *pacer) {
	w.Header().Set("Content-Type", "text/event-stream")
	if call := a.call; call.Flavor() == api.Ollama {
		w.Header().Set("Content-Type", "application/x-ndjson")
	}
	flush := http.NewResponseController(w)
	for i := range a.tokens {
		if !pace.wait(r, i) {
			return
		}
		if _, err := io.WriteString(w, a.chunk(i)); err != nil {
			return
		}
		if flush.Flush() != nil {
			return
		}
	}
	_, _ = io.WriteString(w, a.last()) // the client may be gone
}

// pacer waits for token times that are reckoned from the start, so that late
// wake-ups never add up.
type pacer struct {
	first time.Time
	step  float64 // seconds
	timer *time.Timer
}

func newPacer(start time.Time, firstToken time.Duration, perSecond float64) *pacer {
	p := &pacer{first: start.Add(firstToken)}
	if perSecond > 0 {
		p.step = 1 / perSecond
	}
	return p
}

// wait returns at the time of token i, or with false when r ends.
func (p *pacer) wait(r *http.Request, i int) bool {
	at := p.first.Add(time.Duration(float64(i) * p.step * float64(time.Second)))
	d := time.Until(at)
	if d <= 0 {
		return r.Context().Err() == nil
	}
	if p.timer == nil {
		p.timer = time.NewTimer(d)
	} else {
		p.timer.Reset(d)
	}
	select {
	case <-p.timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func (p *pacer) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// demoAnswer writes one answer in the shape of its API.
type demoAnswer struct {
	call   api.Call
	model  string
	start  time.Time
	tokens int
	prompt int
	reason string
	usage  bool
}

func (a *demoAnswer) quotedModel() string {
	b, err := json.Marshal(a.model)
	if err != nil { // a string: cannot happen
		return `""`
	}
	return string(b)
}

func (a *demoAnswer) usageObject() string {
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, a.prompt, a.tokens, a.prompt+a.tokens)
}

func (a *demoAnswer) head(object string) string {
	return fmt.Sprintf(`{"id":"demo-%d","object":%q,"created":%d,"model":%s`,
		a.start.UnixNano(), object, a.start.Unix(), a.quotedModel())
}

func (a *demoAnswer) ollamaHead() string {
	return fmt.Sprintf(`{"model":%s,"created_at":%q`, a.quotedModel(), a.start.UTC().Format(time.RFC3339Nano))
}

func (a *demoAnswer) ollamaTail() string {
	took := time.Since(a.start).Nanoseconds()
	return fmt.Sprintf(`"done":true,"done_reason":%q,"total_duration":%d,"load_duration":0,"prompt_eval_count":%d,"prompt_eval_duration":0,"eval_count":%d,"eval_duration":%d}`,
		a.reason, took, a.prompt, a.tokens, took)
}

func (a *demoAnswer) whole(text string) string {
	switch a.call {
	case api.OllamaChat:
		return a.ollamaHead() + fmt.Sprintf(`,"message":{"role":"assistant","content":%q},`, text) + a.ollamaTail()
	case api.OllamaGenerate:
		return a.ollamaHead() + fmt.Sprintf(`,"response":%q,`, text) + a.ollamaTail()
	case api.Completions:
		return a.head("text_completion") + fmt.Sprintf(`,"choices":[{"index":0,"text":%q,"logprobs":null,"finish_reason":%q}],"usage":%s}`,
			text, a.reason, a.usageObject())
	default:
		return a.head("chat.completion") + fmt.Sprintf(`,"choices":[{"index":0,"message":{"role":"assistant","content":%q},"logprobs":null,"finish_reason":%q}],"usage":%s}`,
			text, a.reason, a.usageObject())
	}
}

func (a *demoAnswer) chunk(i int) string {
	word := demoWord(i)
	switch a.call {
	case api.OllamaChat:
		return a.ollamaHead() + fmt.Sprintf(`,"message":{"role":"assistant","content":%q},"done":false}`, word) + "\n"
	case api.OllamaGenerate:
		return a.ollamaHead() + fmt.Sprintf(`,"response":%q,"done":false}`, word) + "\n"
	case api.Completions:
		return "data: " + a.head("text_completion") + fmt.Sprintf(`,"choices":[{"index":0,"text":%q,"logprobs":null,"finish_reason":null}]}`, word) + "\n\n"
	default:
		role := ""
		if i == 0 {
			role = `"role":"assistant",`
		}
		return "data: " + a.head("chat.completion.chunk") + fmt.Sprintf(`,"choices":[{"index":0,"delta":{%s"content":%q},"logprobs":null,"finish_reason":null}]}`, role, word) + "\n\n"
	}
}

func (a *demoAnswer) last() string {
	object, choice := "chat.completion.chunk", `{"index":0,"delta":{},"logprobs":null,"finish_reason":%q}`
	switch a.call {
	case api.OllamaChat:
		return a.ollamaHead() + `,"message":{"role":"assistant","content":""},` + a.ollamaTail() + "\n"
	case api.OllamaGenerate:
		return a.ollamaHead() + `,"response":"",` + a.ollamaTail() + "\n"
	case api.Completions:
		object, choice = "text_completion", `{"index":0,"text":"","logprobs":null,"finish_reason":%q}`
	default:
	}
	s := "data: " + a.head(object) + `,"choices":[` + fmt.Sprintf(choice, a.reason) + "]}\n\n"
	if a.usage {
		s += "data: " + a.head(object) + `,"choices":[],"usage":` + a.usageObject() + "}\n\n"
	}
	return s + "data: [DONE]\n\n"
}
