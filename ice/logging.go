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

// Warn is what an agent without candidates says at each tick.
func (pionLog) Warn(string) {}

// Error passes the message on.
func (p pionLog) Error(msg string) { p.log.Debug().Msg(msg) }

// Warnf is mostly about a datagram that a stranger sent.
func (p pionLog) Warnf(format string, args ...any) {
	if e := p.log.Trace(); e.Enabled() {
		e.Msg(fmt.Sprintf(format, args...))
	}
}

// Errorf passes the message on.
func (p pionLog) Errorf(format string, args ...any) {
	if e := p.log.Debug(); e.Enabled() {
		e.Msg(fmt.Sprintf(format, args...))
	}
}
