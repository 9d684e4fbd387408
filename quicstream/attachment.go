package quicstream

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

const (
	// queueLimit bounds what is queued on a stream before a write must wait
	// until everything before it was sent, whatever window the client grants.
	queueLimit = 16 << 10
)

// attachment is one request stream that carries an answer.
type attachment struct {
	w     http.ResponseWriter // until the head is sent
	qs    *quic.Stream
	stall time.Duration // longest wait for the client to read
	str   *http3.Stream // once the head is sent

	noBody bool   // the request was HEAD
	queued int    // bytes queued since the last write that waited
	frame  []byte // scratch for small frames
	last   []byte // scratch for the end of a frame
	pad    padding
	try    uint32 // see HeaderAttempt

	// The answer's mutex guards what follows.
	sent   int64     // body offset of the next byte to send
	direct bool      // the handler's goroutine writes to str
	busy   bool      // a write is under way without the lock
	armed  time.Time // when the stall deadline was set
	err    error     // why the attachment ended
}

// attach makes att the answer's carrier and returns when it is done: nil when
// the whole answer was sent. It runs on the stream's goroutine.
func (a *answer) attach(att *attachment) error {
	stop := context.AfterFunc(att.qs.Context(), func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.endLocked(att, streamEnd(context.Cause(att.qs.Context())))
	})
	defer stop()

	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.stopped:
		return errBroken
	case att.try < a.attempt:
		return errOvertaken
	case att.err != nil: // the stream ended before it carried anything
		if a.att == nil {
			a.abandonLocked(att.err)
		}
		return att.err
	}
	a.disarmLocked()
	a.reg.busy(a)
	old := a.att
	a.att, a.attempt = att, att.try
	if old != nil {
		a.endLocked(old, errReplaced)
	}
	// One that was replaced, or that lost its path, may still be in a write, and
	// reads a block that would get another header here.
	for att.err == nil && (a.reader != nil || old != nil && old.busy) {
		a.cond.Wait()
	}
	err := a.carryLocked(att)
	stop() // closing the stream below must not look like a reset
	for att.busy {
		a.cond.Wait()
	}
	if a.att == att { // complete or broken off; a path's end has cleared it
		a.att = nil
		a.awaitClientLocked()
	}
	return err
}

func (a *answer) carryLocked(att *attachment) error {
	for {
		switch {
		case att.err != nil:
			return att.err
		case att.str == nil && len(a.news) > 0:
			a.sendNewsLocked(att)
		case !a.ready && a.ended:
			return errBroken
		case !a.ready:
			a.cond.Wait()
		case att.str == nil:
			a.sendHeadLocked(att)
		case att.sent < a.kept.base:
			return errBroken // dropped meanwhile: never skip bytes
		case att.sent < a.kept.end:
			head, payload, n := a.kept.at(att.sent).frame(att.sent)
			att.startLocked()
			a.reader = att
			a.mu.Unlock()
			err := att.writeFrame(head, payload)
			a.mu.Lock()
			a.reader = nil
			if a.stopped && a.ended {
				a.forgetLocked()
			}
			a.wroteLocked(att, n, err)
			a.cond.Broadcast() // room for the handler
		case a.ended && a.failure != nil:
			return errBroken
		case a.ended:
			return nil
		default:
			if !att.direct {
				att.direct = true
				a.cond.Broadcast() // the handler may wait for room
			}
			a.cond.Wait()
		}
	}
}

// startLocked begins a write without the lock. The stall deadline moves only
// now and then, to keep tokens cheap.
func (t *attachment) startLocked() {
	t.busy = true
	if now := time.Now(); now.Sub(t.armed) > t.stall/4 {
		t.armed = now
		_ = t.qs.SetWriteDeadline(now.Add(t.stall))
	}
}

// sendNewsLocked sends the informational answers that wait.
func (a *answer) sendNewsLocked(att *attachment) {
	waiting := a.news
	a.news = nil
	att.startLocked()
	a.mu.Unlock()
	for _, n := range waiting {
		att.inform(n.code, n.header)
	}
	a.mu.Lock()
	a.wroteLocked(att, 0, nil)
}

func (a *answer) sendHeadLocked(att *attachment) {
	status, header := a.status, a.header
	att.startLocked()
	a.mu.Unlock()
	err := att.sendHead(status, header)
	a.mu.Lock()
	a.wroteLocked(att, 0, err)
}

