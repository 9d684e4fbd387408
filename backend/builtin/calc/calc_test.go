package calc

import (
	"errors"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEval(t *testing.T) {
	tests := []struct{ in, want string }{
		// The four operations and their precedence.
		{"12*7", "12 × 7 = 84"},
		{"2+3*4", "2 + 3 × 4 = 14"},
		{"(2+3)*4", "(2 + 3) × 4 = 20"},
		{"10-4-3", "10 − 4 − 3 = 3"},
		{"10-(4-3)", "10 − (4 − 3) = 9"},
		{"8/4/2", "8 ÷ 4 ÷ 2 = 1"},
		{"8/(4/2)", "8 ÷ (4 ÷ 2) = 4"},
		{"[1+2]×3", "(1 + 2) × 3 = 9"},
		{"7 · 6 ÷ 2 − 1", "7 × 6 ÷ 2 − 1 = 20"},
		{"2(3+4)", "2 × (3 + 4) = 14"},
		{"(1+2)(3+4)", "(1 + 2) × (3 + 4) = 21"},
		{"0 * (5)", "0 × 5 = 0"},
		// Signs.
		{"-5+3", "−5 + 3 = −2"},
		{"4 - -3", "4 − (−3) = 7"},
		{"8/-2", "8 ÷ (−2) = −4"},
		{"--4+1", "−(−4) + 1 = 5"},
		{"+4+1", "4 + 1 = 5"},
		{"-2^2", "−(2^2) = −4"},
		{"(-2)^2", "(−2)^2 = 4"},
		{"negative three times two", "−3 × 2 = −6"},
		// Decimals are exact.
		{"0.1+0.2", "0.1 + 0.2 = 0.3"},
		{".5+.25", "0.5 + 0.25 = 0.75"},
		{"1.10*3", "1.10 × 3 = 3.3"},
		{"1e3+1", "1e3 + 1 = 1001"},
		{"2.5e-3*2", "2.5e-3 × 2 = 0.005"},
		{"1,000,000/8", "1000000 ÷ 8 = 125000"},
		{"5.+1", "5 + 1 = 6"},
		{"1/8", "1 ÷ 8 = 0.125"},
		{"1/3", "1 ÷ 3 ≈ 0.33333333333333333333 (exactly 1/3)"},
		{"-22/7", "−22 ÷ 7 ≈ −3.1428571428571428571 (exactly −22/7)"},
		{"1/3+1/3+1/3", "1 ÷ 3 + 1 ÷ 3 + 1 ÷ 3 = 1"},
		{"2/3*3", "2 ÷ 3 × 3 = 2"},
		{"1/3^60", "1 ÷ 3^60 ≈ 2.358982487592572857 × 10^−29 (exactly 1/42391158275216203514294433201)"},
		// Powers and roots.
		{"2^10", "2^10 = 1024"},
		{"2**10", "2^10 = 1024"},
		{"2^3^2", "2^(3^2) = 512"},
		{"(2^3)^2", "(2^3)^2 = 64"},
		{"2^-2", "2^(−2) = 0.25"},
		{"(1/2)^3", "(1 ÷ 2)^3 = 0.125"},
		{"0^5", "0^5 = 0"},
		{"5^0", "5^0 = 1"},
		{"(-1)^1000000001", "(−1)^1000000001 = −1"},
		{"1^999999999999", "1^999999999999 = 1"},
		{"4^(1/2)", "4^(1 ÷ 2) = 2"},
		{"8^(2/3)", "8^(2 ÷ 3) = 4"},
		{"4^0.5", "4^0.5 = 2"},
		{"(4/9)^.5", "(4 ÷ 9)^0.5 ≈ 0.66666666666666666667 (exactly 2/3)"},
		{"√16+9", "√16 + 9 = 13"},
		{"√(16+9)", "√(16 + 9) = 5"},
		{"√(16)/2", "√16 ÷ 2 = 2"},
		{"sqrt(2)", "√2 ≈ 1.4142135623730950488"},
		{"√2*√2", "√2 × √2 ≈ 2"},
		{"2√2", "2 × √2 ≈ 2.8284271247461900976"},
		{"1/√2", "1 ÷ √2 ≈ 0.7071067811865475244"},
		{"√1e-40", "√1e-40 = 0.00000000000000000001"},
		{"√2e-80", "√2e-80 ≈ 1.4142135623730950488 × 10^−40"},
		{"∛27", "∛27 = 3"},
		{"∛-27", "∛(−27) = −3"},
		{"√(16)^2", "(√16)^2 = 16"},
		{"√√16", "√(√16) = 2"},
		{"200+(10%)", "200 + (10%) = 200.1"},
		{"∛(-27)", "∛(−27) = −3"},
		{"∛(-2)", "∛(−2) ≈ −1.2599210498948731648"},
		{"5²+2³", "5^2 + 2^3 = 33"},
		// Factorial and modulo.
		{"5!", "5! = 120"},
		{"(3!)!", "(3!)! = 720"},
		{"0!", "0! = 1"},
		{"17 mod 5", "17 mod 5 = 2"},
		{"17%5", "17 mod 5 = 2"},
		{"-7 mod 3", "−7 mod 3 = 2"},
		{"17 % -5", "17 mod (−5) = −3"},
		{"5.5 mod 2", "5.5 mod 2 = 1.5"},
		// Percent.
		{"15% of 80", "15% of 80 = 12"},
		{"15 percent of 80", "15% of 80 = 12"},
		{"50%", "50% = 0.5"},
		{"10% + 5%", "10% + 5% = 0.15"},
		{"10% - 3", "10% − 3 = −2.9"},
		{"10%*50", "10% × 50 = 5"},
		// Words.
		{"two plus two", "2 + 2 = 4"},
		{"twenty-five times four", "25 × 4 = 100"},
		{"Two hundred and five minus five", "205 − 5 = 200"},
		{"one million two hundred thousand and one plus 1", "1200001 + 1 = 1200002"},
		{"2.5 million / 2", "2.5 million ÷ 2 = 1250000"},
		{"seven squared", "7^2 = 49"},
		{"two to the power of ten", "2^10 = 1024"},
		{"2 raised to the power of 3", "2^3 = 8"},
		{"the square root of 144", "√144 = 12"},
		{"cube root of eight", "∛8 = 2"},
		{"12 x 7", "12 × 7 = 84"},
		{"12x7", "12 × 7 = 84"},
		{"100 divided by 8", "100 ÷ 8 = 12.5"},
		{"six multiplied by seven", "6 × 7 = 42"},
		{"5 factorial", "5! = 120"},
	}
	for _, tt := range tests {
		got := ""
		r, err := Eval(tt.in)
		if err == nil {
			got = r.String()
		} else {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("Eval(%q) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestEvalRefuses(t *testing.T) {
	tests := []struct {
		in   string
		want error // nil: any *SyntaxError
	}{
		{"", ErrNotArithmetic},
		{"42", ErrNotArithmetic},
		{"one", ErrNotArithmetic},
		{"+5", ErrNotArithmetic},
		{"-5", ErrNotArithmetic},
		{"What is a tunnel?", ErrNotArithmetic},
		{"3 apples + 4", ErrNotArithmetic},
		{"1.2.3 + 1", ErrNotArithmetic},
		{"0x1f + 1", ErrNotArithmetic},
		{"$5 + $6", ErrNotArithmetic},
		{". + 1", ErrNotArithmetic},
		{"\xff1+1", ErrNotArithmetic},
		{"1\x00+1", ErrNotArithmetic},
		{"+", ErrNotArithmetic},
		{"plusone 1", ErrNotArithmetic},
		{"1/0", ErrDivisionByZero},
		{"1/(2-2)", ErrDivisionByZero},
		{"0/0", ErrDivisionByZero},
		{"5 mod 0", ErrDivisionByZero},
		{"0^-1", ErrDivisionByZero},
		{"1/(0*√2)", ErrPrecision},
		{"√-1", ErrNotReal},
		{"√(-1)", ErrNotReal},
		{"(-8)^(1/3)", ErrNotReal},
		{"(-8)^0.001", ErrNotReal},
		{"√2*√2-2", ErrPrecision},
		{"√2 mod 1", ErrPrecision},
		{"2^√2", ErrPrecision},
		{"√√2", ErrPrecision},
		{"(√2)!", ErrPrecision},
		{"(√2)^1000", ErrPrecision},
		{"0^0", nil},
		{"2^0.001", nil},
		{"1+", nil},
		{"*3+1", nil},
		{"1 2 + 3", nil},
		{"(1+2", nil},
		{"1+2)", nil},
		{"()+1", nil},
		{"1,5+2", nil},
		{"1,000,00+2", nil},
		{"6/2(1+2)", nil},
		{"200+10%", nil},
		{"3 of 4 + 1", nil},
		{"5!!", nil},
		{"(-1)!", nil},
		{"2.5!", nil},
		{"9^9^9", ErrTooLarge},
		{"2^100000", ErrTooLarge},
		{"2^99999999999999999999999", ErrTooLarge},
		{"10^-100000", ErrTooLarge},
		{"0.5^99999999", ErrTooLarge},
		{"1e99999+1", ErrTooLarge},
		{"1e-99999999999999999999+1", ErrTooLarge},
		{"100000!", ErrTooLarge},
		{"((9^9)!)!", ErrTooLarge},
		{strings.Repeat("(", 300) + "1+1" + strings.Repeat(")", 300), nil},
		{strings.Repeat("-", 300) + "1", nil},
		{strings.Repeat("√", 300) + "1", nil},
		{strings.Repeat("2^", 300) + "1", nil},
		{strings.Repeat("1+", MaxInput) + "1", ErrTooLong},
	}
	for _, tt := range tests {
		r, err := Eval(tt.in)
		var syntax *SyntaxError
		switch {
		case err == nil:
			t.Errorf("Eval(%.60q) = %s, want an error", tt.in, r)
		case tt.want != nil && !errors.Is(err, tt.want):
			t.Errorf("Eval(%.60q): error %q, want %q", tt.in, err, tt.want)
		case tt.want == nil && !errors.As(err, &syntax):
			t.Errorf("Eval(%.60q): error %q, want a SyntaxError", tt.in, err)
		}
	}
}

// TestEvalBounded evaluates what is most costly within the limits.
func TestEvalBounded(t *testing.T) {
	var primes strings.Builder
	primes.WriteString("1/3")
	for n := 5; primes.Len() < MaxInput-8; n += 2 {
		primes.WriteString("+1/" + big.NewInt(int64(n)).String())
	}
	inputs := []string{
		primes.String(),
		"9^5000", "(1/3)^10000", "1700!", "2^16000+1/3^10000",
		strings.TrimSuffix(strings.Repeat("9^5200*9^-5200*", 100), "*"),
		strings.TrimSuffix(strings.Repeat("1e4900/7e4900+", 130), "+"),
		strings.TrimSuffix(strings.Repeat("1700!/1699!*", 150), "*"),
		strings.TrimSuffix(strings.Repeat("√2*", 400), "*"),
		"(√2+1e4000)^100", "7^(63/64)", "(9^5000)^(1/63)", "(9^80)^(63/64)", "(2/3^5000)^(1/3)",
		strings.TrimSuffix(strings.Repeat("∛(9^5100)*", 150), "*"),
		strings.TrimSuffix(strings.Repeat("(9^5100)^(1/63)*", 120), "*"),
	}
	for _, in := range inputs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		r, err := Eval(in)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if took > 5*time.Second {
			t.Errorf("Eval(%.40q…) took %v", in, took)
		}
		if err == nil && len(r.String()) > 3*MaxDigits+2*MaxInput {
			t.Errorf("Eval(%.40q…): %d characters", in, len(r.String()))
		}
		t.Logf("%.40q…: %v, %d KiB allocated in all, error %v", in, took.Round(time.Microsecond), (after.TotalAlloc-before.TotalAlloc)>>10, err)
	}
}

// FuzzEval checks that no text makes Eval panic or run away, and that what it
// understood says the same when it is read again.
func FuzzEval(f *testing.F) {
	for _, s := range []string{
		"12*7", "2^-3^2", "15% of 80", "√(2)+∛27", "two hundred and five", "1e5!", "17 % -5", "1,000.5 mod 3", "-(2)^.5", "5²!",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Eval(s)
		if err != nil {
			return
		}
		if r.Value == nil || r.String() == "" {
			t.Fatalf("Eval(%q) has no value", s)
		}
		again, err := Eval(r.Expression)
		if errors.Is(err, ErrTooLong) {
			return
		}
		var syntax *SyntaxError
		if errors.As(err, &syntax) && strings.Contains(syntax.Reason, "too deep") {
			return
		}
		if err != nil {
			t.Fatalf("Eval(%q) understood %q, which is refused: %v", s, r.Expression, err)
		}
		if again.Value.Cmp(r.Value) != 0 {
			t.Fatalf("Eval(%q) understood %q: %s and %s", s, r.Expression, r, again)
		}
	})
}

func BenchmarkEval(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Eval("(12.5 + 7) * 3 / 4 - 2^10"); err != nil {
			b.Fatal(err)
		}
	}
}
