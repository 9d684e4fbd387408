package ice

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// maxChecks bounds the requests of one session, and with it what a stranger
	// who names addresses of others can make this node send: some 60 KB.
	maxChecks = 600
	// maxSources bounds the addresses that one session talks to: the remote
	// candidates, and those that checks come from.
	maxSources = 24
	// freeChecks go out as fast as the agent ticks: a check is lost until the
	// peer's own has opened the NATs, which takes one round trip at most.
	freeChecks = 12
	firstGap   = 25 * time.Millisecond
	maxGap     = 500 * time.Millisecond
)

// pacer decides whether a session's check may be sent. pion/ice sends to every
// pair at each tick and knows no retransmission timer (RFC 8445 §14); here the
// first checks to an address pass, then the gap grows by a quarter each time.
// What arrives from an address earns the next check at once, which keeps
// triggered checks (RFC 8445 §7.3.1.4) and nominations undelayed.
type pacer struct {
	mu   sync.Mutex // guards what follows
	sent int
	dest map[netip.AddrPort]*pace
}

type pace struct {
	sent   int
	last   time.Time
	gap    time.Duration
	earned bool
}

func newPacer() *pacer { return &pacer{dest: make(map[netip.AddrPort]*pace)} }

// allow reports whether a request to addr may leave now, and counts it.
func (p *pacer) allow(addr netip.AddrPort, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.lookupLocked(addr)
	if d == nil || p.sent >= maxChecks {
		return false
	}
	switch {
	case d.earned:
		d.earned = false
	case d.sent < freeChecks:
	case now.Sub(d.last) < d.gap:
		return false
	default:
		d.gap = min(d.gap*5/4, maxGap)
	}
	d.sent++
	d.last = now
	p.sent++
	return true
}

// admit reports whether a check from addr is to be looked at. Addresses beyond
// maxSources are not.
func (p *pacer) admit(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.lookupLocked(addr)
	if d == nil {
		return false
	}
	d.earned = true
	return true
}

// total returns how many requests were allowed.
func (p *pacer) total() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(p.sent)
}

func (p *pacer) lookupLocked(addr netip.AddrPort) *pace {
	d := p.dest[addr]
	if d == nil && len(p.dest) < maxSources {
		d = &pace{gap: firstGap}
		p.dest[addr] = d
	}
	return d
}
