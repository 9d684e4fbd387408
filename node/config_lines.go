package node

import (
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// keyLines returns the line on which each key of a valid TOML document first
// appears. Keys are paths as configDecoder makes them: "miner.backend[1].url".
//
// The TOML package knows positions only for its own errors; this scanner looks
// for nothing but keys. It is given documents that the package has accepted; in
// others it finds what it can.
func keyLines(doc string) map[string]int {
	s := &lineScanner{
		doc: strings.TrimPrefix(doc, "\xef\xbb\xbf"), line: 1,
		lines: map[string]int{}, tables: map[string]int{},
	}
	for s.skipBlank(); s.pos < len(s.doc); s.skipBlank() {
		before := s.pos
		if s.peek() == '[' {
			s.header()
		} else {
			s.keyValue(s.context)
		}
		if s.pos == before { // not TOML: do not stay here for ever
			break
		}
	}
	return s.lines
}

// joinKey appends a table's key to a path, in quotes when it is no bare key.
func joinKey(path, key string) string {
	bare := key != ""
	for i := range len(key) {
		bare = bare && isBareKey(key[i])
	}
	if !bare {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// indexKey appends an array's index to a path.
func indexKey(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

type lineScanner struct {
	doc     string
	pos     int // bytes
	line    int
	depth   int
	context string         // the table that the last header opened
	lines   map[string]int // the result
	tables  map[string]int // the number of [[headers]] of each array of tables
}

// maxDepth bounds the nesting of values that is followed.
const maxDepth = 64

func (s *lineScanner) peek() byte {
	if s.pos < len(s.doc) {
		return s.doc[s.pos]
	}
	return 0
}

func (s *lineScanner) advance(n int) {
	end := min(s.pos+n, len(s.doc))
	s.line += strings.Count(s.doc[s.pos:end], "\n")
	s.pos = end
}

func (s *lineScanner) spaces() {
	for s.peek() == ' ' || s.peek() == '\t' {
		s.pos++
	}
}

// skipBlank skips white space, line ends and comments.
func (s *lineScanner) skipBlank() {
	for s.pos < len(s.doc) {
		switch s.doc[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.advance(1)
		case '#':
			s.restOfLine()
		default:
			return
		}
	}
}

func (s *lineScanner) restOfLine() {
	if i := strings.IndexByte(s.doc[s.pos:], '\n'); i >= 0 {
		s.pos += i
	} else {
		s.pos = len(s.doc)
	}
}

func (s *lineScanner) mention(path string) {
	if _, ok := s.lines[path]; !ok {
		s.lines[path] = s.line
	}
}

// header reads [a.b] or [[a.b]] and makes it the context.
func (s *lineScanner) header() {
	s.pos++
	array := s.peek() == '['
	if array {
		s.pos++
	}
	parts := s.dottedKey()
	path := ""
	for i, part := range parts {
		path = joinKey(path, part)
		s.mention(path)
		switch n := s.tables[path]; {
		case array && i == len(parts)-1:
			s.tables[path]++
			path = indexKey(path, n)
			s.mention(path)
		case n > 0: // the last element of an array of tables
			path = indexKey(path, n-1)
		}
	}
	s.context = path
	for s.peek() == ']' || s.peek() == ' ' || s.peek() == '\t' {
		s.pos++
	}
}

// keyValue reads key = value, or a.b.c = value.
func (s *lineScanner) keyValue(path string) {
	for _, part := range s.dottedKey() {
		path = joinKey(path, part)
		s.mention(path)
	}
	if s.peek() == '=' {
		s.pos++
		s.spaces()
		s.value(path)
	}
}

// dottedKey reads the parts of a key and the white space behind them.
func (s *lineScanner) dottedKey() []string {
	var parts []string
	for {
		s.spaces()
		switch c := s.peek(); {
		case c == '"' || c == '\'':
			start := s.pos
			s.quoted(c)
			parts = append(parts, unquoteKey(s.doc[start:s.pos]))
		default:
			start := s.pos
			for isBareKey(s.peek()) {
				s.pos++
			}
			if s.pos == start {
				return parts
			}
			parts = append(parts, s.doc[start:s.pos])
		}
		s.spaces()
		if s.peek() != '.' {
			return parts
		}
		s.pos++
	}
}

func isBareKey(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// unquoteKey leaves escapes to the TOML package, which knows them all.
func unquoteKey(quoted string) string {
	var doc map[string]any
	if _, err := toml.Decode(quoted+" = 0", &doc); err == nil {
		for key := range doc {
			return key
		}
	}
	return quoted
}

// value skips one value and notes the keys inside it.
func (s *lineScanner) value(path string) {
	if s.depth++; s.depth > maxDepth {
		s.pos = len(s.doc)
	}
	defer func() { s.depth-- }()
	rest := s.doc[s.pos:]
	switch {
	case strings.HasPrefix(rest, `"""`), strings.HasPrefix(rest, `'''`):
		s.longString(rest[:3])
	case strings.HasPrefix(rest, `"`), strings.HasPrefix(rest, `'`):
		s.quoted(rest[0])
	case strings.HasPrefix(rest, "["):
		s.array(path)
	case strings.HasPrefix(rest, "{"):
		s.inlineTable(path)
	default: // a number, a boolean, a date
		if i := strings.IndexAny(rest, ",]}#\n"); i >= 0 {
			s.pos += i
		} else {
			s.pos = len(s.doc)
		}
	}
}

// quoted skips a string of one line.
func (s *lineScanner) quoted(quote byte) {
	for s.pos++; s.pos < len(s.doc); s.pos++ {
		switch c := s.doc[s.pos]; {
		case c == '\n':
			return
		case c == '\\' && quote == '"':
			s.pos++
		case c == quote:
			s.pos++
			return
		}
	}
	s.pos = len(s.doc)
}

// longString skips a multi-line string, which may end in up to five quotes.
func (s *lineScanner) longString(quotes string) {
	s.pos += len(quotes)
	for s.pos < len(s.doc) {
		switch {
		case quotes == `"""` && s.doc[s.pos] == '\\':
			s.advance(2)
		case strings.HasPrefix(s.doc[s.pos:], quotes):
			s.pos += len(quotes)
			for i := 0; i < 2 && s.peek() == quotes[0]; i++ {
				s.pos++
			}
			return
		default:
			s.advance(1)
		}
	}
}

func (s *lineScanner) array(path string) {
	s.pos++
	for i := 0; ; i++ {
		s.skipBlank()
		if s.peek() == ']' || s.pos >= len(s.doc) {
			s.pos = min(s.pos+1, len(s.doc))
			return
		}
		element := indexKey(path, i)
		s.mention(element)
		before := s.pos
		s.value(element)
		s.skipBlank()
		if s.peek() == ',' {
			s.pos++
		} else if s.pos == before {
			return
		}
	}
}

func (s *lineScanner) inlineTable(path string) {
	s.pos++
	for {
		s.skipBlank()
		if s.peek() == '}' || s.pos >= len(s.doc) {
			s.pos = min(s.pos+1, len(s.doc))
			return
		}
		before := s.pos
		s.keyValue(path)
		s.skipBlank()
		if s.peek() == ',' {
			s.pos++
		} else if s.pos == before {
			return
		}
	}
}
