package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"mintai/testdata/labkit"
)

// lab is one laboratory with a coordinator at pub and a miner at b. Only the
// goroutine that made it uses it.
type lab struct {
	*labkit.Lab
	cell        cell
	link        string        // as the coordinator printed it
	settle      time.Duration // pause before the first ask
	coordinator *labkit.Process
	miner       *labkit.Process
}

// Waits of a lab; none is near on an idle machine.
const (
	startTime   = 20 * time.Second // until a role is ready
	measureTime = 8 * time.Second  // for a miner to measure its network
)

// build brings a laboratory up. Whatever it returns, Down takes away what there
// is of it.
func (l *lab) build(ctx context.Context, rtt time.Duration) error {
	if err := l.Up(ctx, append([]string{"--rtt", strconv.FormatInt(rtt.Milliseconds(), 10)}, l.cell.labArgs()...)...); err != nil {
		return err
	}
	if !strings.Contains(l.cell.Client+l.cell.Miner, "proxy") {
		return nil
	}
	env, err := l.Control(ctx, "env", "--lab", l.ID)
	if err != nil {
		return err
	}
	l.Env = map[string][]string{}
	for line := range strings.Lines(env) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if url, ok := strings.CutPrefix(line, "A_PROXY="); ok {
			l.Env["a"] = []string{"HTTPS_PROXY=" + url}
		} else if url, ok := strings.CutPrefix(line, "B_PROXY="); ok {
			l.Env["b"] = []string{"HTTPS_PROXY=" + url}
		}
	}
	return nil
}

// coordinate starts the coordinator and keeps the link that it prints.
func (l *lab) coordinate(ctx context.Context) error {
	config := filepath.Join(l.Dir, "coordinator.toml")
	const text = "[coordinator]\npublic = [\"20.0.0.1\", \"20.0.0.2\", \"2a00:20::1\", \"2a00:20::2\"]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	p, err := l.Start(ctx, "pub", "coordinator", l.Mintai, "-mode", "coordinator", "-config", config)
	if err != nil {
		return err
	}
	l.coordinator = p
	l.link, err = p.AwaitLink(ctx)
	return err
}

// renew starts the coordinator and the miner anew, without what either remembers.
func (l *lab) renew(ctx context.Context) error {
	for _, p := range []*labkit.Process{l.miner, l.coordinator} {
		p.Ask()
		p.End()
	}
	for _, home := range []string{"miner", "coordinator"} {
		if err := os.RemoveAll(filepath.Join(l.Dir, home)); err != nil {
			return err
		}
	}
	if err := l.coordinate(ctx); err != nil {
		return err
	}
	return l.mine(ctx)
}

// mine starts the miner, whose model needs no time of its own, and waits until
// a client sees it and it knows its network.
func (l *lab) mine(ctx context.Context) error {
	config := filepath.Join(l.Dir, "miner.toml")
	const text = `[miner]
name = "demo-box"
[[miner.backend]]
type = "demo"
models = ["demo"]
first_token = "0ms"
tokens_per_second = 1000
tokens = 8
[[miner.backend]]
type = "demo"
models = ["long"]
first_token = "0ms"
tokens_per_second = 20
tokens = 130
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	p, err := l.Start(ctx, "b", "miner", l.Mintai, "-mode", "miner", "-log-level", "debug", "-config", config, "-join", l.link)
	if err != nil {
		return err
	}
	l.miner = p
	if err := l.seen(ctx, p); err != nil {
		return err
	}
	// It measures its network in the background, and tells the coordinator.
	measured, cancel := context.WithTimeout(ctx, measureTime)
	defer cancel()
	if _, err := p.Await(measured, measuredLog); err != nil {
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
func (l *lab) seen(ctx context.Context, miner *labkit.Process) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	look := filepath.Join(l.Dir, "look")
	if err := os.MkdirAll(look, 0o700); err != nil {
		return err
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		out, problem, _, err := l.Run(ctx, "pub", look, l.Mintai, "-mode", "client", "models", "-json", "-join", l.link)
		if err == nil && strings.Contains(out, `"miner":"demo-box"`) {
			return nil
		}
		select {
		case <-again.C:
		case <-miner.Done():
			text, _ := miner.Text()
			return fmt.Errorf("the miner ended: %s", labkit.LastLine(text))
		case <-ctx.Done():
			return fmt.Errorf("no client sees the miner: %w: %s", ctx.Err(), labkit.LastLine(out+problem))
		}
	}
}
