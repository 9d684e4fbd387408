package api

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// MaxModel is the longest model name in bytes.
const MaxModel = 256

// Needs is what a request asks of a model beyond its name, as far as the
// request itself shows it.
type Needs struct {
	Tools         bool // it defines tools or functions
	Vision        bool // it carries images
	JSON          bool // it demands structured output
	ContextTokens int  // estimate of the prompt's size, from the length of its text
}

// Request is a call that was read, checked and re-encoded.
type Request struct {
	Call   Call
	Model  Model // empty: the body names none
	Stream bool  // the answer comes in pieces
	Needs  Needs
	// Body is the checked JSON object, encoded anew: UTF-8, no white space
	// between tokens, each key once and without needless escapes, numbers in
	// their original spelling. Two parsers cannot disagree about it.
	Body []byte

	modelAt, modelEnd int // the model's JSON value within Body; equal: there is no such key
}

// ReadRequest reads the body of a call. It refuses, with an *Error:
// bodies over MaxBody, a Content-Type other than JSON, any Content-Encoding,
// anything but one JSON object in valid UTF-8, keys that appear twice in an
// object or differ from another only in case (parsers disagree about which one
// counts), media that the AI server would have to fetch (only data: URLs pass)
// and fields that would send the AI server elsewhere.
// Unknown fields pass. It reads body to its end but does not close it.
func ReadRequest(call Call, header http.Header, body io.Reader) (*Request, error) {
	if err := checkType(header); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(body, MaxBody+1))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, errTooLarge()
		}
		return nil, badRequest("the request body ended early")
	}
	if len(b) > MaxBody {
		return nil, errTooLarge()
	}
	return parseRequest(call, b)
}

// parseRequest does ReadRequest's work on bytes in memory, which it overwrites.
func parseRequest(call Call, b []byte) (*Request, error) {
	e := reencoder{in: b, out: b[:0], call: call}
	if err := e.document(); err != nil {
		return nil, err
	}
	if e.violation != nil {
		return nil, e.violation
	}
	r := &Request{
		Call: call, Stream: call.streamsByDefault(), Body: e.out,
		modelAt: e.modelAt, modelEnd: e.modelEnd,
		Needs: Needs{Tools: e.tools, Vision: e.vision, JSON: e.json, ContextTokens: e.textTokens()},
	}
	if e.model != nil {
		r.Model = Model(*e.model)
	}
	if err := checkModel(r.Model); err != nil {
		return nil, err
	}
	if e.stream != nil {
		r.Stream = *e.stream
	}
	if !call.Generates() {
		r.Stream = false
	}
	return r, nil
}

// Format prints the call, the model and the body's size whatever the verb, so
// that no log shows a prompt by accident.
func (r Request) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%s %q (%d bytes)", string(r.Call), string(r.Model), len(r.Body))
}

// WithModel returns the same request for another model. r keeps its own body.
func (r *Request) WithModel(m Model) *Request {
	c := *r
	value := appendString(nil, string(m))
	c.Model = m
	if r.modelAt == r.modelEnd { // no such key: put it first
		entry := append([]byte(`{"model":`), value...)
		rest := r.Body[1:]
		if string(rest) != "}" {
			entry = append(entry, ',')
		}
		c.Body = append(entry, rest...)
		c.modelAt = len(`{"model":`)
	} else {
		c.Body = make([]byte, 0, len(r.Body)-(r.modelEnd-r.modelAt)+len(value))
		c.Body = append(c.Body, r.Body[:r.modelAt]...)
		c.Body = append(c.Body, value...)
		c.Body = append(c.Body, r.Body[r.modelEnd:]...)
	}
	c.modelEnd = c.modelAt + len(value)
	return &c
}

func checkModel(m Model) error {
	if len(m) > MaxModel {
		return badRequest(fmt.Sprintf("the model name is longer than %d bytes", MaxModel))
	}
	for _, r := range m {
		if r < ' ' || r == 0x7f {
			return badRequest("the model name holds a control character")
		}
	}
	return nil
}

func checkType(h http.Header) error {
	for _, v := range h.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(strings.TrimSpace(v), "identity") {
			return &Error{
				Status: http.StatusUnsupportedMediaType, Code: CodeUnsupportedType,
				Message: "compressed request bodies are not taken", Hint: "send it without Content-Encoding",
			}
		}
	}
	bad := &Error{
		Status: http.StatusUnsupportedMediaType, Code: CodeUnsupportedType,
		Message: "the request is not declared as JSON", Hint: "send Content-Type: application/json",
	}
	values := h.Values("Content-Type")
	if len(values) != 1 {
		return bad
	}
	media, params, err := mime.ParseMediaType(values[0])
	if err != nil || media != "application/json" {
		return bad
	}
	if cs := params["charset"]; cs != "" && !strings.EqualFold(cs, "utf-8") && !strings.EqualFold(cs, "utf8") {
		bad.Message, bad.Hint = "the request is not in UTF-8", "JSON is sent in UTF-8 (RFC 8259 §8.1)"
		return bad
	}
	return nil
}

func badRequest(message string) *Error {
	return &Error{Status: http.StatusBadRequest, Code: CodeBadRequest, Message: message}
}

func errTooLarge() *Error {
	return &Error{
		Status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge,
		Message: fmt.Sprintf("the request is larger than %d MiB", MaxBody>>20),
		Hint:    "send fewer or smaller images",
	}
}
