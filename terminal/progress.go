package terminal

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Delay is how long a step may take before the progress line speaks of it.
const Delay = 300 * time.Millisecond

// Progress is one line at the bottom of a terminal that says what is being
// waited for. It appears when there is still something to say after Delay and
// erases itself. The zero value is not usable; a nil *Progress shows nothing.
//
//	hidden --Set--> armed --Delay--> shown --Set--> shown (new text)
//	   ^______________|______Clear_____|      Close from any state: closed
//
// Its methods may be called from several goroutines.
type Progress struct {
	w     io.Writer
	width func() int
	clock func(d time.Duration, f func()) (stop func() bool)

	mu     sync.Mutex // guards what follows, and every write to w
	text   string
	state  progressState
	drawn  int // columns on the screen
	stop   func() bool
	epoch  int  // counts timers, so that a late one knows that it is not meant
	midway bool // ordinary output stopped in the middle of a line
}

type progressState int

const (
	hidden progressState = iota
	armed
	shown
	closed
)

// NewProgress returns a Progress on f, normally os.Stderr, or nil when f is no
// terminal.
func NewProgress(f *os.File) *Progress {
	if !IsTerminal(f) {
		return nil
	}
	return newProgress(f, func() int { return Width(f) }, afterFunc)
}

func afterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

func newProgress(w io.Writer, width func() int, clock func(time.Duration, func()) func() bool) *Progress {
	return &Progress{w: w, width: width, clock: clock}
}

// Set says what is going on now. Text from strangers is sanitised and cut to
// the width of the terminal.
func (p *Progress) Set(text string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
	switch p.state {
	case hidden:
		p.state = armed
		p.epoch++
		epoch := p.epoch
		p.stop = p.clock(Delay, func() { p.show(epoch) })
	case shown:
		p.drawLocked()
	case armed, closed:
	}
}

// Clear erases the line. The next Set waits for Delay again.
func (p *Progress) Clear() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clearLocked()
}

// Close erases the line for good. Later calls of Set show nothing.
func (p *Progress) Close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clearLocked()
	p.state = closed
}

// Wrap returns a writer to w whose output may share the terminal with the
// line: the line is erased before each write and does not come back in the
// middle of another line. Wrapping w on a nil Progress returns w.
func (p *Progress) Wrap(w io.Writer) io.Writer {
	if p == nil {
		return w
	}
	return &besideProgress{p: p, w: w}
}

type besideProgress struct {
	p *Progress
	w io.Writer
}

func (b *besideProgress) Write(out []byte) (int, error) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.clearLocked()
	n, err := b.w.Write(out)
	if n > 0 {
		b.p.midway = out[n-1] != '\n'
	}
	return n, err
}

// show is the timer's end: the step has lasted long enough to speak of it.
func (p *Progress) show(epoch int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != armed || p.epoch != epoch {
		return
	}
	p.state = shown
	p.drawLocked()
}

// drawLocked writes the line over the one before. The cursor stays at its end.
// Columns are blanked with spaces, which every terminal understands.
func (p *Progress) drawLocked() {
	if p.midway {
		return
	}
	room := p.width() - 1 // in the last column some terminals wrap
	line := ""
	if room > 0 {
		line = OneLine(p.text, room)
	}
	n := columns(line)
	pad := max(min(p.drawn, room)-n, 0)
	p.writeLocked("\r" + line + strings.Repeat(" ", pad) + strings.Repeat("\b", pad))
	p.drawn = n
}

func (p *Progress) clearLocked() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
	if p.state == closed {
		return
	}
	p.state = hidden
	if p.drawn > 0 {
		blank := max(min(p.drawn, p.width()-1), 0) // the window may be narrower by now
		p.writeLocked("\r" + strings.Repeat(" ", blank) + "\r")
		p.drawn = 0
	}
}

// writeLocked ignores errors: a progress line that cannot be shown is no
// reason to stop the work that it tells about.
func (p *Progress) writeLocked(s string) { _, _ = io.WriteString(p.w, s) }
