package labkit

import (
	"flag"
	"slices"
	"strings"
)

// Flags are those of a parsed command line that differ from what the program takes
// by itself, as they are typed, each with a space before it. Those named in not are
// left out.
func Flags(f *flag.FlagSet, not ...string) string {
	var b strings.Builder
	f.Visit(func(x *flag.Flag) {
		value := x.Value.String()
		if value == x.DefValue || slices.Contains(not, x.Name) {
			return
		}
		b.WriteString(" -" + x.Name)
		if word, ok := x.Value.(interface{ IsBoolFlag() bool }); !ok || !word.IsBoolFlag() {
			b.WriteString(" " + value)
		}
	})
	return b.String()
}
