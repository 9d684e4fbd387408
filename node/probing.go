package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal/signalpb"
)

// maxForetold is how many lists of foretold ports may wait to be tried.
const maxForetold = 4

// probeWays adds hard-NAT probing to the ways of a race, where the two ends have
// agreed on it.
func (c *connector) probeWays(w *ways, s *session) {
	p := s.probing
	if p == nil {
		return
	}
	if p.hard {
		w.fanOut = func(ctx context.Context) (fannedOut, error) {
			out, err := c.socket.OpenFan(ctx, ice.FanConfig{
				ID: s.id, Peer: s.miner, Controlling: true, Local: s.localICE, Remote: s.remoteICE,
				Target: p.target, ProvenUntil: p.provenUntil, Stun: c.stun(), Log: c.log,
				Predicted: func(ports []uint16) { c.foretell(s, ports) },
			})
			if err != nil {
				c.log.Debug().Err(err).Str("session", s.id.Short()).Msg("no port was hit")
				c.foretell(s, nil)
				return nil, err // and not a nil of another type
			}
			return out, nil
		}
		return
	}
	w.probe = func(ctx context.Context) {
		stats, err := c.socket.ProbePorts(ctx, ice.ProbePortsConfig{
			ID: s.id, Peer: s.miner, Controlling: true, Local: s.localICE, Remote: s.remoteICE,
			Target: p.target.Addr(), ProvenUntil: p.provenUntil, Predicted: s.foretold, Log: c.log,
		})
		c.log.Debug().AnErr("cause", err).Str("session", s.id.Short()).Interface("probing", stats).Msg("ports probed")
	}
}

// foretell tells the miner at which ports this node may come out. None says that
// it has no socket open, so that the miner sends no more probes in vain.
func (c *client) foretell(s *session, ports []uint16) {
	_ = c.sig.Send(portsMessage(s.id, s.number, ports))
}

func portsMessage(id identity.SessionID, path uint32, ports []uint16) *signalpb.Envelope {
	m := &signalpb.ProbePorts{Session: id[:], Path: path}
	for _, p := range ports {
		m.Ports = append(m.Ports, uint32(p))
	}
	return &signalpb.Envelope{Message: &signalpb.Envelope_ProbePorts{ProbePorts: m}}
}

// readPorts leaves out what is no port.
func readPorts(in []uint32) []uint16 {
	out := make([]uint16, 0, len(in))
	for _, p := range in {
		if p > 0 && p <= 65535 {
			out = append(out, uint16(p))
		}
	}
	return out
}

// foretold takes in at which ports the miner of a session may come out.
func (c *client) foretold(m *signalpb.ProbePorts) {
	id, err := identity.SessionIDFromBytes(m.GetSession())
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sessions[id]
	if err != nil || s == nil || s.attempt == nil || s.attempt.number != m.GetPath() {
		return
	}
	select {
	case s.attempt.foretold <- readPorts(m.GetPorts()):
	default: // the first ones are tried
	}
}

// probeRun is a miner's part in hard-NAT probing for one path of a session.
type probeRun struct {
	cancel context.CancelFunc
	hard   bool          // this miner opens the sockets
	ports  chan []uint16 // cap maxForetold
}

func (p *probeRun) foretell(ports []uint32) {
	select {
	case p.ports <- readPorts(ports):
	default: // the first ones are tried
	}
}

// stopProbeLocked ends the session's probing. A socket that reached the client
// before stays until the session ends or another is found.
func (s *minerSession) stopProbeLocked() {
	if s.probe != nil {
		s.probe.cancel()
		s.probe = nil
	}
}

// stun is where the coordinator answers STUN, as far as it may be believed.
func (m *miner) stun() []netip.AddrPort { return m.coordinatorAt().probed(m.sig.Status().Stun) }

// startProbe begins this miner's part; it returns at once.
func (m *miner) startProbe(s *minerSession, o *signalpb.Offer, local, remote ice.Credentials) *probeRun {
	ctx, cancel := context.WithCancel(m.work)
	run := &probeRun{cancel: cancel, ports: make(chan []uint16, maxForetold)}
	p := readProbing(o.GetProbing(), time.Now())
	if p == nil {
		return run
	}
	run.hard = p.hard
	id, client, path, stun := s.id, s.client, s.path, m.stun()
	m.beside.Go(func() {
		defer cancel()
		if !p.hard {
			stats, err := m.socket.ProbePorts(ctx, ice.ProbePortsConfig{
				ID: id, Peer: client, Local: local, Remote: remote,
				Target: p.target.Addr(), ProvenUntil: p.provenUntil, Predicted: run.ports, Log: m.log,
			})
			m.log.Debug().AnErr("cause", err).Str("session", id.Short()).Interface("probing", stats).Msg("ports probed")
			return
		}
		out, err := m.socket.OpenFan(ctx, ice.FanConfig{
			ID: id, Peer: client, Local: local, Remote: remote, Target: p.target, ProvenUntil: p.provenUntil, Stun: stun, Log: m.log,
			Predicted: func(ports []uint16) { _ = m.sig.Send(portsMessage(id, path, ports)) },
		})
		if err != nil {
			m.log.Debug().Err(err).Str("session", id.Short()).Msg("no port was hit")
			_ = m.sig.Send(portsMessage(id, path, nil))
			return
		}
		m.servePunched(ctx, id, out)
	})
	return run
}

// servePunched serves tunnels over a socket that reached the client, until there
// has been none for a while.
func (m *miner) servePunched(ctx context.Context, id identity.SessionID, out *ice.Punched) {
	defer func() { _ = out.Close() }()
	m.log.Debug().Str("session", id.Short()).Stringer("addr", out.Peer()).Msg("a port was hit")
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the next path's beginning does not end what this one carries
	defer cancel()
	stop := context.AfterFunc(m.work, cancel) //nolint:contextcheck // the miner's own
	defer stop()
	err := serveWhileUsed(ctx,
		func() bool { return m.servesOn(out.Transport().Conn.LocalAddr()) },
		func(ctx context.Context) error { return m.server.Serve(ctx, out.Transport()) })
	if !errors.Is(err, errUnneeded) && !errors.Is(err, context.Canceled) {
		m.log.Debug().Err(err).Str("session", id.Short()).Msg("the socket that reached the client ended")
	}
}

// servesOn reports whether a tunnel runs over a socket.
func (m *miner) servesOn(local net.Addr) bool {
	for _, t := range m.server.Tunnels() {
		if at, ok := local.(*net.UDPAddr); ok && t.Local.Port() == uint16(at.Port) {
			return true
		}
	}
	return false
}
