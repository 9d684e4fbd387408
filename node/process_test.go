package node

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
)

// screen collects what is written to a file that is no terminal.
type screen struct {
	t      testing.TB
	w      *os.File
	closed chan struct{} // the other end has read everything

	mu   sync.Mutex
	data bytes.Buffer
}

func newScreen(t testing.TB) *screen {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, w: w, closed: make(chan struct{})}
	go func() {
		defer close(s.closed)
		_, _ = io.Copy(s, r)
		_ = r.Close()
	}()
	t.Cleanup(s.close)
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.String()
}

func (s *screen) close() {
	_ = s.w.Close()
	<-s.closed
}

// waitFor waits until the text was written.
func (s *screen) waitFor(text string) {
	s.t.Helper()
	waitUntil(s.t, "the output "+text, func() bool { return strings.Contains(s.String(), text) })
}

// process is a command under way.
type process struct {
	t        testing.TB
	out, err *screen
	cancel   context.CancelFunc // Ctrl-C
	done     chan struct{}
	code     int
}

// ended is what a command came to.
type ended struct {
	exit     Exit
	out, err string
}

// launch begins something that writes to a process's files. A nil stdin is
// empty.
func launch(t testing.TB, stdin *os.File, run func(context.Context, IO) int) *process {
	t.Helper()
	if stdin == nil {
		var err error
		if stdin, err = os.Open(os.DevNull); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stdin.Close() })
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, out: newScreen(t), err: newScreen(t), cancel: cancel, done: make(chan struct{})}
	std := IO{Stdin: stdin, Stdout: p.out.w, Stderr: p.err.w, Getenv: noEnv}
	go func() {
		defer close(p.done)
		p.code = run(ctx, std)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
	})
	return p
}

// wait returns what the command came to.
func (p *process) wait() ended {
	p.t.Helper()
	receive(p.t, "the command ends", p.done)
	p.out.close()
	p.err.close()
	return ended{exit: Exit(p.code), out: p.out.String(), err: p.err.String()}
}

// typed begins a command line, as typed.
func typed(t testing.TB, stdin *os.File, args ...string) *process {
	t.Helper()
	return launch(t, stdin, func(ctx context.Context, std IO) int { return Main(ctx, args, std) })
}

// ask begins an ask with the join link and a state folder of its own.
func (l *lab) ask(args ...string) *process {
	l.t.Helper()
	return l.askWithStdin(nil, args...)
}

func (l *lab) askWithStdin(stdin *os.File, args ...string) *process {
	l.t.Helper()
	return typed(l.t, stdin, append([]string{"-mode", "client", "-state", l.t.TempDir(), "-join", l.link(), "ask"}, args...)...)
}

// ask begins an ask of a client that runs already.
func (c *labClient) ask(t testing.TB, opts askOptions) *process {
	t.Helper()
	return launch(t, nil, func(ctx context.Context, std IO) int {
		return finish(newAsker(c.client, std, opts).run(ctx), std)
	})
}

// finish ends a command as Main does.
func finish(err error, std IO) int {
	if err == nil {
		return int(ExitOK)
	}
	failure := asError(err)
	if !failure.shown {
		printFailure(std.Stderr, failure)
	}
	return int(failure.Exit)
}
