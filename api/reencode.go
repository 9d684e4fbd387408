package api

import (
	"bytes"
	"fmt"
	"net/http"
)

const (
	maxDepth   = 128   // nesting; deep JSON schemas need about 30
	maxMembers = 65536 // keys in one object; a logit_bias may be long
)

// reencoder reads one JSON document (RFC 8259) and writes it anew in a single
// pass and in place: the new form is never longer than what has been read. It
// notes what the request is about on the way.
type reencoder struct {
	in   []byte
	pos  int
	out  []byte // shares in's memory; len(out) <= pos always
	call Call

	depth     int
	violation *Error // a rule about content that was broken; the first one stays

	model             *string
	modelAt, modelEnd int
	stream            *bool
	tools             bool
	vision            bool
	json              bool
	ascii, other      int // bytes of text, for the estimate of its tokens
}

// place is where in the document a value stands.
type place struct {
	key    string // folded key of the nearest object member; arrays are transparent
	parent string // folded key of the member around that
	top    bool   // the member belongs to the outermost object, no array between
	free   bool   // inside something that is the client's own vocabulary (a JSON schema, tool arguments)
}

func (e *reencoder) document() error {
	e.space()
	if e.pos >= len(e.in) {
		return badRequest("the request body is empty")
	}
	if e.in[e.pos] != '{' {
		return badRequest("the request body is not a JSON object")
	}
	if err := e.object(place{}, true); err != nil {
		return err
	}
	e.space()
	if e.pos != len(e.in) {
		return e.syntax("something follows the JSON object")
	}
	return nil
}

func (e *reencoder) value(at place) error {
	e.space()
	if e.pos >= len(e.in) {
		return e.syntax("it ends early")
	}
	switch c := e.in[e.pos]; {
	case c == '{':
		e.observeContainer(at)
		return e.object(at, false)
	case c == '[':
		return e.array(at)
	case c == '"':
		start := len(e.out)
		if err := e.string(); err != nil {
			return err
		}
		e.observeString(at, start)
		return nil
	case c == '-' || '0' <= c && c <= '9':
		return e.number(at)
	case c == 't':
		e.observeLiteral(at, "true")
		return e.literal("true")
	case c == 'f':
		e.observeLiteral(at, "false")
		return e.literal("false")
	case c == 'n':
		e.observeLiteral(at, "null")
		return e.literal("null")
	default:
		return e.syntax("a value is missing")
	}
}

func (e *reencoder) enter() error {
	e.depth++
	if e.depth > maxDepth {
		return badRequest(fmt.Sprintf("the JSON is nested deeper than %d levels", maxDepth))
	}
	return nil
}

func (e *reencoder) object(at place, top bool) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer func() { e.depth-- }()
	e.copyByte() // {
	var (
		few     [8]member
		seen    = members{free: at.free, few: few[:0]}
		pending *Error // broken below a key that is allowed to break it in some types of object
		typ     string
	)
	for first := true; ; first = false {
		e.space()
		if e.peek() == '}' {
			e.copyByte()
			break
		}
		if !first {
			if e.peek() != ',' {
				return e.syntax("a comma is missing")
			}
			e.copyByte()
			e.space()
		}
		if e.peek() != '"' {
			return e.syntax("a key is missing")
		}
		start := len(e.out)
		if err := e.string(); err != nil {
			return err
		}
		key := unquote(e.out[start:])
		folded := fold(key)
		if err := seen.add(e, key, folded); err != nil {
			return err
		}
		e.space()
		if e.peek() != ':' {
			return e.syntax("a colon is missing")
		}
		e.copyByte()
		e.space()
		member := place{key: folded, parent: at.key, top: top, free: at.free || freeKeys[folded]}
		if top {
			e.checkTopKey(key, folded)
		}
		before := e.violation
		valueAt := len(e.out)
		if err := e.value(member); err != nil {
			return err
		}
		if excusable[folded] && (at.key == "content" || at.key == "input") && before == nil && e.violation != nil {
			pending, e.violation = firstError(pending, e.violation), nil
		}
		if key == "type" && e.out[valueAt] == '"' && len(e.out)-valueAt < 64 {
			typ = unquote(e.out[valueAt:])
		}
		if top && key == "model" {
			e.modelAt, e.modelEnd = valueAt, len(e.out)
		}
	}
	if pending != nil && !quotesTools[typ] {
		e.violation = firstError(e.violation, pending)
	}
	if !at.free && imageTypes[typ] {
		e.vision = true
	}
	return nil
}

