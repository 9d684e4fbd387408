package node

import (
	"time"

	"mintai/identity"
	"mintai/match"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// coordinatorSession is one match.
//
//	offered → taken → established → ended
//	   └→ declined or not taken in time: the next miner, or NoMatch
//
// It belongs to two nodes, not to two connections: either may reconnect.
type coordinatorSession struct {
	id        identity.SessionID
	clientID  identity.NodeID
	minerID   identity.NodeID
	client    *signal.Peer // the client's connection that last spoke of the session
	principal string       // who is accountable for the client
	model     match.Model
	request   *signalpb.MatchRequest
	exclude   []identity.NodeID
	attempt   uint32
	offerEnds time.Time // zero: taken
	expires   time.Time
	orphaned  time.Time // when the session ends because its client left; zero: it is here
	renewed   time.Time // when its client last renewed it
	matched   time.Time // when the two were told of each other; zero: they are being told
	outlook   outlook
	passwords [2]string // of the own relay, for all paths: the client's leg, the miner's
	path      uint32    // number of the newest path that was asked for
	pathNonce []byte    // of the request for it
	pathEnds  time.Time // by when its miner must take it; zero: it has, or none is asked for
	pathCount int       // of requests since pathSince
	pathSince time.Time
	relayed   int                   // relayed addresses of which an end was told
	reports   int                   // of where an end came from
	trickles  map[signalpb.Role]int // messages that one end caused at the other
}

// openLocked makes a session known.
func (c *coordinator) openLocked(s *coordinatorSession) {
	c.sessions[s.id] = s
	c.countLocked(s.client, 1)
	for _, id := range []identity.NodeID{s.clientID, s.minerID} {
		if c.of[id] == nil {
			c.of[id] = make(map[*coordinatorSession]struct{})
		}
		c.of[id][s] = struct{}{}
	}
}

// trickleLocked reports whether one end may cause another message at the other.
func (s *coordinatorSession) trickleLocked(from signalpb.Role) bool {
	if s.trickles[from] >= maxTrickles {
		return false
	}
	if s.trickles == nil {
		s.trickles = make(map[signalpb.Role]int, 2)
	}
	s.trickles[from]++
	return true
}

// sessionLocked returns the session if p's node is one of its two ends.
func (c *coordinator) sessionLocked(p *signal.Peer, raw []byte) *coordinatorSession {
	id, err := identity.SessionIDFromBytes(raw)
	if err != nil {
		return nil
	}
	s := c.sessions[id]
	switch {
	case s == nil:
		return nil
	case p.Role() == signalpb.Role_ROLE_MINER && s.minerID == p.Node():
		return s
	case p.Role() == signalpb.Role_ROLE_CLIENT && s.clientID == p.Node():
		if s.client != p { // it has reconnected
			c.countLocked(s.client, -1)
			c.countLocked(p, 1)
			s.client = p
		}
		s.orphaned = time.Time{}
		return s
	}
	return nil
}

// countLocked adds to the live sessions of a client's connection.
func (c *coordinator) countLocked(p *signal.Peer, n int) {
	if n += c.clients[p]; n > 0 {
		c.clients[p] = n
	} else {
		delete(c.clients, p)
	}
}

// tellMiner sends to the session's miner, if it is connected.
func (c *coordinator) tellMiner(s *coordinatorSession, env *signalpb.Envelope) bool {
	c.mu.Lock()
	m := c.miners[s.minerID]
	c.mu.Unlock()
	return m != nil && m.peer.TrySend(env) == nil // whose haste it was is not the miner's fault
}

// tunnelStatus watches the health of a connection.
func (c *coordinator) tunnelStatus(p *signal.Peer, m *signalpb.TunnelStatus) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	c.mu.Unlock()
	if s == nil || p.Role() != signalpb.Role_ROLE_CLIENT {
		return
	}
	if m.GetState() == signalpb.TunnelState_TUNNEL_UP {
		c.board.Established(s.id)
	}
	c.cfg.Metrics.tunnel(m)
	c.log.Debug().Str("session", s.id.Short()).Str("peer", p.Node().Short()).Str("state", m.GetState().String()).
		Str("path", m.GetPathKind()).Str("reason", reasonLabel(m.GetReason())).Dur("rtt", time.Duration(m.GetRttUs())*time.Microsecond).
		Uint64("lost", m.GetPacketsLost()).Msg("tunnel")
}

