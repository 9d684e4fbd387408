package signal

import (
	"errors"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/signal/signalpb"
)

// ErrQueueFull says that the other end reads too slowly for what it is sent.
var ErrQueueFull = errors.New("signal: send queue full")

// ErrClosed says that the connection has ended.
var ErrClosed = errors.New("signal: connection closed")

// What may wait for the network. The bytes are those of a few large messages:
// a node that reads nothing must not make the coordinator keep many.
const (
	outboxLimit = 128            // messages
	outboxBytes = 4 * MaxMessage // bytes; one message always fits an empty queue
)

// outbox is the bounded send queue of one stream. Its writer goroutine lives
// only while there is something to write, so that an idle connection costs no
// stack. Whoever owns the outbox calls close, which waits for the writer.
type outbox struct {
	stream *quic.Stream
	failed func(error) // called once, by the writer, when the stream is broken

	mu      sync.Mutex // guards all below
	queue   [][]byte
	size    int // bytes in queue
	writing bool
	closed  bool
	until   time.Time // of the last write, once finishing
	wg      sync.WaitGroup
}

func newOutbox(stream *quic.Stream, failed func(error)) *outbox {
	return &outbox{stream: stream, failed: failed}
}

// send queues messages and returns at once. All of one call leave in one Write,
// in one packet when they fit.
func (o *outbox) send(envs ...*signalpb.Envelope) error { return o.sendWithin(1, envs) }

// sendWithin is send for messages that may fill only 1/part of the queue.
func (o *outbox) sendWithin(part int, envs []*signalpb.Envelope) error {
	frames := make([][]byte, 0, len(envs))
	for _, env := range envs {
		frame, err := encode(env)
		if err != nil {
			return err
		}
		frames = append(frames, frame)
	}
	return o.sendFrames(part, frames)
}

func (o *outbox) sendFrames(part int, frames [][]byte) error {
	size := 0
	for _, f := range frames {
		size += len(f)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return ErrClosed
	}
	if len(o.queue)+len(frames) > outboxLimit/part || o.size+size > outboxBytes/part {
		return ErrQueueFull
	}
	o.queue = append(o.queue, frames...)
	o.size += size
	if !o.writing {
		o.writing = true
		o.wg.Go(o.write)
	}
	return nil
}

// write empties the queue and ends.
func (o *outbox) write() {
	for {
		batch := o.take()
		if batch == nil {
			return
		}
		if _, err := o.stream.Write(batch); err != nil {
			o.mu.Lock()
			first := !o.closed
			o.closed, o.writing, o.queue, o.size = true, false, nil, 0
			o.mu.Unlock()
			if first {
				o.failed(err)
			}
			return
		}
	}
}

// take joins what waits and sets the time limit for writing it. When nothing
// waits, it marks the writer as gone.
func (o *outbox) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	until := o.until
	if until.IsZero() {
		until = time.Now().Add(writeTimeout)
	}
	_ = o.stream.SetWriteDeadline(until)
	switch len(o.queue) {
	case 0:
		o.writing, o.queue = false, nil // the slice is given back too
		return nil
	case 1:
		batch := o.queue[0]
		o.queue, o.size = o.queue[:0], 0
		return batch
	}
	batch := make([]byte, 0, o.size)
	for i, f := range o.queue {
		batch = append(batch, f...)
		o.queue[i] = nil
	}
	o.queue, o.size = o.queue[:0], 0
	return batch
}

// finish takes no further messages, gives the writer so much time for what is
// queued, and ends the stream's sending half.
func (o *outbox) finish(within time.Duration) {
	o.mu.Lock()
	o.closed = true
	o.until = time.Now().Add(within)
	_ = o.stream.SetWriteDeadline(o.until)
	o.mu.Unlock()
	o.wg.Wait()
	_ = o.stream.Close()
}

// shut takes no further messages and waits for the writer; the connection must
// have been closed.
func (o *outbox) shut() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.wg.Wait()
}
