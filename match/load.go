package match

import (
	"slices"
	"time"

	"mintai/api"
	"mintai/identity"
)

// pending is a session whose load the miner's lease does not show yet.
//
//	Begin ──► counted ──Established──► counted ──Put──► in the lease
//	             │                        │
//	             └── End, or Expires ─────┘──► forgotten
type pending struct {
	session     identity.SessionID
	asker       identity.NodeID // zero: unknown
	model       api.Model
	expires     time.Time
	established bool
}

// load is what a miner has to do at a moment: what its lease says and the
// sessions on their way to it.
func (e *entry) load(now time.Time) int {
	n := e.lease.InFlight + e.lease.Queued
	for i := range e.pending {
		if now.Before(e.pending[i].expires) {
			n++
		}
	}
	return n
}

// fairLoad is the load that stands in the way of one asker. Sessions on their
// way are promises, and whoever breaks them all must not keep the others out:
// of every other asker at most one more counts than of this one. A promise that
// is kept shows in the lease, where it counts in full.
func (e *entry) fairLoad(asker identity.NodeID, now time.Time) int {
	if asker.IsZero() {
		return e.load(now)
	}
	n := e.lease.InFlight + e.lease.Queued
	by := make(map[identity.NodeID]int)
	for i := range e.pending {
		switch p := &e.pending[i]; {
		case !now.Before(p.expires):
		case p.asker.IsZero():
			n++
		default:
			by[p.asker]++
		}
	}
	own := by[asker]
	for _, promised := range by {
		n += min(promised, own+1)
	}
	return n
}

// Begin counts a new session as load of its miner, from the grant until it is
// Ended, until a lease that came after Established shows it, or until expires:
// the moment by which the session's request must have reached the miner (its
// set-up deadline, not the end of the grant). A session that is begun again,
// with the next miner, moves there. A miner that is not on the board is
// ignored.
func (b *Board) Begin(session identity.SessionID, miner identity.NodeID, model api.Model, expires time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.beginLocked(pending{session: session, model: model, expires: expires}, miner)
}

func (b *Board) beginLocked(p pending, miner identity.NodeID) {
	b.endLocked(p.session)
	e := b.entries[miner]
	if e == nil {
		return
	}
	e.pending = append(e.pending, p)
	b.sessions[p.session] = e
}

// Established says that the session's tunnel is up: the miner's next lease
// shows the load by itself.
func (b *Board) Established(session identity.SessionID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.sessions[session]; e != nil {
		for i := range e.pending {
			if e.pending[i].session == session {
				e.pending[i].established = true
			}
		}
	}
}

// End forgets a session that failed, was declined or is over.
func (b *Board) End(session identity.SessionID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endLocked(session)
}

func (b *Board) endLocked(session identity.SessionID) {
	if e := b.sessions[session]; e != nil {
		b.dropLocked(e, func(p pending) bool { return p.session == session })
	}
}

// dropLocked forgets the pending sessions of a miner that match.
func (b *Board) dropLocked(e *entry, gone func(pending) bool) {
	e.pending = slices.DeleteFunc(e.pending, func(p pending) bool {
		if !gone(p) {
			return false
		}
		delete(b.sessions, p.session)
		return true
	})
}

const (
	// sweepEvery is how often what has expired is looked for.
	sweepEvery = 30 * time.Second
	// silentFor is how long a miner without a valid lease stays on the board,
	// so that people are told that it went silent.
	silentFor = 10 * time.Minute
)

// sweepLocked forgets what expired: the sessions that nobody ended and the
// miners that stayed silent.
func (b *Board) sweepLocked(now time.Time) {
	if now.Before(b.swept.Add(sweepEvery)) {
		return
	}
	b.swept = now
	for _, e := range b.entries {
		b.dropLocked(e, func(p pending) bool { return !now.Before(p.expires) })
		if now.Sub(e.lease.Expires) >= silentFor {
			b.removeLocked(e)
		}
	}
}
