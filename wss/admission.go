package wss

import (
	"errors"
	"net/netip"
	"sync"
	"time"
)

var (
	errFull   = errors.New("all connections are taken")
	errTable  = errors.New("too many networks connect")
	errPrefix = errors.New("too many connections from one network")
	errRate   = errors.New("too many new connections from one network")
)

// maxSources bounds the table of networks that connected of late.
const maxSources = 16 << 10

// admission counts connections before a byte of them is read: in all, and for
// each IPv4 /24 and IPv6 /56, the smallest networks that one holder is given
// whole. A company's proxy is one network too, so the limits are wide.
type admission struct {
	max       int     // connections at a time
	perPrefix int     // of one network
	rate      float64 // new ones a second of one network, in the long run
	burst     float64 // and at once

	mu      sync.Mutex // guards what follows
	open    int
	sources map[netip.Prefix]*source
}

// source is one network: its open connections, and a bucket of further ones.
type source struct {
	open  int
	saved float64
	at    time.Time
}

// network returns the network that an address counts for.
func network(a netip.Addr) netip.Prefix {
	bits := 24
	if a = a.Unmap(); a.Is6() {
		bits = 56
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// enter counts a connection, which leave ends, or says why there is no room.
func (l *admission) enter(a netip.Addr, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := network(a)
	s := l.sources[n]
	if s == nil {
		if len(l.sources) >= maxSources && !l.forgetLocked(now) {
			return errTable
		}
		if l.sources == nil {
			l.sources = make(map[netip.Prefix]*source)
		}
		s = &source{saved: l.burst, at: now}
		l.sources[n] = s
	}
	s.saved, s.at = l.savedLocked(s, now), now
	switch {
	case s.open >= l.perPrefix:
		return errPrefix
	case s.saved < 1:
		return errRate
	case l.open >= l.max:
		return errFull
	}
	s.saved--
	s.open++
	l.open++
	return nil
}

func (l *admission) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if s := l.sources[network(a)]; s != nil {
		s.open--
	}
}

func (l *admission) savedLocked(s *source, now time.Time) float64 {
	return min(l.burst, s.saved+max(0, now.Sub(s.at).Seconds())*l.rate)
}

// forgetLocked makes room: networks without connections and with a full bucket
// are like new ones. It reports whether there were any.
func (l *admission) forgetLocked(now time.Time) bool {
	before := len(l.sources)
	for n, s := range l.sources {
		if s.open == 0 && l.savedLocked(s, now) >= l.burst {
			delete(l.sources, n)
		}
	}
	return len(l.sources) < before
}
