package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal/signalpb"
)

// minerLeg is a miner's own relay for one session, where UDP is blocked: the
// client dials the relayed address. It is opened for one path and closed with the
// session, or before, when it carries no tunnel.
type minerLeg struct {
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards what follows
	relay   relayLeg   // nil: not open yet, or closed
	peers   []netip.AddrPort
	permits sync.WaitGroup
}

// openLeg starts a leg for the session; it returns at once.
func (m *miner) openLeg(id identity.SessionID, lent *lentRelay, candidates []ice.Candidate, proven []netip.AddrPort) *minerLeg {
	ctx, cancel := context.WithCancelCause(m.work)
	leg := &minerLeg{cancel: cancel}
	cfg := lent.config
	cfg.Miner, cfg.PeerRelayed, cfg.Permit = true, true, permitted(candidates, proven)
	opener := relayOpener{at: m.coordinatorAt(), dialTLS: m.dialTLS, log: m.log}
	m.beside.Go(func() {
		defer m.dropLeg(id, leg)
		defer cancel(nil)
		opening, stop := context.WithTimeout(ctx, legLimit)
		relay, err := opener.open(opening, cfg, lent)
		stop()
		if err != nil {
			if ctx.Err() == nil {
				m.log.Warn().Err(err).Str("session", id.Short()).Msg("no relay: the client cannot reach this miner")
			}
			return
		}
		leg.use(relay) //nolint:contextcheck // permissions end with the relay
		defer leg.close(relay)
		if len(lent.urls) > 0 { // not the coordinator's: it does not know
			_ = m.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{
				Session: id[:], Candidates: writeCandidates([]ice.Candidate{{Kind: ice.RelayUDP, Addr: relay.Addr()}}),
			}}})
		}
		m.log.Debug().Str("session", id.Short()).Stringer("addr", relay.Addr()).Msg("relay open")
		err = serveWhileUsed(ctx,
			func() bool { return leg.carries(m.server.Tunnels()) != nothing },
			func(ctx context.Context) error { return m.server.Serve(ctx, relay.Transport()) })
		m.log.Debug().AnErr("cause", err).Str("session", id.Short()).Msg("relay closed")
	})
	return leg
}

// coordinatorAt is where this miner reaches its coordinator.
func (m *miner) coordinatorAt() coordinatorAt { return whereIs(m.sig.Status(), m.cfg.Membership) }

// legLimit is for opening a leg.
const legLimit = 5 * time.Second

// use makes an open relay known and lets in those who were named meanwhile. It
// waits for nobody: the client's handshake may be there already.
func (l *minerLeg) use(relay relayLeg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.relay = relay
	for _, p := range l.peers {
		l.permitLocked(p)
	}
}

// learn takes in what came of the client after the offer: its own relay, and
// from where it was seen meanwhile. Permissions are for IP addresses, so its
// other candidates are none of these or among them.
func (l *minerLeg) learn(candidates []ice.Candidate, proven []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range candidates {
		if c.Kind.Relayed() {
			l.admitLocked(c.Addr)
		}
	}
	for _, addr := range proven {
		l.admitLocked(addr)
	}
}

// admitLocked lets another address of the client in, now or when the relay opens.
func (l *minerLeg) admitLocked(addr netip.AddrPort) {
	if len(l.peers) == maxLegPeers || slices.Contains(l.peers, addr) {
		return
	}
	l.peers = append(l.peers, addr)
	if l.relay != nil {
		l.permitLocked(addr)
	}
}

// maxLegPeers bounds the addresses of a client that come after the offer.
const maxLegPeers = 16

func (l *minerLeg) permitLocked(addr netip.AddrPort) {
	relay := l.relay
	l.permits.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), legLimit)
		defer cancel()
		_ = relay.Permit(ctx, addr) // refused, it stays out
	})
}

func (l *minerLeg) close(relay relayLeg) {
	l.mu.Lock()
	l.relay = nil
	l.mu.Unlock()
	_ = relay.Close() // ends the permits too
	l.permits.Wait()
}

// stop ends the leg without waiting.
func (l *minerLeg) stop() { l.cancel(nil) }

// errUnneeded ends what serves a path in favour of another one: a client that is
// there all the same looks for that one and goes on.
var errUnneeded = &quicstream.CloseError{Code: quicstream.Replaced}

// giveWay ends the leg in favour of another one, without waiting.
func (l *minerLeg) giveWay() { l.cancel(errUnneeded) }

// load is what would be lost with a leg.
type load int

const (
	nothing load = iota
	aTunnel
	requests // in a tunnel
)

// carries returns what of the miner's tunnels runs over the leg.
func (l *minerLeg) carries(tunnels []quicstream.TunnelInfo) load {
	l.mu.Lock()
	relay := l.relay
	l.mu.Unlock()
	most := nothing
	if relay == nil {
		return most
	}
	for _, t := range tunnels {
		switch {
		case t.Local != relay.Addr():
		case t.Requests > 0:
			return requests
		default:
			most = aTunnel
		}
	}
	return most
}

// maxLegs is how many relays of its own a miner has in one session: one may carry
// the tunnel, one is tried, and one may be on its way out.
const maxLegs = 3

// addLegLocked adds one more relay. When there are too many, the oldest of those
// that carry least gives way.
func (s *minerSession) addLegLocked(leg *minerLeg, tunnels func() []quicstream.TunnelInfo) {
	if len(s.legs) == maxLegs {
		now := tunnels()
		least := slices.MinFunc(s.legs, func(a, b *minerLeg) int { return int(a.carries(now) - b.carries(now)) })
		least.giveWay()
		s.removeLegLocked(least)
	}
	s.legs = append(s.legs, leg)
}

func (s *minerSession) removeLegLocked(leg *minerLeg) {
	s.legs = slices.DeleteFunc(s.legs, func(l *minerLeg) bool { return l == leg })
}

// closeLegsLocked lets the relays go.
func (s *minerSession) closeLegsLocked() {
	for _, leg := range s.legs {
		leg.stop()
	}
	s.legs = nil
}

// dropLeg forgets a leg that has ended.
func (m *miner) dropLeg(id identity.SessionID, leg *minerLeg) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sessions[id]; s != nil {
		s.removeLegLocked(leg)
	}
}

const (
	// unusedWay is how long a relay's leg, or a socket found by probing, may carry
	// no tunnel before it goes: its client took another path.
	unusedWay = 10 * time.Second
	// lookAtWay is how often that is looked at.
	lookAtWay = time.Second
)

// serveWhileUsed calls serve and ends it once used was false for unusedWay. It
// returns what serve returned, or errUnneeded.
func serveWhileUsed(ctx context.Context, used func() bool, serve func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	served := make(chan error, 1)
	go func() { served <- serve(ctx) }() // waited for below
	look := time.NewTicker(lookAtWay)
	defer look.Stop()
	last := time.Now()
	for {
		select {
		case now := <-look.C:
			switch {
			case used():
				last = now
			case now.Sub(last) >= unusedWay:
				cancel(errUnneeded)
			}
		case err := <-served:
			if errors.Is(context.Cause(ctx), errUnneeded) {
				return errUnneeded
			}
			return err
		}
	}
}
