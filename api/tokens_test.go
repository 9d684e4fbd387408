package api

import (
	"fmt"
	"strings"
	"testing"
)

func TestTokenCounter(t *testing.T) {
	sse := func(events ...string) string { return "data: " + strings.Join(events, "\n\ndata: ") + "\n\n" }
	for _, tc := range []struct {
		name   string
		call   Call
		stream bool
		body   string
		want   uint64
		usage  bool
	}{
		{"chat events", ChatCompletions, true, sse(`{"choices":[{"delta":{"role":"assistant","content":""}}]}`, `{"choices":[{"delta":{"content":"a"}}]}`, `{"choices":[{"delta": {"content": "b"}}]}`, `[DONE]`), 2, false},
		{"chat usage", ChatCompletions, true, sse(`{"choices":[{"delta":{"content":"a"}}]}`, `{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":17,"total_tokens":26,"completion_tokens_details":{"reasoning_tokens":5}}}`, `[DONE]`), 17, true},
		{"usage null", ChatCompletions, true, sse(`{"choices":[{"delta":{"content":"a"}}],"usage":null}`), 1, false},
		{"reasoning", ChatCompletions, true, sse(`{"choices":[{"delta":{"reasoning_content":"hm","content":null}}]}`), 1, false},
		{"tool call", ChatCompletions, true, sse(`{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a"}}]}}]}`), 1, false},
		{"text quotes usage", ChatCompletions, true, sse(`{"choices":[{"delta":{"content":"\"completion_tokens\":999, \"content\":\"x\""}}]}`), 1, false},
		{"continuous usage", ChatCompletions, true, sse(`{"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}`, `{"choices":[{"delta":{"content":"b"}}],"usage":{"completion_tokens":2}}`), 2, true},
		{"whole with usage", ChatCompletions, false, `{"choices":[{"message":{"content":"abc"}}],"usage":{"completion_tokens": 3}}`, 3, true},
		{"whole without", ChatCompletions, false, `{"choices":[{"message":{"content":"` + strings.Repeat("word", 10) + `"}}]}`, 10, false},
		{"completions", Completions, true, sse(`{"choices":[{"text":"a"}]}`, `{"choices":[{"text":""}]}`), 1, false},
		{"messages", Messages, true, "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\nevent: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\nevent: message_delta\ndata: {\"usage\":{\"output_tokens\":12}}\n\n", 12, true},
		{"responses", Responses, true, "event: response.output_text.delta\ndata: {\"delta\":\"a\"}\n\n", 1, false},
		{"Ollama chat", OllamaChat, true, "{\"message\":{\"content\":\"a\"},\"done\":false}\n{\"message\":{\"content\":\"\"},\"done\":true,\"prompt_eval_count\":26,\"eval_count\":290}\n", 290, true},
		{"Ollama cut", OllamaGenerate, true, "{\"response\":\"a\",\"done\":false}\n{\"response\":\"b\",\"done\":false}\n", 2, false},
		{"no line end", OllamaGenerate, true, `{"response":"a","eval_count":5}`, 5, true},
		{"embeddings", Embeddings, false, `{"data":[{"embedding":[0.1,0.2]}],"usage":{"prompt_tokens":8,"total_tokens":8}}`, 0, false},
		{"nonsense", ChatCompletions, true, "<html>\"completion_tokens\":", 0, false},
		{"huge number", ChatCompletions, true, sse(`{"usage":{"completion_tokens":99999999999999999999}}`), 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, size := range []int{1, 3, 7, 1 << 20} {
				c := NewTokenCounter(tc.call, tc.stream)
				for rest := tc.body; rest != ""; {
					n := min(size, len(rest))
					if w, err := c.Write([]byte(rest[:n])); w != n || err != nil {
						t.Fatal(w, err)
					}
					rest = rest[n:]
				}
				if n, usage := c.Tokens(); n != tc.want || usage != tc.usage {
					t.Errorf("in pieces of %d: %d, from usage %v; want %d, %v", size, n, usage, tc.want, tc.usage)
				}
				if c.Started() != (c.events > 0) {
					t.Error("Started disagrees")
				}
			}
		})
	}
}

func TestTokenCounterFindsUsageInAnAnswerOfAnyLength(t *testing.T) {
	for pad := range 70 {
		body := `{"choices":[{"message":{"content":"` + strings.Repeat("x", 3*maxCountedLine-60+pad) + `"}}],"usage":{"completion_tokens":4321}}`
		c := NewTokenCounter(ChatCompletions, false)
		_, _ = fmt.Fprint(c, body)
		if n, usage := c.Tokens(); n != 4321 || !usage {
			t.Fatalf("padding %d: %d, %v", pad, n, usage)
		}
		if cap(c.line) > 4*maxCountedLine {
			t.Fatalf("holds %d bytes", cap(c.line))
		}
	}
}

func FuzzTokenCounter(f *testing.F) {
	f.Add(0, true, []byte("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"), 3)
	f.Add(6, true, []byte("{\"eval_count\":290}\n"), 1)
	f.Add(0, false, []byte(`"content":"\`), 1)
	f.Fuzz(func(t *testing.T, i int, stream bool, body []byte, at int) {
		call := calls[uint(i)%uint(len(calls))]
		whole, parts := NewTokenCounter(call, stream), NewTokenCounter(call, stream)
		_, _ = whole.Write(body)
		cut := int(uint(at) % uint(len(body)+1))
		_, _ = parts.Write(body[:cut])
		_, _ = parts.Write(body[cut:])
		n1, u1 := whole.Tokens()
		n2, u2 := parts.Tokens()
		if n1 != n2 || u1 != u2 {
			t.Fatalf("whole %d %v, in parts %d %v", n1, u1, n2, u2)
		}
	})
}

func BenchmarkTokenCounter(b *testing.B) {
	event := []byte("data: {\"id\":\"chatcmpl-123\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n")
	c := NewTokenCounter(ChatCompletions, true)
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Write(event)
	}
}
