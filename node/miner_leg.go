package node

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal/signalpb"
)

// minerLeg is a miner's own relay for one session, where UDP is blocked: the
// client dials the relayed address. It is opened with the session and closed
// with it.
type minerLeg struct {
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	relay   relayLeg   // nil: not open yet, or closed
	peers   []netip.AddrPort
	permits sync.WaitGroup
}

// openLeg starts a leg for the session; it returns at once.
func (m *miner) openLeg(id identity.SessionID, lent *lentRelay, candidates []ice.Candidate, proven []netip.AddrPort) *minerLeg {
	ctx, cancel := context.WithCancel(m.work)
	leg := &minerLeg{cancel: cancel}
	cfg := lent.config
	cfg.Miner, cfg.PeerRelayed, cfg.Permit = true, true, permitted(candidates, proven)
	opener := relayOpener{at: m.coordinatorAt(), dialTLS: m.dialTLS, log: m.log}
	m.beside.Go(func() {
		defer cancel()
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
		err = m.server.Serve(ctx, relay.Transport()) // until the session ends
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
func (l *minerLeg) stop() { l.cancel() }
