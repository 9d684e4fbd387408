package ice

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// legConn is the TURN allocation as QUIC may use it. A read or write error on
// an idle transport kills a live connection of quic-go, so there are none:
// what cannot be sent is dropped, as a network would do it, and nothing blocks
// on the way to a peer whose permission is still asked for.
type legConn struct {
	relayed net.PacketConn // of pion/turn
	wire    *turnWire
	local   *net.UDPAddr

	dropped atomic.Uint64

	mu    sync.RWMutex // guards peers
	peers map[netip.Addr]permission

	done     chan struct{} // closed by stop, or by a read deadline
	doneOnce sync.Once
}

// permission is how far the server's consent to a peer's address is.
//
//	none --(the request left)--> asked --(granted)--> granted
//	                             asked --(refused)--> none
type permission uint8

const (
	none    permission = iota
	asked              // data may follow the request at once, in indications
	granted            // the TURN client sends by itself, over a channel when it has one
)

var _ net.PacketConn = (*legConn)(nil)

func newLegConn(relayed net.PacketConn, wire *turnWire) *legConn {
	local, _ := relayed.LocalAddr().(*net.UDPAddr)
	return &legConn{
		relayed: relayed,
		wire:    wire,
		local:   local,
		peers:   make(map[netip.Addr]permission),
		done:    make(chan struct{}),
	}
}

// permit raises a peer's permission; it never lowers it.
func (l *legConn) permit(a netip.Addr, p permission) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers[a] = max(l.peers[a], p)
}

// refuse takes back a permission that was only asked for.
func (l *legConn) refuse(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.peers[a] == asked {
		delete(l.peers, a)
	}
}

func (l *legConn) permission(a netip.Addr) permission {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.peers[a]
}

// ReadFrom returns the next datagram of a peer, and an error only after stop.
// What comes from where no permission was asked for is dropped, whatever the
// server thinks.
func (l *legConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := l.relayed.ReadFrom(b)
		select {
		case <-l.done:
			return 0, nil, os.ErrDeadlineExceeded
		default:
		}
		if err == nil {
			if u, ok := from.(*net.UDPAddr); ok && l.permission(addrPort(u).Addr()) != none {
				return n, u, nil
			}
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err) || errors.Is(err, io.ErrShortBuffer) {
			continue
		}
		// The allocation is gone. The QUIC connection over it finds out by its
		// own timers, and may have moved elsewhere long ago.
		<-l.done
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// WriteTo sends to a permitted peer and drops what is for anybody else.
func (l *legConn) WriteTo(b []byte, to net.Addr) (int, error) {
	peer := addrPort(to)
	var err error
	switch l.permission(peer.Addr()) {
	case granted:
		_, err = l.relayed.WriteTo(b, to)
	case asked:
		err = l.wire.indicate(b, peer)
	default:
		err = ErrNoRelay
	}
	if err != nil {
		l.dropped.Add(1)
	}
	return len(b), nil
}

// stop ends ReadFrom.
func (l *legConn) stop() {
	l.doneOnce.Do(func() { close(l.done) })
	_ = l.relayed.SetReadDeadline(time.Unix(1, 0))
}

// SetReadDeadline is called by quic-go with a past deadline to end its reading
// and with none afterwards.
func (l *legConn) SetReadDeadline(t time.Time) error {
	if !t.IsZero() {
		l.stop()
	}
	return nil
}

// Close ends ReadFrom. The allocation belongs to the Relay.
func (l *legConn) Close() error {
	l.stop()
	return nil
}

// LocalAddr returns the relayed address, at which the peer sees this node.
func (l *legConn) LocalAddr() net.Addr { return l.local }

// SetDeadline does what SetReadDeadline does; writes never wait.
func (l *legConn) SetDeadline(t time.Time) error { return l.SetReadDeadline(t) }

// SetWriteDeadline does nothing: writes never wait.
func (l *legConn) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer does nothing: the leg's own socket has large buffers already.
// quic-go prints a warning when the method is missing.
func (l *legConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing; see SetReadBuffer.
func (l *legConn) SetWriteBuffer(int) error { return nil }
