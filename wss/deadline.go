package wss

import (
	"sync"
	"time"
)

// deadline is a point in time after which its channel is closed, and which can
// be moved while somebody waits. quic-go ends its reading with one in the past.
type deadline struct {
	mu    sync.Mutex // guards what follows
	timer *time.Timer
	ended chan struct{}
}

func newDeadline() *deadline { return &deadline{ended: make(chan struct{})} }

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

// set moves the deadline. Who waits for the old one goes on waiting for it,
// unless it is the same channel still.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.ended // the timer's function closes it, and is about to
	}
	d.timer = nil
	closed := false
	select {
	case <-d.ended:
		closed = true
	default:
	}
	if t.IsZero() || time.Until(t) > 0 {
		if closed {
			d.ended = make(chan struct{})
		}
		if !t.IsZero() {
			ended := d.ended
			d.timer = time.AfterFunc(time.Until(t), func() { close(ended) })
		}
		return
	}
	if !closed {
		close(d.ended)
	}
}
