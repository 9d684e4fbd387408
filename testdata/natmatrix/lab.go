package main

import (
	"bytes"
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

// programs are the files that a lab runs.
type programs struct {
	mintai, natlab, self string
}

// lab is one laboratory with a coordinator at pub and a miner at b. Only the
// goroutine that made it uses it.
type lab struct {
	programs
	id      string
	dir     string
	cell    cell
	link    string        // as the coordinator printed it
	proxies [2]string     // of a and b; empty: none
	settle  time.Duration // pause before the first ask
	running []*process    // in the order of their start
}

// Waits of a lab; none is near on an idle machine.
const (
	upTime      = 20 * time.Second // until a lab stands
	startTime   = 20 * time.Second // until a role is ready
	askTime     = 20 * time.Second // for one ask
	measureTime = 8 * time.Second  // for a miner to measure its network
	stopTime    = 5 * time.Second  // from the request to end until it is made to
)

// build brings a laboratory up. Whatever it returns, down takes away what there
// is of it.
func (l *lab) build(ctx context.Context, rtt time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	args := append([]string{"up", "--lab", l.id, "--rtt", strconv.FormatInt(rtt.Milliseconds(), 10), "--bind-pid", strconv.Itoa(os.Getpid())}, l.cell.labArgs()...)
	if _, err := l.control(ctx, args...); err != nil {
		return err
	}
	if !strings.Contains(l.cell.Client+l.cell.Miner, "proxy") {
		return nil
	}
	env, err := l.control(ctx, "env", "--lab", l.id)
	if err != nil {
		return err
	}
	for line := range strings.Lines(env) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if url, ok := strings.CutPrefix(line, "A_PROXY="); ok {
			l.proxies[0] = url
		} else if url, ok := strings.CutPrefix(line, "B_PROXY="); ok {
			l.proxies[1] = url
		}
	}
	return nil
}

// down stops what runs and removes the laboratory, all the more when ctx was
// cancelled.
func (l *lab) down(ctx context.Context) error {
	for _, p := range l.running {
		p.ask()
	}
	for _, p := range l.running {
		p.end()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), upTime)
	defer cancel()
	_, err := l.control(ctx, "down", "--lab", l.id)
	return err
}

// control runs the laboratory's own program and returns what it printed.
func (l *lab) control(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.natlab, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is ours to pass on
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("natlab %s: %w: %s", args[0], err, lastLine(problem.String()))
	}
	return out.String(), nil
}

// command is a program at a host of the laboratory, with its own HOME and
// nothing else of this environment. It is asked to end when ctx is done.
func (l *lab) command(ctx context.Context, host, home string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.natlab, append([]string{"exec", "--lab", l.id, host, "--"}, argv...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LANG=C.UTF-8"}
	for i, name := range []string{"a", "b"} {
		if host == name && l.proxies[i] != "" {
			cmd.Env = append(cmd.Env, "HTTPS_PROXY="+l.proxies[i])
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	return cmd
}

// run runs a command to its end and returns what it printed and its exit code.
// The error is for commands that did not end by themselves.
func (l *lab) run(ctx context.Context, host, home string, argv ...string) (stdout, stderr string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cmd := l.command(ctx, host, home, argv...)
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

// process is a role that runs until it is told to end.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *log
	done chan struct{} // closed when it has ended
}

// start starts a role; what it prints goes to a file of its name. It runs until
// down, whatever becomes of ctx.
func (l *lab) start(ctx context.Context, host, name string, argv ...string) (*process, error) {
	home := filepath.Join(l.dir, name)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(l.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: l.command(context.WithoutCancel(ctx), host, home, argv...), log: newLog(file), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		_ = file.Close()
		return nil, err
	}
	l.running = append(l.running, p)
	go p.reap(file)
	return p, nil
}

func (p *process) reap(file io.Closer) {
	_ = p.cmd.Wait() // how it ended stands in its log
	_ = file.Close()
	close(p.done)
}

// ask asks it to end; end waits for that, and makes it end.
func (p *process) ask() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

func (p *process) end() {
	late := time.NewTimer(stopTime)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// await returns the first match of pattern in what the process printed.
func (p *process) await(ctx context.Context, pattern *regexp.Regexp) (string, error) {
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
			return "", fmt.Errorf("the %s ended: %s", p.name, lastLine(text))
		case <-ctx.Done():
			return "", fmt.Errorf("the %s is not ready: %w: %s", p.name, ctx.Err(), lastLine(text))
		}
	}
}

// printedLink is the first Internet link of a coordinator at pub: what a user
// would copy.
var printedLink = regexp.MustCompile(`mintai://20\.0\.0\.1[:/][^\s"]+`)

// coordinate starts the coordinator and keeps the link that it prints.
func (l *lab) coordinate(ctx context.Context) error {
	config := filepath.Join(l.dir, "coordinator.toml")
	const text = "[coordinator]\npublic = [\"20.0.0.1\", \"20.0.0.2\", \"2a00:20::1\", \"2a00:20::2\"]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	p, err := l.start(ctx, "pub", "coordinator", l.mintai, "-mode", "coordinator", "-config", config)
	if err != nil {
		return err
	}
	l.link, err = p.await(ctx, printedLink)
	return err
}

// mine starts the miner, whose model needs no time of its own, and waits until
// a client sees it and it knows its network.
func (l *lab) mine(ctx context.Context) error {
	config := filepath.Join(l.dir, "miner.toml")
	const text = `[miner]
name = "demo-box"
[[miner.backend]]
type = "demo"
first_token = "0ms"
tokens_per_second = 1000
tokens = 8
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	p, err := l.start(ctx, "b", "miner", l.mintai, "-mode", "miner", "-log-level", "debug", "-config", config, "-join", l.link)
	if err != nil {
		return err
	}
	if err := l.seen(ctx, p); err != nil {
		return err
	}
	// It measures its network in the background, and tells the coordinator.
	measured, cancel := context.WithTimeout(ctx, measureTime)
	defer cancel()
	if _, err := p.await(measured, measuredLog); err != nil {
		return err
	}
	select {
	case <-time.After(l.settle):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// measuredLog is what a miner logs when it knows its network: when it has
// measured it, or when no UDP leaves it.
var measuredLog = regexp.MustCompile(`"message":"network measured"|"over_tls":true`)

// seen waits until a client at pub sees the miner's model.
func (l *lab) seen(ctx context.Context, miner *process) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	look := filepath.Join(l.dir, "look")
	if err := os.MkdirAll(look, 0o700); err != nil {
		return err
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		out, problem, _, err := l.run(ctx, "pub", look, l.mintai, "-mode", "client", "models", "-json", "-join", l.link)
		if err == nil && strings.Contains(out, `"miner":"demo-box"`) {
			return nil
		}
		select {
		case <-again.C:
		case <-miner.done:
			text, _ := miner.log.text()
			return fmt.Errorf("the miner ended: %s", lastLine(text))
		case <-ctx.Done():
			return fmt.Errorf("no client sees the miner: %w: %s", ctx.Err(), lastLine(out+problem))
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

// lastLine is the last line with something on it, shortened.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}
