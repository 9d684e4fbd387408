package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ErrNotOffered matches every *Error that says that a method or path is outside
// the list of Calls.
var ErrNotOffered = errors.New("not offered")

// The closed list of codes that MintAI itself raises, as they stand in
// HeaderError. Codes of an AI server's own errors may be anything.
const (
	CodeNotOffered      = "not_offered"          // 404: outside the list
	CodeBadRequest      = "bad_request"          // 400: not the JSON that the call takes
	CodeAmbiguous       = "ambiguous_json"       // 400: duplicate or case-variant keys
	CodeRemoteMedia     = "remote_media"         // 400: media that the server would have to fetch
	CodeTooLarge        = "too_large"            // 413: beyond MaxBody
	CodeUnsupportedType = "unsupported_type"     // 415: Content-Type or Content-Encoding
	CodeModelNotFound   = "model_not_found"      // 404: nobody offers the model
	CodeNotGranted      = "not_granted"          // 403: another model than the granted one, or no grant
	CodeBusy            = "busy"                 // 503: slots and queue are full
	CodeNoMiner         = "no_miner"             // 503: no miner is free or fits
	CodeNoCoordinator   = "no_coordinator"       // 503: the coordinator cannot be reached
	CodeNotAdmitted     = "not_admitted"         // 403: the coordinator refused this node
	CodeNoPath          = "no_path"              // 502: the miner cannot be reached
	CodeMinerLost       = "miner_lost"           // 502: the miner vanished midway
	CodeTimeout         = "timeout"              // 504: a deadline passed
	CodeBackendDown     = "backend_unreachable"  // 502: the AI server does not answer
	CodeBackendAuth     = "backend_unauthorized" // 502: the AI server refused the miner's own key
	CodeBackendNonsense = "backend_nonsense"     // 502: the AI server answered something else than the API
	CodeBackendError    = "backend_error"        // 502: the AI server failed
	CodeBackendDied     = "backend_died"         // the AI server died in the middle of an answer; only counted, the answer is aborted
	CodeShuttingDown    = "shutting_down"        // 503: this node is about to end
	CodeInternal        = "internal"             // 500
)

// Error is a refusal or failure as a caller of the API sees it. It never holds
// text of a prompt or an answer, nor a key.
type Error struct {
	Status     int           // HTTP status
	Code       string        // one of the Code constants, or an AI server's own word
	Message    string        // one line: what happened and why
	Hint       string        // one line: what to do; empty: nothing to add
	RetryAfter time.Duration // 0: not said
}

// Error returns the message and, after a semicolon, the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}

// Is makes errors.Is(err, ErrNotOffered) work.
func (e *Error) Is(target error) bool {
	return target == ErrNotOffered && e.Code == CodeNotOffered
}

// AsError returns the *Error in err's chain, or one with CodeInternal that does
// not repeat err's text, which may name things that strangers need not know.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Status: http.StatusInternalServerError, Code: CodeInternal, Message: "internal error"}
}

// WriteError answers with e in the error shape of call's API, with HeaderError
// set to e.Code. It must come before anything else is written to w.
func WriteError(w http.ResponseWriter, call Call, e *Error) {
	status := e.Status
	if status < 400 || status > 599 {
		status = http.StatusInternalServerError
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(HeaderError, headerSafe(e.Code))
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
	}
	body := ErrorBody(call, e)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone: nobody is left to tell
}

// ErrorBody returns e as a JSON document in the shape of call's API, ending in
// a newline. The same document is what streams carry as an error event.
func ErrorBody(call Call, e *Error) []byte {
	var doc any
	switch call.Flavor() {
	case Ollama:
		doc = struct {
			Error string `json:"error"`
			Code  string `json:"code,omitempty"`
		}{e.Error(), e.Code}
	case Anthropic:
		type inner struct {
			Type    string `json:"type"`
			Message string `json:"message"`
			Code    string `json:"code,omitempty"`
		}
		doc = struct {
			Type  string `json:"type"`
			Error inner  `json:"error"`
		}{"error", inner{anthropicType(e.Status), e.Error(), e.Code}}
	case OpenAI:
		type inner struct {
			Message string  `json:"message"`
			Type    string  `json:"type"`
			Param   *string `json:"param"`
			Code    string  `json:"code"`
			Hint    string  `json:"hint,omitempty"`
		}
		doc = struct {
			Error inner `json:"error"`
		}{inner{Message: e.Error(), Type: openAIType(e.Status), Code: e.Code, Hint: e.Hint}}
	}
	b, err := json.Marshal(doc)
	if err != nil { // strings only: cannot happen
		return []byte("{\"error\":\"internal error\"}\n")
	}
	return append(b, '\n')
}

