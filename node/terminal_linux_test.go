package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newTerminal is a screen that is a terminal, as a person has it.
func newTerminal(t testing.TB) (s *screen, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s = &screen{t: t, w: tty, closed: make(chan struct{})}
	go func() {
		defer close(s.closed)
		_, _ = io.Copy(s, master) // ends with EIO when the last other end is closed
		_ = master.Close()
	}()
	t.Cleanup(s.close)
	return s, tty
}

// On a terminal the person sees what is being waited for, then an answer
// without control characters, then the footer.
func TestAskOnATerminal(t *testing.T) {
	t.Parallel()
	l, _, ai := ready(t, func(c *aiCall) {
		<-c.ai.opened
		c.piece("first \x1b]0;title\x07")
		c.piece("\u202e end")
		c.end()
	})
	cl := l.client()
	s, tty := newTerminal(t)
	p := launch(t, nil, func(ctx context.Context, std IO) int {
		std.Stdout, std.Stderr = tty, tty
		return finish(newAsker(cl.client, std, askOptions{prompt: []string{"?"}}).run(ctx), std)
	})
	s.waitFor("waiting for the first token…") // after 300 ms
	ai.gate()
	if got := p.wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	s.close()
	text := s.String()
	if strings.ContainsAny(text, "\x1b\u202e\u009b\x07") {
		t.Errorf("raw control characters in %q", text)
	}
	after := text[strings.LastIndex(text, "waiting for the first token…"):]
	if !regexp.MustCompile("^waiting for the first token…\r +\rfirst ␛]0;title␇<U\\+202E> end\r\n" +
		"m on gpu-box · direct [<0-9.]+ ms \\(same machine\\) · first token [0-9][0-9a-z. ]*( · [0-9.]+ tok/s)?\r\n$").MatchString(after) {
		t.Errorf("the terminal shows %q", after)
	}
}

// With -q there is no footer, and an error leaves no half line behind.
func TestFailureOnATerminal(t *testing.T) {
	t.Parallel()
	l, _, _ := ready(t, func(c *aiCall) { c.piece("first"); c.die() })
	cl := l.client()
	s, tty := newTerminal(t)
	p := launch(t, nil, func(ctx context.Context, std IO) int {
		std.Stdout, std.Stderr = tty, tty
		return finish(newAsker(cl.client, std, askOptions{prompt: []string{"?"}, quiet: true}).run(ctx), std)
	})
	if got := p.wait(); got.exit != ExitLost {
		t.Fatalf("%+v", got)
	}
	s.close()
	if want := "first\r\nmintai: the AI server on gpu-box broke off"; !strings.HasPrefix(s.String(), want) || strings.Count(s.String(), "\n") != 2 {
		t.Errorf("the terminal shows %q, want %q…", s.String(), want)
	}
}
