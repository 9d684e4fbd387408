package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

var jsonHeader = http.Header{"Content-Type": {"application/json"}}

func read(call Call, body string) (*Request, error) {
	return ReadRequest(call, jsonHeader, strings.NewReader(body))
}

func TestReadRequestTellsWhatIsAsked(t *testing.T) {
	for _, tc := range []struct {
		name string
		call Call
		body string
		want Request
	}{
		{"plain", ChatCompletions, `{"model":"m","messages":[]}`, Request{Model: "m"}},
		{"streamed", ChatCompletions, `{"model":"m","stream":true}`, Request{Model: "m", Stream: true}},
		{"null is default", ChatCompletions, `{"model":"m","stream":null}`, Request{Model: "m"}},
		{"no model", ChatCompletions, `{}`, Request{}},
		{"null model", ChatCompletions, `{"model":null}`, Request{}},
		{"Ollama streams", OllamaChat, `{"model":"m"}`, Request{Model: "m", Stream: true}},
		{"Ollama whole", OllamaGenerate, `{"model":"m","stream":false}`, Request{Model: "m"}},
		{"embeddings never stream", OllamaEmbed, `{"model":"m","stream":true}`, Request{Model: "m"}},
		{"escaped key", ChatCompletions, `{"\u006dodel":"\u006d","stre\u0061m":true}`, Request{Model: "m", Stream: true}},
		{"tools", ChatCompletions, `{"model":"m","tools":[{"type":"function"}]}`, Request{Model: "m", Needs: Needs{Tools: true, ContextTokens: 2}}},
		{"no tools", ChatCompletions, `{"model":"m","tools":[]}`, Request{Model: "m"}},
		{"functions", ChatCompletions, `{"model":"m","functions":[{}]}`, Request{Model: "m", Needs: Needs{Tools: true}}},
		{"json object", ChatCompletions, `{"model":"m","response_format":{"type":"json_object"}}`, Request{Model: "m", Needs: Needs{JSON: true, ContextTokens: 2}}},
		{"text format", ChatCompletions, `{"model":"m","response_format":{"type":"text"}}`, Request{Model: "m", Needs: Needs{ContextTokens: 1}}},
		{"Ollama json", OllamaChat, `{"model":"m","stream":false,"format":"json"}`, Request{Model: "m", Needs: Needs{JSON: true, ContextTokens: 1}}},
		{"Ollama schema", OllamaChat, `{"model":"m","stream":false,"format":{"type":"object"}}`, Request{Model: "m", Needs: Needs{JSON: true, ContextTokens: 1}}},
		{"Ollama no format", OllamaChat, `{"model":"m","stream":false,"format":""}`, Request{Model: "m"}},
		{"responses schema", Responses, `{"model":"m","text":{"format":{"type":"json_schema","name":"x"}}}`, Request{Model: "m", Needs: Needs{JSON: true, ContextTokens: 3}}},
		{"Ollama image", OllamaChat, `{"model":"m","stream":false,"messages":[{"images":["aGk="]}]}`, Request{Model: "m", Needs: Needs{Vision: true}}},
		{"image part", ChatCompletions, `{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}`, Request{Model: "m", Needs: Needs{Vision: true, ContextTokens: 2}}},
		{"Anthropic image", Messages, `{"model":"m","messages":[{"content":[{"type":"image","source":{"type":"base64","data":"AA"}}]}]}`, Request{Model: "m", Needs: Needs{Vision: true, ContextTokens: 2}}},
		{"text in a schema is no image", ChatCompletions, `{"model":"m","metadata":{"type":"image"}}`, Request{Model: "m", Needs: Needs{ContextTokens: 1}}},
		{"length", ChatCompletions, `{"model":"m","messages":[{"content":"` + strings.Repeat("word", 100) + `"}]}`, Request{Model: "m", Needs: Needs{ContextTokens: 100}}},
		{"other scripts", ChatCompletions, `{"model":"m","messages":[{"content":"` + strings.Repeat("語", 100) + `"}]}`, Request{Model: "m", Needs: Needs{ContextTokens: 100}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := read(tc.call, tc.body)
			if err != nil {
				t.Fatal(err)
			}
			if got.Call != tc.call || got.Model != tc.want.Model || got.Stream != tc.want.Stream || got.Needs != tc.want.Needs {
				t.Errorf("got %q stream %v %+v, want %q stream %v %+v", got.Model, got.Stream, got.Needs, tc.want.Model, tc.want.Stream, tc.want.Needs)
			}
		})
	}
}

