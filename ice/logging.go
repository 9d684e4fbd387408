package ice

import (
	"fmt"

	"github.com/pion/logging"
	"github.com/rs/zerolog"
)

// pionLog passes pion's warnings and errors on as trace and debug messages:
// most of them are about what a stranger sent. Its own debug and trace
// messages are dropped, since they print passwords.
type pionLog struct{ log zerolog.Logger }

var (
	_ logging.LoggerFactory = pionLog{}
	_ logging.LeveledLogger = pionLog{}
)

// NewLogger returns a logger for a part of pion.
func (p pionLog) NewLogger(scope string) logging.LeveledLogger {
	return pionLog{p.log.With().Str("pion", scope).Logger()}
}

func (pionLog) Trace(string)          {}
func (pionLog) Tracef(string, ...any) {}
func (pionLog) Debug(string)          {}
func (pionLog) Debugf(string, ...any) {}
func (pionLog) Info(string)           {}
func (pionLog) Infof(string, ...any)  {}

func (p pionLog) Warn(msg string)  { p.log.Trace().Msg(msg) }
func (p pionLog) Error(msg string) { p.log.Debug().Msg(msg) }

func (p pionLog) Warnf(format string, args ...any) {
	if e := p.log.Trace(); e.Enabled() {
		e.Msg(fmt.Sprintf(format, args...))
	}
}

func (p pionLog) Errorf(format string, args ...any) {
	if e := p.log.Debug(); e.Enabled() {
		e.Msg(fmt.Sprintf(format, args...))
	}
}
