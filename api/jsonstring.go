package api

import (
	"bytes"
	"strconv"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// string copies a string with only the escapes that JSON demands. Escaped
// surrogates without a partner, which no valid UTF-8 can hold, become U+FFFD.
func (e *reencoder) string() error {
	e.copyByte() // "
	for {
		start := e.pos
		for e.pos < len(e.in) {
			c := e.in[e.pos]
			if c == '"' || c == '\\' || c < ' ' {
				break
			}
			if c < utf8.RuneSelf {
				e.pos++
				continue
			}
			r, n := utf8.DecodeRune(e.in[e.pos:])
			if r == utf8.RuneError && n == 1 {
				return e.syntax("a string is not valid UTF-8")
			}
			e.pos += n
		}
		e.out = append(e.out, e.in[start:e.pos]...)
		switch {
		case e.pos >= len(e.in):
			return e.syntax("a string does not end")
		case e.in[e.pos] == '"':
			e.copyByte()
			return nil
		case e.in[e.pos] == '\\':
			if err := e.escape(); err != nil {
				return err
			}
		default:
			return e.syntax("a string holds a raw control character")
		}
	}
}

func (e *reencoder) escape() error {
	if e.pos+1 >= len(e.in) {
		return e.syntax("a string does not end")
	}
	var r rune
	switch c := e.in[e.pos+1]; c {
	case '"', '\\', '/':
		r = rune(c)
	case 'b':
		r = '\b'
	case 'f':
		r = '\f'
	case 'n':
		r = '\n'
	case 'r':
		r = '\r'
	case 't':
		r = '\t'
	case 'u':
		var ok bool
		if r, ok = e.hex4(e.pos); !ok {
			return e.syntax("an escape is malformed")
		}
		e.pos += 4
		if utf16.IsSurrogate(r) {
			low, ok := e.hex4(e.pos + 2)
			if pair := utf16.DecodeRune(r, low); ok && pair != unicode.ReplacementChar {
				r = pair
				e.pos += 6
			} else {
				r = unicode.ReplacementChar
			}
		}
	default:
		return e.syntax("an escape is malformed")
	}
	e.pos += 2
	e.out = appendRune(e.out, r)
	return nil
}

// hex4 reads \uXXXX at i.
func (e *reencoder) hex4(i int) (rune, bool) {
	if i+6 > len(e.in) || e.in[i] != '\\' || e.in[i+1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(e.in[i+2:i+6]), 16, 16)
	return rune(n), err == nil
}

// appendRune writes one character of a JSON string.
func appendRune(b []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(b, '\\', byte(r))
	case '\b':
		return append(b, `\b`...)
	case '\f':
		return append(b, `\f`...)
	case '\n':
		return append(b, `\n`...)
	case '\r':
		return append(b, `\r`...)
	case '\t':
		return append(b, `\t`...)
	}
	if r < ' ' {
		const hex = "0123456789abcdef"
		return append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
	}
	return utf8.AppendRune(b, r)
}

// appendString writes s as a JSON string in reencoder's own form.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		b = appendRune(b, r)
	}
	return append(b, '"')
}

// unquote reads back a string that reencoder.string wrote.
func unquote(b []byte) string {
	b = b[1 : len(b)-1]
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	e := reencoder{in: b}
	s := make([]byte, 0, len(b))
	for e.pos < len(b) {
		if b[e.pos] != '\\' {
			s = append(s, b[e.pos])
			e.pos++
			continue
		}
		switch c := b[e.pos+1]; c {
		case 'u':
			r, _ := e.hex4(e.pos)
			s = append(s, byte(r)) // only control characters are written that way
			e.pos += 6
			continue
		case 'b':
			s = append(s, '\b')
		case 'f':
			s = append(s, '\f')
		case 'n':
			s = append(s, '\n')
		case 'r':
			s = append(s, '\r')
		case 't':
			s = append(s, '\t')
		default:
			s = append(s, c)
		}
		e.pos += 2
	}
	return string(s)
}

// fold maps all spellings that a case-insensitive parser may take for one key
// to one string. It follows simple Unicode folding like Go's encoding/json,
// which takes "ſtream" (U+017F) for "stream".
func fold(s string) string {
	plain := true
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	out := make([]byte, 0, len(s))
	for _, r := range s {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		if 'A' <= least && least <= 'Z' {
			least += 'a' - 'A'
		}
		out = utf8.AppendRune(out, least)
	}
	return string(out)
}

// quoteKey shows a key in an error message, shortened.
func quoteKey(key string) string {
	if len(key) > 40 {
		key = key[:40] + "…"
	}
	return strconv.QuoteToASCII(key)
}