func TestReadRequestReencodes(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{" { \"model\" :\t\"m\" ,\r\n\"x\" : [ 1 , 2 ] } \n", `{"model":"m","x":[1,2]}`},
		{`{"n":[0,-0,1.50,1e5,1E+05,-2.5e-10,123456789012345678901234567890]}`, `{"n":[0,-0,1.50,1e5,1E+05,-2.5e-10,123456789012345678901234567890]}`},
		{`{"s":"\u00e9\/\"\\\b\f\n\r\t\u0001\u2028<>&"}`, "{\"s\":\"é/\\\"\\\\\\b\\f\\n\\r\\t\\u0001\u2028<>&\"}"},
		{`{"s":"\ud83d\ude00"}`, `{"s":"😀"}`},
		{`{"s":"\ud83dx\ude00\ud83d\ud83d\ude00"}`, "{\"s\":\"\ufffdx\ufffd\ufffd😀\"}"},
		{`{"a":{},"b":[],"c":true,"d":false,"e":null}`, `{"a":{},"b":[],"c":true,"d":false,"e":null}`},
		{`{"unknown_field":{"deep":[{"er":1}]},"top_k":40}`, `{"unknown_field":{"deep":[{"er":1}]},"top_k":40}`},
	} {
		r, err := read(ChatCompletions, tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if string(r.Body) != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.in, r.Body, tc.want)
		}
	}
}

