// Package terminal writes to a person's screen what may be written there: text
// from strangers without the control characters that would steer the terminal,
// one progress line that erases itself, and the footer below an answer.
//
// It knows nothing of sessions or networks. Output that does not go to a
// terminal is none of its business: a pipe gets its bytes untouched.
//
// Which characters are dangerous follows ECMA-48 (C0 and C1 control functions,
// escape sequences) and Unicode's UAX #9 (bidirectional controls, which can
// show a text in another order than it is stored in).
package terminal

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// Sanitizer is a writer that passes text on with every control character
// replaced by something visible. A newline, a tab and a carriage return right
// before a newline pass as they are. Characters split between two calls of
// Write are put together again. Its methods may be called from several
// goroutines; each call writes below at most once.
type Sanitizer struct {
	w io.Writer

	mu sync.Mutex // guards what follows, and every write to w
	// rest holds the bytes that the next call may complete: the beginning of
	// a UTF-8 sequence, or a carriage return.
	rest []byte
	out  []byte
}

var _ io.Writer = (*Sanitizer)(nil)

// NewSanitizer returns a Sanitizer that writes to w. Use it only when w is a
// terminal.
func NewSanitizer(w io.Writer) *Sanitizer { return &Sanitizer{w: w} }

// Write sanitises p. All of p counts as written unless the writer below fails.
func (s *Sanitizer) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rest) == 0 && harmless(p) {
		return s.w.Write(p)
	}
	in := p
	if len(s.rest) > 0 {
		in = append(s.rest, p...)
	}
	out, used := appendClean(s.out[:0], in, false)
	s.rest = append(s.rest[:0], in[used:]...)
	s.out = out[:0]
	if len(out) > 0 {
		if _, err := s.w.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Flush writes what was kept back because its other half has not come: an
// unfinished UTF-8 sequence as U+FFFD, a lone carriage return as ␍. Call it at
// the end of the text.
func (s *Sanitizer) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rest) == 0 {
		return nil
	}
	out, _ := appendClean(s.out[:0], s.rest, true)
	s.rest, s.out = s.rest[:0], out[:0]
	_, err := s.w.Write(out)
	return err
}

// Clean returns s as a Sanitizer would write it.
func Clean(s string) string {
	if harmless([]byte(s)) {
		return s
	}
	out, _ := appendClean(nil, []byte(s), true)
	return string(out)
}

// OneLine makes one line of at most limit columns out of a name or a message
// from a stranger: control characters become visible, line breaks and runs of
// white space one space, and what is too long ends in "…". A limit of zero
// or less sets none.
func OneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.Join(strings.Fields(s), " ")
	s = Clean(s)
	if limit <= 0 {
		return s
	}
	return truncate(s, limit)
}

// harmless reports whether p is ASCII text without control characters, which
// is nearly everything: it can be written as it is.
func harmless(p []byte) bool {
	for _, b := range p {
		if b >= utf8.RuneSelf || b == 0x7f || (b < 0x20 && b != '\n' && b != '\t') {
			return false
		}
	}
	return true
}

// appendClean appends the sanitised form of in to out and says how many bytes
// of in it used. At the end of the text (final) it uses them all.
func appendClean(out, in []byte, final bool) (cleaned []byte, used int) {
	for used < len(in) {
		b := in[used]
		if b == '\r' {
			if used+1 == len(in) && !final {
				return out, used
			}
			if used+1 < len(in) && in[used+1] == '\n' {
				out = append(out, '\r')
			} else {
				out = append(out, "␍"...)
			}
			used++
			continue
		}
		if b < utf8.RuneSelf {
			out = appendASCII(out, b)
			used++
			continue
		}
		if !final && !utf8.FullRune(in[used:]) {
			return out, used
		}
		r, n := utf8.DecodeRune(in[used:])
		used += n
		switch {
		case r == utf8.RuneError:
			out = append(out, "\uFFFD"...)
		case r <= 0x9f, bidiControl(r):
			out = fmt.Appendf(out, "<U+%04X>", r)
		default:
			out = utf8.AppendRune(out, r)
		}
	}
	return out, used
}

// appendASCII appends b, or its picture from the Unicode block Control
// Pictures when it is a control character.
func appendASCII(out []byte, b byte) []byte {
	switch {
	case b == '\n' || b == '\t':
		return append(out, b)
	case b < 0x20:
		return utf8.AppendRune(out, '\u2400'+rune(b))
	case b == 0x7f:
		return append(out, "␡"...)
	}
	return append(out, b)
}

// bidiControl reports whether r changes the direction of the text after it
// (UAX #9, section 2): LRE, RLE, PDF, LRO, RLO, LRI, RLI, FSI, PDI, and the
// marks LRM, RLM and ALM.
func bidiControl(r rune) bool {
	return (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) ||
		r == 0x200e || r == 0x200f || r == 0x061c
}
