package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
)

// ErrStream is wrapped when a stream is not what the API prescribes.
var ErrStream = errors.New("malformed stream")

// maxLine bounds one line, and one event, of a stream.
const maxLine = 1 << 20

// TextDecoder turns a streamed answer into its text. It understands the
// server-sent events of ChatCompletions and Completions and the JSON lines of
// OllamaChat and OllamaGenerate. It is not safe for concurrent use.
type TextDecoder struct {
	call      Call
	line      []byte
	skipLF    bool // the line before ended in CR
	event     []byte
	data      []byte
	hasData   bool
	begun     bool
	reasoning []byte
	done      bool
	complete  bool
	finish    string
	err       error
}

// StreamText returns a decoder for a streamed answer to call.
func StreamText(call Call) *TextDecoder { return &TextDecoder{call: call} }

// Feed takes the next bytes of the stream and returns the text in them. done
// is true from the end of the stream on; bytes after it are ignored. An error
// event of the server is returned as an *Error, anything malformed as an error
// that wraps ErrStream; text that came before it in p is returned with it.
// An error stays.
func (d *TextDecoder) Feed(p []byte) (text string, done bool, err error) {
	var out []byte
	for len(p) > 0 && !d.done && d.err == nil {
		if d.skipLF {
			d.skipLF = false
			if p[0] == '\n' {
				p = p[1:]
				continue
			}
		}
		i := bytes.IndexAny(p, "\r\n")
		if d.call.Flavor() == Ollama {
			i = bytes.IndexByte(p, '\n')
		}
		end := i
		if i < 0 {
			end = len(p)
		}
		if len(d.line)+end > maxLine {
			d.err = streamError("a line is longer than 1 MiB")
			break
		}
		d.line = append(d.line, p[:end]...)
		if i < 0 {
			break
		}
		d.skipLF = p[i] == '\r'
		p = p[i+1:]
		line := d.line
		d.line = d.line[:0]
		out, d.err = d.takeLine(out, line)
	}
	return string(out), d.done, d.err
}

// Complete reports whether the stream said that the answer is whole: a reason
// to finish was given, or the end mark was seen.
func (d *TextDecoder) Complete() bool { return d.complete && d.err == nil }

// FinishReason returns the server's own word for why the answer ended: "stop",
// "length", "tool_calls"…; empty until then.
func (d *TextDecoder) FinishReason() string { return d.finish }

// TakeReasoning returns the model's thoughts that came since the last call;
// servers send them apart from the text.
func (d *TextDecoder) TakeReasoning() string {
	s := string(d.reasoning)
	d.reasoning = d.reasoning[:0]
	return s
}

func (d *TextDecoder) takeLine(out, line []byte) ([]byte, error) {
	if !d.begun {
		d.begun = true
		line = bytes.TrimPrefix(line, []byte("\ufeff"))
	}
	if d.call.Flavor() == Ollama {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			return out, nil
		}
		return d.takeOllama(out, line)
	}
	// WHATWG HTML §9.2.6, "Interpreting an event stream".
	if len(line) == 0 {
		return d.dispatch(out)
	}
	field, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(field) {
	case "data":
		if len(d.data)+len(value) > maxLine {
			return out, streamError("an event is longer than 1 MiB")
		}
		if d.hasData {
			d.data = append(d.data, '\n')
		}
		d.data, d.hasData = append(d.data, value...), true
		// llama.cpp and others end a stream without the last empty line.
		if string(d.data) == "[DONE]" {
			return d.dispatch(out)
		}
	case "event":
		d.event = append(d.event[:0], value...)
	case "error": // older llama.cpp: "error: {…}"
		return out, d.errorEvent(value)
	}
	return out, nil
}

// dispatch ends one event.
func (d *TextDecoder) dispatch(out []byte) ([]byte, error) {
	data, isError := d.data, string(d.event) == "error"
	has := d.hasData
	d.data, d.event, d.hasData = d.data[:0], d.event[:0], false
	switch {
	case !has:
		return out, nil
	case isError:
		return out, d.errorEvent(data)
	case string(data) == "[DONE]":
		d.done, d.complete = true, true
		return out, nil
	}
	var chunk struct {
		Error   json.RawMessage `json:"error"`
		Choices []struct {
			Index int `json:"index"`
			Delta struct {
				Content          *string `json:"content"`
				ReasoningContent *string `json:"reasoning_content"`
				Reasoning        *string `json:"reasoning"`
			} `json:"delta"`
			Text         *string `json:"text"`
			FinishReason *string `json:"finish_reason"`
		} `json:"choices"`
	}
	if json.Unmarshal(data, &chunk) != nil {
		return out, streamError("an event is not a chunk of an answer")
	}
	if len(chunk.Error) > 0 && string(chunk.Error) != "null" {
		return out, streamFailure(chunk.Error)
	}
	for _, c := range chunk.Choices {
		if c.Index != 0 { // only the first of several alternative answers
			continue
		}
		out = appendText(out, c.Delta.Content)
		out = appendText(out, c.Text)
		if r := c.Delta.ReasoningContent; r != nil {
			d.reasoning = append(d.reasoning, *r...)
		} else {
			d.reasoning = appendText(d.reasoning, c.Delta.Reasoning)
		}
		if c.FinishReason != nil && *c.FinishReason != "" {
			d.finish, d.complete = *c.FinishReason, true
		}
	}
	return out, nil
}

func (d *TextDecoder) takeOllama(out, line []byte) ([]byte, error) {
	var chunk struct {
		Error   json.RawMessage `json:"error"`
		Message struct {
			Content  string `json:"content"`
			Thinking string `json:"thinking"`
		} `json:"message"`
		Response   string `json:"response"`
		Thinking   string `json:"thinking"`
		Done       bool   `json:"done"`
		DoneReason string `json:"done_reason"`
	}
	if json.Unmarshal(line, &chunk) != nil {
		return out, streamError("a line is not a chunk of an answer")
	}
	if len(chunk.Error) > 0 && string(chunk.Error) != "null" {
		return out, streamFailure(chunk.Error)
	}
	out = append(append(out, chunk.Message.Content...), chunk.Response...)
	d.reasoning = append(append(d.reasoning, chunk.Message.Thinking...), chunk.Thinking...)
	if chunk.Done {
		d.done, d.complete, d.finish = true, true, chunk.DoneReason
	}
	return out, nil
}

func appendText(b []byte, s *string) []byte {
	if s == nil {
		return b
	}
	return append(b, *s...)
}

// errorEvent reads the data of an error event in any of its shapes.
func (d *TextDecoder) errorEvent(data []byte) error {
	var doc struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(data, &doc) == nil && len(doc.Error) > 0 {
		return streamFailure(doc.Error)
	}
	return streamFailure(data)
}

// streamFailure is what a server says in place of the rest of an answer.
func streamFailure(raw []byte) error {
	e := parseErrorValue(raw)
	if e.Message == "" {
		e.Message = "the AI server failed midway"
	}
	if e.Code == "" {
		e.Code = CodeBackendError
	}
	return e
}

// malformedStream is an *Error for people that also wraps ErrStream.
type malformedStream struct{ e *Error }

func (m *malformedStream) Error() string   { return m.e.Error() }
func (m *malformedStream) Unwrap() []error { return []error{ErrStream, m.e} }

func streamError(what string) error {
	return &malformedStream{&Error{
		Status: http.StatusBadGateway, Code: CodeBackendNonsense,
		Message: "the answer's stream is malformed: " + what,
	}}
}
