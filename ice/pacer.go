package ice

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// maxChecks bounds the requests of one session, answered or not.
	maxChecks = 600
	// maxUnanswered bounds the requests of one session to addresses that do not
	// answer, and with it what anybody who names addresses of others can make
	// this node send: some 20 KB.
	maxUnanswered = 200
	// answersReserved of maxUnanswered are for checks that an inbound one asks
	// for: a peer that comes late is still answered.
	answersReserved = 40
	// maxLearned bounds the peer-reflexive addresses of one session.
	maxLearned = 4
	// freeChecks, of all addresses together, go out as fast as the agent ticks: a
	// check is lost until the peer's own has opened the NATs, which takes one
	// round trip at most. No address gets more than maxFree or less than minFree.
	freeChecks       = 36
	maxFree, minFree = 12, 4
	firstGap         = 25 * time.Millisecond
	maxGap           = 500 * time.Millisecond
)

// pacer decides whether a session's check may be sent, and keeps count of the
// addresses that the session talks to. pion/ice sends to every pair at each
// tick and knows no retransmission timer (RFC 8445 §14); here the first checks
// to an address pass, then the gap grows by a quarter each time. What arrives
// from an address earns the next check at once, which keeps triggered checks
// (RFC 8445 §7.3.1.4) and nominations undelayed.
//
// The bounds hold whatever the coordinator, the peer or the agent want.
type pacer struct {
	spray *spray // of all sessions of the socket; nil: no bound

	mu         sync.Mutex // guards what follows
	sent       int
	unanswered int
	learned    int
	dest       map[netip.AddrPort]*pace
}

type pace struct {
	remote     bool // a candidate that was told; else learned from a check
	sent       int
	unanswered int // since the last response
	last       time.Time
	gap        time.Duration
	earned     bool
}

func newPacer() *pacer { return &pacer{dest: make(map[netip.AddrPort]*pace)} }

// remote makes a candidate known. It reports whether there is room for it.
func (p *pacer) remote(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dest[addr]
	switch {
	case d != nil && d.remote:
		return true
	case len(p.dest)-p.learned >= MaxRemote:
		return false
	case d != nil: // a check came before the candidate
		d.remote = true
		p.learned--
	default:
		p.dest[addr] = &pace{gap: firstGap, remote: true}
	}
	return true
}

// learn makes the source of a check known, which the peer has signed. It
// reports whether there is room for it.
func (p *pacer) learn(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.dest[addr] != nil:
		return true
	case p.learned >= maxLearned:
		return false
	}
	p.dest[addr] = &pace{gap: firstGap}
	p.learned++
	return true
}

// knows reports whether the session talks to addr.
func (p *pacer) knows(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dest[addr] != nil
}

// allow reports whether a request to addr may leave now, and counts it.
func (p *pacer) allow(addr netip.AddrPort, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dest[addr]
	if d == nil || p.sent >= maxChecks || p.unanswered >= maxUnanswered {
		return false
	}
	asked := d.earned
	switch {
	case asked:
		d.earned = false
	case p.unanswered >= maxUnanswered-answersReserved:
		return false
	case d.sent < p.freeLocked():
	case now.Sub(d.last) < d.gap:
		return false
	default:
		d.gap = min(d.gap*5/4, maxGap)
	}
	if !p.spray.allow(addr.Addr(), asked, now) {
		d.last = now
		return false
	}
	d.sent++
	d.unanswered++
	d.last = now
	p.sent++
	p.unanswered++
	return true
}

// freeLocked returns how many checks each address gets before the gaps begin.
func (p *pacer) freeLocked() int {
	return min(maxFree, max(minFree, freeChecks/max(1, len(p.dest))))
}

// earn lets the next check to addr pass at once: one came from there.
func (p *pacer) earn(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.dest[addr]; d != nil {
		d.earned = true
	}
}

// answered gives back what was spent on addr, which answers, and earns the next
// check.
func (p *pacer) answered(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.dest[addr]; d != nil {
		p.spray.answered(addr.Addr(), d.unanswered)
		p.unanswered -= d.unanswered
		d.unanswered = 0
		d.earned = true
	}
}

// total returns how many requests were allowed.
func (p *pacer) total() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(p.sent)
}
