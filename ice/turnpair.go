package ice

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// pairQueue bounds the datagrams that wait between two relays of one session.
const pairQueue = 256

// handover carries datagrams from one relayed address of a session to another
// one, inside the process: the announced address of a server behind a
// one-to-one NAT is not its own, and few NATs would turn packets around. The
// reader of the receiving socket is woken by its read deadline.
type handover struct {
	queue chan handed
	woken atomic.Bool
}

type handed struct {
	data []byte
	from netip.AddrPort
}

func newHandover() *handover { return &handover{queue: make(chan handed, pairQueue)} }

// give queues a copy of b for the reader of conn, and reports whether there was
// room.
func (h *handover) give(conn *net.UDPConn, b []byte, from netip.AddrPort) bool {
	select {
	case h.queue <- handed{append([]byte(nil), b...), from}:
	default:
		return false
	}
	if h.woken.CompareAndSwap(false, true) {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	}
	return true
}

// take returns a datagram that waits.
func (h *handover) take() (handed, bool) {
	select {
	case d := <-h.queue:
		return d, true
	default:
		return handed{}, false
	}
}

// rest lets the reader of conn wait again. The reader looks at the queue
// afterwards: what was given before that found woken set, and woke nobody.
func (h *handover) rest(conn *net.UDPConn) {
	_ = conn.SetReadDeadline(time.Time{})
	h.woken.Store(false)
}

// pair tells the relays of both legs of a session of each other.
func (t *TURNServer) pairLocked(ts *turnSession) {
	other := t.sessions[userName(ts.id, !ts.miner)]
	if other == nil {
		return
	}
	ts.pairWith(other)
	other.pairWith(ts)
}

func (ts *turnSession) pairWith(other *turnSession) {
	pairs := make(map[netip.AddrPort]*relayConn, len(other.relays))
	for r := range other.relays {
		pairs[r.announced] = r
	}
	for r := range ts.relays {
		r.pairs.Store(&pairs)
	}
}

// pairedIPLocked reports whether ip is the relays' own address, where the other
// leg of the session is or will be.
func (t *TURNServer) pairedIPLocked(ts *turnSession, ip netip.Addr) bool {
	other := t.sessions[userName(ts.id, !ts.miner)]
	if other == nil {
		return false
	}
	for _, leg := range []*turnSession{ts, other} {
		for r := range leg.relays {
			if r.announced.Addr() == ip {
				return true
			}
		}
	}
	return false
}

// pair returns the relay of the session's other leg that has the address.
func (r *relayConn) pair(peer netip.AddrPort) *relayConn {
	pairs := r.pairs.Load()
	if pairs == nil {
		return nil
	}
	return (*pairs)[peer]
}