func TestReadRequestRefuses(t *testing.T) {
	deep := strings.Repeat("[", maxDepth+1)
	many := make([]string, 0, maxMembers+1)
	for i := range maxMembers + 1 {
		many = append(many, fmt.Sprintf(`"k%d":0`, i))
	}
	for _, tc := range []struct {
		name, body, code string
	}{
		{"empty", ``, CodeBadRequest},
		{"white space", " \n", CodeBadRequest},
		{"array", `[]`, CodeBadRequest},
		{"string", `"model"`, CodeBadRequest},
		{"form", `model=m`, CodeBadRequest},
		{"byte order mark", "\ufeff{}", CodeBadRequest},
		{"cut", `{"model":"m"`, CodeBadRequest},
		{"cut in a string", `{"model":"m`, CodeBadRequest},
		{"cut in an escape", `{"model":"\u00`, CodeBadRequest},
		{"two documents", `{"model":"m"}{"model":"n"}`, CodeBadRequest},
		{"trailing comma", `{"model":"m",}`, CodeBadRequest},
		{"trailing comma in array", `{"a":[1,]}`, CodeBadRequest},
		{"leading comma", `{,"model":"m"}`, CodeBadRequest},
		{"comment", `{/**/"model":"m"}`, CodeBadRequest},
		{"single quotes", `{'model':'m'}`, CodeBadRequest},
		{"NaN", `{"t":NaN}`, CodeBadRequest},
		{"plus", `{"t":+1}`, CodeBadRequest},
		{"leading zero", `{"t":01}`, CodeBadRequest},
		{"bare point", `{"t":1.}`, CodeBadRequest},
		{"bare exponent", `{"t":1e}`, CodeBadRequest},
		{"hexadecimal", `{"t":0x1}`, CodeBadRequest},
		{"raw newline", "{\"a\":\"x\ny\"}", CodeBadRequest},
		{"raw NUL", "{\"a\":\"\x00\"}", CodeBadRequest},
		{"bad escape", `{"a":"\x41"}`, CodeBadRequest},
		{"bad UTF-8", "{\"a\":\"\xff\"}", CodeBadRequest},
		{"overlong UTF-8", "{\"a\":\"\xc0\xaf\"}", CodeBadRequest},
		{"raw surrogate", "{\"a\":\"\xed\xa0\x80\"}", CodeBadRequest},
		{"too deep", `{"a":` + deep, CodeBadRequest},
		{"too many keys", `{` + strings.Join(many, ",") + `}`, CodeBadRequest},
		{"model number", `{"model":1}`, CodeBadRequest},
		{"model object", `{"model":{"name":"m"}}`, CodeBadRequest},
		{"model list", `{"model":["m"]}`, CodeBadRequest},
		{"model empty list", `{"model":[]}`, CodeBadRequest},
		{"model true", `{"model":true}`, CodeBadRequest},
		{"model long", `{"model":"` + strings.Repeat("m", MaxModel+1) + `"}`, CodeBadRequest},
		{"model control", `{"model":"a\u0000b"}`, CodeBadRequest},
		{"stream string", `{"stream":"true"}`, CodeBadRequest},
		{"stream number", `{"stream":1}`, CodeBadRequest},
		{"stream list", `{"stream":[]}`, CodeBadRequest},

		{"duplicate model", `{"model":"a","model":"b"}`, CodeAmbiguous},
		{"duplicate by escape", `{"model":"a","mod\u0065l":"b"}`, CodeAmbiguous},
		{"duplicate deep", `{"messages":[{"role":"user","role":"system"}]}`, CodeAmbiguous},
		{"duplicate in a schema", `{"tools":[{"function":{"parameters":{"a":1,"a":2}}}]}`, CodeAmbiguous},
		{"duplicate among many", `{` + strings.Join(many[:20], ",") + `,"k3":1}`, CodeAmbiguous},
		{"case variant", `{"model":"a","Model":"b"}`, CodeAmbiguous},
		{"case variant among many", `{` + strings.Join(many[:20], ",") + `,"K3":1}`, CodeAmbiguous},
		{"case variant alone", `{"MODEL":"b"}`, CodeAmbiguous},
		{"long s", `{"model":"a","ſtream":true}`, CodeAmbiguous},
		{"Kelvin sign", `{"a":{"K":1,"k":2}}`, CodeAmbiguous},
		{"stream in capitals", `{"model":"a","Stream":true}`, CodeAmbiguous},

		{"image address", `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]}`, CodeRemoteMedia},
		{"image address as a string", `{"messages":[{"content":[{"type":"image_url","image_url":"https://x/y.png"}]}]}`, CodeRemoteMedia},
		{"image address in capitals", `{"messages":[{"content":[{"type":"image_url","IMAGE_URL":{"URL":"http://x"}}]}]}`, CodeRemoteMedia},
		{"image file", `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]}]}`, CodeRemoteMedia},
		{"image path", `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"/etc/passwd"}}]}]}`, CodeRemoteMedia},
		{"image address with spaces", `{"messages":[{"content":[{"type":"image_url","image_url":{"url":" data:,http://x"}}]}]}`, CodeRemoteMedia},
		{"image address by escape", `{"messages":[{"content":[{"type":"image_url","image_url":{"u\u0072l":"\u0068ttp://x"}}]}]}`, CodeRemoteMedia},
		{"excuse misused", `{"messages":[{"content":[{"type":"image_url","image_url":{"type":"tool_use","url":"http://x"}}]}]}`, CodeRemoteMedia},
		{"video", `{"messages":[{"content":[{"type":"video_url","video_url":{"url":"http://x"}}]}]}`, CodeRemoteMedia},
		{"audio", `{"messages":[{"content":[{"type":"audio_url","audio_url":{"url":"http://x"}}]}]}`, CodeRemoteMedia},
		{"audio data", `{"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"http://x","format":"wav"}}]}]}`, CodeRemoteMedia},
		{"file data", `{"messages":[{"content":[{"type":"file","file":{"file_data":"https://x"}}]}]}`, CodeRemoteMedia},
		{"responses image", `{"input":[{"content":[{"type":"input_image","image_url":"https://x"}]}]}`, CodeRemoteMedia},
		{"responses file", `{"input":[{"content":[{"type":"input_file","file_url":"https://x"}]}]}`, CodeRemoteMedia},
		{"Anthropic source", `{"messages":[{"content":[{"type":"image","source":{"type":"url","url":"https://x"}}]}]}`, CodeRemoteMedia},
		{"Anthropic in a tool result", `{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"url","url":"https://x"}}]}]}]}`, CodeRemoteMedia},
		{"Ollama image address", `{"messages":[{"images":["http://x"]}]}`, CodeRemoteMedia},
		{"Ollama image address after spaces", `{"images":["` + strings.Repeat(" ", 100) + `http://x"]}`, CodeRemoteMedia},
		{"remote tool server", `{"tools":[{"type":"mcp","server_url":"http://10.0.0.1"}]}`, CodeRemoteMedia},

		{"other host", `{"model":"m","api_base":"http://evil"}`, CodeBadRequest},
		{"other host in capitals", `{"model":"m","API_BASE":"http://evil"}`, CodeBadRequest},
		{"other models", `{"model":"m","models":["gpt-9"]}`, CodeBadRequest},
		{"fallbacks", `{"model":"m","fallbacks":["gpt-9"]}`, CodeBadRequest},
		{"tool servers", `{"model":"m","mcp_servers":[]}`, CodeBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := read(ChatCompletions, tc.body)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("taken as %v, %v", r, err)
			}
			if r != nil || e.Code != tc.code || e.Status != 400 {
				t.Errorf("%d %s: %v, want %s", e.Status, e.Code, e, tc.code)
			}
			if strings.Contains(e.Error(), "evil") || strings.Contains(e.Error(), "passwd") {
				t.Errorf("the error repeats the request: %v", e)
			}
		})
	}
}

