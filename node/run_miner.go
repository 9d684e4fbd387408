package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/rs/zerolog"

	"mintai/backend"
	"mintai/backend/builtin"
)

// lookEvery is how often a node that knows no coordinator looks for one.
const lookEvery = time.Second

func (c *command) runMiner(ctx context.Context, std IO) error {
	s, err := c.prepare(std, RoleMiner, "info")
	if err != nil {
		return err
	}
	key, err := s.loadKey()
	if err != nil {
		return err
	}
	pins, err := s.openPins()
	if err != nil {
		return err
	}
	pool, err := newBackends(s.cfg.Miner, s.log)
	if err != nil {
		return err
	}
	member, err := awaitMembership(ctx, func() (membership, error) {
		return findMembership(c.join, std.Getenv("MINTAI_JOIN"), s.cfg.Miner.Join, s.paths)
	}, s.log)
	if err != nil {
		return err
	}
	registry := newRegistry()
	m, err := newMiner(minerConfig{
		Membership: member, Key: key, Name: machineName(s.cfg.Miner.Name), TicketFile: s.paths.Tickets(member.id),
		Pins: pins, Notice: notice(std), Backends: pool, Deadlines: s.cfg.Miner.Deadlines,
		Relay: s.cfg.Miner.Relay, MapPorts: s.cfg.Miner.PortMapping, Probing: s.cfg.Miner.Probing, ProbeFile: s.paths.Probing(), NoPadding: !s.cfg.Miner.PadAnswers,
		Log: s.log, Metrics: newMinerMetrics(registry),
	})
	if err != nil {
		return err
	}
	m.registerEvents(registry)
	s.log.Info().Str("node", key.ID().Short()).Strs("coordinator", member.addrs).Msg("miner starts")
	g := newGroup(ctx)
	g.start(m.Run)
	g.start(m.sayTrouble)
	g.start(listenStatus(s.cfg.Miner.Metrics, registry, m.healthy, s.log).Run)
	return g.wait()
}

// healthy is /healthz: a miner is well when its coordinator knows of it.
func (m *miner) healthy() error {
	st := m.sig.Status()
	switch {
	case st.Connected:
		return nil
	case st.Err != nil:
		return errors.New(troubleLine(m.cfg.Membership, st.Err))
	default:
		return errors.New("not connected to a coordinator yet")
	}
}

// awaitMembership waits until a coordinator of this user runs on this machine,
// when no other is given: the three commands may be started in any order.
func awaitMembership(ctx context.Context, find func() (membership, error), log zerolog.Logger) (membership, error) {
	said := false
	for {
		m, err := find()
		if !errors.Is(err, fs.ErrNotExist) {
			return m, err
		}
		if !said {
			said = true
			log.Warn().Msg("no coordinator yet: waiting for one of this user on this machine (or join one with join = in the configuration)")
		}
		select {
		case <-ctx.Done():
			return membership{}, ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// newBackends opens what the configuration names.
func newBackends(cfg MinerConfig, log zerolog.Logger) (*backend.Pool, error) {
	engine, err := builtin.New()
	if err != nil {
		return nil, fmt.Errorf("the built-in engine: %w", err)
	}
	var configs []backend.Config
	for _, b := range cfg.Backends {
		configs = append(configs, backend.Config{
			Type: b.Type, URL: b.URL, APIKey: b.APIKey, Models: b.Models, Slots: b.Slots,
			FirstToken: b.FirstToken, TokensPerSecond: b.TokensPerSecond, Tokens: b.Tokens,
		})
	}
	queue := cfg.Queue
	if queue == 0 {
		queue = -1 // none: to package backend zero means its default
	}
	pool, err := backend.New(configs, backend.Options{Log: log, Builtin: engine, QueueLimit: queue})
	if err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "backend", Message: err.Error(), Err: err}
	}
	return pool, nil
}

// builtinNotice is said below an answer of the built-in engine.
const builtinNotice = "mintai: answered by the built-in engine, a dictionary and calculator: not a language model"
