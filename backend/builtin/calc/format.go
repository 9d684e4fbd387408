package calc

import (
	"math/big"
	"strings"
)

// String returns the sign under which an operator is shown.
func (k kind) String() string {
	switch k {
	case modulo:
		return "mod"
	case of:
		return "of"
	default:
		return string(rune(k))
	}
}

// Levels of precedence for parentheses, from loose to tight.
const (
	levelSum = iota
	levelProduct
	levelSigned
	levelPower
	levelPostfix
	levelPrimary
)

func (n *node) level() int {
	switch {
	case n.kind == number:
		return levelPrimary
	case n.kind == minus && n.left == nil:
		return levelSigned
	case n.kind == plus || n.kind == minus:
		return levelSum
	case n.kind == times || n.kind == divide || n.kind == modulo || n.kind == of:
		return levelProduct
	case n.kind == power, n.kind == squareRoot, n.kind == cubeRoot: // (√2)^2 is not √(2^2)
		return levelPower
	case n.kind == percent || n.kind == factorial:
		return levelPostfix
	}
	return levelPrimary
}

// String returns the expression with no more parentheses than a reader needs.
func (n *node) String() string {
	var b strings.Builder
	n.write(&b)
	return b.String()
}

func (n *node) write(b *strings.Builder) {
	switch level := n.level(); {
	case n.kind == number:
		b.WriteString(n.text)
	case n.kind == minus && n.left == nil:
		b.WriteString("−")
		n.right.writeAbove(b, levelPostfix) // −(2^2): not everybody agrees on −2^2
	case n.kind == squareRoot || n.kind == cubeRoot:
		b.WriteString(n.kind.String())
		n.right.writeAbove(b, levelPrimary)
	case level == levelPostfix:
		n.left.writeAbove(b, levelPrimary)
		b.WriteString(n.kind.String())
	case n.kind == power:
		n.left.writeAbove(b, levelPostfix)
		b.WriteByte('^')
		n.right.writeAbove(b, levelPostfix)
	default:
		n.left.writeAbove(b, level)
		b.WriteString(" " + n.kind.String() + " ")
		if n.right.kind == minus && n.right.left == nil {
			level = levelPower // 8 ÷ (−2): two signs in a row are hard to read
		}
		if n.right.kind == percent && level == levelSum && n.left.kind != percent {
			level = levelPostfix // 200 + (10%): without them it is refused
		}
		n.right.writeAbove(b, level+1)
	}
}

// writeAbove writes n, in parentheses when it binds looser than level.
func (n *node) writeAbove(b *strings.Builder, level int) {
	if n.level() >= level {
		n.write(b)
		return
	}
	b.WriteByte('(')
	n.write(b)
	b.WriteByte(')')
}

// How results that are no short decimal are shown.
const (
	shownDigits = 20 // significant digits of a rounded result
	maxFraction = 40 // longest exact fraction shown beside it, in characters
)

// reliable reports whether the error of v leaves shownDigits+1 digits.
func reliable(v value) bool {
	limit := new(big.Rat).SetFrac(big.NewInt(1), new(big.Int).Exp(big.NewInt(10), big.NewInt(shownDigits+1), nil))
	return v.off.Cmp(limit.Mul(limit, new(big.Rat).Abs(v.rat))) <= 0
}

// String returns the calculation and its result on one line: "12 × 7 = 84",
// "1 ÷ 3 ≈ 0.33333333333333333333 (exactly 1/3)".
func (r Result) String() string {
	if !r.Approximate {
		if s, ok := decimal(r.Value); ok {
			return r.Expression + " = " + s
		}
	}
	s := r.Expression + " ≈ " + rounded(r.Value)
	if fraction := r.Value.RatString(); !r.Approximate && len(fraction) <= maxFraction && fraction != r.Expression {
		s += " (exactly " + strings.Replace(fraction, "-", "−", 1) + ")"
	}
	return s
}

// decimal writes v exactly, which is possible when its denominator has no
// prime factors but 2 and 5, and reasonable up to 100 digits after the point.
func decimal(v *big.Rat) (s string, ok bool) {
	const most = 100
	n, finite := v.FloatPrec()
	if !finite || n > most {
		return "", false
	}
	return strings.Replace(v.FloatString(n), "-", "−", 1), true
}

// rounded writes v with shownDigits significant digits, as a power of ten when
// it is very large or small.
func rounded(v *big.Rat) string {
	f := new(big.Float).SetPrec(256).SetRat(v)
	s := f.Text('g', shownDigits)
	if mantissa, exponent, ok := strings.Cut(s, "e"); ok {
		if strings.Contains(mantissa, ".") {
			mantissa = strings.TrimRight(strings.TrimRight(mantissa, "0"), ".")
		}
		exponent = strings.TrimLeft(strings.TrimPrefix(exponent, "+"), "0")
		if negative, ok := strings.CutPrefix(exponent, "-"); ok {
			exponent = "−" + strings.TrimLeft(negative, "0")
		}
		return strings.Replace(mantissa, "-", "−", 1) + " × 10^" + exponent
	}
	return strings.Replace(s, "-", "−", 1)
}
