package ice

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun"
)

const (
	// requestsPerSource is how many STUN and TURN requests one IP address may
	// send in one window. An allocation takes two, a permission and a channel
	// one each, so a household or a carrier's NAT stays far below.
	requestsPerSource = 200
	// requestsPerPrefix is the same for a whole /24 of IPv4 or /56 of IPv6: who
	// forges sources to flood a network forges all of its addresses.
	requestsPerPrefix = 600
	requestWindow     = time.Second
	// maxUnsigned bounds what has no signature of any kind, from all sources
	// together: half a core, at most. Nodes sign what they send; the credentials and
	// the nonce for it come with the grant.
	maxUnsigned = 8000
	// requestBuckets is how finely sources are told apart. A flood from forged
	// sources spreads over all of them: it takes 1.6 million requests a second to
	// shut out somebody who shares a bucket with it.
	requestBuckets = 8192
)

// requestLimit keeps the STUN and TURN servers from being a mirror: anybody can
// send a request in another's name, and the answer may be three times as long.
// What the servers never answer, ChannelData and indications, is not limited
// here.
//
// The counters are hashed with a new secret in each window: a table of sources
// would be full after as many forged ones, and shut everybody else out.
type requestLimit struct {
	mu       sync.Mutex // guards what follows
	window   time.Time  // the start of the current one
	seed     maphash.Seed
	counts   [requestBuckets]uint16
	prefixes [requestBuckets]uint16 // by the first address
	unsigned int
}

// answered reports whether the server would answer the datagram: RFC 8489 §5,
// the class bits of a request are both zero.
func answered(b []byte) bool {
	return len(b) >= 2 && b[0]&0xc0 == 0 && b[0]&0x01 == 0 && b[1]&0x10 == 0
}

// allow counts a request from addr, if there is room for it.
func (l *requestLimit) allow(addr netip.Addr, now time.Time) bool {
	source, prefix := limitedAs(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	if age := now.Sub(l.window); l.window.IsZero() || age < 0 || age >= requestWindow {
		l.window, l.seed = now, maphash.MakeSeed()
		clear(l.counts[:])
		clear(l.prefixes[:])
		l.unsigned = 0
	}
	n := &l.counts[maphash.Comparable(l.seed, source)%requestBuckets]
	of := &l.prefixes[maphash.Comparable(l.seed, prefix)%requestBuckets]
	if *n >= requestsPerSource || *of >= requestsPerPrefix {
		return false
	}
	*n++
	*of++
	return true
}

// answers counts the request b from addr, if there is room for it.
func (l *requestLimit) answers(b []byte, addr netip.Addr, now time.Time) bool {
	if !l.allow(addr, now) {
		return false
	}
	if attribute(b, stun.AttrMessageIntegrity) != nil || attribute(b, stun.AttrMessageIntegritySHA256) != nil || attribute(b, attrSignature) != nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsigned++
	return l.unsigned <= maxUnsigned
}

// limitedAs returns what a source is counted as: IPv4 by address and /24, IPv6
// by /64, of which one host has all addresses, and /56, which is a household.
func limitedAs(addr netip.Addr) (source, prefix netip.Addr) {
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return addr, firstOf(addr, 24)
	}
	return firstOf(addr, 64), firstOf(addr, 56)
}

func firstOf(addr netip.Addr, bits int) netip.Addr {
	p, err := addr.Prefix(bits)
	if err != nil { // no address at all
		return addr
	}
	return p.Addr()
}
