package backend

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errFull says that slots and queue are taken; errWaited that a turn never came.
var (
	errFull   = errors.New("all slots and the queue are taken")
	errWaited = errors.New("no slot became free in time")
)

// limiter hands out a server's slots, first come, first served. Beyond them a
// bounded number of requests waits.
//
//	free slot ─────────────────────────────► running ──release──► gone
//	no slot, room in the queue ──► waiting ──┘   │
//	                                  └─ctx ends─┴──────────────► gone
//	no room ──► errFull
type limiter struct {
	mu      sync.Mutex // guards everything below
	slots   int
	limit   int // of the queue
	running int
	queue   []*waiter
	service time.Duration // moving average of how long a slot is held
	changed func()        // called without mu when full-ness changes; may be nil
}

type waiter struct {
	turn  chan struct{} // closed when the slot is this waiter's
	moved chan int      // cap 1: the newest position
}

func newLimiter(slots, limit int, changed func()) *limiter {
	return &limiter{slots: slots, limit: limit, changed: changed, service: 2 * time.Second}
}

// acquire waits for a slot until ctx ends or wait is over. While it waits it
// calls position, from the caller's goroutine, with the place in the queue, 1
// being the next. The caller must call release exactly once.
func (l *limiter) acquire(ctx context.Context, wait time.Duration, position func(int)) (release func(), err error) {
	l.mu.Lock()
	if l.running < l.slots && len(l.queue) == 0 {
		l.running++
		full := l.running == l.slots
		l.mu.Unlock()
		if full {
			l.tell()
		}
		return l.releaser(), nil
	}
	if len(l.queue) >= l.limit {
		l.mu.Unlock()
		return nil, errFull
	}
	w := &waiter{turn: make(chan struct{}), moved: make(chan int, 1)}
	l.queue = append(l.queue, w)
	w.moved <- len(l.queue)
	full := len(l.queue) == l.limit
	l.mu.Unlock()
	if full {
		l.tell()
	}

	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-w.turn:
			return l.releaser(), nil
		case pos := <-w.moved:
			position(pos)
		case <-ctx.Done():
			l.leave(w)
			return nil, ctx.Err()
		case <-timer.C:
			l.leave(w)
			return nil, errWaited
		}
	}
}

func (l *limiter) releaser() func() {
	start := time.Now()
	return sync.OnceFunc(func() {
		l.mu.Lock()
		l.running--
		l.service += (time.Since(start) - l.service) / 8
		l.promoteLocked()
		l.mu.Unlock()
		l.tell()
	})
}

// leave takes w out of the queue, or gives back the slot that it was just given.
func (l *limiter) leave(w *waiter) {
	l.mu.Lock()
	defer l.tell()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q == w {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			l.positionsLocked()
			return
		}
	}
	l.running--
	l.promoteLocked()
}

// promoteLocked gives free slots to the first in the queue.
func (l *limiter) promoteLocked() {
	moved := false
	for l.running < l.slots && len(l.queue) > 0 {
		w := l.queue[0]
		l.queue = append(l.queue[:0], l.queue[1:]...)
		l.running++
		close(w.turn)
		moved = true
	}
	if moved {
		l.positionsLocked()
	}
}

func (l *limiter) positionsLocked() {
	for i, w := range l.queue {
		select {
		case <-w.moved: // replaced by the newer one
		default:
		}
		w.moved <- i + 1
	}
}

// resize changes the number of slots. Running requests are never cut off.
func (l *limiter) resize(slots int) {
	l.mu.Lock()
	l.slots = slots
	l.promoteLocked()
	l.mu.Unlock()
}

// load is a limiter's state at one moment.
type load struct{ slots, running, queued, limit int }

func (l *limiter) load() load {
	l.mu.Lock()
	defer l.mu.Unlock()
	return load{l.slots, l.running, len(l.queue), l.limit}
}

// retryAfter estimates when a slot may be free again, between 1 s and a minute.
func (l *limiter) retryAfter() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.service * time.Duration(len(l.queue)+1) / time.Duration(max(l.slots, 1))
	return min(max(d, time.Second), time.Minute)
}

func (l *limiter) tell() {
	if l.changed != nil {
		l.changed()
	}
}

// announcer decides which positions of a waiting request are worth a 102
// response: the first, then each time it has halved, and the last one. HTTP
// clients give up after five informational responses (quic-go's http3, for
// one), so there are at most four.
type announcer struct {
	sent int
	last int
}

func (a *announcer) due(pos int) bool {
	const most = 4
	switch {
	case a.sent == 0:
	case pos >= a.last || a.sent >= most:
		return false
	case pos == 1:
	case a.sent == most-1: // the last one is kept for "you are next"
		return false
	case pos > a.last/2:
		return false
	}
	a.sent++
	a.last = pos
	return true
}
