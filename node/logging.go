package node

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"

	"mintai/terminal"
)

// newLogger logs to w: for a person on a terminal, as JSON lines otherwise.
func newLogger(w *os.File, level, fallback string) (zerolog.Logger, error) {
	if level == "" {
		level = fallback
	}
	if level == "off" {
		return zerolog.Nop(), nil
	}
	parsed, err := zerolog.ParseLevel(level)
	if err != nil || level == "" || parsed == zerolog.NoLevel {
		return zerolog.Logger{}, usageError(fmt.Sprintf("unknown log level %q", level), "the levels are trace, debug, info, warn, error, off")
	}
	var out io.Writer = w
	if terminal.IsTerminal(w) {
		out = zerolog.ConsoleWriter{Out: terminal.NewSanitizer(w), TimeFormat: time.TimeOnly, NoColor: true}
	}
	return zerolog.New(out).Level(parsed).With().Timestamp().Logger(), nil
}