func (c *coordinator) renew(p *signal.Peer, raw []byte, now time.Time) {
	c.mu.Lock()
	s := c.sessionLocked(p, raw)
	if s == nil || p.Role() != signalpb.Role_ROLE_CLIENT {
		c.mu.Unlock()
		return
	}
	if !s.renewed.IsZero() && now.Sub(s.renewed) < renewEvery {
		c.mu.Unlock()
		return
	}
	s.renewed, s.expires = now, now.Add(c.cfg.Deadlines.Session)
	env := &signalpb.Envelope{Message: &signalpb.Envelope_Renewed{
		Renewed: &signalpb.Renewed{Session: s.id[:], ExpiresUnixMs: s.expires.UnixMilli(), LifetimeMs: time.Until(s.expires).Milliseconds()},
	}}
	if c.turn != nil {
		c.turn.Extend(s.id, s.expires)
	}
	c.mu.Unlock()
	if c.tellMiner(s, env) {
		_ = p.TrySend(env)
	}
}

func (c *coordinator) sessionEnd(p *signal.Peer, m *signalpb.SessionEnd) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	if s == nil || p.Role() != signalpb.Role_ROLE_CLIENT {
		c.mu.Unlock()
		return
	}
	c.endLocked(s)
	c.mu.Unlock()
	c.tellMiner(s, sessionEndMessage(s.id, m.GetReason()))
}

func sessionEndMessage(id identity.SessionID, reason string) *signalpb.Envelope {
	return &signalpb.Envelope{Message: &signalpb.Envelope_SessionEnd{
		SessionEnd: &signalpb.SessionEnd{Session: id[:], Reason: reason},
	}}
}

// endLocked forgets the session and what was lent to it.
func (c *coordinator) endLocked(s *coordinatorSession) {
	delete(c.sessions, s.id)
	for _, id := range []identity.NodeID{s.clientID, s.minerID} {
		if delete(c.of[id], s); len(c.of[id]) == 0 {
			delete(c.of, id)
		}
	}
	c.countLocked(s.client, -1)
	c.board.End(s.id)
	if c.turn != nil {
		c.turn.Revoke(s.id)
	}
}

// sweep moves on what waits in vain.
func (c *coordinator) sweep(now time.Time) {
	c.mu.Lock()
	var late, over []*coordinatorSession
	type asked struct {
		by    *signal.Peer
		nonce []byte
	}
	var stuck []asked
	for _, s := range c.sessions {
		if s.orphaned.IsZero() && isDone(s.client) {
			// Matched for a client that had left, or whose handshake failed: it
			// may be back and only not have spoken of the session yet.
			s.orphaned = now.Add(setupLimit)
		}
		switch {
		case !s.expires.After(now), !s.orphaned.IsZero() && !s.orphaned.After(now):
			c.endLocked(s)
			over = append(over, s)
		case !s.offerEnds.IsZero() && !s.offerEnds.After(now):
			late = append(late, s)
		case !s.pathEnds.IsZero() && !s.pathEnds.After(now):
			s.pathEnds = time.Time{}
			stuck = append(stuck, asked{s.client, s.pathNonce})
		}
	}
	c.mu.Unlock()
	for _, s := range stuck {
		c.noPath(s.by, s.nonce, signalpb.NoMatchCode_NO_MATCH_MINER_GONE, "the miner does not answer")
	}
	for _, s := range over {
		c.tellMiner(s, sessionEndMessage(s.id, "over"))
	}
	for _, s := range late {
		c.nextMiner(s, "did not take the offer in time", true, now)
	}
	c.cfg.Metrics.load(c.counts())
	if c.turn != nil {
		c.cfg.Metrics.lent(c.turn.Stats().Allocations)
	}
}

func isDone(p *signal.Peer) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

func (c *coordinator) counts() (sessions, miners int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions), len(c.miners)
}
