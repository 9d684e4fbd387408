package terminal

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var cleanTests = []struct{ name, in, want string }{
	{"empty", "", ""},
	{"text", "Hello, world\n\tindented", "Hello, world\n\tindented"},
	{"other scripts", "Grüße, 世界, שלום, مرحبا, 🎉👨‍👩‍👧", "Grüße, 世界, שלום, مرحبا, 🎉👨‍👩‍👧"},
	{"colour", "\x1b[31mred\x1b[0m", "␛[31mred␛[0m"},
	{"title", "\x1b]0;pwned\x07", "␛]0;pwned␇"},
	{"clipboard", "\x1b]52;c;cm0=\x1b\\", "␛]52;c;cm0=␛\\"},
	{"cursor", "a\bb\x0bc\x0cd", "a␈b␋c␌d"},
	{"NUL and DEL", "a\x00b\x7fc", "a␀b␡c"},
	{"XON and XOFF", "\x11\x13", "␑␓"},
	{"overwritten line", "safe\revil", "safe␍evil"},
	{"CRLF", "one\r\ntwo\r\n", "one\r\ntwo\r\n"},
	{"CR CR LF", "one\r\r\n", "one␍\r\n"},
	{"CR at the end", "one\r", "one␍"},
	{"CSI as C1", "a\u009b31mb", "a<U+009B>31mb"},
	{"all C1", "\u0080\u0085\u009f\u00a0", "<U+0080><U+0085><U+009F>\u00a0"},
	{"raw C1 bytes", "a\x9b31m", "a\uFFFD31m"},
	{"override", "user\u202egpj.exe", "user<U+202E>gpj.exe"},
	{
		"all bidi controls", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c",
		"<U+202A><U+202B><U+202C><U+202D><U+202E><U+2066><U+2067><U+2068><U+2069><U+200E><U+200F><U+061C>",
	},
	{"invalid UTF-8", "a\xffb\xc3(c", "a\uFFFDb\uFFFD(c"},
	{"overlong ESC", "\xc0\x9b[31m", "\uFFFD\uFFFD[31m"},
	{"overlong ESC, 3 bytes", "\xe0\x80\x9b", "\uFFFD\uFFFD\uFFFD"},
	{"surrogate", "\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
	{"unfinished", "a\xe4\xb8", "a\uFFFD\uFFFD"},
	{"replacement itself", "\uFFFD", "\uFFFD"},
}

func TestClean(t *testing.T) {
	for _, tt := range cleanTests {
		if got := Clean(tt.in); got != tt.want {
			t.Errorf("%s: Clean(%q) = %q, want %q", tt.name, tt.in, got, tt.want)
		}
	}
}

// TestSanitizerSplit writes each text in two parts, cut at every place, and
// byte by byte.
func TestSanitizerSplit(t *testing.T) {
	for _, tt := range cleanTests {
		for cut := range len(tt.in) + 1 {
			if got := sanitize(t, tt.in[:cut], tt.in[cut:]); got != tt.want {
				t.Errorf("%s: cut at %d: %q, want %q", tt.name, cut, got, tt.want)
			}
		}
		if got := sanitize(t, strings.Split(tt.in, "")...); got != tt.want {
			t.Errorf("%s: character by character: %q, want %q", tt.name, got, tt.want)
		}
		var single []string
		for i := range len(tt.in) {
			single = append(single, tt.in[i:i+1])
		}
		if got := sanitize(t, single...); got != tt.want {
			t.Errorf("%s: byte by byte: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func sanitize(t *testing.T, parts ...string) string {
	t.Helper()
	var b strings.Builder
	s := NewSanitizer(&b)
	for _, p := range parts {
		if n, err := s.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", p, n, err)
		}
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestSanitizerAtOnce checks that nothing complete is kept back: an answer
// streams.
func TestSanitizerAtOnce(t *testing.T) {
	var b bytes.Buffer
	s := NewSanitizer(&b)
	for _, step := range []struct{ in, seen string }{
		{"a", "a"},
		{"\xe4", "a"},
		{"\xb8", "a"},
		{"\x96b", "a世b"},
		{"\r", "a世b"},
		{"\n", "a世b\r\n"},
		{"\xf0\x9f", "a世b\r\n"},
		{"x", "a世b\r\n\uFFFD\uFFFDx"},
	} {
		if _, err := s.Write([]byte(step.in)); err != nil {
			t.Fatal(err)
		}
		if b.String() != step.seen {
			t.Fatalf("after %q: %q, want %q", step.in, b.String(), step.seen)
		}
	}
}

// TestSanitizerConcurrent is for the race detector: log lines come from many
// goroutines.
func TestSanitizerConcurrent(t *testing.T) {
	var b bytes.Buffer
	s := NewSanitizer(&b)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				if _, err := s.Write([]byte("line\x1b\n")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if want := strings.Repeat("line␛\n", 400); b.String() != want {
		t.Error("lines were mixed")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestSanitizerFails(t *testing.T) {
	s := NewSanitizer(failing{io.ErrClosedPipe})
	for _, in := range []string{"plain", "\x1b[0m"} {
		if n, err := s.Write([]byte(in)); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write(%q) = %d, %v", in, n, err)
		}
	}
	if n, err := s.Write(nil); n != 0 || err != nil {
		t.Errorf("Write(nil) = %d, %v", n, err)
	}
	if _, err := s.Write([]byte("\r")); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Flush: %v", err)
	}
}

func TestOneLine(t *testing.T) {
	tests := []struct {
		in    string
		limit int
		want  string
	}{
		{"gpu-box", 40, "gpu-box"},
		{"", 10, ""},
		{"  two\n\twords \r\n", 40, "two words"},
		{"line\u2028separator\u2029s", 40, "line separator s"},
		{"\x1b[2Jevil", 40, "␛[2Jevil"},
		{"a\u202eb", 40, "a<U+202E>b"},
		{"bad\xffname", 40, "bad\uFFFDname"},
		{"abcdefgh", 8, "abcdefgh"},
		{"abcdefghi", 8, "abcdefg…"},
		{"abc defghi", 5, "abc…"},
		{"世界世界", 5, "世界…"},
		{"世界世界", 4, "世…"},
		{"世界", 4, "世界"},
		{"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"},
		{"ab", 1, "…"},
		{strings.Repeat("x", 1000), 0, strings.Repeat("x", 1000)},
	}
	for _, tt := range tests {
		if got := OneLine(tt.in, tt.limit); got != tt.want {
			t.Errorf("OneLine(%q, %d) = %q, want %q", tt.in, tt.limit, got, tt.want)
		}
	}
}

// dangerous reports what must reach no terminal.
func dangerous(r rune) bool {
	return (r < 0x20 && r != '\n' && r != '\t' && r != '\r') || (r >= 0x7f && r <= 0x9f) || bidiControl(r)
}

// FuzzSanitizer writes any text in three parts: the same comes out as in one,
// it is valid, harmless, and clean text is not changed.
func FuzzSanitizer(f *testing.F) {
	for _, tt := range cleanTests {
		f.Add([]byte(tt.in), 1, 2)
	}
	f.Fuzz(func(t *testing.T, in []byte, i, j int) {
		i, j = int(uint(i)%uint(len(in)+1)), int(uint(j)%uint(len(in)+1))
		i, j = min(i, j), max(i, j)
		original := bytes.Clone(in)
		got := sanitize(t, string(in[:i]), string(in[i:j]), string(in[j:]))
		if want := Clean(string(in)); got != want {
			t.Fatalf("%q in parts: %q, whole: %q", in, got, want)
		}
		if !bytes.Equal(in, original) {
			t.Fatal("the input was changed")
		}
		if !utf8.ValidString(got) {
			t.Fatalf("%q: invalid %q", in, got)
		}
		for k, r := range got {
			if dangerous(r) || (r == '\r' && (k+1 == len(got) || got[k+1] != '\n')) {
				t.Fatalf("%q: %q at %d", in, got, k)
			}
		}
		if again := Clean(got); again != got {
			t.Fatalf("cleaned twice: %q, %q", got, again)
		}
		line := OneLine(string(in), 20)
		if strings.ContainsFunc(line, func(r rune) bool { return dangerous(r) || r == '\n' || r == '\r' || r == '\t' }) || columns(line) > 20 {
			t.Fatalf("OneLine(%q) = %q", in, line)
		}
	})
}

func BenchmarkSanitizer(b *testing.B) {
	s := NewSanitizer(io.Discard)
	for _, bench := range []struct{ name, text string }{
		{"ascii", strings.Repeat("The quick brown fox jumps over the lazy dog.\n", 100)},
		{"mixed", strings.Repeat("Größe 世界 \x1b[31m — naïve\n", 100)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			p := []byte(bench.text)
			b.ReportAllocs()
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if _, err := s.Write(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