// endLocked ends att for the given reason and draws the consequence for the
// answer.
func (a *answer) endLocked(att *attachment, why error) {
	if att.err != nil {
		return
	}
	att.err, att.direct = why, false
	_ = att.qs.SetWriteDeadline(time.Unix(1, 0)) // unblocks a write under way
	if a.att == att {
		a.att = nil
		a.abandonLocked(why)
	}
	a.cond.Broadcast()
}

// abandonLocked cancels the answer or starts to wait for another client, as its
// last attachment ended.
func (a *answer) abandonLocked(why error) {
	switch {
	case a.stopped:
	case errors.Is(why, ErrCancelled), errors.Is(why, ErrStalled):
		a.stats.cancelled.Add(1)
		a.stopLocked(why)
	case !errors.Is(why, errReplaced):
		a.stats.lost.Add(1)
		a.awaitClientLocked()
	}
}

// streamEnd translates the cause of a stream's end.
func streamEnd(cause error) error {
	if se, ok := errors.AsType[*quic.StreamError](cause); ok && se.Remote {
		return ErrCancelled // STOP_SENDING while the connection lives
	}
	if ae, ok := errors.AsType[*quic.ApplicationError](cause); ok && ae.Remote && CloseCode(ae.ErrorCode).ends() {
		return ErrCancelled
	}
	return errPathLost
}

// why translates the error of a write to the stream.
func (t *attachment) why(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrStalled
	}
	if cause := context.Cause(t.qs.Context()); cause != nil {
		return streamEnd(cause)
	}
	return streamEnd(err)
}

func (t *attachment) inform(code int, header http.Header) {
	h := t.w.Header()
	for name, values := range answerHeader(header) {
		h[name] = values
	}
	t.w.WriteHeader(code)
	clear(h)
}

// sendHead sends status and header and takes the stream over: http3 would write
// a DATA frame's header and payload in two calls, and so in two packets.
func (t *attachment) sendHead(status int, header http.Header) error {
	h := t.w.Header()
	for name, values := range header {
		h[name] = values
	}
	h.Del(HeaderAttempt)
	if t.try > 0 {
		h.Set(HeaderAttempt, strconv.FormatUint(uint64(t.try), 10))
	}
	if t.sent > 0 {
		h.Del("Content-Length") // what follows is the rest only
		h.Set(HeaderResume, strconv.FormatInt(t.sent, 10))
	}
	t.w.WriteHeader(status)
	str, err := t.w.(http3.HTTPStreamer).HTTPStream()
	if err != nil {
		return err
	}
	t.str = str
	return nil
}

// write sends p in a DATA frame. It returns once the bytes are queued or sent.
func (t *attachment) write(p []byte) error {
	if t.noBody || len(p) == 0 {
		return nil
	}
	if len(p) > queueLimit {
		return t.writeFrame(appendDataHeader(nil, len(p)), p)
	}
	t.frame = scratch(t.frame, headroom+len(p)+padSticky)
	t.frame = appendDataHeader(t.frame, len(p))
	t.frame = append(t.frame, p...)
	if n := t.pad.after(len(t.frame)); n > 0 {
		t.frame = appendPadding(t.frame, n)
	}
	if t.queued+len(t.frame) <= queueLimit {
		switch err := t.qs.TryWriteAll(t.frame); {
		case err == nil:
			t.queued += len(t.frame)
			return nil
		case !errors.Is(err, quic.ErrWouldBlock):
			return err
		}
	}
	t.queued = 0
	_, err := t.qs.Write(t.frame)
	return err
}

// writeFrame sends a whole DATA frame and its padding. It returns when all but the
// last packet is sent. The end of the frame leaves together with the padding: alone
// it would show how long it is.
func (t *attachment) writeFrame(head, payload []byte) error {
	if t.noBody {
		return nil
	}
	t.queued = 0
	n := t.pad.after(len(head) + len(payload))
	first := max(0, len(payload)-queueLimit)
	if first > 0 {
		if len(head) > 0 {
			if _, err := t.qs.Write(head); err != nil {
				return err
			}
			head = nil
		}
		if _, err := t.qs.Write(payload[:first]); err != nil {
			return err
		}
	}
	t.last = scratch(t.last, len(head)+len(payload)-first+padSticky)
	t.last = append(append(t.last, head...), payload[first:]...)
	if n > 0 {
		t.last = appendPadding(t.last, n)
	}
	_, err := t.qs.Write(t.last)
	return err
}

// scratch returns b emptied, with room for n bytes. Where it must grow, what the
// former array holds of an answer is overwritten.
func scratch(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:0]
	}
	clear(b[:cap(b)])
	return make([]byte, 0, max(n, 2*cap(b)))
}
