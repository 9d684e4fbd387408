package node

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"mintai/api"
	"mintai/ice"
	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// minerHandler receives what the coordinator sends.
type minerHandler miner

var _ signal.Handler = (*minerHandler)(nil)

// Connected begins every connection with a lease.
func (h *minerHandler) Connected(w *signalpb.Welcome) {
	m := (*miner)(h)
	observed, _ := readAddress(w.GetObserved())
	m.log.Info().Str("admitted_as", w.GetAdmittedAs()).Stringer("seen_at", observed).Bool("over_tls", w.GetOverTls()).Msg("coordinator connected")
	m.sendLease()
	m.network.connected(m.sig.Status(), m.coordinatorAt().probed(readAddresses(w.GetStun())))
}

// Disconnected is called when the connection is gone; signaling reconnects by itself.
func (h *minerHandler) Disconnected(err error) {
	var own *signal.CloseError
	if errors.As(err, &own) && own.Code == signal.CloseDone || errors.Is(err, signal.ErrMoved) { // this miner stops, or is connected over UDP now
		return
	}
	h.log.Warn().AnErr("cause", err).Msg("coordinator away; running answers go on")
}

// Message takes offers, candidates, renewals and ends of sessions.
func (h *minerHandler) Message(env *signalpb.Envelope) {
	m := (*miner)(h)
	switch msg := env.GetMessage().(type) {
	case *signalpb.Envelope_Offer:
		m.offered(msg.Offer)
	case *signalpb.Envelope_LeaseAck: // which also says where this miner is seen
		m.network.observed(m.sig.Status())
	case *signalpb.Envelope_Candidates:
		m.mu.Lock()
		defer m.mu.Unlock()
		if s := m.sessionLocked(msg.Candidates.GetSession()); s != nil {
			m.learnLocked(s, msg.Candidates)
		}
	case *signalpb.Envelope_Renewed:
		m.mu.Lock()
		defer m.mu.Unlock()
		if s := m.sessionLocked(msg.Renewed.GetSession()); s != nil {
			s.expires = expiry(msg.Renewed)
		}
	case *signalpb.Envelope_SessionEnd:
		m.mu.Lock()
		defer m.mu.Unlock()
		if s := m.sessionLocked(msg.SessionEnd.GetSession()); s != nil {
			m.endLocked(s)
		}
	}
}

func (m *miner) sessionLocked(raw []byte) *minerSession {
	id, err := identity.SessionIDFromBytes(raw)
	if err != nil {
		return nil
	}
	return m.sessions[id]
}

// offered takes or declines a client.
func (m *miner) offered(o *signalpb.Offer) {
	id, err := identity.SessionIDFromBytes(o.GetSession())
	client, cerr := identity.NodeIDFromBytes(o.GetClient())
	if err != nil || cerr != nil {
		m.log.Warn().Msg("malformed offer")
		return
	}
	if reason := m.takeOffer(id, client, o); reason != "" {
		m.mu.Lock()
		m.noteEndedLocked(id)
		m.mu.Unlock()
		m.log.Debug().Str("session", id.Short()).Str("cause", reason).Msg("declined")
		m.cfg.Metrics.declined(reason)
		_ = m.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Decline{
			Decline: &signalpb.Decline{Session: id[:], Reason: reason, RetryAfterMs: 2000},
		}})
		return
	}
	_ = m.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Taken{Taken: &signalpb.Taken{Session: id[:]}}})
}

// takeOffer registers the session and starts its checks, or says why not.
func (m *miner) takeOffer(id identity.SessionID, client identity.NodeID, o *signalpb.Offer) (refusal string) {
	snap := m.cfg.Backends.Snapshot()
	offered := false
	for _, model := range snap.Models {
		offered = offered || string(model.Name) == o.GetModel() && (!model.SameUserOnly || o.GetSameUser())
	}
	local, remote := readICE(o.GetIce())
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.draining:
		return "draining"
	case !offered:
		return "model gone"
	case snap.InFlight >= snap.Slots && snap.Queued >= snap.QueueLimit, len(m.sessions) >= maxMinerSessions, !m.mayCheckLocked(client):
		return "busy"
	case m.sessions[id] != nil:
		return "" // said twice
	}
	s := &minerSession{
		id: id, client: client, model: api.Model(o.GetModel()), expires: expiry(o), since: time.Now(),
	}
	at, candidates, policy := m.coordinatorAt(), readCandidates(o.GetCandidates()), readPolicy(o.GetProven(), o.GetNear())
	if m.cfg.Relay != RelayAlways { // else whoever comes, comes through the client's relay
		m.admitLocked(s, at.believes(policy.Proven), candidates)
	} else {
		candidates = nil
	}
	checks, err := m.socket.Open(ice.SessionConfig{
		ID: id, Peer: client, Local: local, Remote: remote, Candidates: candidates, Policy: at.policy(policy),
	})
	if err != nil {
		m.socket.Dismiss(id)
		m.log.Warn().Err(err).Str("session", id.Short()).Msg("checks could not start")
		return "no path"
	}
	s.checks = checks
	m.beside.Go(func() { m.tellSeen(id, checks) })
	if lent := readRelay(o.GetRelay(), local, remote); lent != nil && m.cfg.Relay != RelayNever {
		s.leg = m.openLeg(id, lent, candidates, policy.Proven)
	}
	m.sessions[id] = s
	m.granted[client]++
	m.wakeLocked()
	return ""
}

// admitLocked lets the session's client begin a tunnel from its addresses.
func (m *miner) admitLocked(s *minerSession, proven []netip.AddrPort, candidates []ice.Candidate) {
	addrs := make([]netip.Addr, 0, len(proven)+len(candidates))
	for _, a := range proven {
		addrs = append(addrs, a.Addr())
	}
	for _, c := range candidates {
		addrs = append(addrs, c.Addr.Addr())
	}
	m.socket.Admit(s.id, addrs...)
}

// learnLocked takes in what came of the client after the offer.
func (m *miner) learnLocked(s *minerSession, msg *signalpb.Candidates) {
	proven, candidates := readAddresses(msg.GetProven()), readCandidates(msg.GetCandidates())
	at := m.coordinatorAt()
	if m.cfg.Relay == RelayNever { // whatever the coordinator says
		candidates = slices.DeleteFunc(candidates, func(c ice.Candidate) bool { return c.Kind.Relayed() })
	}
	if s.leg != nil {
		s.leg.learn(candidates, proven)
	}
	if s.checks == nil {
		return
	}
	s.checks.Prove(at.believes(proven)...)
	for _, c := range candidates {
		if c.Kind.Relayed() && at.mayRelayAt(c.Addr.Addr()) {
			s.checks.AllowRelay(c.Addr.Addr())
		}
		if err := s.checks.AddRemote(c); err != nil {
			m.log.Debug().Err(err).Str("session", s.id.Short()).Msg("candidate not used")
			continue
		}
		m.socket.Admit(s.id, c.Addr.Addr())
	}
}

// tellSeen tells the coordinator of the first public address from which the
// client arrived. It ends with the checks.
func (m *miner) tellSeen(id identity.SessionID, checks *ice.Session) {
	told := false
	for at := range checks.Addrs() {
		if !told && isPublic(at.Addr.Addr()) && !at.Kind.Relayed() {
			told = true
			_ = m.sig.Send(peerSeenMessage(id, at))
		}
	}
}