func TestReadRequestLetsPass(t *testing.T) {
	for name, body := range map[string]string{
		"addresses in text":       `{"messages":[{"role":"user","content":"see http://example.com"}]}`,
		"address in a tool input": `{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"fetch","input":{"url":"http://example.com","N":1,"n":2}}]}]}`,
		"input before its type":   `{"messages":[{"content":[{"input":{"url":"http://example.com"},"type":"tool_use"}]}]}`,
		"tool call arguments":     `{"messages":[{"tool_calls":[{"function":{"name":"f","arguments":"{\"url\":\"http://x\"}"}}]}]}`,
		"Ollama arguments":        `{"messages":[{"tool_calls":[{"function":{"name":"f","arguments":{"url":"http://x"}}}]}]}`,
		"schema with variants":    `{"tools":[{"function":{"parameters":{"properties":{"n":{},"N":{},"url":{"type":"string","default":"http://x"}}}}}]}`,
		"schema of a format":      `{"response_format":{"type":"json_schema","json_schema":{"schema":{"$id":"http://x","url":"http://x"}}}}`,
		"quoted search result":    `{"messages":[{"content":[{"type":"web_search_tool_result","content":[{"type":"web_search_result","url":"https://x","title":"t"}]}]}]}`,
		"annotations":             `{"messages":[{"content":"x","annotations":[{"type":"url_citation","url_citation":{"url":"https://x"}}]}]}`,
		"images inline":           `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"DATA:image/png;base64,AA","detail":"low"}}]}]}`,
		"audio inline":            `{"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"UklG","format":"wav"}}]}]}`,
		"logit bias":              `{"logit_bias":{"1":-100,"2":5}}`,
		"camel case unknown":      `{"topK":1,"enableThinking":true}`,
		"model with a slash":      `{"model":"unsloth/Qwen3-8B-GGUF:Q4_K_M"}`,
	} {
		if _, err := read(ChatCompletions, body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadRequestChecksTheHeader(t *testing.T) {
	for _, tc := range []struct {
		name string
		h    http.Header
		ok   bool
	}{
		{"json", http.Header{"Content-Type": {"application/json"}}, true},
		{"charset", http.Header{"Content-Type": {"Application/JSON; charset=UTF-8"}}, true},
		{"identity", http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"identity"}}, true},
		{"none", http.Header{}, false},
		{"form", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, false},
		{"text", http.Header{"Content-Type": {"text/plain"}}, false},
		{"two", http.Header{"Content-Type": {"application/json", "text/plain"}}, false},
		{"list", http.Header{"Content-Type": {"application/json, text/plain"}}, false},
		{"utf-16", http.Header{"Content-Type": {"application/json; charset=utf-16"}}, false},
		{"gzip", http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, false},
		{"two encodings", http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"identity", "br"}}, false},
	} {
		_, err := ReadRequest(ChatCompletions, tc.h, strings.NewReader(`{}`))
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		if e := (*Error)(nil); err != nil && (!errors.As(err, &e) || e.Status != 415) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestReadRequestIsBounded(t *testing.T) {
	exact := io.MultiReader(strings.NewReader(`{"model":"m"}`), io.LimitReader(zeros{}, MaxBody-13))
	if _, err := ReadRequest(ChatCompletions, jsonHeader, exact); err != nil {
		t.Errorf("exactly 32 MiB: %v", err)
	}
	_, err := ReadRequest(ChatCompletions, jsonHeader, zeros{}) // endless
	if e := (*Error)(nil); !errors.As(err, &e) || e.Status != 413 || e.Code != CodeTooLarge {
		t.Errorf("endless: %v", err)
	}
	_, err = ReadRequest(ChatCompletions, jsonHeader, iotest.ErrReader(&http.MaxBytesError{Limit: 1}))
	if e := (*Error)(nil); !errors.As(err, &e) || e.Status != 413 {
		t.Errorf("bounded above: %v", err)
	}
	_, err = ReadRequest(ChatCompletions, jsonHeader, iotest.ErrReader(io.ErrUnexpectedEOF))
	if e := (*Error)(nil); !errors.As(err, &e) || e.Status != 400 {
		t.Errorf("cut: %v", err)
	}
}

func TestWithModel(t *testing.T) {
	for _, tc := range []struct{ body, model, want string }{
		{`{"model":"a","stream":true}`, "b/c:d", `{"model":"b/c:d","stream":true}`},
		{`{"stream":true,"model":"a"}`, `q"\`, `{"stream":true,"model":"q\"\\"}`},
		{`{"model":null}`, "b", `{"model":"b"}`},
		{`{"model":"a"}`, "", `{"model":""}`},
		{`{"stream":true}`, "b", `{"model":"b","stream":true}`},
		{`{}`, "b", `{"model":"b"}`},
		{`{"messages":[{"model":"inner"}],"model":"a"}`, "b", `{"messages":[{"model":"inner"}],"model":"b"}`},
	} {
		r, err := read(ChatCompletions, tc.body)
		if err != nil {
			t.Fatal(err)
		}
		before := string(r.Body)
		b := r.WithModel(Model(tc.model))
		if string(b.Body) != tc.want || b.Model != Model(tc.model) {
			t.Errorf("%s: %s", tc.body, b.Body)
		}
		if string(r.Body) != before {
			t.Errorf("%s: the original changed to %s", tc.body, r.Body)
		}
		if again := b.WithModel("z").WithModel(Model(tc.model)); !bytes.Equal(again.Body, b.Body) {
			t.Errorf("%s: twice: %s", tc.body, again.Body)
		}
	}
}

func TestRequestPrintsNoPrompt(t *testing.T) {
	r, err := read(ChatCompletions, `{"model":"m","prompt":"canary"}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{r, *r} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, "canary") || strings.Contains(s, "63616e617279") {
				t.Errorf("%s prints %s", verb, s)
			}
		}
	}
}

