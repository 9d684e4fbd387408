package signal

import (
	"crypto/rand"
	"crypto/tls"
	"sync"
	"time"

	"mintai/identity"
	"mintai/signal/signalpb"
)

const (
	// ticketWindow is how long a session ticket admits 0-RTT at least; at most
	// it is twice that.
	ticketWindow = 12 * time.Hour
	// earlyLimit is how many nonces of early requests are remembered in one
	// window. Beyond it the window ends early.
	earlyLimit = 1 << 16
	// replyTTL is how long an answered request gets the same answer again.
	replyTTL = 2 * time.Minute
	// replyLimit bounds the remembered requests. The oldest go first.
	replyLimit = 1 << 14
)

// nonceKey names one request of one node.
type nonceKey struct {
	node  identity.NodeID
	nonce [nonceSize]byte
}

func keyOf(node identity.NodeID, nonce []byte) nonceKey {
	k := nonceKey{node: node}
	copy(k.nonce[:], nonce)
	return k
}

// earlyWindow is the defence against replayed 0-RTT (RFC 8446 §8: single-use
// of what is accepted early). It ties the memory of nonces to the keys of the
// tickets that they came under: a nonce is forgotten exactly when no ticket can
// bring it back.
//
// A request seen in window w came under a ticket of w or w-1. The keys of w die
// when window w+2 begins, and the nonces of w are dropped in the same moment.
// The keys are random and live in memory only, so a restart ends all tickets.
type earlyWindow struct {
	mu      sync.Mutex // guards all below
	tls     *tls.Config
	began   time.Time
	keys    [2][32]byte              // of this window and the one before
	seen    [2]map[nonceKey]struct{} // likewise
	rotated uint64
}

func newEarlyWindow(cfg *tls.Config, now time.Time) *earlyWindow {
	w := &earlyWindow{tls: cfg}
	w.rotateLocked(now)
	w.rotateLocked(now)
	w.rotated = 0
	return w
}

// tick begins a new window when it is due. It is called before each handshake.
func (w *earlyWindow) tick(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	silence := now.Sub(w.began)
	if silence >= 2*ticketWindow { // the newest keys are over too
		w.rotateLocked(now)
	}
	if silence >= ticketWindow {
		w.rotateLocked(now)
	}
}

func (w *earlyWindow) rotateLocked(now time.Time) {
	w.began = now
	w.keys[1], w.seen[1] = w.keys[0], w.seen[0]
	_, _ = rand.Read(w.keys[0][:]) // never fails: crypto/rand aborts the process instead
	w.seen[0] = make(map[nonceKey]struct{})
	w.rotated++
	w.tls.SetSessionTicketKeys(w.keys[:])
}

// first remembers an early request and reports whether it was new.
func (w *earlyWindow) first(k nonceKey, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, seen := range w.seen {
		if _, ok := seen[k]; ok {
			return false
		}
	}
	if len(w.seen[0]) >= earlyLimit {
		w.rotateLocked(now)
	}
	w.seen[0][k] = struct{}{}
	return true
}

func (w *earlyWindow) size() (nonces int, rotations uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen[0]) + len(w.seen[1]), w.rotated
}

// replies makes MatchRequest idempotent: a nonce reaches the handler once, and
// whoever asks again with it gets the newest answer.
type replies struct {
	mu      sync.Mutex // guards all below
	entries map[nonceKey]*reply
	order   []*reply // oldest first
}

type reply struct {
	key     nonceKey
	expires time.Time
	peer    *Peer // who waits for answers
	answer  *signalpb.Envelope
}

func newReplies() *replies { return &replies{entries: make(map[nonceKey]*reply)} }

// begin notes a request of peer. When the nonce is known, fresh is false, the
// answers go to peer from now on, and answer is the newest one so far or nil.
func (r *replies) begin(k nonceKey, peer *Peer, now time.Time) (answer *signalpb.Envelope, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expireLocked(now)
	if e, ok := r.entries[k]; ok {
		e.peer = peer
		return e.answer, false
	}
	e := &reply{key: k, expires: now.Add(replyTTL), peer: peer}
	r.entries[k] = e
	r.order = append(r.order, e)
	return nil, true
}

// known reports whether the nonce was seen lately.
func (r *replies) known(k nonceKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.entries[k]
	return ok
}

// answered notes an answer that the handler gave to peer and returns the peer
// that it is for: the one that asked last with this nonce.
func (r *replies) answered(k nonceKey, answer *signalpb.Envelope, peer *Peer) *Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[k]
	if !ok {
		return peer
	}
	e.answer = answer
	if e.peer == nil {
		return peer
	}
	return e.peer
}

// left forgets a peer, so that the memory of a dead connection is freed.
func (r *replies) left(peer *Peer, nonces []nonceKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range nonces {
		if e, ok := r.entries[k]; ok && e.peer == peer {
			e.peer = nil
		}
	}
}

func (r *replies) expireLocked(now time.Time) {
	n := 0
	for n < len(r.order) && (now.After(r.order[n].expires) || len(r.order)-n >= replyLimit) {
		delete(r.entries, r.order[n].key)
		r.order[n] = nil
		n++
	}
	r.order = r.order[n:]
	if len(r.order) == 0 {
		r.order = nil
	}
}
