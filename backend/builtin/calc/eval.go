package calc

import (
	"errors"
	"math/big"
)

// value is a number and how far the true one may lie from it: nothing for
// exact values.
type value struct {
	rat *big.Rat
	off *big.Rat // nil when exact, else a bound of the absolute error
}

func (v value) approximate() bool { return v.off != nil }

// ErrPrecision means that a result with an irrational root in it could only be
// given with too large an error.
var ErrPrecision = errors.New("roots in this calculation have no exact value, and rounding them would make the result unreliable")

// maxFactorial is the largest number whose factorial fits MaxDigits.
const maxFactorial = 1700

// rootDigits is how many significant digits of an irrational root are kept.
const rootDigits = 60

func (n *node) eval() (value, error) {
	var left, right value
	var err error
	if n.kind == number {
		return exact(n.value)
	}
	if n.left != nil {
		if left, err = n.left.eval(); err != nil {
			return value{}, err
		}
	}
	if n.right != nil {
		if right, err = n.right.eval(); err != nil {
			return value{}, err
		}
	}
	switch n.kind {
	case plus:
		return bounded(new(big.Rat).Add(left.rat, right.rat), sumOff(left, right))
	case minus:
		if n.left == nil {
			return value{new(big.Rat).Neg(right.rat), right.off}, nil
		}
		return bounded(new(big.Rat).Sub(left.rat, right.rat), sumOff(left, right))
	case times, of:
		return multiply(left, right)
	case divide:
		return quotient(left, right)
	case modulo:
		return remainder(left, right)
	case percent:
		return multiply(left, value{rat: big.NewRat(1, 100)})
	case factorial:
		return factorialOf(left)
	case power:
		return raise(left, right)
	case squareRoot:
		return root(right, 2)
	case cubeRoot:
		return root(right, 3)
	default:
		return value{}, ErrNotArithmetic
	}
}

// exact returns r unless it is too large.
func exact(r *big.Rat) (value, error) { return bounded(r, nil) }

func bounded(r, off *big.Rat) (value, error) {
	for _, x := range []*big.Rat{r, off} {
		if x != nil && (x.Num().BitLen() > maxBits || x.Denom().BitLen() > maxBits) {
			return value{}, ErrTooLarge
		}
	}
	return value{r, off}, nil
}

// sumOff is the error of a sum: the sum of the errors.
func sumOff(a, b value) *big.Rat {
	switch {
	case a.off == nil:
		return b.off
	case b.off == nil:
		return a.off
	}
	return new(big.Rat).Add(a.off, b.off)
}

// multiply: |ab − a'b'| ≤ |a|·off(b) + |b|·off(a) + off(a)·off(b).
func multiply(a, b value) (value, error) {
	var off *big.Rat
	if a.off != nil || b.off != nil {
		off = new(big.Rat)
		term := func(x, y *big.Rat) {
			if x != nil && y != nil {
				off.Add(off, new(big.Rat).Mul(new(big.Rat).Abs(x), y))
			}
		}
		term(a.rat, b.off)
		term(b.rat, a.off)
		term(a.off, b.off)
	}
	return bounded(new(big.Rat).Mul(a.rat, b.rat), off)
}

func quotient(a, b value) (value, error) {
	inverse, err := invert(b)
	if err != nil {
		return value{}, err
	}
	return multiply(a, inverse)
}

// invert: |1/b − 1/b'| ≤ off / (|b|·(|b| − off)).
func invert(b value) (value, error) {
	if b.off == nil {
		if b.rat.Sign() == 0 {
			return value{}, ErrDivisionByZero
		}
		return exact(new(big.Rat).Inv(b.rat))
	}
	size := new(big.Rat).Abs(b.rat)
	least := new(big.Rat).Sub(size, b.off)
	if least.Sign() <= 0 {
		return value{}, ErrPrecision
	}
	off := new(big.Rat).Quo(b.off, new(big.Rat).Mul(size, least))
	return bounded(new(big.Rat).Inv(b.rat), off)
}

// remainder is a − b·⌊a ÷ b⌋, which has the sign of b.
func remainder(a, b value) (value, error) {
	if a.approximate() || b.approximate() {
		return value{}, ErrPrecision
	}
	if b.rat.Sign() == 0 {
		return value{}, ErrDivisionByZero
	}
	q := new(big.Rat).Quo(a.rat, b.rat)
	floor := new(big.Int).Div(q.Num(), q.Denom()) // Euclidean; the divisor is positive
	return exact(new(big.Rat).Sub(a.rat, new(big.Rat).Mul(b.rat, new(big.Rat).SetInt(floor))))
}

func factorialOf(v value) (value, error) {
	switch {
	case v.approximate():
		return value{}, ErrPrecision
	case !v.rat.IsInt() || v.rat.Sign() < 0:
		return value{}, &SyntaxError{"a factorial needs a whole number that is not negative"}
	case !v.rat.Num().IsInt64() || v.rat.Num().Int64() > maxFactorial:
		return value{}, ErrTooLarge
	}
	return exact(new(big.Rat).SetInt(new(big.Int).MulRange(1, v.rat.Num().Int64())))
}

// maxRoot is the largest denominator of an exponent.
const maxRoot = 64

