package node

import (
	"slices"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// maxEarly bounds what waits for sessions that are not remembered yet.
const maxEarly = 32

// earlyTrickle is what came before whoever waits for the grant had read it: the
// two are handled by two goroutines, and may arrive in one packet.
type earlyTrickle struct {
	id   identity.SessionID
	what trickled
}

// tricklesTo hands what the coordinator tells of a session's miner to whoever
// connects, or keeps it until there is somebody.
func (c *client) tricklesTo(m *signalpb.Candidates) {
	id, err := identity.SessionIDFromBytes(m.GetSession())
	if err != nil {
		return
	}
	proven := readAddresses(m.GetProven())
	var all []trickled
	for _, candidate := range readCandidates(m.GetCandidates()) {
		all = append(all, trickled{candidate: candidate, proven: proven})
	}
	if len(all) == 0 && len(proven) > 0 {
		all = append(all, trickled{proven: proven})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sessions[id]
	if s != nil && (s.asking || s.attempt != nil) {
		s = s.attempt // nil: it is not here yet
	}
	for _, what := range all {
		if s != nil {
			s.trickle(what)
			continue
		}
		if len(c.early) == maxEarly { // the oldest is of a session that nobody wants
			c.early = slices.Delete(c.early, 0, 1)
		}
		c.early = append(c.early, earlyTrickle{id, what})
	}
}

// catchUpLocked hands a new session what came before it.
func (c *client) catchUpLocked(s *session) {
	c.early = slices.DeleteFunc(c.early, func(e earlyTrickle) bool {
		if e.id == s.id {
			s.trickle(e.what)
		}
		return e.id == s.id
	})
}
