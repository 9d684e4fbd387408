package api

import (
	"bytes"
	"net/http"
	"strings"
)

// freeKeys hold what the client's own programs named: schemas, tool arguments,
// quotations. No AI server fetches or routes by anything below them.
var freeKeys = set("arguments", "parameters", "properties", "input_schema", "json_schema", "schema",
	"$defs", "definitions", "metadata", "annotations", "citations", "logit_bias",
	"chat_template_kwargs", "guided_json", "structured_outputs")

// excusable keys may hold anything inside those elements of a "content" or
// "input" list whose type is in quotesTools: a tool's input, or the address of
// a page that was quoted earlier. No server fetches these.
var excusable = set("input", "url", "action")

var quotesTools = set("tool_use", "server_tool_use", "mcp_tool_use", "web_search_result",
	"web_fetch_result", "web_search_call", "url_citation", "search_result")

// imageTypes are the content parts that need a model with eyes.
var imageTypes = set("image_url", "input_image", "image", "video_url", "input_video")

// dataKeys hold media inline; some servers take a URL there as well.
var dataKeys = set("images", "image", "file_data", "input_audio", "audio")

// readKeys are the keys of the outermost object that decide something here or
// at the server. Go servers (Ollama) also take them in another case, so only
// the exact spelling passes.
var readKeys = set("model", "stream", "messages", "prompt", "input", "system", "tools", "functions",
	"images", "format", "response_format", "text", "options", "template", "raw", "keep_alive",
	"context", "suffix", "instructions")

// refusedKeys would send the AI server, or a proxy in its place, to somewhere
// else: another model than the granted one, another host, another key.
var refusedKeys = set("models", "fallbacks", "api_base", "base_url", "api_key", "api_version",
	"mcp_servers", "integrations", "kv_transfer_params")

func set(keys ...string) map[string]bool {
	m := make(map[string]bool, len(keys))
	for _, k := range keys {
		m[fold(k)] = true
	}
	return m
}

// checkTopKey looks at a key of the outermost object.
func (e *reencoder) checkTopKey(key, folded string) {
	switch {
	case refusedKeys[folded]:
		e.violate(&Error{
			Status: http.StatusBadRequest, Code: CodeBadRequest,
			Message: "the field " + quoteKey(key) + " is not taken: it would send the request elsewhere",
			Hint:    "leave it out",
		})
	case readKeys[folded] && key != folded:
		e.violate(&Error{
			Status: http.StatusBadRequest, Code: CodeAmbiguous,
			Message: "the key " + quoteKey(key) + " must be written " + quoteKey(folded),
		})
	}
}

// observeContainer sees an object, or an array with at least one element.
func (e *reencoder) observeContainer(at place) {
	if !at.top {
		return
	}
	switch at.key {
	case "tools", "functions":
		e.tools = true
	case "format": // Ollama: a JSON schema
		e.json = e.json || e.call.Flavor() == Ollama
	case "model", "stream":
		e.violate(badRequest(quoteKey(at.key) + " is not of its type"))
	}
}

func (e *reencoder) observeLiteral(at place, word string) {
	if !at.top {
		return
	}
	switch at.key {
	case "stream":
		if word != "null" {
			v := word == "true"
			e.stream = &v
		}
	case "model":
		if word != "null" {
			e.violate(badRequest("\"model\" is not of its type"))
		}
	}
}

// observeString sees a string value, which stands re-encoded at e.out[start:].
func (e *reencoder) observeString(at place, start int) {
	quoted := e.out[start:]
	if at.top && at.key == "model" {
		s := unquote(quoted)
		e.model = &s
		return
	}
	if at.top && at.key == "stream" {
		e.violate(badRequest("\"stream\" is not of its type"))
		return
	}
	if isDataURL(quoted) {
		return // not text, and nothing to fetch
	}
	if !at.free {
		switch {
		case isURLKey(at.key):
			e.violate(remoteMedia(at.key))
		case dataKeys[at.key] || at.key == "data" && dataKeys[at.parent]:
			if bytes.IndexByte(quoted, ':') >= 0 { // base64 has none, every URL has one
				e.violate(remoteMedia(at.key))
			}
			return
		case at.key == "type" && (at.parent == "response_format" || at.parent == "format" && e.call == Responses):
			if s := unquote(quoted); s == "json_object" || s == "json_schema" {
				e.json = true
			}
		case at.top && at.key == "format" && len(quoted) > 2 && e.call.Flavor() == Ollama:
			e.json = true
		case at.key == "data" && at.parent == "source":
			return // Anthropic: base64
		}
	}
	e.countText(quoted[1 : len(quoted)-1])
}

// isURLKey reports whether a key's string is an address. A server might fetch
// it, from inside the miner's network.
func isURLKey(key string) bool {
	return key == "url" || key == "uri" || strings.HasSuffix(key, "_url") || strings.HasSuffix(key, "_uri")
}

func remoteMedia(key string) *Error {
	return &Error{
		Status: http.StatusBadRequest, Code: CodeRemoteMedia,
		Message: "the field " + quoteKey(key) + " holds an address that the AI server would have to fetch",
		Hint:    "send the content itself as a data: URL",
	}
}

func isDataURL(quoted []byte) bool {
	const scheme = "data:"
	return len(quoted) > len(scheme)+1 && bytes.EqualFold(quoted[1:1+len(scheme)], []byte(scheme))
}

func (e *reencoder) countText(b []byte) {
	for _, c := range b {
		if c < 0x80 {
			e.ascii++
		} else {
			e.other++
		}
	}
}

// textTokens estimates the prompt's tokens: four bytes of English, or three of
// other scripts, make about one.
func (e *reencoder) textTokens() int { return e.ascii/4 + e.other/3 }
