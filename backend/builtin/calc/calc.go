// Package calc evaluates arithmetic exactly: numbers are fractions of integers
// of any size, so that 0.1 + 0.2 is 0.3. It reads what people write ("12 × 7",
// "15% of 80", "two to the power of ten") and refuses what can be meant in two
// ways. Time and memory are bounded whatever the input.
package calc

import (
	"errors"
	"math/big"
)

// Limits of one calculation.
const (
	// MaxInput is the longest expression read, in bytes.
	MaxInput = 2000
	// MaxDigits is the most digits that a number may have, before and after
	// the decimal point together.
	MaxDigits = 5000

	maxBits  = MaxDigits * 3322 / 1000 // log2(10) bits a digit
	maxDepth = 100
)

// Errors of Eval to branch on. Others are of type *SyntaxError.
var (
	// ErrNotArithmetic means that the text is no calculation at all.
	ErrNotArithmetic = errors.New("not a calculation")
	// ErrDivisionByZero means just that; 0^-1 is one too.
	ErrDivisionByZero = errors.New("division by zero is not defined")
	// ErrTooLarge means that a number passed MaxDigits.
	ErrTooLarge = errors.New("the numbers become too large: more than 5,000 digits")
	// ErrNotReal means a result outside the real numbers, as the square root
	// of a negative number.
	ErrNotReal = errors.New("the result is not a real number")
	// ErrTooLong means that the text is longer than MaxInput.
	ErrTooLong = errors.New("the calculation is too long: more than 2,000 characters")
)

// SyntaxError says what in a calculation cannot be understood.
type SyntaxError struct {
	// Reason is a sentence for a person, without a final full stop.
	Reason string
}

func (e *SyntaxError) Error() string { return e.Reason }

// Result is a calculation and its outcome.
type Result struct {
	// Expression is the calculation as it was understood, in one notation:
	// "12*7" becomes "12 × 7".
	Expression string
	// Value is the result. It is exact unless Approximate.
	Value *big.Rat
	// Approximate is set when an irrational root made the value inexact. Its
	// first 20 significant digits are right all the same.
	Approximate bool
}

// Eval calculates text. Its errors are those of this package.
func Eval(text string) (Result, error) {
	if len(text) > MaxInput {
		return Result{}, ErrTooLong
	}
	tokens, err := scan(text)
	if err != nil {
		return Result{}, err
	}
	tree, err := parse(tokens)
	if err != nil {
		return Result{}, err
	}
	if tree.kind == number || (tree.kind == minus && tree.left == nil && tree.right.kind == number) {
		return Result{}, ErrNotArithmetic // +5 and -5 are just numbers
	}
	v, err := tree.eval()
	if err != nil {
		return Result{}, err
	}
	if v.approximate() && !reliable(v) {
		return Result{}, ErrPrecision
	}
	return Result{Expression: tree.String(), Value: v.rat, Approximate: v.approximate()}, nil
}
