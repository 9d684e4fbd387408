package node

import (
	"context"
	"os"
	"runtime/debug"

	"mintai/identity"
)

// coordinatorGC is the garbage collector's target for a process that holds much
// and allocates little: with 1,000 idle miners, 66 KB of resident memory each
// instead of 82 KB at Go's default of 100.
const coordinatorGC = 30

func (c *command) runCoordinator(ctx context.Context, std IO) error {
	s, err := c.prepare(std, RoleCoordinator, "info")
	if err != nil {
		return err
	}
	if c.join != "" {
		return usageError("a coordinator joins nobody", "-join is for -mode miner and -mode client")
	}
	key, err := s.loadKey()
	if err != nil {
		return err
	}
	secret, err := identity.LoadOrCreateSecret(s.paths.Secret())
	if err != nil {
		return &Error{Exit: ExitUsage, Code: "secret", Message: err.Error(), Err: err}
	}
	cfg := s.cfg.Coordinator
	if c.listen != "" {
		cfg.Listen = c.listen
	}
	if std.Getenv("GOGC") == "" {
		debug.SetGCPercent(coordinatorGC)
	}
	registry := newRegistry()
	co, err := newCoordinator(coordinatorConfig{ //nolint:contextcheck // it opens ports and runs later
		Key: key, Listen: cfg.Listen, JoinSecret: secret, Local: identity.NewSecret(), Open: cfg.Access == AccessOpen,
		Public: cfg.Public, STUN: cfg.STUN, TURN: turnOf(cfg.TURN), Relays: cfg.Relays,
		TLS: tlsOf(cfg.TLS, s.paths.ACME()), PortMap: cfg.PortMapping, Reputation: s.paths.Ledger(), Deadlines: cfg.Deadlines,
		Log: s.log, Metrics: newCoordinatorMetrics(registry),
	})
	if err != nil {
		return err
	}
	co.registerEvents(registry)
	co.registerProbes(registry)
	runtime := co.Runtime(os.Getpid())
	at, err := s.paths.WriteRuntime(runtime)
	if err != nil {
		s.log.Warn().Err(err).Msg("processes of this user will not find this coordinator by themselves; use the link")
	} else {
		defer func() {
			if err := identity.RemoveRuntime(at, runtime); err != nil {
				s.log.Warn().Err(err).Msg("runtime file")
			}
		}()
	}
	status := listenStatus(cfg.Metrics, registry, func() error { return nil }, s.log)
	status.handle("GET /miners", co.serveMiners)
	co.announce(std.Stdout, secret, status)
	g := newGroup(ctx)
	if co.home != nil {
		co.home.tell = func(link bool, lines []string) { co.announceHome(std.Stdout, secret, link, lines) }
	}
	g.start(co.Run)
	g.start(status.Run)
	return g.wait()
}

func turnOf(t TURNConfig) turnSettings {
	return turnSettings{
		Enabled: t.Enabled, Listen: t.Listen, PortMin: t.Ports.Min, PortMax: t.Ports.Max,
		RelayIP: t.RelayIP, Secret: t.Secret,
	}
}
