package ice

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mintai/identity"
)

const (
	// maxAdmitted bounds the addresses that one session lets in.
	maxAdmitted = 24
	// dialWindow is how long the answers to a handshake of ours are let in after
	// its last packet; a handshake takes 5 s at most and repeats itself faster.
	dialWindow = 10 * time.Second
	// maxDials bounds the addresses that are being dialled at once, and
	// maxCallers those of admitted ones that are being answered.
	maxDials, maxCallers = 256, 1024
)

// gate decides whose QUIC handshakes reach QUIC. Only packets with a long
// header (RFC 9000 §17.2) can begin something; those of a running connection
// have a short one and are told by their connection IDs, so they pass.
//
// Let in are the addresses of admitted sessions, and for a while those to which
// this socket itself sends handshake packets: the coordinator's answers have
// long headers too, and nobody else can be there whom the node did not dial.
type gate struct {
	dropped atomic.Uint64

	mu       sync.RWMutex // guards what follows
	sessions map[identity.SessionID]map[netip.Addr]struct{}
	admitted map[netip.Addr]int           // how many sessions let an address in
	dials    map[netip.AddrPort]time.Time // last packet of a handshake to an address that did not call
	callers  map[netip.AddrPort]time.Time // the same, while it was admitted
}

func newGate() *gate {
	return &gate{
		sessions: make(map[identity.SessionID]map[netip.Addr]struct{}),
		admitted: make(map[netip.Addr]int),
		dials:    make(map[netip.AddrPort]time.Time),
		callers:  make(map[netip.AddrPort]time.Time),
	}
}

// admit lets addresses in until the session is dismissed. It reports whether
// all found room.
func (g *gate) admit(id identity.SessionID, addrs ...netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.sessions[id]
	if of == nil {
		of = make(map[netip.Addr]struct{}, len(addrs))
		g.sessions[id] = of
	}
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		if _, known := of[a]; known || !a.IsValid() {
			continue
		}
		if len(of) >= maxAdmitted {
			return false
		}
		of[a] = struct{}{}
		g.admitted[a]++
	}
	return true
}

// dismiss forgets what admit was told of the session.
func (g *gate) dismiss(id identity.SessionID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a := range g.sessions[id] {
		if g.admitted[a]--; g.admitted[a] == 0 {
			delete(g.admitted, a)
		}
	}
	delete(g.sessions, id)
}

// dialing notes that a packet of a handshake leaves for addr. To an address that
// is admitted it may be an answer, and the last ones leave when it no longer is:
// those open nothing.
func (g *gate) dialing(addr netip.AddrPort, now time.Time) {
	g.mu.RLock()
	admitted := g.admitted[addr.Addr()] > 0
	into, limit := g.dials, maxDials
	if admitted {
		into, limit = g.callers, maxCallers
	}
	at, known := into[addr]
	called := within(g.callers, addr, now)
	g.mu.RUnlock()
	if known && now.Sub(at) < dialWindow/10 || called && !admitted {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := into[addr]; !known && len(into) >= limit {
		maps.DeleteFunc(into, func(_ netip.AddrPort, at time.Time) bool { return now.Sub(at) > dialWindow })
		if len(into) >= limit { // the oldest is the least likely to be answered
			delete(into, slices.MinFunc(slices.Collect(maps.Keys(into)), func(a, b netip.AddrPort) int {
				return into[a].Compare(into[b])
			}))
		}
	}
	into[addr] = now
}

// within reports whether addr was noted less than a dialWindow ago.
func within(noted map[netip.AddrPort]time.Time, addr netip.AddrPort, now time.Time) bool {
	at, ok := noted[addr]
	return ok && now.Sub(at) <= dialWindow
}

// lets reports whether a datagram may reach QUIC.
func (g *gate) lets(b []byte, from netip.AddrPort, now time.Time) bool {
	if !longHeader(b) {
		return true
	}
	g.mu.RLock()
	ok := g.admitted[from.Addr()] > 0 || within(g.dials, from, now)
	g.mu.RUnlock()
	if !ok {
		g.dropped.Add(1)
	}
	return ok
}

// longHeader reports whether a datagram begins with a QUIC packet of a
// handshake. RFC 9000 §17.2: "Long headers are used for packets that are sent
// prior to the establishment of 1-RTT keys", and Version Negotiation has one
// too; §17.2: "The most significant bit (0x80) of byte 0 (the first byte) is
// set to 1 for long headers."
func longHeader(b []byte) bool { return len(b) > 0 && b[0]&0x80 != 0 }

// Admit lets QUIC handshakes from the addresses in, from every port of theirs,
// until Dismiss is called with the same session. Addresses from which the
// session's checks come, and those of its candidates, are let in without it. It
// does nothing on a socket without Gate. At most 24 addresses of one session
// are let in; further ones are ignored.
func (s *Socket) Admit(id identity.SessionID, addrs ...netip.Addr) {
	if s.gate != nil && !s.gate.admit(id, addrs...) {
		s.log.Debug().Str("session", id.Short()).Msg("too many addresses to let in")
	}
}

// Dismiss ends what Admit began. Connections that are up go on.
func (s *Socket) Dismiss(id identity.SessionID) {
	if s.gate != nil {
		s.gate.dismiss(id)
	}
}
