package calc

import (
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// kind is what a token is. Operators have the sign under which they are shown.
type kind rune

const (
	end        kind = 0
	number     kind = 'n'
	plus       kind = '+'
	minus      kind = '−'
	times      kind = '×'
	divide     kind = '÷'
	power      kind = '^'
	modulo     kind = 'm'
	percent    kind = '%'
	of         kind = 'o'
	factorial  kind = '!'
	squared    kind = '²'
	cubed      kind = '³'
	squareRoot kind = '√'
	cubeRoot   kind = '∛'
	open       kind = '('
	closing    kind = ')'
)

type token struct {
	kind  kind
	value *big.Rat // of a number
	text  string   // of a number, as it will be shown
	// spaced is set when white space stands before the token.
	spaced bool
}

// startsOperand reports whether an operand may begin with t, other than with a
// sign.
func (t token) startsOperand() bool {
	switch t.kind {
	case number, open, squareRoot, cubeRoot:
		return true
	default:
		return false
	}
}

var signs = map[rune]kind{
	'+': plus, '-': minus, '−': minus, '–': minus, '*': times, '×': times, '·': times, '⋅': times, '∙': times,
	'/': divide, '÷': divide, '∕': divide, '^': power, '%': percent, '!': factorial, '(': open, ')': closing,
	'[': open, ']': closing, '²': squared, '³': cubed, '√': squareRoot, '∛': cubeRoot,
}

// phrases are the operators in words; of two that begin alike the longer one
// stands first.
var phrases = []struct {
	words string
	kind  kind
}{
	{"to the power of", power},
	{"raised to the power of", power},
	{"raised to", power},
	{"to the power", power},
	{"the square root of", squareRoot},
	{"square root of", squareRoot},
	{"square root", squareRoot},
	{"sqrt of", squareRoot},
	{"sqrt", squareRoot},
	{"root of", squareRoot},
	{"the cube root of", cubeRoot},
	{"cube root of", cubeRoot},
	{"cube root", cubeRoot},
	{"cbrt", cubeRoot},
	{"multiplied by", times},
	{"divided by", divide},
	{"times", times},
	{"x", times},
	{"over", divide},
	{"plus", plus},
	{"minus", minus},
	{"negative", minus},
	{"modulo", modulo},
	{"mod", modulo},
	{"percent", percent},
	{"per cent", percent},
	{"of", of},
	{"squared", squared},
	{"cubed", cubed},
	{"factorial", factorial},
}

// scanner reads tokens from text. It gives up at the first thing that cannot
// be part of a calculation.
type scanner struct {
	rest   string
	tokens []token
}

// scan returns the tokens of text, at least one number and one operator among
// them, or ErrNotArithmetic.
func scan(text string) ([]token, error) {
	s := &scanner{rest: strings.ToLower(text)}
	for {
		trimmed := strings.TrimLeftFunc(s.rest, unicode.IsSpace)
		spaced := len(trimmed) < len(s.rest)
		s.rest = trimmed
		if s.rest == "" {
			break
		}
		t, err := s.next()
		if err != nil {
			return nil, err
		}
		t.spaced = spaced
		s.tokens = append(s.tokens, t)
	}
	numbers, operators := 0, 0
	for _, t := range s.tokens {
		switch t.kind {
		case number:
			numbers++
		case open, closing, of:
		default:
			operators++
		}
	}
	if numbers == 0 || operators == 0 {
		return nil, ErrNotArithmetic
	}
	return s.tokens, nil
}

func (s *scanner) next() (token, error) {
	if s.rest[0] == '.' || digit(s.rest[0]) {
		return s.number()
	}
	if after, ok := strings.CutPrefix(s.rest, "**"); ok {
		s.rest = after
		return token{kind: power}, nil
	}
	r, n := utf8.DecodeRuneInString(s.rest)
	if k, ok := signs[r]; ok {
		s.rest = s.rest[n:]
		return token{kind: k}, nil
	}
	for _, p := range phrases {
		if rest, ok := cutWords(s.rest, p.words); ok {
			s.rest = rest
			return token{kind: p.kind}, nil
		}
	}
	if v, rest, ok := numberInWords(s.rest); ok {
		s.rest = rest
		return token{kind: number, value: new(big.Rat).SetInt64(v), text: strconv.FormatInt(v, 10)}, nil
	}
	return token{}, ErrNotArithmetic
}

// cutWords removes words, one space between them, from the beginning of s,
// where any white space may stand between them and no letter follows.
func cutWords(s, words string) (rest string, ok bool) {
	rest = s
	for i, w := range strings.Fields(words) {
		if i > 0 {
			rest = strings.TrimLeftFunc(rest, unicode.IsSpace)
		}
		if rest, ok = strings.CutPrefix(rest, w); !ok {
			return s, false
		}
		if r, _ := utf8.DecodeRuneInString(rest); unicode.IsLetter(r) {
			return s, false
		}
	}
	return rest, true
}

func digit(b byte) bool { return b >= '0' && b <= '9' }

func digits(s string) int {
	n := 0
	for n < len(s) && digit(s[n]) {
		n++
	}
	return n
}

// number reads digits with an optional fraction and exponent. Thousands may be
// grouped by commas.
func (s *scanner) number() (token, error) {
	whole := digits(s.rest)
	at := whole
	if whole >= 1 && whole <= 3 {
		for len(s.rest) > at && s.rest[at] == ',' && digits(s.rest[at+1:]) == 3 {
			at += 4
		}
	}
	if at < len(s.rest) && s.rest[at] == ',' && digits(s.rest[at+1:]) > 0 {
		return token{}, &SyntaxError{"a comma can mean two things in a number: write 1.5 for one and a half and 1500 or 1,500 for fifteen hundred"}
	}
	text := strings.ReplaceAll(s.rest[:at], ",", "")
	if at < len(s.rest) && s.rest[at] == '.' {
		n := digits(s.rest[at+1:])
		if n == 0 && text == "" {
			return token{}, ErrNotArithmetic
		}
		if n > 0 {
			text += s.rest[at : at+1+n]
		}
		at += 1 + n
	}
	if text[0] == '.' {
		text = "0" + text
	}
	digitsBefore := len(text)
	if n := exponent(s.rest[at:]); n > 0 {
		text += s.rest[at : at+n]
		at += n
	}
	if at < len(s.rest) && (s.rest[at] == '.' || (text == "0" && s.rest[at] == 'x')) {
		return token{}, ErrNotArithmetic // 1.2.3, 0x1f
	}
	s.rest = s.rest[at:]
	if len(text) > digitsBefore {
		e, err := strconv.Atoi(text[digitsBefore+1:])
		if err != nil || e > MaxDigits || e < -MaxDigits {
			return token{}, ErrTooLarge
		}
	}
	v, ok := new(big.Rat).SetString(text)
	if !ok {
		return token{}, ErrNotArithmetic
	}
	if word, after := cutWord(s.rest); scales[word] > 0 {
		v.Mul(v, new(big.Rat).SetInt64(scales[word]))
		text += " " + word
		s.rest = after
	}
	return token{kind: number, value: v, text: text}, nil
}

// exponent returns the length of an exponent like e-7 at the beginning of s.
func exponent(s string) int {
	if s == "" || s[0] != 'e' {
		return 0
	}
	n := 1
	if len(s) > 1 && (s[1] == '+' || s[1] == '-') {
		n = 2
	}
	if d := digits(s[n:]); d > 0 {
		return n + d
	}
	return 0
}

var units = map[string]int64{
	"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
	"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
	"seventeen": 17, "eighteen": 18, "nineteen": 19,
}

var tens = map[string]int64{
	"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}

var scales = map[string]int64{"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}

// numberInWords reads a whole number like "two hundred and five thousand" from
// the beginning of s.
func numberInWords(s string) (v int64, rest string, ok bool) {
	const (
		nothing = iota
		unit
		ten
		hundred
	)
	var total, part int64
	lastScale, last := int64(1e15), nothing
	rest = s
	for {
		word, after := cutWord(rest)
		if word == "and" && (last == hundred || (last == nothing && ok)) {
			word, after = cutWord(after)
			if _, isUnit := units[word]; !isUnit && tens[word] == 0 {
				break
			}
		}
		if n, isUnit := units[word]; isUnit && (last == nothing || last == hundred || (last == ten && n > 0 && n < 10)) {
			part, last = part+n, unit
		} else if n := tens[word]; n > 0 && (last == nothing || last == hundred) {
			part, last = part+n, ten
		} else if word == "hundred" && last == unit && part > 0 && part < 20 {
			part, last = part*100, hundred
		} else if n := scales[word]; n > 0 && last != nothing && part > 0 && n < lastScale {
			total, part, lastScale, last = total+part*n, 0, n, nothing
		} else {
			break
		}
		rest, ok = after, true
	}
	return total + part, rest, ok
}

// cutWord returns the letters at the beginning of s, after white space or one
// hyphen.
func cutWord(s string) (word, rest string) {
	s = strings.TrimLeftFunc(s, unicode.IsSpace)
	if len(s) > 1 && s[0] == '-' && s[1] >= 'a' && s[1] <= 'z' {
		s = s[1:]
	}
	n := 0
	for n < len(s) && s[n] >= 'a' && s[n] <= 'z' {
		n++
	}
	return s[:n], s[n:]
}