func openAIType(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return "authentication_error"
	case status == http.StatusForbidden:
		return "permission_error"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status < 500:
		return "invalid_request_error"
	default:
		return "server_error"
	}
}

// anthropicType follows the table of the Messages API's "Errors" page.
func anthropicType(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return "authentication_error"
	case status == http.StatusForbidden:
		return "permission_error"
	case status == http.StatusNotFound:
		return "not_found_error"
	case status == http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status < 500:
		return "invalid_request_error"
	case status == http.StatusServiceUnavailable:
		return "overloaded_error"
	case status == http.StatusGatewayTimeout:
		return "timeout_error"
	default:
		return "api_error"
	}
}

// maxErrorBody bounds how much of an error response is read.
const maxErrorBody = 64 << 10

// ReadError turns an error response, a miner's or an AI server's, into an
// *Error. It reads at most 64 KiB of the body and does not close it. Own tells
// whether MintAI itself raised it (HeaderError is set).
func ReadError(resp *http.Response) (e *Error, own bool) {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what arrived is enough to quote
	e = &Error{Status: resp.StatusCode, Code: resp.Header.Get(HeaderError)}
	own = e.Code != ""
	if n, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 31); err == nil {
		e.RetryAfter = time.Duration(n) * time.Second
	}
	var doc struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"` // older vLLM: {"object":"error","message":…}
		Detail  json.RawMessage `json:"detail"`  // FastAPI
		Code    json.RawMessage `json:"code"`
	}
	if json.Unmarshal(b, &doc) == nil {
		parsed := parseErrorValue(doc.Error)
		e.Message, e.Hint = parsed.Message, parsed.Hint
		if e.Code == "" {
			e.Code = parsed.Code
		}
		if e.Message == "" {
			e.Message = doc.Message
		}
		if e.Message == "" {
			e.Message = rawString(doc.Detail)
		}
		if e.Code == "" {
			e.Code = rawString(doc.Code)
		}
	}
	if e.Code == "" {
		e.Code = CodeBackendError
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	if e.Hint != "" {
		e.Message = strings.TrimSuffix(e.Message, "; "+e.Hint)
	}
	return e, own
}

// parseErrorValue reads the value of an "error" key: a string (Ollama) or an
// object with message, type and code. Absent or null leaves Message empty.
func parseErrorValue(raw json.RawMessage) *Error {
	e := &Error{Status: http.StatusBadGateway}
	if len(raw) == 0 || string(raw) == "null" {
		return e
	}
	var obj struct {
		Message string          `json:"message"`
		Type    string          `json:"type"`
		Code    json.RawMessage `json:"code"`
		Hint    string          `json:"hint"`
	}
	if json.Unmarshal(raw, &obj) != nil {
		e.Message = rawString(raw)
		return e
	}
	e.Message, e.Hint, e.Code = obj.Message, obj.Hint, rawString(obj.Code)
	if n, err := strconv.Atoi(e.Code); err == nil {
		if n >= 400 && n <= 599 {
			e.Status = n
		}
		e.Code = ""
	}
	if e.Code == "" {
		e.Code = obj.Type
	}
	return e
}

// rawString returns a JSON string's value, another value's spelling, "" for null.
func rawString(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	if len(raw) > 200 {
		raw = raw[:200]
	}
	return strings.ToValidUTF8(string(raw), "")
}

// headerSafe keeps a code from ending a header field.
func headerSafe(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
}
