package quicstream

import (
	"sync"

	"mintai/identity"
)

// answerOverhead is charged for an answer beside its bytes: two goroutines, the
// head, and the maps' entries.
const answerOverhead = 8 << 10

type answerKey struct {
	peer identity.NodeID
	id   RequestID
}

// registry finds answers by client and request ID and keeps the books of their
// memory. Its mutex is taken after an answer's, never before.
type registry struct {
	perClient, total int64 // limits in bytes

	mu       sync.Mutex
	answers  map[answerKey]*answer
	used     map[identity.NodeID]int64
	usedAll  int64
	finished []*answer // finished, nobody attached, oldest first: dropped when memory is short
}

func newRegistry(perClient, total int64) *registry {
	return &registry{
		perClient: perClient,
		total:     total,
		answers:   make(map[answerKey]*answer),
		used:      make(map[identity.NodeID]int64),
	}
}

// has reports whether there is an answer for key.
func (g *registry) has(key answerKey) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answers[key] != nil
}

// find returns the answer and takes it off the list of what may be dropped.
func (g *registry) find(key answerKey) *answer {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.answers[key]
	if a != nil {
		g.unlistLocked(a)
	}
	return a
}

// insert registers a, or returns the answer that already has its key.
func (g *registry) insert(a *answer) (existing *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old := g.answers[a.key]; old != nil {
		g.unlistLocked(old)
		return old
	}
	g.answers[a.key] = a
	return nil
}

// idle lists a finished answer that nobody reads: the first to go when memory
// is short.
func (g *registry) idle(a *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.answers[a.key] == a {
		g.unlistLocked(a)
		g.finished = append(g.finished, a)
	}
}

// busy takes an answer that is read off the list of what may be dropped.
func (g *registry) busy(a *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unlistLocked(a)
}

// remove forgets a, so that nobody can attach any more. Its memory stays
// charged until it is released.
func (g *registry) remove(a *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeLocked(a)
}

func (g *registry) removeLocked(a *answer) {
	g.unlistLocked(a)
	if g.answers[a.key] == a {
		delete(g.answers, a.key)
	}
}

func (g *registry) unlistLocked(a *answer) {
	for i, f := range g.finished {
		if f == a {
			g.finished = append(g.finished[:i], g.finished[i+1:]...)
			return
		}
	}
}

// reserve charges n bytes to a, dropping finished answers when needed. It
// reports whether they fit. The caller may hold a's mutex, and a must not be
// finished.
func (g *registry) reserve(a *answer, n int) bool {
	for {
		victim, ok := g.tryReserve(a, int64(n))
		if victim == nil {
			return ok
		}
		victim.evict()
	}
}

func (g *registry) tryReserve(a *answer, n int64) (victim *answer, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	peer := a.key.peer
	clientFull := g.used[peer]+n > g.perClient
	if !clientFull && g.usedAll+n <= g.total {
		g.used[peer] += n
		g.usedAll += n
		a.charged += n
		return nil, true
	}
	for _, f := range g.finished {
		if !clientFull || f.key.peer == peer {
			g.removeLocked(f)
			g.chargeLocked(f, -f.charged) // at once, or the same victim could be counted twice
			return f, false
		}
	}
	return nil, false
}

// release gives back n of the bytes charged to a.
func (g *registry) release(a *answer, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.chargeLocked(a, -min(int64(n), a.charged))
}

// releaseAll gives back everything charged to a.
func (g *registry) releaseAll(a *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.chargeLocked(a, -a.charged)
}

func (g *registry) chargeLocked(a *answer, n int64) {
	a.charged += n
	g.usedAll += n
	if g.used[a.key.peer] += n; g.used[a.key.peer] == 0 {
		delete(g.used, a.key.peer)
	}
}

// of returns the answers of one client, or of all when peer is zero.
func (g *registry) of(peer identity.NodeID) []*answer {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*answer
	for key, a := range g.answers {
		if peer.IsZero() || key.peer == peer {
			out = append(out, a)
		}
	}
	return out
}

// usage returns the bytes charged in all.
func (g *registry) usage() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.usedAll
}
