package portmap

import (
	"context"
	"errors"
	"time"
)

const (
	pollEvery  = 5 * time.Second // how soon another gateway or address is noticed
	renewAtMax = 10 * time.Minute
	retryFirst = 15 * time.Second // after a renewal failed, or nobody was found
	retryMax   = 10 * time.Minute
	lookFor    = 4 * time.Second // all protocols together
	addFor     = 5 * time.Second // one mapping: UPnP may take several requests

	// removeFor is how long the end of a process waits for a router to answer
	// that a mapping is deleted: UPnP takes two requests over TCP, and that long
	// again for every two mappings more. PCP and NAT-PMP give up earlier, see
	// removeTimes.
	removeFor = 300 * time.Millisecond

	// maxFails is how many renewals in a row may fail before the mapping counts as
	// lost and all protocols are tried again.
	maxFails = 3
)

// Run keeps the ports mapped until ctx ends and returns ctx's error, at once if
// nothing was mapped. Else it deletes the mappings before, which takes one round
// trip to the router as a rule, and 300 ms at most for one or two. Nothing that
// goes wrong with routers ends it. It runs once.
func (m *Mapper) Run(ctx context.Context) error {
	net := m.cfg.net.orReal()
	var last string
	for ctx.Err() == nil {
		l, err := net.route(m.cfg.Toward)
		if err != nil {
			if last != err.Error() {
				last = err.Error()
				m.cfg.Log.Info().Err(err).Msg("no router to map ports at")
			}
			m.pause(ctx, pollEvery)
			continue
		}
		last = ""
		m.newSession(l, net).run(ctx)
	}
	return ctx.Err()
}

// pause waits, less if there is a hint that the network changed.
func (m *Mapper) pause(ctx context.Context, d time.Duration) (hinted bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-m.hint:
		return true
	case <-timer.C:
	}
	return false
}

// session is what a Mapper has in one network. One goroutine owns it; the ones
// that it starts for single questions are waited for before it goes on.
type session struct {
	m      *Mapper
	net    network
	link   link
	slots  []*slot
	lookAt time.Time // when to look for routers next, if a port is not mapped
	looks  int       // without success
}

func (m *Mapper) newSession(l link, net network) *session {
	s := &session{m: m, net: net, link: l}
	for i, p := range m.cfg.Ports {
		s.slots = append(s.slots, &slot{ask: ask{
			port: p, nonce: m.nonces[i], external: p.wanted(), lifetime: m.cfg.Lifetime, description: m.cfg.Description,
		}})
	}
	return s
}

// run returns when the network became another one or ctx ended. The router has
// nothing of ours then, as far as it could be reached.
func (s *session) run(ctx context.Context) {
	s.m.cfg.Log.Debug().Stringer("gateway", s.link.gateway).Stringer("local", s.link.local).Msg("asking the router for port mappings")
	for {
		now := time.Now()
		if !now.Before(s.lookAt) && s.pending() != nil {
			s.look(ctx)
		}
		s.renew(ctx)
		s.publish()
		if ctx.Err() != nil { // while a question was under way
			s.forget(ctx)
			return
		}
		hinted := s.m.pause(ctx, min(max(time.Until(s.next()), 0), pollEvery))
		l, err := s.net.route(s.m.cfg.Toward)
		if ctx.Err() != nil || err != nil || l != s.link {
			s.forget(ctx)
			return
		}
		if hinted {
			s.lookAt, s.looks = time.Time{}, 0
			for _, slot := range s.slots {
				slot.renewAt = time.Time{}
			}
		}
	}
}

// next is when there is something to do.
func (s *session) next() time.Time {
	t := time.Now().Add(retryMax)
	for _, slot := range s.slots {
		at := slot.renewAt
		if slot.router == nil {
			at = s.lookAt
		}
		if at.Before(t) {
			t = at
		}
	}
	return t
}

// pending are the ports that are not mapped.
func (s *session) pending() []*slot {
	var p []*slot
	for _, slot := range s.slots {
		if slot.router == nil {
			p = append(p, slot)
		}
	}
	return p
}

func (s *session) publish() {
	var all []Mapping
	for _, slot := range s.slots {
		if slot.router != nil {
			all = append(all, slot.mapping)
		}
	}
	s.m.publish(all)
}

// look tries all protocols for the ports that are not mapped, and says what came.
func (s *session) look(ctx context.Context) {
	errs := s.discover(ctx)
	now := time.Now()
	if s.pending() == nil {
		s.looks, s.lookAt = 0, now
		return
	}
	s.lookAt = now.Add(min(retryFirst<<min(s.looks, 10), retryMax))
	s.looks++
	if ctx.Err() != nil {
		return
	}
	event := s.m.cfg.Log.Debug()
	if s.looks == 1 {
		event = s.m.cfg.Log.Info()
	}
	for p, err := range errs {
		event = event.AnErr(string(p), err)
	}
	event.Stringer("gateway", s.link.gateway).Int("ports", len(s.pending())).Msg("the router maps no port")
}

// renew asks again for what is due.
func (s *session) renew(ctx context.Context) {
	now := time.Now()
	due := map[router][]*slot{}
	for _, slot := range s.slots {
		if slot.router != nil && !now.Before(slot.renewAt) {
			due[slot.router] = append(due[slot.router], slot)
		}
	}
	for r, slots := range due {
		for i, err := range add(ctx, r, slots) {
			slot := slots[i]
			if err == nil || ctx.Err() != nil {
				continue
			}
			if slot.failed(time.Now()) {
				s.m.cfg.Log.Info().Err(err).Uint16("port", slot.ask.port.Number).Str("protocol", string(r.protocol())).Msg("the port mapping is lost")
				s.lookAt = time.Now()
			} else {
				s.m.cfg.Log.Debug().Err(err).Uint16("port", slot.ask.port.Number).Msg("the port mapping was not renewed")
			}
		}
	}
	if len(due) > 0 && s.pending() != nil && ctx.Err() == nil {
		s.look(ctx)
	}
}

// forget deletes what the router has of ours: all at once, and over UPnP a few at
// a time, for as long as they may need.
func (s *session) forget(ctx context.Context) {
	s.m.publish(nil)
	type entry struct {
		r router
		a ask
	}
	var entries []entry
	slow := 0
	for _, slot := range s.slots {
		for r, a := range slot.left() {
			entries = append(entries, entry{r, a})
			if r.protocol() == UPnP {
				slow++
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeFor*time.Duration(max(1, (slow+1)/2)))
	defer cancel()
	room := make(chan struct{}, upnpAtOnce)
	var jobs group
	for _, e := range entries {
		jobs.Go(func() {
			if e.r.protocol() == UPnP {
				room <- struct{}{}
				defer func() { <-room }()
			}
			err := e.r.remove(ctx, e.a)
			if err != nil && !errors.Is(err, ErrRefused) {
				s.m.cfg.Log.Debug().Err(err).Uint16("port", e.a.port.Number).Str("protocol", string(e.r.protocol())).Msg("the port mapping stays until it expires")
			}
		})
	}
	jobs.Wait()
}
