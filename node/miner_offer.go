package node

import (
	"errors"
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
	m.log.Info().Str("admitted_as", w.GetAdmittedAs()).Stringer("seen_at", observed).Msg("coordinator connected")
	m.sendLease()
}

// Disconnected is called when the connection is gone; signaling reconnects by itself.
func (h *minerHandler) Disconnected(err error) {
	var own *signal.CloseError
	if errors.As(err, &own) && own.Code == signal.CloseDone { // this miner stops
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
	case *signalpb.Envelope_Candidates:
		m.mu.Lock()
		defer m.mu.Unlock()
		if s := m.sessionLocked(msg.Candidates.GetSession()); s != nil && s.checks != nil {
			for _, candidate := range readCandidates(msg.Candidates.GetCandidates()) {
				if err := s.checks.AddRemote(candidate); err != nil {
					m.log.Debug().Err(err).Str("session", s.id.Short()).Msg("candidate not used")
				}
			}
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
	checks, err := m.socket.Open(ice.SessionConfig{
		ID: id, Peer: client, Local: local, Remote: remote, Candidates: readCandidates(o.GetCandidates()),
	})
	if err != nil {
		m.log.Warn().Err(err).Str("session", id.Short()).Msg("checks could not start")
		return "no path"
	}
	s.checks = checks
	m.sessions[id] = s
	m.granted[client]++
	m.wakeLocked()
	return ""
}
