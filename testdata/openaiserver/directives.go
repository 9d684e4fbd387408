package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// directives is what the last user message asks of the server:
//
//	[tokens=N]    answer with N tokens (default 12, at most 100,000)
//	[first=D]     wait D before the first token (500ms)
//	[delay=D]     wait D before each further token (20ms)
//	[abort=N]     cut the connection after N tokens, without an end
//	[status=CODE] refuse with this status and an error object
//	[nonsense]    answer 200 with bytes that are no JSON and no event stream
//	[think=N]     N tokens of reasoning_content before the answer
//	[size=N]      each token is filled up to N bytes (at most 16,384)
//	[evil]        begin the answer with control sequences for a terminal
type directives struct {
	tokens, abort, status, think int
	size                         int
	first, delay                 time.Duration
	nonsense, evil               bool
}

const (
	defaultTokens = 12
	maxTokens     = 100_000
	maxSize       = 16 << 10
	maxWait       = time.Minute
)

var directiveRE = regexp.MustCompile(`\[(tokens|first|delay|abort|status|nonsense|think|size|evil)(?:=([0-9a-z.]{1,16}))?\]`)

// parseDirectives reads the bracketed words of a message; what it cannot read
// keeps its default. limit is the request's max_tokens, 0 for none.
func parseDirectives(message string, limit int) directives {
	d := directives{tokens: defaultTokens, abort: -1}
	for _, m := range directiveRE.FindAllStringSubmatch(message, 16) {
		n, numErr := strconv.Atoi(m[2])
		wait, waitErr := time.ParseDuration(m[2])
		switch {
		case m[1] == "nonsense":
			d.nonsense = true
		case m[1] == "evil":
			d.evil = true
		case m[1] == "tokens" && numErr == nil && n >= 0:
			d.tokens = min(n, maxTokens)
		case m[1] == "abort" && numErr == nil && n >= 0:
			d.abort = n
		case m[1] == "think" && numErr == nil && n >= 0:
			d.think = min(n, maxTokens)
		case m[1] == "size" && numErr == nil && n >= 0:
			d.size = min(n, maxSize)
		case m[1] == "status" && numErr == nil && n >= 400 && n <= 599:
			d.status = n
		case m[1] == "first" && waitErr == nil && wait >= 0:
			d.first = min(wait, maxWait)
		case m[1] == "delay" && waitErr == nil && wait >= 0:
			d.delay = min(wait, maxWait)
		}
	}
	if limit > 0 && limit < d.tokens {
		d.tokens = limit
	}
	return d
}

// pieces are what answers are made of: plain words, several scripts, an emoji
// of four bytes, quotes and backslashes, line ends. A byte lost or changed
// anywhere on the way shows.
var pieces = []string{
	"Light", " goes", " through", " the", " tunnel", ",", " naïve", " 東京", " ☕", " \"quoted\"", " \\back", ".\n",
	"Ünï", "códe", " 🙂", " and", " a", " tab\t", "end", ";\n",
}

// evil sets a terminal's title, colours it by a C1 control, and turns the
// direction of writing.
const evil = "\x1b]0;owned\x07\u009b31m\u202e"

// answer is what d says: Answer, and before it what a terminal must not see raw.
func (d directives) answer() []string {
	out := Answer(d.tokens)
	for i := range out {
		if short := d.size - len(out[i]); short > 0 { // the token's number, again and again
			filling := fmt.Sprintf(" %d", i)
			out[i] += strings.Repeat(filling, short/len(filling)+1)[:short]
		}
	}
	if d.evil && len(out) > 0 {
		out[0] = evil + out[0]
	}
	return out
}

// Answer returns the tokens of an answer of n tokens: always the same ones.
func Answer(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = pieces[i%len(pieces)]
		if i%len(pieces) == len(pieces)-1 {
			out[i] += strconv.Itoa(i + 1)
		}
	}
	return out
}
