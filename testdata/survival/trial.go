package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"mintai/testdata/labkit"
)

// settings are for all trials of a run.
type settings struct {
	options
	labkit.Programs
	ai, self, work string
}

// trial is one laboratory with one answer.
type trial struct {
	settings
	lab                      *labkit.Lab
	coordinator, miner, turn *labkit.Process
	proxy                    *labkit.Process
	link                     string
	client                   *asked

	started, happened time.Time
	woke, released    time.Time // zero: never
	pause             time.Duration
	bytes             int
	pathFirst, path   string // as the client says
	shorts            string // of the short requests beside it
	faults            []string

	over    bool          // one of the faults is that the limit was passed
	stalled time.Duration // longest delay of this program's own clock about the pause
	before  []*trial      // those that this one repeats
}

// turnSecret is shared by the coordinator and the TURN server at pub2.
const turnSecret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

// Waits of a trial; none is near on an idle machine.
const (
	trialTime = 150 * time.Second
	firstTime = 15 * time.Second // until the first token
	restTime  = 20 * time.Second // for the answer's end, on top of its length
	settled   = 400 * time.Millisecond
	// eventAt is when the event happens in the answer.
	eventAt = 3 * time.Second
)

// try makes one trial.
func (s settings) try(ctx context.Context, e event, id string) *trial {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	t := &trial{settings: s, lab: &labkit.Lab{Programs: s.Programs, ID: id}}
	if err := t.inLab(ctx, e); err != nil {
		t.faults = append(t.faults, err.Error())
	}
	return t
}

func (t *trial) inLab(ctx context.Context, e event) (err error) {
	if t.logs != "" {
		t.lab.Dir = filepath.Join(t.logs, e.name+"-"+t.lab.ID)
		err = errors.Join(os.RemoveAll(t.lab.Dir), os.MkdirAll(t.lab.Dir, 0o700))
	} else {
		t.lab.Dir, err = os.MkdirTemp(t.work, "trial-")
	}
	if err != nil {
		return err
	}
	defer func() {
		t.client.stop()
		err = errors.Join(err, t.lab.Down(ctx))
		if t.logs == "" {
			err = errors.Join(err, os.RemoveAll(t.lab.Dir))
		}
	}()
	if err := t.lab.Up(ctx, append([]string{"--rtt", strconv.FormatInt(t.rtt.Milliseconds(), 10)}, e.lab...)...); err != nil {
		return err
	}
	if err := t.startRoles(ctx, e); err != nil {
		return err
	}
	if e.before != nil {
		if err := e.before(ctx, t); err != nil {
			return err
		}
	}
	return t.ask(ctx, e)
}

var (
	measuredLog = regexp.MustCompile(`"message":"network measured"`)
	overTLSLog  = regexp.MustCompile(`"over_tls":true`) // nothing is measured without UDP
	anything    = regexp.MustCompile(`(?s).`)
)

// startRoles starts everything but the client.
func (t *trial) startRoles(ctx context.Context, e event) (err error) {
	if err := t.writeConfigs(e); err != nil {
		return err
	}
	if e.turn {
		t.turn, err = t.lab.Start(ctx, "pub2", "turnserver", "turnserver", "-n", "--use-auth-secret", "--static-auth-secret="+turnSecret,
			"--realm=mintai", "--listening-ip=20.0.2.1", "--relay-ip=20.0.2.1", "--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout",
			"--pidfile="+filepath.Join(t.lab.Dir, "turn.pid"), "--userdb="+filepath.Join(t.lab.Dir, "turn.db"))
		if err != nil {
			return err
		}
		if _, err := t.turn.Await(ctx, anything); err != nil {
			return err
		}
	}
	if t.coordinator, err = t.lab.Start(ctx, "pub", "coordinator", t.Mintai, "-mode", "coordinator", "-config", filepath.Join(t.lab.Dir, "coordinator.toml")); err != nil {
		return err
	}
	if t.link, err = t.coordinator.AwaitLink(ctx); err != nil {
		return err
	}
	if _, err = t.lab.Start(ctx, "b", "ai", t.ai, "-addr", "127.0.0.1:8000"); err != nil {
		return err
	}
	if t.miner, err = t.lab.Start(ctx, "b", "miner", t.Mintai, "-mode", "miner", "-log-level", "debug", "-config", filepath.Join(t.lab.Dir, "miner.toml"), "-join", t.link); err != nil {
		return err
	}
	ready := measuredLog
	if slices.Contains(e.lab, "udp-blocked") {
		ready = overTLSLog
	}
	if _, err := t.miner.Await(ctx, ready); err != nil {
		return err
	}
	return t.seen(ctx)
}

// seen waits until a client at pub sees the miner's model.
func (t *trial) seen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstTime)
	defer cancel()
	look := filepath.Join(t.lab.Dir, "look")
	if err := os.MkdirAll(look, 0o700); err != nil {
		return err
	}
	for {
		out, problem, _, err := t.lab.Run(ctx, "pub", look, t.Mintai, "-mode", "client", "models", "-json", "-join", t.link)
		if err == nil && strings.Contains(out, "test-small") {
			return wait(ctx, settled) // what the miner has measured arrives
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("no client sees the miner: %w: %s", err, labkit.LastLine(out+problem))
		}
	}
}

