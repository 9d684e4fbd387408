package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rs/zerolog"

	"mintai/identity"
)

// devWait bounds the wait for the first offer in -mode dev.
const devWait = 10 * time.Second

// runDev runs coordinator, miner and client in one process: real sockets, real
// ICE, real QUIC, all on loopback and ports of the system's choice, nothing
// kept.
func (c *command) runDev(ctx context.Context, std IO) error {
	s, err := c.prepare(std, RoleClient, "off")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mintai-dev-")
	if err != nil {
		return fmt.Errorf("a folder for the reputation store: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d, err := newDev(s.cfg, dir, s.log) //nolint:contextcheck // it opens ports and runs later
	if err != nil {
		return err
	}
	g := newGroup(context.WithoutCancel(ctx))
	g.start(d.coordinator.Run)
	g.start(d.miner.Run)
	defer func() { _ = g.stop() }()
	if err := d.ready(ctx); err != nil {
		return err
	}
	cl, err := d.newClient()
	if err != nil {
		return err
	}
	if c.verb == "proxy" {
		return c.runProxy(ctx, std, s, func() (membership, error) { return d.member, nil },
			func(membership, *clientMetrics) (*client, error) { return cl, nil })
	}
	return c.oneShot(ctx, std, cl, s.cfg.Client)
}

// dev is the three roles in one process.
type dev struct {
	coordinator *coordinator
	miner       *miner
	member      membership
	deadlines   Deadlines
	log         zerolog.Logger
}

func newDev(cfg *Config, dir string, log zerolog.Logger) (*dev, error) {
	keys := make([]*identity.Key, 2)
	for i := range keys {
		var err error
		if keys[i], err = identity.NewKey(); err != nil {
			return nil, err
		}
	}
	co, err := newCoordinator(coordinatorConfig{
		Key: keys[0], Listen: "127.0.0.1:0", Local: identity.NewSecret(),
		TURN:       turnSettings{Enabled: true, Listen: "127.0.0.1:0", PortMin: cfg.Coordinator.TURN.Ports.Min, PortMax: cfg.Coordinator.TURN.Ports.Max},
		Reputation: dir + "/reputation.db", Deadlines: cfg.Coordinator.Deadlines, Log: log,
	})
	if err != nil {
		return nil, err
	}
	r := co.Runtime(os.Getpid())
	member := membership{addrs: []string{r.Addr}, id: r.ID, local: r.Secret, origin: originRuntime}
	pool, err := newBackends(cfg.Miner, log)
	if err != nil {
		co.close()
		return nil, err
	}
	m, err := newMiner(minerConfig{
		Membership: member, Key: keys[1], Name: machineName(cfg.Miner.Name), Loopback: true, Backends: pool,
		Deadlines: cfg.Miner.Deadlines, Log: log,
	})
	if err != nil {
		co.close()
		return nil, err
	}
	return &dev{coordinator: co, miner: m, member: member, deadlines: cfg.Client.Deadlines, log: log}, nil
}

// newClient makes a client of this process's coordinator.
func (d *dev) newClient() (*client, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	return newClient(clientConfig{
		Membership: d.member, Key: key, Loopback: true, Deadlines: d.deadlines, Name: "dev", Log: d.log,
	})
}

// ready waits until the miner's models are known to the coordinator.
func (d *dev) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, devWait)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if len(d.coordinator.board.Offers(true, time.Now())) > 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return errors.New("the miner offered nothing in time")
			}
			return ctx.Err()
		}
	}
}
