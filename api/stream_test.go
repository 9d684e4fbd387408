package api

import (
	"errors"
	"strings"
	"testing"
)

// drain feeds s in pieces and returns everything the decoder says.
func drain(d *TextDecoder, s string, size int) (text, thoughts string, done bool, err error) {
	for s != "" && err == nil {
		n := min(size, len(s))
		var more string
		more, done, err = d.Feed([]byte(s[:n]))
		text += more
		thoughts += d.TakeReasoning()
		s = s[n:]
	}
	return text, thoughts, done, err
}

func TestTextDecoder(t *testing.T) {
	const (
		role  = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`
		hello = `data: {"choices":[{"index":0,"delta":{"content":"Hé"},"finish_reason":""}]}`
		llo   = `data: {"choices":[{"index":0,"delta":{"content":"llo\n"}}]}`
		stop  = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`
		usage = `data: {"choices":[],"usage":{"completion_tokens":2}}`
		end   = `data: [DONE]`
	)
	join := func(sep string, events ...string) string { return strings.Join(events, sep) + sep }
	for _, tc := range []struct {
		name           string
		call           Call
		in             string
		text, thoughts string
		done, complete bool
		finish         string
	}{
		{"usual", ChatCompletions, join("\n\n", role, hello, llo, stop, usage, end), "Héllo\n", "", true, true, "stop"},
		{"CRLF", ChatCompletions, join("\r\n\r\n", role, hello, llo, stop, end), "Héllo\n", "", true, true, "stop"},
		{"CR", ChatCompletions, join("\r\r", role, hello, llo, stop, end), "Héllo\n", "", true, true, "stop"},
		{"comments and other fields", ChatCompletions, "\ufeff: waiting\n\nid: 7\nretry: 10\n" + join("\n\n", hello, llo, stop, end), "Héllo\n", "", true, true, "stop"},
		{"no space", ChatCompletions, "data:{\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata:[DONE]\n\n", "x", "", true, true, ""},
		{"data in two lines", ChatCompletions, "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"x\"}}]}\n\n", "x", "", false, false, ""},
		{"cut after text", ChatCompletions, join("\n\n", role, hello), "Hé", "", false, false, ""},
		{"cut in the middle of an event", ChatCompletions, hello + "\n\n" + llo, "Hé", "", false, false, ""},
		{"finished without the mark", ChatCompletions, join("\n\n", hello, stop), "Hé", "", false, true, "stop"},
		{"mark without a reason", ChatCompletions, join("\n\n", hello, end), "Hé", "", true, true, ""},
		{"mark without the last line end", ChatCompletions, hello + "\n\n" + end + "\n", "Hé", "", true, true, ""},
		{"after the end", ChatCompletions, join("\n\n", hello, end, llo), "Hé", "", true, true, ""},
		{"length", ChatCompletions, join("\n\n", hello, `data: {"choices":[{"delta":{},"finish_reason":"length"}]}`, end), "Hé", "", true, true, "length"},
		{"thoughts", ChatCompletions, join("\n\n", `data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}`, `data: {"choices":[{"delta":{"reasoning":" so"}}]}`, hello, end), "Hé", "hm so", true, true, ""},
		{"second choice", ChatCompletions, join("\n\n", hello, `data: {"choices":[{"index":1,"delta":{"content":"no"}}]}`, end), "Hé", "", true, true, ""},
		{"completions", Completions, join("\n\n", `data: {"choices":[{"index":0,"text":"a"}]}`, `data: {"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}`, end), "ab", "", true, true, "stop"},
		{"Ollama chat", OllamaChat, "{\"message\":{\"content\":\"a\",\"thinking\":\"t\"},\"done\":false}\n{\"message\":{\"content\":\"b\"},\"done\":true,\"done_reason\":\"stop\"}\n", "ab", "t", true, true, "stop"},
		{"Ollama cut", OllamaGenerate, "{\"response\":\"a\",\"done\":false}\n{\"response\":\"b\"", "a", "", false, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 5, 1 << 20} {
				d := StreamText(tc.call)
				text, thoughts, done, err := drain(d, tc.in, size)
				if err != nil || text != tc.text || thoughts != tc.thoughts || done != tc.done || d.Complete() != tc.complete || d.FinishReason() != tc.finish {
					t.Errorf("pieces of %d: %q, thoughts %q, done %v, complete %v, finish %q, %v", size, text, thoughts, done, d.Complete(), d.FinishReason(), err)
				}
			}
		})
	}
}

