package quicstream

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

const (
	// maxPiece is the most that one step of a write hands on.
	maxPiece = maxBlock
	// directWrite is the largest write that the handler's goroutine sends
	// itself. Larger ones go through the history, where copying the next piece
	// overlaps with sending this one.
	directWrite = 4 << 10
	// maxLead is how far a handler may run ahead of an attached client.
	maxLead = 2 * maxPiece
)

// Ends of an attachment that say nothing about the answer itself.
var (
	errReplaced  = errors.New("another connection continues this answer")
	errPathLost  = errors.New("connection lost")
	errBroken    = errors.New("the handler broke off")
	errOvertaken = errors.New("a later attempt carries this answer")
)

// answer is one request's answer: the handler writes into it, at most one
// attachment at a time carries it to the client.
//
// While the attachment has sent everything, the handler writes straight to the
// stream (attachment.direct) and no other goroutine wakes for a token. While it
// is behind, or none is there, the handler fills the history and the
// attachment's goroutine sends from it.
type answer struct {
	key    answerKey
	digest Digest        // the same ID must mean the same request
	keep   int           // most bytes of history
	window time.Duration // how long it is kept without a client
	reg    *registry
	stats  *counters

	charged int64 // guarded by reg.mu

	ctx    context.Context //nolint:containedctx // the handler's; its cause says why it was cancelled
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards what follows
	cond    sync.Cond  // on mu: anything changed
	kept    history
	status  int         // final status, 0 until WriteHeader
	header  http.Header // snapshot made by WriteHeader
	ready   bool        // the head may be sent
	infos   int         // informational answers so far
	news    []news      // those of them that wait for an attachment
	ended   bool        // the handler returned
	failure error       // why it broke off, nil for a complete answer
	stopped bool        // cancelled, expired or evicted: no more attachments
	attempt uint32      // the latest that came, see HeaderAttempt
	att     *attachment // who carries the answer now, nil when nobody
	reader  *attachment // who reads the kept bytes without the lock, nil when nobody
	timer   *time.Timer // expiry while nobody is attached
}

func newAnswer(base context.Context, key answerKey, cfg *ServerConfig, reg *registry, stats *counters) *answer {
	a := &answer{
		key:    key,
		keep:   min(streamWindow+maxLead+2*maxBlock, int(cfg.BufferPerClient)),
		window: cfg.ResumeWindow,
		reg:    reg,
		stats:  stats,
	}
	a.cond.L = &a.mu
	a.ctx, a.cancel = context.WithCancelCause(base)
	return a
}

// write takes body bytes from the handler. It blocks while the client is slow
// and while a client is awaited with full buffers; the end of a.ctx unblocks it.
func (a *answer) write(p []byte) (int, error) {
	var n int
	for n < len(p) {
		m, err := a.writePiece(p[n:min(len(p), n+maxPiece)])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (a *answer) writePiece(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		if a.stopped {
			return 0, context.Cause(a.ctx)
		}
		att := a.att
		direct := att != nil && att.direct // everything before p is sent
		if !direct || len(p) > directWrite {
			if n := a.fillLocked(p); n > 0 {
				a.cond.Broadcast()
				return n, nil
			}
			if !direct {
				a.cond.Wait()
				continue
			}
			// No memory: nothing that is waited for would free any.
		}
		a.keepSentLocked(p)
		att.startLocked()
		a.mu.Unlock()
		err := att.write(p)
		a.mu.Lock()
		a.wroteLocked(att, len(p), err)
		return len(p), nil // kept, as far as memory allowed: a lost path loses nothing
	}
}

// wroteLocked accounts for a write to att that was made without the lock.
func (a *answer) wroteLocked(att *attachment, n int, err error) {
	att.busy = false
	if err == nil {
		att.sent += int64(n)
		if att.err == nil {
			return // nobody waits for a write that went well
		}
	} else if att.err == nil {
		a.endLocked(att, att.why(err))
	}
	a.cond.Broadcast()
}

// fillLocked puts p, or the part that fits, into the history for the attachment
// to send.
func (a *answer) fillLocked(p []byte) int {
	sent := a.kept.base // without a client nothing is dropped: it may come back for all of it
	if a.att != nil {
		sent = a.att.sent
		// Some lead lets copying and sending overlap; more would crowd out
		// what may have to be sent again.
		if a.kept.end-sent >= maxLead {
			return 0
		}
	}
	n := a.keepLocked(p, sent)
	if n > 0 && a.att != nil {
		a.att.direct = false // until its goroutine has sent them
	}
	return n
}

// keepSentLocked keeps p, which goes out at this moment, at the cost of older
// bytes. When not even that is possible the history moves past p.
func (a *answer) keepSentLocked(p []byte) {
	if n := a.keepLocked(p, a.kept.end); n < len(p) {
		a.reg.release(a, a.kept.skip(len(p)-n))
	}
}

// keepLocked appends what fits of p and returns how much that was. Blocks that
// lie wholly below sent make room for new ones.
func (a *answer) keepLocked(p []byte, sent int64) int {
	var n int
	for n < len(p) {
		if a.kept.room() == 0 && !a.growLocked(sent) {
			break
		}
		n += a.kept.append(p[n:])
	}
	return n
}

func (a *answer) growLocked(sent int64) bool {
	for {
		want := a.kept.nextSize()
		if a.kept.size+want <= a.keep && a.reg.reserve(a, want) {
			a.kept.add(want)
			return true
		}
		front := a.kept.front()
		if front == nil || front.end() > sent {
			return false
		}
		if a.reader != nil && a.reader != a.att {
			return false // one that was replaced may still read any block
		}
		if cap(front.b) >= want {
			a.kept.recycle()
			return true
		}
		a.reg.release(a, a.kept.drop())
	}
}

// inform passes an informational answer (RFC 9110 §15.2) to the client that is
// there, or that comes next: the handler may be quicker than its first
// attachment.
func (a *answer) inform(code int, header http.Header) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ready || a.infos >= maxInfos {
		return
	}
	a.infos++
	a.news = append(a.news, news{code, header.Clone()})
	a.cond.Broadcast()
}

