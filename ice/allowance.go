package ice

import (
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// allowanceFor is how long an address is remembered after its last handshake
	// packet. QUIC gives up on one from which nothing more comes after half of it.
	allowanceFor = 10 * time.Second
	// maxAllowances bounds the addresses. Of further ones nothing is remembered:
	// QUIC's own bound holds for them.
	maxAllowances = 1 << 14
)

// allowance sees to it that no address gets more than three times what came from
// it in handshake packets (RFC 9000 §8.1). quic-go stops once it has sent that
// much, and so may be over it by a packet. It is not lifted when an address is
// validated: a handshake never needs more, and has no packets of this kind left
// when it is over.
type allowance struct {
	mu    sync.Mutex // guards what follows
	addrs map[netip.AddrPort]*spent
	swept time.Time
}

// spent is what went to and fro.
type spent struct {
	ours    bool // the first packet was ours: nobody made us send it
	in, out int
	at      time.Time
}

func newAllowance() *allowance { return &allowance{addrs: make(map[netip.AddrPort]*spent)} }

// received notes a handshake packet of n bytes.
func (a *allowance) received(from netip.AddrPort, n int, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.ofLocked(from, now, false); s != nil {
		s.in += n
		s.at = now
	}
}

// send reports whether a handshake packet of n bytes may go to an address, and
// notes it.
func (a *allowance) send(to netip.AddrPort, n int, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.ofLocked(to, now, true)
	switch {
	case s == nil:
		return true
	case s.ours:
		s.at = now
		return true
	case amplifies(s.out+n, s.in):
		return false
	}
	s.out += n
	return true
}

// ofLocked returns what is known of an address, or begins to know it; nil when
// there is no room.
func (a *allowance) ofLocked(addr netip.AddrPort, now time.Time, ours bool) *spent {
	s := a.addrs[addr]
	if s != nil && now.Sub(s.at) <= allowanceFor {
		return s
	}
	if s == nil && len(a.addrs) >= maxAllowances {
		if now.Sub(a.swept) < time.Second {
			return nil
		}
		a.swept = now
		maps.DeleteFunc(a.addrs, func(_ netip.AddrPort, s *spent) bool { return now.Sub(s.at) > allowanceFor })
		if len(a.addrs) >= maxAllowances {
			return nil
		}
	}
	s = &spent{ours: ours, at: now}
	a.addrs[addr] = s
	return s
}

// Frugal returns conn for a QUIC transport that accepts handshakes from anybody:
// to none of those addresses goes more than three times what came from there.
// quic-go keeps all of its optimisations over it. Closing it closes conn.
func Frugal(conn *net.UDPConn) net.PacketConn { return newGatedConn(conn, nil) }
