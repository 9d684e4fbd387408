package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestWriteErrorInEachShape(t *testing.T) {
	e := &Error{Status: 503, Code: CodeBusy, Message: "all slots are taken", Hint: "try again", RetryAfter: 1500 * time.Millisecond}
	for _, tc := range []struct {
		call Call
		want string
	}{
		{ChatCompletions, `{"error":{"message":"all slots are taken; try again","type":"server_error","param":null,"code":"busy","hint":"try again"}}`},
		{Messages, `{"type":"error","error":{"type":"overloaded_error","message":"all slots are taken; try again","code":"busy"}}`},
		{OllamaChat, `{"error":"all slots are taken; try again","code":"busy"}`},
		{"/nothing", `{"error":{"message":"all slots are taken; try again","type":"server_error","param":null,"code":"busy","hint":"try again"}}`},
	} {
		w := httptest.NewRecorder()
		WriteError(w, tc.call, e)
		resp := w.Result()
		if got := strings.TrimSpace(w.Body.String()); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.call, got, tc.want)
		}
		if resp.StatusCode != 503 || resp.Header.Get(HeaderError) != CodeBusy || resp.Header.Get("Retry-After") != "2" {
			t.Errorf("%s: %d %v", tc.call, resp.StatusCode, resp.Header)
		}
		back, own := ReadError(resp)
		if !own || back.Code != e.Code || back.Status != e.Status || back.RetryAfter != 2*time.Second || !strings.HasPrefix(back.Error(), "all slots are taken; try again") {
			t.Errorf("%s: read back as %+v, own %v", tc.call, back, own)
		}
	}
}

func TestErrorTypesByStatus(t *testing.T) {
	for status, want := range map[int][2]string{
		400: {"invalid_request_error", "invalid_request_error"}, 401: {"authentication_error", "authentication_error"},
		403: {"permission_error", "permission_error"}, 404: {"invalid_request_error", "not_found_error"},
		413: {"invalid_request_error", "request_too_large"}, 429: {"rate_limit_error", "rate_limit_error"},
		500: {"server_error", "api_error"}, 502: {"server_error", "api_error"}, 504: {"server_error", "timeout_error"},
	} {
		if got := openAIType(status); got != want[0] {
			t.Errorf("OpenAI %d: %s", status, got)
		}
		if got := anthropicType(status); got != want[1] {
			t.Errorf("Anthropic %d: %s", status, got)
		}
	}
}

func TestReadErrorOfRealServers(t *testing.T) {
	for name, tc := range map[string]struct {
		status        int
		body          string
		message, code string
	}{
		"ollama":     {404, `{"error":"model 'x' not found"}`, "model 'x' not found", CodeBackendError},
		"openai":     {429, `{"error":{"message":"slow down","type":"rate_limit","param":null,"code":"rate_limit_exceeded"}}`, "slow down", "rate_limit_exceeded"},
		"llama.cpp":  {400, `{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}`, "the request exceeds the available context size", "exceed_context_size_error"},
		"old vllm":   {400, `{"object":"error","message":"too long","type":"BadRequestError","code":400}`, "too long", "400"},
		"fastapi":    {422, `{"detail":[{"loc":["body"],"msg":"field required"}]}`, `[{"loc":["body"],"msg":"field required"}]`, CodeBackendError},
		"anthropic":  {400, `{"type":"error","error":{"type":"invalid_request_error","message":"no"}}`, "no", "invalid_request_error"},
		"html":       {502, `<html>Bad Gateway</html>`, "answered 502 Bad Gateway", CodeBackendError},
		"empty":      {500, ``, "answered 500 Internal Server Error", CodeBackendError},
		"error null": {500, `{"error":null}`, "answered 500 Internal Server Error", CodeBackendError},
	} {
		resp := &http.Response{StatusCode: tc.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(tc.body))}
		e, own := ReadError(resp)
		if own || e.Status != tc.status || e.Message != tc.message || e.Code != tc.code {
			t.Errorf("%s: %+v, own %v", name, e, own)
		}
	}
}

func TestAsErrorHidesOtherErrors(t *testing.T) {
	if e := AsError(fmt.Errorf("layer: %w", &Error{Status: 418, Code: "tea"})); e.Status != 418 {
		t.Errorf("wrapped: %+v", e)
	}
	if e := AsError(errors.New("open /etc/secret: denied")); e.Status != 500 || strings.Contains(e.Error(), "secret") {
		t.Errorf("foreign: %+v", e)
	}
}

func TestErrorBodyIsJSONWhateverTheText(t *testing.T) {
	for _, c := range Calls() {
		b := ErrorBody(c, &Error{Status: 400, Code: "a\"b", Message: "line\nbreak \x00 \xff"})
		if !json.Valid(b) || strings.Count(string(b), "\n") != 1 {
			t.Errorf("%s: %q", c, b)
		}
	}
	w := httptest.NewRecorder()
	WriteError(w, ChatCompletions, &Error{Code: "a\r\nb: c"})
	if got := w.Result().Header.Get(HeaderError); got != "a__b:_c" || w.Code != 500 {
		t.Errorf("%d %q", w.Code, got)
	}
}