// asked is a running `ask` whose answer is noted as it comes.
type asked struct {
	cmd     *exec.Cmd
	problem bytes.Buffer
	done    chan struct{}
	err     error // of the process, once done is closed

	mu  sync.Mutex // guards what follows
	got arrivals
}

// arrivals is what came, and when.
type arrivals struct {
	text []byte
	at   []time.Time
}

// Write notes a piece of the answer.
func (a *asked) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.got.text = append(a.got.text, p...)
	a.got.at = append(a.got.at, time.Now())
	return len(p), nil
}

func (a *asked) arrived() arrivals {
	a.mu.Lock()
	defer a.mu.Unlock()
	return arrivals{slices.Clone(a.got.text), slices.Clone(a.got.at)}
}

func (a *asked) hasEnded() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

func (a *asked) stop() {
	if a == nil || a.hasEnded() {
		return
	}
	_ = a.cmd.Process.Signal(syscall.SIGCONT)
	_ = a.cmd.Process.Kill()
	<-a.done
}

// prompt asks the AI server for an answer of so many tokens.
func (t *trial) prompt(e event, paced bool) string {
	p := fmt.Sprintf("tell me [tokens=%d]", int(t.answer/cadence))
	if e.size > 0 {
		p += fmt.Sprintf(" [size=%d]", e.size)
	}
	if paced {
		p += fmt.Sprintf(" [delay=%v]", cadence)
	}
	return p
}

// ask asks, lets the event happen, and judges.
func (t *trial) ask(ctx context.Context, e event) error {
	// What the AI server says, without anything of MintAI in between.
	want, problem, code, err := t.lab.Run(ctx, "b", t.lab.Dir, t.self, answerWord, "http://127.0.0.1:8000", t.prompt(e, false))
	if err != nil || code != 0 {
		return fmt.Errorf("the AI server: exit code %d: %w %s", code, err, problem)
	}
	home := filepath.Join(t.lab.Dir, "ask")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	t.client = &asked{done: make(chan struct{})}
	cmd := t.lab.Command(ctx, "a", home, t.Mintai, "-mode", "client", "ask", "-v", "-log-level", "debug", "-m", "test-small", "-join", t.link, t.prompt(e, true))
	t.client.cmd = cmd
	cmd.Stdout, cmd.Stderr = t.client, &t.client.problem
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		t.client.err = cmd.Wait()
		close(t.client.done)
	}()
	clock := startStallMeter()
	defer clock.stop()
	if err := t.awaitFirst(ctx); err != nil {
		return err
	}
	if e.name == "upgrade" {
		if t.proxy, err = t.startShorts(ctx); err != nil {
			return err
		}
	}
	t.started = time.Now()
	if err := wait(ctx, eventAt); err != nil {
		return err
	}
	t.happened = time.Now()
	if err := e.happen(ctx, t); err != nil {
		return fmt.Errorf("the event: %w", err)
	}
	if e.after != nil {
		if err := e.after(ctx, t); err != nil {
			t.faults = append(t.faults, err.Error())
		}
	}
	late := time.NewTimer(t.answer + restTime)
	defer late.Stop()
	select {
	case <-t.client.done:
	case <-late.C:
		return errors.New("the ask does not end")
	case <-ctx.Done():
		return ctx.Err()
	}
	ended := time.Now()
	if t.logs != "" {
		_ = os.WriteFile(filepath.Join(t.lab.Dir, "ask.log"), t.client.problem.Bytes(), 0o600)
	}
	t.judge(e, []byte(want), ended, clock.stop())
	return nil
}

func (t *trial) awaitFirst(ctx context.Context) error {
	limit := time.Now().Add(firstTime)
	for len(t.client.arrived().at) == 0 {
		if t.client.hasEnded() || time.Now().After(limit) {
			return fmt.Errorf("no answer began: %s", labkit.LastLine(t.client.problem.String()))
		}
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// startShorts sends short requests through a second client, one after the other.
func (t *trial) startShorts(ctx context.Context) (*labkit.Process, error) {
	const listen = "127.0.0.1:11500"
	_, err := t.lab.Start(ctx, "a", "proxy", t.Mintai, "-mode", "client", "proxy", "-listen", listen, "-join", t.link)
	if err != nil {
		return nil, err
	}
	if err := t.awaitModels(ctx, "http://"+listen); err != nil {
		return nil, err
	}
	return t.lab.Start(ctx, "a", "shorts", t.self, shortsWord, "http://"+listen, (t.answer - 2*time.Second).String())
}

// awaitModels waits until an endpoint lists models: it listens before it knows the
// coordinator.
func (t *trial) awaitModels(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, firstTime)
	defer cancel()
	for {
		_, problem, code, err := t.lab.Run(ctx, "a", t.lab.Dir, t.self, fetchWord, url+"/v1/models", "")
		if err == nil && code == 0 {
			return nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("the endpoint is not ready: %w: %s", err, labkit.LastLine(problem))
		}
	}
}