func (e *reencoder) array(at place) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer func() { e.depth-- }()
	top := at.top
	at.top = false
	if top && (at.key == "model" || at.key == "stream") {
		e.violate(badRequest(quoteKey(at.key) + " is not of its type"))
	}
	e.copyByte() // [
	for first := true; ; first = false {
		e.space()
		if e.peek() == ']' {
			e.copyByte()
			return nil
		}
		if first {
			if top {
				e.observeContainer(place{key: at.key, top: true})
			}
			if at.key == "images" && !at.free {
				e.vision = true
			}
		} else {
			if e.peek() != ',' {
				return e.syntax("a comma is missing")
			}
			e.copyByte()
		}
		if err := e.value(at); err != nil {
			return err
		}
	}
}

// members finds keys that two parsers may take for one another.
type members struct {
	free  bool
	few   []member          // up to cap(few) keys are compared one by one
	exact map[string]string // key → itself, beyond that
	fold  map[string]string // folded key → key
}

type member struct{ key, folded string }

func (m *members) add(e *reencoder, key, folded string) error {
	if len(m.exact) >= maxMembers {
		return badRequest(fmt.Sprintf("an object has more than %d keys", maxMembers))
	}
	exact, variant := m.find(key, folded)
	if exact {
		return &Error{
			Status: http.StatusBadRequest, Code: CodeAmbiguous,
			Message: "the key " + quoteKey(key) + " appears twice in one object",
		}
	}
	// Inside free places the client chose the names: n and N may be two
	// parameters of a tool.
	if variant != "" && !m.free {
		e.violate(&Error{
			Status: http.StatusBadRequest, Code: CodeAmbiguous,
			Message: "the keys " + quoteKey(variant) + " and " + quoteKey(key) + " differ only in case",
		})
	}
	if m.exact == nil && len(m.few) < cap(m.few) {
		m.few = append(m.few, member{key, folded})
		return nil
	}
	if m.exact == nil {
		m.exact, m.fold = make(map[string]string), make(map[string]string)
		for _, k := range m.few {
			m.exact[k.key], m.fold[k.folded] = k.key, k.key
		}
	}
	m.exact[key], m.fold[folded] = key, key
	return nil
}

// find returns whether key is there already, and another key that differs from
// it only in case.
func (m *members) find(key, folded string) (exact bool, variant string) {
	if m.exact != nil {
		_, exact = m.exact[key]
		return exact, m.fold[folded]
	}
	for _, k := range m.few {
		if k.key == key {
			return true, ""
		}
		if k.folded == folded {
			variant = k.key
		}
	}
	return false, variant
}

func (e *reencoder) violate(v *Error) { e.violation = firstError(e.violation, v) }

func firstError(a, b *Error) *Error {
	if a != nil {
		return a
	}
	return b
}

func (e *reencoder) syntax(what string) error {
	return badRequest(fmt.Sprintf("the request body is not valid JSON: at byte %d %s", e.pos, what))
}

func (e *reencoder) space() {
	for e.pos < len(e.in) {
		switch e.in[e.pos] {
		case ' ', '\t', '\n', '\r':
			e.pos++
		default:
			return
		}
	}
}

func (e *reencoder) peek() byte {
	if e.pos < len(e.in) {
		return e.in[e.pos]
	}
	return 0
}

func (e *reencoder) copyByte() {
	e.out = append(e.out, e.in[e.pos])
	e.pos++
}

func (e *reencoder) literal(word string) error {
	if !bytes.HasPrefix(e.in[e.pos:], []byte(word)) {
		return e.syntax("a value is missing")
	}
	e.out = append(e.out, word...)
	e.pos += len(word)
	return nil
}

// number copies a number in its own spelling (RFC 8259 §6).
func (e *reencoder) number(at place) error {
	if at.top && (at.key == "model" || at.key == "stream") {
		e.violate(badRequest(quoteKey(at.key) + " is not of its type"))
	}
	start := e.pos
	if e.peek() == '-' {
		e.pos++
	}
	switch c := e.peek(); {
	case c == '0':
		e.pos++
	case '1' <= c && c <= '9':
		e.digits()
	default:
		return e.syntax("a number is malformed")
	}
	if e.peek() == '.' {
		e.pos++
		if !e.digits() {
			return e.syntax("a number is malformed")
		}
	}
	if c := e.peek(); c == 'e' || c == 'E' {
		e.pos++
		if c := e.peek(); c == '+' || c == '-' {
			e.pos++
		}
		if !e.digits() {
			return e.syntax("a number is malformed")
		}
	}
	e.out = append(e.out, e.in[start:e.pos]...)
	return nil
}

func (e *reencoder) digits() bool {
	start := e.pos
	for '0' <= e.peek() && e.peek() <= '9' {
		e.pos++
	}
	return e.pos > start
}
