package node

import (
	"time"

	"mintai/signal"
	"mintai/signal/signalpb"
)

const (
	// pathOffer is how long a miner may take to answer that it expects its client
	// on another path: less than for a match, since an answer waits.
	pathOffer = 500 * time.Millisecond
	// maxPaths bounds the requests for another path of one session in pathWindow.
	maxPaths   = 40
	pathWindow = time.Minute
)

// anotherPath introduces the two ends of a session to each other once more: as
// they are seen now, with new credentials. Nothing of the present path is
// touched.
func (c *coordinator) anotherPath(p *signal.Peer, req *signalpb.PathRequest, now time.Time) {
	refuse := func(code signalpb.NoMatchCode, why string) { c.noPath(p, req.GetNonce(), code, why) }
	c.mu.Lock()
	s := c.sessionLocked(p, req.GetSession())
	if s == nil || p.Role() != signalpb.Role_ROLE_CLIENT || !s.expires.After(now) {
		c.mu.Unlock()
		refuse(signalpb.NoMatchCode_NO_MATCH_NO_SESSION, "no such session is known here")
		return
	}
	entry := c.miners[s.minerID]
	switch {
	case req.GetPath() <= s.path:
		c.mu.Unlock()
		refuse(signalpb.NoMatchCode_NO_MATCH_BAD_REQUEST, "a later path was asked for already")
		return
	case !s.mayAskPathLocked(now):
		c.mu.Unlock()
		refuse(signalpb.NoMatchCode_NO_MATCH_BUSY, "too many paths are asked for")
		return
	case entry == nil:
		c.mu.Unlock()
		refuse(signalpb.NoMatchCode_NO_MATCH_MINER_GONE, "the miner is not connected")
		return
	}
	s.path, s.pathNonce, s.pathEnds = req.GetPath(), req.GetNonce(), now.Add(pathOffer)
	s.trickles, s.relayed, s.reports, s.matched = nil, 0, 0, time.Time{}
	c.mu.Unlock()

	said := req.GetNetwork()
	if said == nil {
		said = p.Hello().GetNetwork()
	}
	client := c.look(p, newest(req.GetCandidates(), p.Hello().GetCandidates()), said, now)
	miner := c.look(entry.peer, entry.candidates, entry.network, now)
	isUpgrade := req.GetCause() == signalpb.PathCause_PATH_CAUSE_UPGRADE
	o := foresee(client, miner, isUpgrade)
	outside := c.outside()
	client.told = meaningful(client.proven, miner.places(), o.near, outside)
	miner.told = meaningful(miner.proven, client.places(), o.near, outside)
	c.mu.Lock()
	s.outlook = o
	c.mu.Unlock()
	grant, offer := c.introduction(s, client, miner, o)
	grant.Nonce, grant.Path, grant.Attempt, grant.MinerName = req.GetNonce(), req.GetPath(), 1, entry.peer.Name()
	offer.Path = req.GetPath()
	if req.GetProbing() {
		grant.Probing, offer.Probing = c.probing(client, miner, o, now)
	}
	if err := entry.peer.TrySend(&signalpb.Envelope{Message: &signalpb.Envelope_Offer{Offer: offer}}); err != nil {
		refuse(signalpb.NoMatchCode_NO_MATCH_MINER_GONE, "the miner could not be told")
		return
	}
	_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Grant{Grant: grant}}) // a client that is gone needs no path
	c.introduced(s, client, miner, now)
	c.cfg.Metrics.path(req.GetCause())
	c.log.Info().Str("session", s.id.Short()).Str("client", p.Node().Short()).Str("miner", s.minerID.Short()).Uint32("path", req.GetPath()).
		Str("cause", causeLabel(req.GetCause())).Stringer("expect", o.expect).Stringer("reason", o.reason).Bool("probing", grant.Probing != nil).Msg("another path")
}

// mayAskPathLocked bounds what one session's client can cause.
func (s *coordinatorSession) mayAskPathLocked(now time.Time) bool {
	if now.Sub(s.pathSince) >= pathWindow {
		s.pathSince, s.pathCount = now, 0
	}
	s.pathCount++
	return s.pathCount <= maxPaths
}

// noPath answers a request for another path.
func (c *coordinator) noPath(p *signal.Peer, nonce []byte, code signalpb.NoMatchCode, why string) {
	_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_NoMatch{NoMatch: &signalpb.NoMatch{Nonce: nonce, Code: code, Message: why}}})
}

// pathDeclined passes on that the miner does not expect its client: it may have
// been started anew.
func (c *coordinator) pathDeclined(s *coordinatorSession, d *signalpb.Decline) {
	c.mu.Lock()
	newest := d.GetPath() == s.path && !s.pathEnds.IsZero()
	if newest {
		s.pathEnds = time.Time{}
	}
	p, nonce := s.client, s.pathNonce
	c.mu.Unlock()
	code := signalpb.NoMatchCode_NO_MATCH_MINER_GONE
	if d.GetReason() == declinedUnknown {
		code = signalpb.NoMatchCode_NO_MATCH_NO_SESSION
	}
	if newest {
		c.noPath(p, nonce, code, clip("the miner declines: "+d.GetReason()))
	}
}

// passPorts passes the foretold ports of one end to the other.
func (c *coordinator) passPorts(p *signal.Peer, m *signalpb.ProbePorts) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	if s == nil || m.GetPath() != s.path || !s.trickleLocked(p.Role()) {
		c.mu.Unlock()
		return
	}
	to := c.otherLocked(s, p.Role())
	c.mu.Unlock()
	if to != nil {
		_ = to.TrySend(&signalpb.Envelope{Message: &signalpb.Envelope_ProbePorts{ProbePorts: m}})
	}
}

func causeLabel(c signalpb.PathCause) string {
	switch c {
	case signalpb.PathCause_PATH_CAUSE_LOST:
		return "lost"
	case signalpb.PathCause_PATH_CAUSE_MOVED:
		return "moved"
	case signalpb.PathCause_PATH_CAUSE_UPGRADE:
		return "upgrade"
	case signalpb.PathCause_PATH_CAUSE_UNSPECIFIED:
	}
	return "unknown"
}
