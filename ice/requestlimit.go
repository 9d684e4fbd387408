package ice

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// requestsPerSource is how many STUN and TURN requests one IP address may
	// send in one window. An allocation takes two, a permission and a channel
	// one each, so a household or a carrier's NAT stays far below.
	requestsPerSource = 200
	requestWindow     = time.Second
	maxRequestSources = 8192
)

// requestLimit keeps the TURN server from being a mirror: anybody can send a
// request in another's name, and the answer is three times as long. What the
// server never answers, ChannelData and indications, is not limited here.
type requestLimit struct {
	mu     sync.Mutex // guards what follows
	window time.Time  // the start of the current one
	counts map[netip.Addr]int
}

// answered reports whether the server would answer the datagram: RFC 8489 §5,
// the class bits of a request are both zero.
func answered(b []byte) bool {
	return len(b) >= 2 && b[0]&0xc0 == 0 && b[0]&0x01 == 0 && b[1]&0x10 == 0
}

// allow counts a request from addr. When there are more sources in one window
// than are kept, new ones are refused: that is a flood of forged addresses.
func (l *requestLimit) allow(addr netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil || now.Sub(l.window) >= requestWindow {
		l.window, l.counts = now, make(map[netip.Addr]int)
	}
	n, known := l.counts[addr]
	if n >= requestsPerSource || !known && len(l.counts) >= maxRequestSources {
		return false
	}
	l.counts[addr] = n + 1
	return true
}
