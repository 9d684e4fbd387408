package ice

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/rs/zerolog"

	"mintai/identity"
)

const (
	// probeLinger is how long a run waits for what the last probes bring.
	probeLinger = time.Second
	// A port that answered is asked again in probeAgain, for the peer's own check
	// may have been lost; no others are tried for probeSettle.
	probeAgain, probeSettle = 250 * time.Millisecond, time.Second
	// probeRoom is for all checks of a run: each port once, and those that answer
	// again, for as long as it lasts.
	probeRoom = maxPortProbes + int(punchRun/probeAgain)
)

// ProbePortsConfig describes the easy side of one run.
type ProbePortsConfig struct {
	ID   identity.SessionID
	Peer identity.NodeID
	// Local and Remote are those of the Session that is open for this path on this
	// socket.
	Local, Remote Credentials
	// Target is the hard side's IP address: a public one of IPv4.
	Target netip.Addr
	// ProvenUntil is until when the coordinator's word that the peer is at Target
	// counts, at most a minute ahead.
	ProvenUntil time.Time
	// Predicted brings ports to try first, as they become known; nil: never. An
	// empty list says that the peer has no socket open, and ends the run.
	Predicted   <-chan []uint16
	Controlling bool // the client is, the miner is not
	Log         zerolog.Logger
}

// PortProbeStats counts what a run of ProbePorts did.
type PortProbeStats struct {
	Sent     int // probes, each to another port
	Answered int // of them, by the peer: with its signature
}

// ProbePorts sends signed checks from the socket to up to 2,500 ports of the
// target, one each 2 ms, to meet one of the mappings that the peer's OpenFan has
// opened meanwhile. It returns nil when all were sent, after a linger of a second
// and within 6 s, ErrNotPunched when the peer has given up, and ctx's error when
// ctx ends.
//
// The caller has a Session open with the same credentials: the peer's check that
// comes back is reported there, and the caller ends ctx then. ErrProbing,
// ErrProbedOften, ErrUnproven and ErrForbidden say why a run may not begin.
func (s *Socket) ProbePorts(ctx context.Context, cfg ProbePortsConfig) (PortProbeStats, error) {
	cfg.Target = cfg.Target.Unmap()
	run, end, err := s.beginPunch(ctx, cfg.Target, cfg.ProvenUntil, cfg.Local, cfg.Remote)
	if err != nil {
		return PortProbeStats{}, err
	}
	defer end()
	p := newPortProber(cfg, s.demux)
	start := time.Now()
	err = p.run(run)
	cfg.Log.Debug().Str("session", cfg.ID.Short()).Str("peer", cfg.Peer.Short()).Int("sent", p.stats.Sent).
		Int("answered", p.stats.Answered).Dur("after", time.Since(start)).Msg("probed the peer's ports")
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = s.punchEnded(ctx, nil) // nil: its own time was over
	}
	return p.stats, err
}

// portProber is one run of ProbePorts.
type portProber struct {
	cfg       ProbePortsConfig
	port      stunPort
	responder *responder
	order     *portOrder
	pace      probePace
	answers   chan probeAnswer
	sent      map[transactionID]struct{} // what the port still expects
	stats     PortProbeStats
}

func newPortProber(cfg ProbePortsConfig, port stunPort) *portProber {
	p := &portProber{
		cfg:       cfg,
		port:      port,
		responder: newLegResponder(cfg.Local, cfg.Remote, !cfg.Controlling, Prflx),
		order:     newPortOrder(nil),
		answers:   make(chan probeAnswer, 16),
		sent:      make(map[transactionID]struct{}),
	}
	p.responder.room = probeRoom
	return p
}

// run sends until all is sent and the linger over, or ctx ends.
func (p *portProber) run(ctx context.Context) error {
	defer func() {
		for id := range p.sent {
			p.port.forget(id)
		}
	}()
	tick := time.NewTimer(0)
	defer tick.Stop()
	var hit netip.AddrPort // answered last
	var settled time.Time  // until when no others are tried
	predicted := p.cfg.Predicted
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ports, ok := <-predicted:
			switch {
			case !ok:
				predicted = nil
			case len(ports) == 0:
				return fmt.Errorf("%w: it has none open", ErrNotPunched)
			}
			p.order.foretell(ports)
		case a := <-p.answers:
			if !p.responder.answered(a.raw, a.from) {
				continue
			}
			p.stats.Answered++
			if hit != a.from {
				hit, settled = a.from, time.Now().Add(probeSettle)
				tick.Reset(probeAgain)
			}
		case now := <-tick.C:
			if now.Before(settled) {
				if err := p.probe(hit); err != nil {
					return err
				}
				tick.Reset(probeAgain)
				continue
			}
			done, err := p.some(now)
			if err != nil {
				return err
			}
			if done {
				return p.linger(ctx)
			}
			tick.Reset(max(0, time.Until(p.pace.next)))
		}
	}
}

// some sends the probes that are due. It reports whether no more are left.
func (p *portProber) some(now time.Time) (bool, error) {
	for range p.pace.due(now) {
		port, ok := p.order.next()
		if !ok {
			return true, nil
		}
		if err := p.probe(netip.AddrPortFrom(p.cfg.Target, port)); err != nil {
			return false, err
		}
		p.stats.Sent++
	}
	return false, nil
}

func (p *portProber) probe(to netip.AddrPort) error {
	raw, err := p.responder.checkTo(to)
	if err != nil {
		return fmt.Errorf("ice: %w", err)
	}
	_, id := classify(raw)
	p.sent[id] = struct{}{}
	p.port.expect(id, p.answers)
	_ = p.port.send(raw, to) // no route, or a full buffer: as if lost on the way
	return nil
}

func (p *portProber) linger(ctx context.Context) error {
	timer := time.NewTimer(probeLinger)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case a := <-p.answers:
			if p.responder.answered(a.raw, a.from) {
				p.stats.Answered++
			}
		}
	}
}