// FuzzReadRequest: whatever is taken means the same to encoding/json as what was
// sent, reads back as itself, and holds no key twice.
func FuzzReadRequest(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}`,
		`{"model":"m","s":"\ud83d\ude00\ud83d","n":[1.0e-3,-0]}`,
		`{"a":{"b":1,"B":2}}`, `{"a":1,"a":2}`, `{"ſtream":1}`, `{"images":["AA",{"url":"data:x"}]}`,
		`{"messages":[{"content":[{"type":"tool_use","input":{"url":"http://x"}}]}]}`, `{"x":"\u0000\u001f\u007f"}`,
	} {
		for i := range calls {
			f.Add(i, []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, i int, body []byte) {
		call := calls[uint(i)%uint(len(calls))]
		r, err := ReadRequest(call, jsonHeader, bytes.NewReader(body))
		if err != nil {
			var e *Error
			if r != nil || !errors.As(err, &e) {
				t.Fatalf("%v, %v", r, err)
			}
			return
		}
		if len(r.Body) > len(body) {
			t.Fatalf("grew from %d to %d bytes", len(body), len(r.Body))
		}
		var before, after any
		if err := json.Unmarshal(body, &before); err != nil {
			t.Fatalf("taken, but not JSON: %v", err)
		}
		if err := json.Unmarshal(r.Body, &after); err != nil {
			t.Fatalf("not JSON any more: %v", err)
		}
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("another meaning: %s -> %s", body, r.Body)
		}
		if m, _ := after.(map[string]any)["model"].(string); m != string(r.Model) {
			t.Fatalf("model %q, JSON says %q", r.Model, m)
		}
		var server struct{ Model *string } // as a Go server reads it, whatever the case
		if err := json.Unmarshal(r.Body, &server); err == nil && server.Model != nil && *server.Model != string(r.Model) {
			t.Fatalf("model %q, a server reads %q", r.Model, *server.Model)
		}
		again, err := read(call, string(r.Body))
		if err != nil || !bytes.Equal(again.Body, r.Body) {
			t.Fatalf("not stable: %v", err)
		}
		other := r.WithModel("fuzz/model")
		if back, err := read(call, string(other.Body)); err != nil || back.Model != "fuzz/model" {
			t.Fatalf("WithModel: %v: %s", err, other.Body)
		}
	})
}

func BenchmarkReadRequestImage(b *testing.B) {
	body := `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` +
		strings.Repeat("QUJD", 1<<20) + `"}},{"type":"text","text":"what is this?"}]}]}`
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := read(ChatCompletions, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadRequestObjects(b *testing.B) {
	body := `{"model":"m","x":[` + strings.TrimSuffix(strings.Repeat(`{"a":1},`, 1<<19), ",") + `]}`
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := read(ChatCompletions, body); err != nil {
			b.Fatal(err)
		}
	}
}