func TestTextDecoderErrors(t *testing.T) {
	const hello = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}\n\n"
	for _, tc := range []struct {
		name, in      string
		call          Call
		code, message string
		malformed     bool
	}{
		{"OpenAI", hello + "data: {\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\",\"code\":\"oom\"}}\n\n", ChatCompletions, "oom", "out of memory", false},
		{"gateway", hello + "data: {\"error\":{\"message\":\"gone\",\"code\":\"miner_lost\"}}\n\ndata: [DONE]\n\n", ChatCompletions, CodeMinerLost, "gone", false},
		{"llama.cpp", hello + "error: {\"code\":500,\"message\":\"failed\",\"type\":\"server_error\"}\n\n", ChatCompletions, "server_error", "failed", false},
		{"error event", hello + "event: error\ndata: {\"error\":{\"message\":\"no\"}}\n\n", ChatCompletions, CodeBackendError, "no", false},
		{"LM Studio", hello + "event: error\ndata: {\"message\":\"no\"}\n\n", ChatCompletions, CodeBackendError, "no", false},
		{"error as a string", hello + "data: {\"error\":\"no\"}\n\n", ChatCompletions, CodeBackendError, "no", false},
		{"without words", hello + "data: {\"error\":{}}\n\n", ChatCompletions, CodeBackendError, "the AI server failed midway", false},
		{"not JSON", hello + "data: oops\n\n", ChatCompletions, CodeBackendNonsense, "", true},
		{"wrong type", hello + "data: {\"choices\":7}\n\n", ChatCompletions, CodeBackendNonsense, "", true},
		{"endless line", hello + "data: " + strings.Repeat("x", maxLine+1), ChatCompletions, CodeBackendNonsense, "", true},
		{"endless event", hello + strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 1100), ChatCompletions, CodeBackendNonsense, "", true},
		{"Ollama", "{\"response\":\"Hi\"}\n{\"error\":\"no\"}\n", OllamaGenerate, CodeBackendError, "no", false},
		{"Ollama nonsense", "{\"response\":\"Hi\"}\n<html>\n", OllamaGenerate, CodeBackendNonsense, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, size := range []int{17, 4 << 20} {
				d := StreamText(tc.call)
				text, _, done, err := drain(d, tc.in, size)
				var e *Error
				if !errors.As(err, &e) || e.Code != tc.code || tc.message != "" && e.Message != tc.message || errors.Is(err, ErrStream) != tc.malformed {
					t.Fatalf("pieces of %d: %v (%+v)", size, err, e)
				}
				if text != "Hi" || done || d.Complete() {
					t.Errorf("pieces of %d: %q, done %v, complete %v", size, text, done, d.Complete())
				}
				if _, _, again := d.Feed([]byte("data: [DONE]\n\n")); again == nil || d.Complete() {
					t.Error("the error did not stay")
				}
			}
		})
	}
}

func FuzzTextDecoder(f *testing.F) {
	f.Add(0, []byte("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\ndata: [DONE]\n\n"), 5)
	f.Add(6, []byte("{\"message\":{\"content\":\"a\"},\"done\":true}\n"), 5)
	f.Add(0, []byte("event: error\ndata: {\"error\":{\"code\":503}}\n\n"), 1)
	f.Add(1, []byte("\xef\xbb\xbfdata: {\"choices\":[{\"text\":\"a\"}]}\r\rerror: x\n"), 2)
	f.Fuzz(func(t *testing.T, i int, in []byte, size int) {
		call := calls[uint(i)%uint(len(calls))]
		one, many := StreamText(call), StreamText(call)
		t1, r1, d1, e1 := drain(one, string(in), len(in)+1)
		t2, r2, d2, e2 := drain(many, string(in), 1+int(uint(size)%64))
		if t1 != t2 || r1 != r2 || d1 != d2 || (e1 == nil) != (e2 == nil) || one.Complete() != many.Complete() {
			t.Fatalf("at once %q %q %v %v; in pieces %q %q %v %v", t1, r1, d1, e1, t2, r2, d2, e2)
		}
		if e1 != nil {
			var e *Error
			if !errors.As(e1, &e) || one.Complete() {
				t.Fatalf("%v, complete %v", e1, one.Complete())
			}
		}
	})
}
