package wss

import (
	"net"
	"sync"
	"sync/atomic"
)

// datagram is one message on its way from or to QUIC.
type datagram struct {
	buf  [MaxDatagram]byte
	n    int
	from *Addr // of what was received
}

var datagrams = sync.Pool{New: func() any { return new(datagram) }}

func newDatagram(b []byte) *datagram {
	d := datagrams.Get().(*datagram)
	d.n = copy(d.buf[:], b)
	return d
}

func (d *datagram) bytes() []byte { return d.buf[:d.n] }

func (d *datagram) release() {
	d.from = nil
	datagrams.Put(d)
}

// queue holds what waits to be sent on one connection. Putting never blocks:
// what finds no room is lost, as in any network.
type queue struct {
	c       chan *datagram
	closed  atomic.Bool
	dropped atomic.Uint64
}

func newQueue() *queue { return &queue{c: make(chan *datagram, queueLength)} }

// put takes a copy of b. The error is net.ErrClosed after the connection ended,
// which ends the QUIC connection over it without waiting for its timers.
func (q *queue) put(b []byte) error {
	if q.closed.Load() {
		return net.ErrClosed
	}
	if len(b) == 0 || len(b) > MaxDatagram {
		q.dropped.Add(1)
		return nil
	}
	d := newDatagram(b)
	select {
	case q.c <- d:
	default:
		d.release()
		q.dropped.Add(1)
	}
	return nil
}
