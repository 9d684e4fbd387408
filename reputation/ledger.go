// Package reputation keeps what sessions showed about miners and turns it into
// a score: how likely a miner is to give a whole answer, and how fast.
//
// The score is the mean of a Beta distribution whose evidence is forgotten by
// half-lives (A. Jøsang, R. Ismail: The Beta Reputation System, 2002), lowered
// at once when the last hour was much worse. Both ends of a session report
// each request; the request counts once, the client's account decides, and a
// miner's own praise never counts. What is not the miner's doing (a client
// that cancels, a request that the AI server refuses) counts for nobody.
// Records live in an embedded database and survive a killed process.
//
// It opens no socket, sees no prompt and no answer, and does not choose: that
// is package match, which asks through Judge. Scoring is pure and takes the
// time as an argument.
package reputation

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"mintai/api"
	"mintai/identity"
)

// ErrClosed is returned by Record and Flush after Close.
var ErrClosed = errors.New("reputation ledger is closed")

// ErrOverloaded is returned by Record when so many records wait to be written
// that no further miner can be held in memory.
var ErrOverloaded = errors.New("reputation ledger cannot keep up with its disk")

// Options are the settings of a Ledger. The zero value works.
type Options struct {
	// Log receives what goes wrong while writing. Zero: nothing is logged.
	Log zerolog.Logger
	// FlushEvery is the longest time for which a report is only in memory; a
	// killed process loses no more than that. Zero: 1 s.
	FlushEvery time.Duration
	// MaxCached bounds the miners held in memory, about 1 KB each; the others
	// are read from disk when asked for. Zero: 16,384.
	MaxCached int
	// Allowance is how many reports an hour one principal may have counted for
	// one miner, praise and blame apart. Zero: DefaultAllowance; negative:
	// without limit.
	Allowance int
	// KeepFor is how long a miner that nobody reports about is remembered.
	// Zero: 60 days, twenty half-lives.
	KeepFor time.Duration
}

func (o Options) withDefaults() Options {
	if o.FlushEvery <= 0 {
		o.FlushEvery = time.Second
	}
	if o.MaxCached <= 0 {
		o.MaxCached = 16384
	}
	if o.Allowance == 0 {
		o.Allowance = DefaultAllowance
	}
	if o.KeepFor <= 0 {
		o.KeepFor = 20 * LongHalfLife
	}
	return o
}

// Ledger remembers every miner's record. It is safe for concurrent use.
type Ledger struct {
	opts  Options
	store *store

	flushMu sync.Mutex // one flush at a time
	stop    chan struct{}
	wake    chan struct{} // cap 1: something is dirty
	done    chan struct{} // closed when the flusher has ended

	mu         sync.RWMutex // guards what follows
	closed     bool
	cache      map[identity.NodeID]*cached
	dirty      map[identity.NodeID]*cached
	requests   requests
	allowances allowances
}

// cached is a record in memory. Its record is guarded by Ledger.mu; used is
// set by readers and cleared by eviction, which passes over used ones once.
type cached struct {
	record  record
	version uint64 // of the record, raised by each change
	used    atomic.Bool
}

// Open opens the database at path, made with mode 0600 when it does not exist,
// and forgets miners that were not reported about for Options.KeepFor. A
// damaged file is moved aside and reported as a *CorruptError; another Open of
// the same path then begins with an empty ledger. Other errors: ErrInUse,
// ErrNewer and those of the file system. The caller must Close the ledger.
func Open(path string, opts Options) (*Ledger, error) {
	opts = opts.withDefaults()
	s, err := openStore(path)
	if err != nil {
		return nil, err
	}
	if _, err := s.prune(time.Now().Add(-opts.KeepFor)); err != nil {
		_ = s.close()
		return nil, fmt.Errorf("forgetting old reputation: %w", err)
	}
	l := &Ledger{
		opts: opts, store: s,
		stop: make(chan struct{}), wake: make(chan struct{}, 1), done: make(chan struct{}),
		cache:      make(map[identity.NodeID]*cached),
		dirty:      make(map[identity.NodeID]*cached),
		allowances: allowances{perHour: float64(opts.Allowance)},
	}
	go l.flushLoop()
	return l, nil
}

