package reputation

import (
	"time"

	"mintai/identity"
)

// Bounds of what is remembered of single requests, in memory only.
const (
	// requestWindow is how long the two accounts of one request find each other.
	requestWindow = 15 * time.Minute
	// maxRequests bounds the requests remembered at once, about 10 MB; the
	// oldest is forgotten first.
	maxRequests = 1 << 16
)

type requestKey struct {
	session identity.SessionID
	request RequestID
}

// account is what was already counted for one request.
type account struct {
	client     bool    // the client has reported: nothing more counts
	confession Outcome // counted on the miner's own word, until the client reports
	at         time.Time
}

// requests remembers, for a while, which requests were counted, so that both
// ends' accounts and any repetition count once.
type requests struct {
	known map[requestKey]account
	order fifo[stamped[requestKey]]
}

// see returns what is known of a request and forgets what has become too old.
func (q *requests) see(k requestKey, now time.Time) account {
	for q.order.len() > 0 {
		oldest := q.order.front()
		if q.order.len() < maxRequests && now.Sub(oldest.at) < requestWindow {
			break
		}
		q.order.pop()
		delete(q.known, oldest.key)
	}
	return q.known[k]
}

// put remembers what was counted.
func (q *requests) put(k requestKey, a account, now time.Time) {
	if q.known == nil {
		q.known = make(map[requestKey]account)
	}
	if _, have := q.known[k]; !have {
		q.order.push(stamped[requestKey]{key: k, at: now})
	}
	q.known[k] = a
}

// stamped is a key with the moment it was first seen.
type stamped[K comparable] struct {
	key K
	at  time.Time
}

// fifo is a queue over one slice. The caller bounds it.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }
func (f *fifo[T]) front() T { return f.items[f.head] }
func (f *fifo[T]) push(v T) { f.items = append(f.items, v) }

// pop drops the front and gives memory back once half of the slice is unused.
func (f *fifo[T]) pop() {
	var zero T
	f.items[f.head] = zero
	f.head++
	if f.head*2 >= len(f.items) {
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
}
