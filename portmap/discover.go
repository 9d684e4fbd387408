package portmap

import (
	"context"
	"errors"
	"slices"
	"time"
)

// head is how long an answer by one protocol waits for one by a better protocol.
// PCP and NAT-PMP answer within a packet's round trip in the local network, and
// nobody should have to guess which of the two made a mapping.
var head = map[Protocol]time.Duration{NATPMP: 15 * time.Millisecond, UPnP: 100 * time.Millisecond}

// upnpLater is how long the search for UPnP waits where the others are asked
// too. Home routers do one thing after the other; the answers to a multicast
// search would stand in the way of the two that need a single packet, and mostly
// it is not needed at all.
const upnpLater = 40 * time.Millisecond

// found is what came of looking for one protocol.
type found struct {
	protocol Protocol
	answer   answer
	err      error
}

// search asks the gateway by several protocols at once. Every finder's result
// comes through the channel, which has room for all. wait returns when all
// finders ended, which they do soon after ctx.
func search(ctx context.Context, net network, l link, protocols []Protocol) (results <-chan found, wait func(), n int) {
	var jobs group
	c := make(chan found, len(protocols))
	for _, p := range protocols {
		find, ok := net.finders[p]
		if !ok {
			continue
		}
		n++
		later := p == UPnP && len(protocols) > 1
		jobs.Go(func() {
			if later {
				select {
				case <-time.After(upnpLater):
				case <-ctx.Done():
					c <- found{protocol: p, err: ctx.Err()}
					return
				}
			}
			a, err := find(ctx, l)
			c <- found{protocol: p, answer: a, err: err}
		})
	}
	return c, jobs.Wait, n
}

// discover looks for routers and has the first one that can map what is not
// mapped; those that cannot leave it to the next. The errors are those of the
// protocols that did not help.
func (s *session) discover(ctx context.Context) map[Protocol]error {
	order := Protocols()
	var wanted []Protocol
	for _, p := range order {
		if slices.Contains(s.m.cfg.Only, p) {
			wanted = append(wanted, p)
		}
	}
	looking, cancel := context.WithTimeout(ctx, lookFor)
	results, wait, open := search(looking, s.net, s.link, wanted)
	defer wait()
	defer cancel()

	errs := map[Protocol]error{}
	var ready []found
	heard := map[Protocol]bool{}
	// better reports whether a protocol before p has yet to be heard of.
	better := func(p Protocol) bool {
		i := slices.Index(wanted, p)
		return slices.ContainsFunc(wanted[:i], func(q Protocol) bool { return !heard[q] })
	}
	began := time.Now()
	for s.pending() != nil && ctx.Err() == nil && (open > 0 || len(ready) > 0) {
		slices.SortFunc(ready, func(a, b found) int { return slices.Index(order, a.protocol) - slices.Index(order, b.protocol) })
		var timer <-chan time.Time
		if len(ready) > 0 {
			first := ready[0]
			left := head[first.protocol] - time.Since(began)
			if left <= 0 || !better(first.protocol) {
				ready = ready[1:]
				if err := s.try(ctx, first.answer.router); err != nil {
					errs[first.protocol] = err
				}
				continue
			}
			timer = time.After(left)
		}
		select {
		case f := <-results:
			open--
			heard[f.protocol] = true
			if f.err != nil {
				errs[f.protocol] = f.err
			} else {
				ready = append(ready, f)
			}
		case <-timer:
		}
	}
	return errs
}

// try has a router map what is not mapped, and publishes what it did.
func (s *session) try(ctx context.Context, r router) error {
	slots := s.pending()
	errs := add(ctx, r, slots)
	for i, slot := range slots {
		if errs[i] == nil {
			s.m.cfg.Log.Info().Str("protocol", string(r.protocol())).Stringer("gateway", s.link.gateway).
				Uint16("port", slot.ask.port.Number).Bool("tcp", slot.ask.port.TCP).
				Stringer("external", slot.mapping.External).Bool("public", slot.mapping.Public()).
				Time("expires", slot.mapping.Expires).Msg("the router maps a port")
		}
	}
	s.publish()
	return errors.Join(errs...)
}
