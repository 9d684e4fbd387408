package node

import (
	"time"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// A session's life at its client:
//
//	remembered ──► warm: serves request after request while its tunnel is up
//	    │            │  retired: refused, failed, expired, or its tunnel is gone
//	    │            ▼
//	    └────────► once: ended when nothing uses it any more
//
// One session of each kind of request and miner is warm; others that had to be
// granted, because the miner had no slot left at that moment, serve one request.

// maxOver is how many sessions that are over may be known to the coordinator,
// so that their miners' accounts are still counted.
const maxOver = 32

// remember makes a new session known, in use until done.
func (c *client) remember(s *session, n needs) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[s.id] = s
	c.catchUpLocked(s)
	s.uses++
	s.warm = keyOf(n)
	for _, x := range c.warm[s.warm] {
		if x.miner == s.miner && !x.expired(now) {
			s.once = true
			return
		}
	}
	c.warm[s.warm] = append(c.warm[s.warm], s)
}

// done says that a request or a tunnel needs the session no more.
func (c *client) done(s *session) {
	c.mu.Lock()
	s.uses--
	var ended []*session
	if s.once && s.uses == 0 && c.sessions[s.id] == s {
		c.forgetLocked(s)
		c.over = append(c.over, s)
		if n := len(c.over) - maxOver; n > 0 {
			ended = append(ended, c.over[:n]...)
			c.over = append(c.over[:0], c.over[n:]...)
		}
	}
	c.mu.Unlock()
	c.end("over", ended...)
}

// retire lets no further request use the session, and ends it when nothing else
// does.
func (c *client) retire(s *session, reason string) {
	c.mu.Lock()
	over := c.retireLocked(s)
	c.mu.Unlock()
	if over {
		c.end(reason, s)
	}
}

// retireLocked reports whether the session is now to be ended.
func (c *client) retireLocked(s *session) (over bool) {
	if c.sessions[s.id] != s {
		return false
	}
	s.once = true
	c.coolLocked(s)
	if s.uses > 0 {
		return false
	}
	c.forgetLocked(s)
	return true
}

// unlink takes a tunnel out of use, and the sessions that it carried. Its running
// answers are not touched.
func (c *client) unlink(l *link) {
	c.mu.Lock()
	var ended []*session
	if miner := l.owner.miner; c.links[miner] == l {
		delete(c.links, miner)
		for _, s := range c.sessions {
			if s.miner == miner && c.retireLocked(s) {
				ended = append(ended, s)
			}
		}
	}
	c.mu.Unlock()
	c.end("its tunnel is gone", ended...)
}

func (c *client) forget(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetLocked(s)
}

func (c *client) forgetLocked(s *session) {
	delete(c.sessions, s.id)
	c.coolLocked(s)
}

// coolLocked takes the session from those that further requests may use.
func (c *client) coolLocked(s *session) {
	kept := c.warm[s.warm][:0]
	for _, x := range c.warm[s.warm] {
		if x != s {
			kept = append(kept, x)
		}
	}
	if len(kept) == 0 {
		delete(c.warm, s.warm)
	} else {
		c.warm[s.warm] = kept
	}
}

func (c *client) end(reason string, sessions ...*session) {
	for _, s := range sessions {
		c.endSession(s.id, reason)
	}
}

// endSession tells the coordinator that a session is over. When it can't be
// told, the session's expiry does it.
func (c *client) endSession(id identity.SessionID, reason string) {
	_ = c.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_SessionEnd{
		SessionEnd: &signalpb.SessionEnd{Session: id[:], Reason: reason},
	}})
}
