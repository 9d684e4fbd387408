package api

import (
	"bytes"
	"strconv"
)

// maxCountedLine bounds the memory of a TokenCounter. Of a longer line, which
// only whole answers have, each part is looked at by itself.
const maxCountedLine = 64 << 10

// TokenCounter counts the tokens of an answer while its bytes pass through
// Write. It trusts the server's own usage figure where there is one and counts
// stream events that carry text otherwise (servers send about a token each).
// It keeps no text beyond the current line. It is not safe for concurrent use.
type TokenCounter struct {
	stream bool
	keys   [][]byte // keys whose string values are generated text
	line   []byte
	events uint64
	text   uint64 // bytes of text, for whole answers without usage
	usage  uint64
	known  bool // usage was said
}

// usageKeys name the generated tokens: OpenAI, Anthropic and Responses, Ollama.
var usageKeys = [][]byte{[]byte(`"completion_tokens"`), []byte(`"output_tokens"`), []byte(`"eval_count"`)}

// NewTokenCounter returns a counter for the answer to a call; stream says
// whether the answer comes in pieces.
func NewTokenCounter(call Call, stream bool) *TokenCounter {
	c := &TokenCounter{stream: stream}
	for _, k := range textKeys(call) {
		c.keys = append(c.keys, []byte(`"`+k+`"`))
	}
	return c
}

func textKeys(call Call) []string {
	switch call {
	case ChatCompletions:
		return []string{"content", "reasoning_content", "reasoning", "arguments"}
	case Completions:
		return []string{"text"}
	case Responses:
		return []string{"delta"}
	case Messages:
		return []string{"text", "thinking", "partial_json"}
	case OllamaChat:
		return []string{"content", "thinking"}
	case OllamaGenerate:
		return []string{"response", "thinking"}
	case Embeddings, CountTokens, OllamaEmbed, OllamaEmbeddings:
		return nil
	}
	return nil
}

// Write takes the next bytes of the answer's body. It never fails.
func (c *TokenCounter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			c.hold(p)
			break
		}
		if len(c.line) == 0 && i <= maxCountedLine {
			c.scan(p[:i]) // the usual case: whole lines, nothing copied
		} else {
			c.hold(p[:i])
			c.flush()
		}
		p = p[i+1:]
	}
	return n, nil
}

// hold keeps the beginning of an unfinished line.
func (c *TokenCounter) hold(p []byte) {
	for len(p) > 0 {
		room := min(maxCountedLine-len(c.line), len(p))
		c.line = append(c.line, p[:room]...)
		p = p[room:]
		if len(c.line) == maxCountedLine {
			c.scan(c.line)
			// Keep an end in which a usage key may have begun. Text that stands
			// in it is counted twice: 64 bytes in 64 KiB of an estimate.
			c.line = append(c.line[:0], c.line[maxCountedLine-64:]...)
		}
	}
}

func (c *TokenCounter) flush() {
	c.scan(c.line)
	c.line = c.line[:0]
}

// scan looks at one line. Inside a JSON string every quotation mark has a
// backslash before it, so `"key":` with plain marks is a key wherever it
// stands, and no parser is needed.
func (c *TokenCounter) scan(line []byte) {
	if len(line) == 0 {
		return
	}
	for _, key := range usageKeys {
		if v := valueOf(line, key); len(v) > 0 {
			end := 0
			for end < len(v) && '0' <= v[end] && v[end] <= '9' {
				end++
			}
			if n, err := strconv.ParseUint(string(v[:end]), 10, 48); err == nil && end < len(v) {
				c.usage, c.known = n, true
			}
		}
	}
	var text int
	for _, key := range c.keys {
		if v := valueOf(line, key); len(v) > 1 && v[0] == '"' {
			text += stringLen(v)
		}
	}
	if text > 0 {
		c.events++
		c.text += uint64(text)
	}
}

// valueOf returns what follows the last occurrence of a key, up to the line's
// end; nil if there is none.
func valueOf(line, key []byte) []byte {
	var value []byte
	for rest := line; ; {
		i := bytes.Index(rest, key)
		if i < 0 {
			return value
		}
		escaped := i > 0 && rest[i-1] == '\\'
		rest = rest[i+len(key):]
		after := bytes.TrimLeft(rest, " \t")
		if !escaped && len(after) > 1 && after[0] == ':' {
			value = bytes.TrimLeft(after[1:], " \t")
		}
	}
}

// stringLen returns the length of the JSON string that v begins with.
func stringLen(v []byte) int {
	for i := 1; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '"':
			return i - 1
		}
	}
	return len(v) - 1
}

// Started reports whether any generated text has passed.
func (c *TokenCounter) Started() bool { return c.events > 0 }

// Tokens returns the tokens generated so far. fromUsage says that the server
// itself gave the number; otherwise it is counted in stream events, or, for a
// whole answer, estimated at four bytes each.
func (c *TokenCounter) Tokens() (n uint64, fromUsage bool) {
	if len(c.line) > 0 {
		c.flush()
	}
	switch {
	case c.known && (c.usage > 0 || c.events == 0):
		return c.usage, true
	case c.stream:
		return c.events, false
	default:
		return (c.text + 3) / 4, false
	}
}