func raise(base, exponent value) (value, error) {
	if exponent.approximate() {
		return value{}, ErrPrecision
	}
	e := exponent.rat
	if !base.approximate() {
		switch {
		case e.Sign() == 0 && base.rat.Sign() == 0:
			return value{}, &SyntaxError{"0^0 is not defined: it can mean 1 or nothing at all"}
		case e.Sign() == 0:
			return exact(big.NewRat(1, 1))
		case base.rat.Sign() == 0 && e.Sign() < 0:
			return value{}, ErrDivisionByZero
		case base.rat.Sign() == 0, base.rat.Cmp(big.NewRat(1, 1)) == 0:
			return exact(base.rat)
		}
	}
	if !e.Denom().IsInt64() || e.Denom().Int64() > maxRoot {
		if base.rat.Sign() < 0 {
			return value{}, ErrNotReal
		}
		return value{}, &SyntaxError{"a power with this exponent has no exact value: use a whole number or a simple fraction like 1/2"}
	}
	if base.rat.Sign() < 0 && !e.IsInt() {
		return value{}, ErrNotReal
	}
	whole, err := raiseWhole(base, e.Num())
	if err != nil || e.IsInt() {
		return whole, err
	}
	return root(whole, int(e.Denom().Int64()))
}

// raiseWhole refuses before it multiplies when the result would be too large.
func raiseWhole(base value, e *big.Int) (value, error) {
	if e.Sign() < 0 {
		v, err := raiseWhole(base, new(big.Int).Neg(e))
		if err != nil {
			return value{}, err
		}
		return invert(v)
	}
	num, den := base.rat.Num(), base.rat.Denom()
	if base.approximate() {
		return raiseApproximate(base, e)
	}
	if den.IsInt64() && den.Int64() == 1 && num.IsInt64() && num.Int64() == -1 {
		return exact(new(big.Rat).SetInt64(1 - 2*int64(e.Bit(0))))
	}
	// A number of n bits is at least 2^(n−1), so its power has at least
	// e·(n−1) bits.
	bits := int64(max(num.BitLen(), den.BitLen()) - 1)
	if !e.IsInt64() || e.Int64() > maxBits || bits*e.Int64() > maxBits {
		return value{}, ErrTooLarge
	}
	return exact(new(big.Rat).SetFrac(new(big.Int).Exp(num, e, nil), new(big.Int).Exp(den, e, nil)))
}

// raiseApproximate multiplies one by one, which few exponents are worth.
func raiseApproximate(base value, e *big.Int) (value, error) {
	const most = 100
	if !e.IsInt64() || e.Int64() > most {
		return value{}, ErrPrecision
	}
	v := value{rat: big.NewRat(1, 1)}
	for range e.Int64() {
		var err error
		if v, err = multiply(v, base); err != nil {
			return value{}, err
		}
	}
	return v, nil
}

// root returns the real q-th root of v, exact when it is rational.
func root(v value, q int) (value, error) {
	if v.approximate() {
		return value{}, ErrPrecision
	}
	if v.rat.Sign() < 0 {
		if q%2 == 0 {
			return value{}, ErrNotReal
		}
		positive, err := root(value{rat: new(big.Rat).Neg(v.rat)}, q)
		if err != nil {
			return value{}, err
		}
		return value{positive.rat.Neg(positive.rat), positive.off}, nil
	}
	num, den := wholeRoot(v.rat.Num(), q), wholeRoot(v.rat.Denom(), q)
	candidate := new(big.Rat).SetFrac(num, den)
	if perfect(num, v.rat.Num(), q) && perfect(den, v.rat.Denom(), q) {
		return exact(candidate)
	}
	// ⌊(num·10^(qk) ÷ den)^(1/q)⌋ ÷ 10^k is at most 10^−k too small. A value
	// below one needs a larger k for the same number of significant digits.
	k := rootDigits + max(v.rat.Denom().BitLen()-v.rat.Num().BitLen(), 0)/(3*q)
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(k)), nil)
	n := new(big.Int).Exp(scale, big.NewInt(int64(q)), nil)
	n.Mul(n, v.rat.Num()).Quo(n, v.rat.Denom())
	return bounded(new(big.Rat).SetFrac(wholeRoot(n, q), scale), new(big.Rat).SetFrac(big.NewInt(1), scale))
}

func perfect(root, n *big.Int, q int) bool {
	return new(big.Int).Exp(root, big.NewInt(int64(q)), nil).Cmp(n) == 0
}

// wholeRoot returns ⌊n^(1/q)⌋ by Newton's method from above.
func wholeRoot(n *big.Int, q int) *big.Int {
	if q == 2 {
		return new(big.Int).Sqrt(n)
	}
	if n.Sign() == 0 || q == 1 {
		return new(big.Int).Set(n)
	}
	less := big.NewInt(int64(q - 1))
	x := new(big.Int).Lsh(big.NewInt(1), uint((n.BitLen()+q-1)/q))
	for {
		y := new(big.Int).Exp(x, less, nil)
		y.Quo(n, y).Add(y, new(big.Int).Mul(x, less)).Quo(y, big.NewInt(int64(q)))
		if y.Cmp(x) >= 0 {
			return x
		}
		x = y
	}
}
