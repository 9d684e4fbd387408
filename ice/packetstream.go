package ice

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// streamQueue is how many packets wait for a stream that is slower than what
	// they come from. More are dropped, as a router would: whoever sends them
	// measures loss and delay, and would only fill a longer queue.
	streamQueue = 256
	// streamBatch is as much as one write takes: a TLS record (RFC 8446 §5.1).
	streamBatch = 16 << 10
	// streamStall ends a stream on which a write takes this long.
	streamStall = 15 * time.Second
)

// packetStream writes packets to a stream without ever waiting for it.
type packetStream struct {
	conn    net.Conn
	queue   chan []byte
	dropped atomic.Uint64
	done    chan struct{}
	once    sync.Once
}

func newPacketStream(conn net.Conn) *packetStream {
	return &packetStream{conn: conn, queue: make(chan []byte, streamQueue), done: make(chan struct{})}
}

// write queues a copy of one framed packet, or drops it. It fails only when the
// stream has ended.
func (s *packetStream) write(b []byte) (int, error) {
	select {
	case <-s.done:
		return 0, net.ErrClosed
	default:
	}
	select {
	case s.queue <- append([]byte(nil), b...):
	default:
		s.dropped.Add(1)
	}
	return len(b), nil
}

// run writes what is queued until stop, or until the stream fails, which it
// then closes. Its owner waits for it.
func (s *packetStream) run() {
	buf := make([]byte, 0, streamBatch)
	for {
		select {
		case <-s.done:
			return
		case b := <-s.queue:
			buf = s.batch(append(buf[:0], b...))
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(streamStall))
		if _, err := s.conn.Write(buf); err != nil {
			s.stop()
			_ = s.conn.Close()
			return
		}
	}
}

// batch appends what else is queued, about one record in all.
func (s *packetStream) batch(buf []byte) []byte {
	for len(buf) < streamBatch-legMTU {
		select {
		case b := <-s.queue:
			buf = append(buf, b...)
		default:
			return buf
		}
	}
	return buf
}

// stop ends run. What is still queued is lost.
func (s *packetStream) stop() { s.once.Do(func() { close(s.done) }) }
