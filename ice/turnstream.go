package ice

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultMaxStreams = 1024
	// streamAuth is how long a connection may take to its first signed request.
	streamAuth = 10 * time.Second
	// streamLeast of that it has in any case; then, when all places are taken, it
	// makes room for a newcomer.
	streamLeast = 3 * time.Second
	// acceptPause is waited after an Accept that failed for a passing reason.
	acceptPause = 50 * time.Millisecond
)

// turnStreams is the listener for TURN over streams.
type turnStreams struct {
	net.Listener
	server *TURNServer
	stop   chan struct{}
	once   sync.Once
}

func newTURNStreams(t *TURNServer, l net.Listener) *turnStreams {
	t.readers.Add(1)
	return &turnStreams{Listener: l, server: t, stop: make(chan struct{})}
}

// Accept returns the next connection. Its error ends the TURN server's
// accepting for good, so what passes is waited out.
func (l *turnStreams) Accept() (net.Conn, error) {
	for failed := 1; ; failed++ {
		conn, err := l.Listener.Accept()
		if err == nil {
			if s := l.server.newStream(conn); s != nil {
				return s, nil
			}
			_ = conn.Close()
			failed = 0
			continue
		}
		if l.stopped() || errors.Is(err, net.ErrClosed) || failed >= maxReadErrors || !l.pause() {
			l.server.readers.Done()
			return nil, err
		}
	}
}

func (l *turnStreams) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *turnStreams) pause() bool {
	t := time.NewTimer(acceptPause)
	defer t.Stop()
	select {
	case <-l.stop:
		return false
	case <-t.C:
		return true
	}
}

// Close ends Accept.
func (l *turnStreams) Close() error {
	l.once.Do(func() { close(l.stop) })
	return l.Listener.Close()
}

// turnStream is one connection of a client.
type turnStream struct {
	net.Conn
	server *TURNServer
	remote *net.TCPAddr // the very pointer is what the server knows the client by
	out    *packetStream
	opened time.Time
	signed atomic.Bool // a request of a session came over it
	user   string      // of that request; for the connection's reader only
	once   sync.Once
}

// newStream takes a connection in, or returns nil when there are too many.
func (t *TURNServer) newStream(conn net.Conn) *turnStream {
	addr, ok := conn.RemoteAddr().(interface{ AddrPort() netip.AddrPort })
	if !ok || !addr.AddrPort().IsValid() {
		return nil
	}
	s := &turnStream{
		Conn: conn, server: t, remote: net.TCPAddrFromAddrPort(addr.AddrPort()),
		out: newPacketStream(conn), opened: time.Now(),
	}
	t.makeRoom(s.opened)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.streams) >= t.cfg.MaxStreams {
		t.counters.refusedQuota.Add(1)
		return nil
	}
	t.streams[s.remote] = s
	t.readers.Add(1)
	t.readers.Go(s.out.run)
	return s
}

// makeRoom closes the oldest connection that has signed nothing yet, if all
// places are taken.
func (t *TURNServer) makeRoom(now time.Time) {
	var oldest *turnStream
	t.mu.Lock()
	if len(t.streams) >= t.cfg.MaxStreams {
		for _, s := range t.streams {
			if !s.signed.Load() && now.Sub(s.opened) > streamLeast && (oldest == nil || s.opened.Before(oldest.opened)) {
				oldest = s
			}
		}
	}
	t.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
}

// admitted tells who accepted the connection that it is a session's.
func (s *turnStream) admitted() {
	if c, ok := s.Conn.(interface{ Admit(yes bool) }); ok {
		c.Admit(true)
	}
}

// Read returns what the client sent. A client that does not sign a request in
// time, or refreshes nothing any more, is cut off.
func (s *turnStream) Read(b []byte) (int, error) {
	deadline := s.opened.Add(streamAuth)
	if s.signed.Load() {
		deadline = time.Now().Add(s.server.cfg.Lifetime)
	}
	_ = s.SetReadDeadline(deadline)
	n, err := s.Conn.Read(b)
	if err != nil {
		_ = s.Close()
		return n, err
	}
	if tap := s.server.cfg.Tap; tap != nil {
		tap(b[:n])
	}
	return n, nil
}

// Write queues one packet for the client and never waits.
func (s *turnStream) Write(b []byte) (int, error) {
	return s.out.write(b)
}

// RemoteAddr returns the client's address.
func (s *turnStream) RemoteAddr() net.Addr { return s.remote }

// Close ends Read and forgets the connection. The TURN server calls it when it
// reads no more, also for bytes that are no TURN. Closing twice is not an error.
func (s *turnStream) Close() error {
	s.out.stop()
	err := s.Conn.Close()
	s.once.Do(func() {
		s.server.mu.Lock()
		delete(s.server.streams, s.remote)
		s.server.mu.Unlock()
		s.server.counters.droppedRate.Add(s.out.dropped.Load())
		s.server.readers.Done()
	})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// permitOnStream is asked for each permission, in the goroutine that has just
// called onAuth for the same request.
func (t *TURNServer) permitOnStream(client net.Addr, peerIP net.IP) bool {
	s := t.stream(client)
	return s != nil && t.permit(s.user, peerIP)
}

// stream returns the connection of a client, nil for one over UDP.
func (t *TURNServer) stream(client net.Addr) *turnStream {
	remote, ok := client.(*net.TCPAddr)
	if !ok {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams[remote]
}
