package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"

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
	co, err := newCoordinator(coordinatorConfig{
		Key: key, Listen: cfg.Listen, JoinSecret: secret, Local: identity.NewSecret(), Open: cfg.Access == AccessOpen,
		Public: cfg.Public, STUN: cfg.STUN, TURN: turnOf(cfg.TURN), Reputation: s.paths.Ledger(), Deadlines: cfg.Deadlines,
		Log: s.log, Metrics: newCoordinatorMetrics(registry),
	})
	if err != nil {
		return err
	}
	co.registerEvents(registry)
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
	g.start(co.Run)
	g.start(status.Run)
	return g.wait()
}

func turnOf(t TURNConfig) turnSettings {
	return turnSettings{
		Enabled: t.Enabled, Listen: t.Listen, PortMin: t.Ports.Min, PortMax: t.Ports.Max,
		RelayIP: t.RelayIP, URLs: t.URLs, Secret: t.Secret,
	}
}

// announce prints every port that was opened, as the system sees it, and the
// links for here, the LAN and the Internet.
func (c *coordinator) announce(w io.Writer, secret identity.Secret, status *statusServer) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("coordinator %s", c.cfg.Key.ID())
	p("  listens on  UDP %s (signaling)", c.Addr())
	if c.turn != nil {
		for _, addr := range c.turn.Addrs() {
			p("              UDP %s (STUN and TURN)", addr)
		}
		p("              UDP %d-%d while a relay is lent", c.cfg.TURN.PortMin, c.cfg.TURN.PortMax)
	}
	if status != nil {
		p("              TCP %s (/metrics, /healthz, /miners)", status.ln.Addr())
	}
	switch {
	case c.turn != nil:
	case len(c.cfg.TURN.URLs) > 0:
		p("  lends       the relay at %s", strings.Join(c.cfg.TURN.URLs, ", "))
	default:
		p("  lends       no relay: peers without a direct path will not reach each other")
	}
	if c.cfg.Open {
		p("  admits      everyone (access = \"open\")")
	} else {
		p("  admits      whoever holds a link, and this user's processes on this machine")
	}
	places := c.places()
	if c.cfg.Open {
		p("links:")
	} else {
		p("links, each a secret that admits:")
	}
	for _, group := range []struct {
		name  string
		addrs []string
	}{{"here", places.here}, {"LAN", places.lan}, {"Internet", places.internet}} {
		for _, addr := range group.addrs {
			link := identity.Link{Addrs: []string{addr}, ID: c.cfg.Key.ID(), Secret: secret}
			p("  %-9s %s", group.name, link.String())
		}
	}
	if len(places.internet) == 0 {
		p("  Internet  none yet: forward UDP %d and %s to this machine and set [coordinator] public", c.Addr().Port(), c.turnPorts())
	}
}

func (c *coordinator) turnPorts() string {
	if c.turn == nil {
		return "the relay's ports"
	}
	return fmt.Sprintf("%d, %d-%d", c.turnPort(), c.cfg.TURN.PortMin, c.cfg.TURN.PortMax)
}

// turnPort is the UDP port of our own relay.
func (c *coordinator) turnPort() uint16 {
	if addrs := c.turn.Addrs(); len(addrs) > 0 {
		return addrs[0].Port()
	}
	return 0
}

// places are the addresses at which the coordinator can be joined, by distance.
type places struct{ here, lan, internet []string }

func (c *coordinator) places() places {
	var out places
	at := c.Addr()
	port := at.Port()
	bound := []netip.Addr{at.Addr().Unmap()}
	if at.Addr().IsUnspecified() {
		bound = append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, localAddrs()...)
	}
	for _, addr := range bound {
		text := netip.AddrPortFrom(addr, port).String()
		switch {
		case addr.IsLoopback():
			out.here = append(out.here, text)
		case addr.IsPrivate(), isCarrierNAT(addr):
			out.lan = append(out.lan, text)
		default:
			out.internet = append(out.internet, text)
		}
	}
	var named []string // in the order of the configuration
	for _, public := range c.cfg.Public {
		if _, _, err := net.SplitHostPort(public); err != nil {
			public = net.JoinHostPort(strings.Trim(public, "[]"), fmt.Sprint(port))
		}
		out.internet = slices.DeleteFunc(out.internet, func(a string) bool { return a == public })
		out.lan = slices.DeleteFunc(out.lan, func(a string) bool { return a == public })
		named = append(named, public)
	}
	out.internet = append(named, out.internet...)
	return out
}
