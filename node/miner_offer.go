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
	case *signalpb.Envelope_ProbePorts:
		m.mu.Lock()
		defer m.mu.Unlock()
		if s := m.sessionLocked(msg.ProbePorts.GetSession()); s != nil && s.probe != nil && s.path == msg.ProbePorts.GetPath() {
			s.probe.foretell(msg.ProbePorts.GetPorts())
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
	take := m.takeOffer
	if o.GetPath() > 0 {
		take = m.takePath
	}
	if reason := take(id, client, o); reason != "" {
		if o.GetPath() == 0 {
			m.mu.Lock()
			m.noteEndedLocked(id)
			m.mu.Unlock()
		}
		m.log.Debug().Str("session", id.Short()).Str("cause", reason).Msg("declined")
		m.cfg.Metrics.declined(reason)
		_ = m.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Decline{
			Decline: &signalpb.Decline{Session: id[:], Reason: reason, RetryAfterMs: 2000, Path: o.GetPath()},
		}})
		return
	}
	_ = m.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Taken{Taken: &signalpb.Taken{Session: id[:], Path: o.GetPath()}}})
}

// takeOffer registers the session and starts its checks, or says why not.
func (m *miner) takeOffer(id identity.SessionID, client identity.NodeID, o *signalpb.Offer) (refusal string) {
	snap := m.cfg.Backends.Snapshot()
	offered := false
	for _, model := range snap.Models {
		offered = offered || string(model.Name) == o.GetModel() && (!model.SameUserOnly || o.GetSameUser())
	}
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
	if err := m.lookForLocked(s, o); err != nil {
		m.socket.Dismiss(id)
		return "no path"
	}
	m.sessions[id] = s
	m.granted[client]++
	m.wakeLocked()
	return ""
}

// declinedUnknown is a miner's word that it does not know a session: it was
// started anew, or the session is over there.
const declinedUnknown = "no such session"

// takePath looks for a client of this miner on another path, beside the present
// one, or says why not.
func (m *miner) takePath(id identity.SessionID, client identity.NodeID, o *signalpb.Offer) (refusal string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[id]
	switch {
	case s == nil || s.client != client:
		return declinedUnknown
	case o.GetPath() <= s.path:
		return "" // said twice
	case !s.mayTakePathLocked(time.Now()), !m.mayCheckLocked(client):
		return "busy"
	}
	if s = m.sessions[id]; s == nil { // it had to make room
		return "busy"
	}
	s.path = o.GetPath()
	s.stopChecksLocked()
	s.stopProbeLocked()
	m.socket.Dismiss(id)
	if err := m.lookForLocked(s, o); err != nil {
		return "no path"
	}
	return ""
}

// mayTakePathLocked bounds what one session's client can cause here, through the
// coordinator and through its tunnel.
func (s *minerSession) mayTakePathLocked(now time.Time) bool {
	if now.Sub(s.pathSince) >= pathWindow {
		s.pathSince, s.pathCount = now, 0
	}
	s.pathCount++
	return s.pathCount <= maxPaths
}

// lookForLocked begins to look for the session's client: checks, the relay of
// this miner's own where it is lent one, and many ports where that was agreed.
func (m *miner) lookForLocked(s *minerSession, o *signalpb.Offer) error {
	local, remote := readICE(o.GetIce())
	at, candidates, policy := m.coordinatorAt(), readCandidates(o.GetCandidates()), readPolicy(o.GetProven(), o.GetNear())
	s.policy = *policy
	if relays := readAddresses(o.GetRelays()); len(relays) > 0 { // an offer of a direct path names none
		s.relays = relays
	}
	if m.cfg.Relay != RelayAlways { // else whoever comes, comes through the client's relay
		m.admitLocked(s, at.believes(policy.Proven), candidates)
	} else {
		candidates = nil
	}
	checks, err := m.socket.Open(ice.SessionConfig{
		ID: s.id, Peer: s.client, Local: local, Remote: remote, Candidates: candidates, Policy: at.policy(policy),
	})
	if err != nil {
		m.log.Warn().Err(err).Str("session", s.id.Short()).Msg("checks could not start")
		return err
	}
	s.checks, s.checked = checks, time.Now()
	m.beside.Go(func() { m.tellSeen(s.id, checks) })
	if lent := readRelay(o.GetRelay(), local, remote); lent != nil && m.cfg.Relay != RelayNever {
		s.lent = true
		s.addLegLocked(m.openLeg(s.id, lent, candidates, policy.Proven), m.server.Tunnels)
	}
	if o.GetProbing() != nil && m.cfg.Probing && m.cfg.Relay != RelayAlways {
		s.probe = m.startProbe(s, o, local, remote)
	}
	return nil
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
	if n := len(s.legs); n > 0 {
		s.legs[n-1].learn(candidates, proven)
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
// client arrived, and ends the search among its ports when it came from one that
// nobody could tell. It ends with the checks.
func (m *miner) tellSeen(id identity.SessionID, checks *ice.Session) {
	told := false
	for at := range checks.Addrs() {
		if at.Kind == ice.Prflx {
			m.stopProbing(id, checks)
		}
		if !told && isPublic(at.Addr.Addr()) && !at.Kind.Relayed() {
			told = true
			_ = m.sig.Send(peerSeenMessage(id, at))
		}
	}
}

// stopProbing ends the session's probing of ports, if it is for those checks.
func (m *miner) stopProbing(id identity.SessionID, checks *ice.Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sessions[id]; s != nil && s.checks == checks && s.probe != nil && !s.probe.hard {
		s.probe.cancel()
	}
}
