package ice

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// sprayPerHost bounds the unanswered checks that all sessions of one socket
	// send to one IP address in a window, some 150 kB. A session that finds no
	// direct path needs about fifty. Whoever can open sessions and has named, or
	// forged, somebody's address could otherwise open one after the other. The
	// probes of hard-NAT probing are not among these checks: punchLimit bounds them.
	sprayPerHost = 1000
	// sprayPerNet is the same for a /24 of IPv4 or /56 of IPv6.
	sprayPerNet = 4 * sprayPerHost
	sprayWindow = time.Minute
	// sprayBuckets is how finely addresses are told apart: two that share a bucket
	// share a limit that neither comes near.
	sprayBuckets = 4096
)

// spray counts the unanswered checks of all sessions of a socket by where they
// went. An answer takes back what its session has spent there. The counters are
// hashed with a secret, so there is no table that could be filled.
type spray struct {
	mu         sync.Mutex // guards what follows
	since      time.Time
	seed       maphash.Seed
	hosts      [sprayBuckets]uint32
	nets       [sprayBuckets]uint32
	suppressed uint64
}

func newSpray() *spray { return &spray{seed: maphash.MakeSeed()} }

func (s *spray) buckets(addr netip.Addr) (host, network *uint32) {
	source, prefix := limitedAs(addr)
	return &s.hosts[maphash.Comparable(s.seed, source)%sprayBuckets], &s.nets[maphash.Comparable(s.seed, prefix)%sprayBuckets]
}

// allow counts one more check to addr, if there is room for it. Checks that a
// signed one from there asks for have twice the room: who sends those could
// send as much himself. A nil spray allows everything.
func (s *spray) allow(addr netip.Addr, asked bool, now time.Time) bool {
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := now.Sub(s.since); age < 0 || age >= sprayWindow {
		clear(s.hosts[:])
		clear(s.nets[:])
		s.since = now
	}
	room := uint32(1)
	if asked {
		room = 2
	}
	host, network := s.buckets(addr)
	if *host >= room*sprayPerHost || *network >= room*sprayPerNet {
		s.suppressed++
		return false
	}
	*host++
	*network++
	return true
}

// answered takes back n checks: there is somebody who wants them.
func (s *spray) answered(addr netip.Addr, n int) {
	if s == nil || n <= 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	host, network := s.buckets(addr)
	*host -= min(*host, uint32(n))
	*network -= min(*network, uint32(n))
}

func (s *spray) total() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.suppressed
}
