// Package labkit runs programs in a NAT laboratory (testdata/natlab): it builds
// them, brings a laboratory up, starts roles at its hosts, waits for what they
// print, and takes everything down again. It measures nothing.
package labkit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Programs are the files that a lab runs.
type Programs struct {
	Mintai, Natlab string
}

// Lab is one laboratory. Only the goroutine that made it uses it.
type Lab struct {
	Programs
	ID      string
	Dir     string              // for homes and logs
	Env     map[string][]string // more environment of the programs at a host, NAME=VALUE
	AskTime time.Duration       // for one Run; 0: 20 s
	running []*Process          // in the order of their start
}

// Waits of a lab; none is near on an idle machine.
const (
	upTime    = 20 * time.Second // until a lab stands
	startTime = 20 * time.Second // until a role is ready
	askTime   = 20 * time.Second // for one command
	stopTime  = 5 * time.Second  // from the request to end until it is made to
)

// Up brings the laboratory up, with arguments of `natlab up`. Whatever it returns,
// Down takes away what there is of it.
func (l *Lab) Up(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	_, err := l.Control(ctx, append([]string{"up", "--lab", l.ID, "--bind-pid", strconv.Itoa(os.Getpid())}, args...)...)
	return err
}

// Down stops what runs and removes the laboratory, all the more when ctx was
// cancelled.
func (l *Lab) Down(ctx context.Context) error {
	for _, p := range l.running {
		p.Ask()
	}
	for _, p := range l.running {
		p.End()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), upTime)
	defer cancel()
	_, err := l.Control(ctx, "down", "--lab", l.ID)
	return err
}

// Control runs the laboratory's own program and returns what it printed.
func (l *Lab) Control(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.Natlab, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is ours to pass on
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("natlab %s: %w: %s", args[0], err, LastLine(problem.String()))
	}
	return out.String(), nil
}

// Command is a program at a host of the laboratory, with its own HOME and
// nothing else of this environment. It is asked to end when ctx is done.
func (l *Lab) Command(ctx context.Context, host, home string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.Natlab, append([]string{"exec", "--lab", l.ID, host, "--"}, argv...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LANG=C.UTF-8"}
	cmd.Env = append(cmd.Env, l.Env[host]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	return cmd
}

// Run runs a command to its end and returns what it printed and its exit code.
// The error is for commands that did not end by themselves.
func (l *Lab) Run(ctx context.Context, host, home string, argv ...string) (stdout, stderr string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(l.AskTime, askTime))
	defer cancel()
	cmd := l.Command(ctx, host, home, argv...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() && ctx.Err() == nil {
		err = nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%s did not end in time: %w", filepath.Base(argv[0]), ctx.Err())
	}
	return out.String(), problem.String(), cmd.ProcessState.ExitCode(), err
}

// Process is a role that runs until it is told to end.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  *log
	done chan struct{} // closed when it has ended
}

// Start starts a role; what it prints goes to a file of its name. It runs until
// Down, whatever becomes of ctx.
func (l *Lab) Start(ctx context.Context, host, name string, argv ...string) (*Process, error) {
	home := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(l.Dir, name+".log"))
	if err != nil {
		return nil, err
	}
	p := &Process{name: name, cmd: l.Command(context.WithoutCancel(ctx), host, home, argv...), log: newLog(file), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		_ = file.Close()
		return nil, err
	}
	l.running = append(l.running, p)
	go p.reap(file)
	return p, nil
}

func (p *Process) reap(file io.Closer) {
	_ = p.cmd.Wait() // how it ended stands in its log
	_ = file.Close()
	close(p.done)
}

// Ask asks it to end; End waits for that, and makes it end.
func (p *Process) Ask() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

func (p *Process) End() {
	late := time.NewTimer(stopTime)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// Await returns the first match of pattern in what the process printed.
func (p *Process) Await(ctx context.Context, pattern *regexp.Regexp) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		text, more := p.log.text()
		if found := pattern.FindString(text); found != "" {
			return found, nil
		}
		select {
		case <-more:
		case <-p.done:
			return "", fmt.Errorf("the %s ended: %s", p.name, LastLine(text))
		case <-ctx.Done():
			return "", fmt.Errorf("the %s is not ready: %w: %s", p.name, ctx.Err(), LastLine(text))
		}
	}
}

// log keeps what a process prints, in a file and for those who wait for it.
type log struct {
	mu   sync.Mutex
	file io.Writer
	got  bytes.Buffer  // the beginning: what is waited for comes early
	more chan struct{} // closed and made anew with each write
}

const maxLog = 1 << 20

func newLog(file io.Writer) *log { return &log{file: file, more: make(chan struct{})} }

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.got.Len()+len(b) <= maxLog {
		l.got.Write(b)
	}
	close(l.more)
	l.more = make(chan struct{})
	return l.file.Write(b)
}

// text is what there is, and a channel that is closed when there is more.
func (l *log) text() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.got.String(), l.more
}

// LastLine is the last line with something on it, shortened.
func LastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}

// Text is what the process has printed, and a channel that is closed when there is
// more.
func (p *Process) Text() (string, <-chan struct{}) { return p.log.text() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// PID is that of the program: the laboratory's own gives way to it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// printedLink is the first Internet link of a coordinator at pub, what a user would
// copy, with the space after it: what came so far may end within the link.
var printedLink = regexp.MustCompile(`mintai://20\.0\.0\.1[:/][^\s"]+\s`)

// AwaitLink returns the link that a coordinator at pub prints.
func (p *Process) AwaitLink(ctx context.Context) (string, error) {
	link, err := p.Await(ctx, printedLink)
	return strings.TrimSpace(link), err
}

// Build builds the programs that are not given, in the folder work.
func Build(ctx context.Context, work, mintai, natlab string) (Programs, error) {
	var p Programs
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil && (mintai == "" || natlab == "") {
		return p, fmt.Errorf("go env: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	for _, b := range []struct {
		file             *string
		given, dir, name string
	}{{&p.Mintai, mintai, root, "mintai"}, {&p.Natlab, natlab, filepath.Join(root, "testdata", "natlab"), "natlab"}} {
		if *b.file, err = BuildOne(ctx, work, b.name, b.given, b.dir, "."); err != nil {
			return p, err
		}
	}
	return p, nil
}

// BuildOne builds one program, unless it is given, and returns its file.
func BuildOne(ctx context.Context, work, name, given, dir, pkg string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	file := filepath.Join(work, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", file, pkg)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return file, nil
}