// news is an informational answer that was not sent yet.
type news struct {
	code   int
	header http.Header
}

// maxInfos is how many informational answers quic-go's client accepts.
const maxInfos = 5

// setHead fixes status and header; ready lets them go out.
func (a *answer) setHead(status int, header http.Header) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status == 0 {
		a.status, a.header = status, answerHeader(header)
	}
}

// releaseHead lets the head go out.
func (a *answer) releaseHead() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ready {
		a.ready = true
		a.cond.Broadcast()
	}
}

// finish records that the handler returned; failure is nil for a complete
// answer.
func (a *answer) finish(failure error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended, a.failure = true, failure
	a.cancel(context.Canceled) // as net/http does when a handler returns
	if failure == nil {
		a.ready = true
	}
	switch {
	case a.stopped:
		a.forgetLocked()
	case a.att == nil:
		a.reg.idle(a) // its timer runs
	}
	a.cond.Broadcast()
}

// stop cancels the handler and sends the client away.
func (a *answer) stop(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopLocked(cause)
}

func (a *answer) stopLocked(cause error) {
	if a.stopped {
		return
	}
	a.stopped = true
	a.cancel(cause)
	a.reg.remove(a)
	a.disarmLocked()
	if a.att != nil {
		a.endLocked(a.att, errBroken)
	}
	if a.ended {
		a.forgetLocked()
	}
	a.cond.Broadcast()
}

// evict drops a finished answer for lack of memory. The registry has removed it
// already.
func (a *answer) evict() { a.stop(ErrExpired) }

// expire is called by the timer when no client came back in time.
func (a *answer) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.att != nil || a.stopped {
		return
	}
	if !a.ended {
		a.stats.expired.Add(1)
	}
	a.stopLocked(ErrExpired)
}

// forgetLocked wipes the kept bytes. The handler has returned. While an attachment
// still reads them it is left to that one.
func (a *answer) forgetLocked() {
	if a.reader != nil {
		return
	}
	a.kept.wipe()
	a.reg.releaseAll(a)
}

// awaitClientLocked starts the resume window.
func (a *answer) awaitClientLocked() {
	a.disarmLocked()
	a.timer = time.AfterFunc(a.window, a.expire)
	if a.ended {
		a.reg.idle(a)
	}
}

func (a *answer) disarmLocked() {
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
}

// state tells whether the answer is complete, and where its kept bytes lie.
func (a *answer) state() (base, end int64, ended bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.kept.base, a.kept.end, a.ended
}

// settle puts an answer that was looked up but not attached back to rest.
func (a *answer) settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended && a.att == nil && !a.stopped {
		a.reg.idle(a)
	}
}
