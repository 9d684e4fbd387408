package terminal

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// screen is one line of a terminal: it knows \r, \b and \n only, and fails on
// any other control character or on a line that would wrap.
type screen struct {
	t      *testing.T
	mu     sync.Mutex
	width  int
	lines  []string
	line   []rune
	cursor int
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range string(p) {
		switch {
		case r == '\r':
			s.cursor = 0
		case r == '\b':
			s.cursor--
		case r == '\n':
			s.lines = append(s.lines, strings.TrimRight(string(s.line), " "))
			s.line, s.cursor = nil, 0
		case r < ' ':
			s.t.Errorf("control character %q", r)
		default:
			if s.cursor == len(s.line) {
				s.line = append(s.line, r)
			} else {
				s.line[s.cursor] = r
			}
			if s.cursor++; s.cursor >= s.width {
				s.t.Errorf("the line %q wraps", string(s.line))
			}
		}
	}
	return len(p), nil
}

func (s *screen) now() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimRight(string(s.line), " ")
}

// at returns the column of the cursor.
func (s *screen) at() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cursor
}

func (s *screen) want(text string) {
	s.t.Helper()
	if got := s.now(); got != text {
		s.t.Errorf("the line is %q, want %q", got, text)
	}
}

func newScreen(t *testing.T, width int) (*screen, *Progress) {
	s := &screen{t: t, width: width}
	return s, newProgress(s, func() int { return width }, afterFunc)
}

// wait lets d pass in the bubble and its timers do their work.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newScreen(t, 40)
		p.Set("matching…")
		wait(Delay - time.Millisecond)
		s.want("")
		p.Set("connecting gpu-box (direct)…")
		wait(time.Millisecond)
		s.want("connecting gpu-box (direct)…")
		p.Set("queued 2…")
		s.want("queued 2…")
		if s.at() != len([]rune("queued 2…")) {
			t.Errorf("the cursor is at %d", s.at())
		}
		p.Set("waiting for the first token…")
		s.want("waiting for the first token…")
		p.Clear()
		s.want("")
		if s.at() != 0 {
			t.Errorf("the cursor is at %d", s.at())
		}
		p.Clear()
		p.Set("again")
		s.want("")
		wait(Delay)
		s.want("again")
		p.Close()
		s.want("")
		p.Set("closed")
		wait(2 * Delay)
		s.want("")
		p.Clear()
		p.Close()
	})
}

// TestProgressQuick shows nothing when the step is over before Delay, and no
// earlier timer shows the next step too soon.
func TestProgressQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newScreen(t, 40)
		p.Set("one")
		wait(Delay - time.Millisecond)
		p.Clear()
		p.Set("two")
		wait(Delay - time.Millisecond)
		s.want("")
		wait(time.Millisecond)
		s.want("two")
		p.Close()
	})
}

// TestProgressLateTimer runs a timer that Stop came too late for.
func TestProgressLateTimer(t *testing.T) {
	var timers []func()
	s := &screen{t: t, width: 40}
	p := newProgress(s, func() int { return 40 }, func(_ time.Duration, f func()) func() bool {
		timers = append(timers, f)
		return func() bool { return false }
	})
	p.Set("one")
	p.Clear()
	p.Set("two")
	timers[0]()
	s.want("")
	timers[1]()
	s.want("two")
	p.Close()
	timers[1]()
	s.want("")
}

func TestProgressWidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newScreen(t, 12)
		p.Set("connecting to a very long name")
		wait(Delay)
		s.want("connecting…")
		p.Set("evil\x1b[2J\n\u202ename")
		s.want("evil␛[2J <…")
		p.Close()

		s, p = newScreen(t, 1)
		p.Set("no room")
		wait(Delay)
		s.want("")
		p.Close()
	})
}

// TestProgressBeside writes an answer to the same terminal.
func TestProgressBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newScreen(t, 60)
		out := p.Wrap(s)
		p.Set("waiting for the first token…")
		wait(Delay)
		s.want("waiting for the first token…")
		if n, err := fmt.Fprint(out, "A tunnel is"); n != 11 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		s.want("A tunnel is")
		p.Set("path lost, reconnecting…") // in the middle of a line: not shown
		wait(2 * Delay)
		s.want("A tunnel is")
		if _, err := fmt.Fprint(out, " a passageway\n"); err != nil {
			t.Fatal(err)
		}
		s.want("")
		p.Set("still reading…")
		wait(Delay)
		s.want("still reading…")
		p.Close()
		s.want("")
		if len(s.lines) != 1 || s.lines[0] != "A tunnel is a passageway" {
			t.Errorf("lines %q", s.lines)
		}
		if _, err := fmt.Fprint(out, "after the end\n"); err != nil {
			t.Fatal(err)
		}
		if len(s.lines) != 2 || s.lines[1] != "after the end" {
			t.Errorf("lines %q", s.lines)
		}
	})
}

func TestProgressConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newScreen(t, 60)
		out := p.Wrap(s)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for j := range 50 {
					p.Set(fmt.Sprintf("step %d of %d", j, i))
					time.Sleep(Delay / 10 * time.Duration(i+1))
					_, _ = fmt.Fprintf(out, "line %d\n", j)
					if j%7 == 0 {
						p.Clear()
					}
				}
			})
		}
		wg.Wait()
		p.Close()
		s.want("")
		if len(s.lines) != 200 {
			t.Errorf("%d lines", len(s.lines))
		}
		for _, l := range s.lines {
			if !strings.HasPrefix(l, "line ") {
				t.Errorf("line %q", l)
			}
		}
	})
}

// TestNoTerminal does nothing when the output is no terminal.
func TestNoTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	defer func() { _ = w.Close() }()
	if IsTerminal(w) || IsTerminal(nil) {
		t.Error("a pipe is no terminal")
	}
	if Width(w) != defaultWidth || Width(nil) != defaultWidth {
		t.Error("a pipe has no width")
	}
	p := NewProgress(w)
	if p != nil {
		t.Fatal("a Progress on a pipe")
	}
	p.Set("nothing")
	p.Clear()
	p.Close()
	if p.Wrap(w) != w {
		t.Error("Wrap changed the writer")
	}
}
