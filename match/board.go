package match

import (
	"fmt"
	"sync"
	"time"

	"mintai/api"
	"mintai/identity"
)

// Judge knows what sessions showed about miners: a score between 0 and 1, and
// the measured time to first token and tokens per second of one of its models,
// each zero when unknown. Package reputation implements it.
type Judge interface {
	Judge(miner identity.NodeID, model api.Model, now time.Time) (score float64, firstToken time.Duration, tokensPerSecond float64)
}

// Choice is the miner that shall answer.
type Choice struct {
	Miner     identity.NodeID
	Name      string
	Principal string // the account behind the miner
	Model     Model  // the granted one, in the miner's spelling
	Slots     int
	Why       string // the choice explained in one line
}

// Board holds the leases and the load that they do not show yet. It is safe
// for concurrent use. Its methods never block for long and never call back.
type Board struct {
	judge Judge

	mu       sync.Mutex // guards what follows
	entries  map[identity.NodeID]*entry
	all      index
	byModel  map[api.Model]*index // by canonical name
	sessions map[identity.SessionID]*entry
	turn     uint64 // decisions made
	joined   uint64 // miners that ever joined
	swept    time.Time
	scratch  scratch
}

// entry is one miner on the board.
type entry struct {
	text    string // of the NodeID
	joined  uint64 // its place in the order of joining
	lease   Lease
	turn    uint64 // when it was last chosen
	pending []pending
}

// scratch are the slices that Pick uses again and again.
type scratch struct {
	candidates []candidate
	entries    []*entry
	models     []*Model
}

// NewBoard makes an empty board. Without a judge all miners are equals.
func NewBoard(judge Judge) *Board {
	return &Board{
		judge:    judge,
		entries:  make(map[identity.NodeID]*entry),
		byModel:  make(map[api.Model]*index),
		sessions: make(map[identity.SessionID]*entry),
	}
}

// Put stores a lease in place of the miner's former one. The load of sessions
// that were established before is the lease's own from now on.
func (b *Board) Put(lease Lease) {
	lease = lease.normalised()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[lease.Miner]
	if e == nil {
		b.joined++
		e = &entry{text: lease.Miner.String(), joined: b.joined, lease: lease}
		b.entries[lease.Miner] = e
		b.all.add(e)
		b.indexLocked(e)
		return
	}
	b.dropLocked(e, func(p pending) bool { return p.established })
	if sameNames(e.lease.Models, lease.Models) {
		e.lease = lease
		return
	}
	b.unindexLocked(e)
	e.lease = lease
	b.indexLocked(e)
}

// Remove forgets a miner that said goodbye or was lost.
func (b *Board) Remove(miner identity.NodeID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[miner]; e != nil {
		b.removeLocked(e)
	}
}

func (b *Board) removeLocked(e *entry) {
	b.unindexLocked(e)
	b.all.remove(e)
	b.dropLocked(e, func(pending) bool { return true })
	delete(b.entries, e.lease.Miner)
}

// Len returns the number of miners on the board, silent ones included until
// they are swept.
func (b *Board) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.entries)
}

// Pick chooses the miner that answers, or returns a *NoMatchError that says
// what each filter removed. It counts no load: see Begin, and Take for both.
func (b *Board) Pick(n Needs, now time.Time) (Choice, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pickLocked(&n, now)
}

// Take is Pick and Begin in one step, so that two requests that come at the
// same moment never count on the same slot. expires is that of Begin.
func (b *Board) Take(n Needs, session identity.SessionID, expires, now time.Time) (Choice, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endLocked(session) // a miner that declined is no longer loaded by it
	c, err := b.pickLocked(&n, now)
	if err != nil {
		return Choice{}, err
	}
	b.beginLocked(pending{session: session, asker: n.Asker, model: c.Model.Name, expires: expires}, c.Miner)
	return c, nil
}

func (b *Board) pickLocked(n *Needs, now time.Time) (Choice, error) {
	if err := n.check(); err != nil {
		return Choice{}, err
	}
	b.sweepLocked(now)
	p := b.pinnedLocked(n.Miner)

	s := &b.scratch
	s.candidates, s.entries, s.models = s.candidates[:0], s.entries[:0], s.models[:0]
	defer func() { clear(s.entries); clear(s.models) }()

	free := 0
	b.walkLocked(n, &p, func(e *entry) bool {
		c, m, failed := b.considerLocked(e, n, &p, now)
		if failed != stepKept {
			return true
		}
		s.candidates, s.entries, s.models = append(s.candidates, c), append(s.entries, e), append(s.models, m)
		if c.rank == 0 && c.free() {
			free++
		}
		return free < enough
	})
	if len(s.candidates) == 0 {
		return Choice{}, b.noMatchLocked(n, &p, now)
	}
	b.turn++
	d := choose(s.candidates, b.turn)
	e, m := s.entries[d.index], s.models[d.index]
	e.turn = b.turn
	return Choice{
		Miner: e.lease.Miner, Name: e.lease.Name, Principal: e.lease.Principal, Model: *m, Slots: e.lease.Slots,
		Why: why(s.candidates, d, n, m),
	}, nil
}

// considerLocked runs one miner through all filters, in their order.
func (b *Board) considerLocked(e *entry, n *Needs, p *pin, now time.Time) (candidate, *Model, step) {
	m, failed := consider(e, n, p, now)
	if failed != stepKept {
		return candidate{}, nil, failed
	}
	c := candidate{rank: m.rank(), score: 1, load: e.load(now), slots: e.lease.Slots, turn: e.turn, joined: e.joined}
	if n.Model != "" {
		c.rank = 0 // the user named it: what serves it makes no difference
	}
	if b.judge != nil {
		c.score, c.firstToken, c.tokensPerSecond = b.judgedLocked(e, m, now)
	}
	if c.score < n.MinReputation {
		return candidate{}, nil, stepReputation
	}
	return c, m, room(e, c.load, n, now)
}

// judgedLocked asks the judge and brings the answer into its bounds, so that
// arithmetic on it cannot fail.
func (b *Board) judgedLocked(e *entry, m *Model, now time.Time) (float64, time.Duration, float64) {
	score, first, rate := b.judge.Judge(e.lease.Miner, m.Name, now)
	if !(score >= 0) { // NaN as well
		score = 0
	}
	if !(rate >= 0) {
		rate = 0
	}
	return min(score, 1), max(first, 0), rate
}

// why explains a decision in one line.
func why(candidates []candidate, d decision, n *Needs, m *Model) string {
	c := &candidates[d.index]
	var text string
	switch {
	case n.Miner != "":
		text = "the miner asked for"
	case d.explored:
		text = fmt.Sprintf("new and not measured yet, 1 of %d that can", len(candidates))
	case len(candidates) == 1:
		text = "the only one that can"
	default:
		text = fmt.Sprintf("the best of %d that can", len(candidates))
	}
	if n.Model == "" {
		text += fmt.Sprintf(", with %s", m.Name)
	}
	if c.free() {
		text += fmt.Sprintf("; %d of %d slots free", c.slots-c.load, c.slots)
	} else {
		text += fmt.Sprintf("; %d ahead in its queue", c.load-c.slots+1)
	}
	if c.firstToken > 0 {
		text += fmt.Sprintf(", first token %.1f s", c.firstToken.Seconds())
	}
	if c.tokensPerSecond > 0 {
		text += fmt.Sprintf(", %.0f tok/s", c.tokensPerSecond)
	}
	return text + fmt.Sprintf(", reputation %.2f", c.score)
}
