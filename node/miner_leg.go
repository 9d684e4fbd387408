package node

import (
	"context"
	"net/netip"
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
	relay   *ice.Relay // nil: not open yet, or closed
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
		leg.use(ctx, relay)
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

// use makes an open relay known and lets in those who were named meanwhile.
func (l *minerLeg) use(ctx context.Context, relay *ice.Relay) {
	l.mu.Lock()
	l.relay = relay
	peers := l.peers
	l.mu.Unlock()
	for _, p := range peers {
		_ = relay.Permit(ctx, p) // refused, it stays out
	}
}

// permit lets another address of the client in.
func (l *minerLeg) permit(addr netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.relay == nil {
		if len(l.peers) < ice.MaxRemote {
			l.peers = append(l.peers, addr)
		}
		return
	}
	relay := l.relay
	l.permits.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), legLimit)
		defer cancel()
		_ = relay.Permit(ctx, addr)
	})
}

func (l *minerLeg) close(relay *ice.Relay) {
	l.mu.Lock()
	l.relay = nil
	l.mu.Unlock()
	_ = relay.Close() // ends the permits too
	l.permits.Wait()
}

// stop ends the leg without waiting.
func (l *minerLeg) stop() { l.cancel() }