// Record takes one end's account of one request into the miner's record. It
// returns ErrBadReceipt for an account that cannot be true and ErrOverloaded
// when the disk does not keep up; an account that does not count (the miner's
// praise, a repetition, one beyond its principal's allowance) is no error.
// What was recorded is on disk after at most Options.FlushEvery.
func (l *Ledger) Record(r Receipt) error {
	if err := r.check(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	key := requestKey{session: r.Session, request: r.Request}
	seen := l.requests.see(key, r.At)
	if seen.client || r.From == FromMiner && (seen.confession != 0 || !confesses(r.Outcome)) {
		return nil
	}
	c, err := l.loadLocked(r.Miner)
	if err != nil {
		return err
	}
	rec := &c.record
	switch r.From {
	case FromMiner:
		rec.count(r.Outcome, r.At)
		seen = account{confession: r.Outcome, at: r.At}
	case FromClient:
		if seen.confession != 0 {
			rec.uncount(seen.confession, seen.at)
		}
		seen = account{client: true}
		_, bad := weight(r.Outcome)
		if l.opts.Allowance < 0 || l.allowances.take(allowanceKey{miner: r.Miner, principal: r.principal(), bad: bad > 0}, r.At) {
			rec.count(r.Outcome, r.At)
			rec.travelled(&r)
			rec.measure(&r)
		}
	}
	l.requests.put(key, seen, r.At)
	c.version++
	l.dirty[r.Miner] = c
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// confesses reports whether an outcome is to the disadvantage of the miner
// that tells it. Only that is believed without the client's word.
func confesses(o Outcome) bool { return o == BackendError || o == Busy }

// Score returns the trust in a miner at a moment, Neutral for an unknown one.
func (l *Ledger) Score(miner identity.NodeID, now time.Time) Score {
	var s Score
	l.view(miner, func(r *record) { s = score(r, now) })
	return s
}

// Judge returns what a match needs to know of a miner and one of its models: a
// score between 0 and 1, and the measured time to first token and tokens per
// second, each zero when unknown or too long ago.
func (l *Ledger) Judge(miner identity.NodeID, model api.Model, now time.Time) (value float64, firstToken time.Duration, tokensPerSecond float64) {
	l.view(miner, func(r *record) {
		value = score(r, now).Value
		if s, have := r.speeds[model]; have && s.known(now) {
			firstToken, tokensPerSecond = s.firstToken, s.tokensPerSecond
		}
	})
	return value, firstToken, tokensPerSecond
}

// view calls f with a miner's record, which is empty for an unknown miner. f
// must not keep or change it.
func (l *Ledger) view(miner identity.NodeID, f func(*record)) {
	l.mu.RLock()
	c := l.cache[miner]
	if c != nil {
		c.used.Store(true)
		f(&c.record)
		l.mu.RUnlock()
		return
	}
	l.mu.RUnlock()

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		f(&record{})
		return
	}
	c, err := l.loadLocked(miner)
	if err != nil {
		if !errors.Is(err, ErrOverloaded) {
			l.opts.Log.Error().Err(err).Str("peer", miner.Short()).Msg("cannot read a miner's reputation; it counts as unknown")
		}
		f(&record{})
		return
	}
	f(&c.record)
}

// loadLocked returns a miner's record from memory or disk. The result stays in
// the cache, an unknown miner's too, because a match asks for it each time.
func (l *Ledger) loadLocked(miner identity.NodeID) (*cached, error) {
	if c := l.cache[miner]; c != nil {
		c.used.Store(true)
		return c, nil
	}
	if len(l.cache) >= l.opts.MaxCached && !l.evictLocked() {
		return nil, ErrOverloaded
	}
	r, err := l.store.read(miner)
	if err != nil {
		return nil, fmt.Errorf("reading the reputation of %s: %w", miner.Short(), err)
	}
	c := &cached{}
	if r != nil {
		c.record = *r
	}
	c.used.Store(true)
	l.cache[miner] = c
	return c, nil
}

// evictLocked drops one record that is on disk, rather one that was not used
// since the last look (a second chance; the map's order is the clock hand). It
// reports whether there was one.
func (l *Ledger) evictLocked() bool {
	var spare *identity.NodeID
	looked := 0
	for miner, c := range l.cache {
		if l.dirty[miner] != nil {
			continue
		}
		if !c.used.Swap(false) {
			delete(l.cache, miner)
			return true
		}
		if spare == nil {
			spare = &miner
		}
		if looked++; looked >= 64 {
			break
		}
	}
	if spare == nil {
		return false
	}
	delete(l.cache, *spare)
	return true
}
