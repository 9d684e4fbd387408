package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"mintai/identity"
)

// setup is what every command begins with.
type setup struct {
	cfg   *Config
	paths Paths
	log   zerolog.Logger
	state string
}

// prepare reads the configuration and finds the state folder.
func (c *command) prepare(std IO, role Role, defaultLevel string) (*setup, error) {
	log, err := newLogger(std.Stderr, c.logLevel, defaultLevel)
	if err != nil {
		return nil, err
	}
	cfg, err := LoadConfig(c.config, std.Getenv)
	if err != nil {
		return nil, configFailure(err, c.config)
	}
	for _, w := range cfg.Warnings {
		_, _ = fmt.Fprintln(std.Stderr, "mintai: "+w)
	}
	state, err := StateDir(c.state, std.Getenv)
	if err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "state", Message: err.Error(), Err: err}
	}
	return &setup{cfg: cfg, paths: NewPaths(state, role, std.Getenv), log: log, state: state}, nil
}

// configFailure says what is wrong in the file, every line of it.
func configFailure(err error, path string) error {
	e := &Error{Exit: ExitUsage, Code: "config", Message: err.Error(), Err: err}
	var all *ConfigError
	switch {
	case errors.As(err, &all):
		e.lines = all.Lines()
	case errors.Is(err, fs.ErrNotExist):
		e.Message = fmt.Sprintf("no configuration file %s", path)
		e.Hint = "make one: cp config.example.toml " + path
	}
	return e
}

// loadKey reads or makes the role's key.
func (s *setup) loadKey() (*identity.Key, error) {
	key, err := identity.LoadOrCreateKey(s.paths.Key())
	if err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "key", Message: err.Error(), Err: err}
	}
	return key, nil
}

// openPins opens the memory of coordinators trusted on first use.
func (s *setup) openPins() (*identity.Pins, error) {
	pins, err := identity.OpenPins(s.paths.Pins())
	if err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "pins", Message: err.Error(), Err: err}
	}
	return pins, nil
}

var notInNames = pattern(`[^A-Za-z0-9._-]+`)

// machineName is what people see this node as: the configured name, else the
// machine's.
func machineName(configured string) string {
	name := configured
	if name == "" {
		name, _ = os.Hostname() // without a name the NodeID is shown
		name, _, _ = strings.Cut(name, ".")
		name = notInNames().ReplaceAllString(name, "-")
	}
	if len(name) > 63 {
		name = name[:63]
	}
	return name
}

// notice returns a function that writes one line for the person.
func notice(std IO) func(string) {
	return func(text string) { _, _ = fmt.Fprintln(std.Stderr, "mintai: "+text) }
}

// every calls do at each tick until ctx ends.
func every(ctx context.Context, d time.Duration, do func(now time.Time)) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			do(now)
		}
	}
}

// group runs parts side by side: the first failure stops the others, and all
// are awaited.
type group struct {
	ctx    context.Context //nolint:containedctx // lives exactly as long as the group
	cancel context.CancelFunc
	errs   chan error
	parts  int
}

func newGroup(ctx context.Context) *group {
	ctx, cancel := context.WithCancel(ctx)
	return &group{ctx: ctx, cancel: cancel, errs: make(chan error, 8)}
}

// start runs a part until the group stops. At most eight may be started.
func (g *group) start(part func(context.Context) error) {
	g.parts++
	go func() { g.errs <- part(g.ctx) }()
}

// wait stops the group as soon as a part ends or ctx does, and returns the
// first failure that is not the stopping itself.
func (g *group) wait() error {
	var first error
	for range g.parts {
		err := <-g.errs
		g.cancel()
		if err != nil && first == nil && !errors.Is(err, context.Canceled) {
			first = err
		}
	}
	return first
}

// stop ends the group and waits for it.
func (g *group) stop() error {
	g.cancel()
	return g.wait()
}
