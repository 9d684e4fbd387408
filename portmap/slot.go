package portmap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"
)

// group are goroutines that are waited for where they were started.
type group = sync.WaitGroup

// slot is one port of a session.
type slot struct {
	ask     ask
	router  router // nil: not mapped
	mapping Mapping
	renewAt time.Time
	fails   int

	// doubtful are routers whose answer was lost: they may have a mapping.
	doubtful map[router]ask
}

// granted notes a mapping. The next question comes after half of its life, a
// little later by chance (RFC 6887 §11.2.1: "between 1/2 and 5/8"), or earlier:
// a router that restarted has forgotten everything, and its epoch (§8.5) is only
// in an answer. An answer to a question that is asked every ten minutes makes up
// for the announcements to a multicast group, for which a port of the machine
// would have to be opened to strangers.
func (s *slot) granted(r router, m Mapping, now time.Time) {
	s.router, s.mapping, s.fails = r, m, 0
	s.ask.external = m.External.Port()
	delete(s.doubtful, r)
	wait := renewAtMax
	if !m.Expires.IsZero() {
		life := m.Expires.Sub(now)
		wait = min(life/2+time.Duration(rand.Int64N(int64(life/8)+1)), wait)
	}
	s.renewAt = now.Add(max(wait, time.Second))
}

// failed notes that a renewal failed, and says whether the mapping is lost.
func (s *slot) failed(now time.Time) (lost bool) {
	s.fails++
	if s.fails >= maxFails || !s.mapping.Expires.IsZero() && !now.Before(s.mapping.Expires) {
		s.doubt(s.router)
		s.router, s.mapping = nil, Mapping{}
		return true
	}
	wait := retryFirst
	if !s.mapping.Expires.IsZero() {
		wait = max(min(wait, s.mapping.Expires.Sub(now)/2), time.Second)
	}
	s.renewAt = now.Add(wait)
	return false
}

func (s *slot) doubt(r router) {
	if s.doubtful == nil {
		s.doubtful = map[router]ask{}
	}
	if len(s.doubtful) < 2*len(Protocols()) {
		s.doubtful[r] = s.ask
	}
}

// left is what routers have, or may have, for this port.
func (s *slot) left() map[router]ask {
	all := maps.Clone(s.doubtful)
	if s.router != nil {
		if all == nil {
			all = map[router]ask{}
		}
		all[s.router] = s.ask
	}
	return all
}

// add asks a router for several ports at the same time, and for those that may
// be asked only of a UPnP gateway nobody else. The errors are those of the slots;
// a slot without one is mapped.
func add(ctx context.Context, r router, slots []*slot) []error {
	errs := make([]error, len(slots))
	room := make(chan struct{}, len(slots))
	if r.protocol() == UPnP {
		room = make(chan struct{}, upnpAtOnce)
	}
	var jobs group
	for i, s := range slots {
		if s.ask.wellKnown() && r.protocol() != UPnP {
			errs[i] = errWellKnown
			continue
		}
		jobs.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ctx, addFor)
			defer cancel()
			m, err := r.add(ctx, s.ask)
			if err == nil {
				s.granted(r, m, time.Now())
			} else if errs[i] = err; !errors.Is(err, ErrRefused) && !errors.Is(err, ErrNoExternal) {
				s.doubt(r)
			}
		})
	}
	jobs.Wait()
	return errs
}

// upnpAtOnce is for how many ports a UPnP gateway is asked at a time: each takes
// several connections, and the web servers in home routers are small.
const upnpAtOnce = 4

// errWellKnown keeps ports below 1024 from PCP and NAT-PMP. A router that does
// not forward them says so over UPnP; miniupnpd, which is in many of them, looks
// for another port for ever when it is asked over the other two, and answers
// nobody any more.
var errWellKnown = fmt.Errorf("%w: ports below %d are asked for over UPnP only", ErrRefused, firstFree)

// firstFree is the first port that is not a well-known one (RFC 6335 §6).
const firstFree = 1024

func (a ask) wellKnown() bool { return a.port.Number < firstFree || a.external < firstFree }
