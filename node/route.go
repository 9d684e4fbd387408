package node

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mintai/quicstream"
	"mintai/signal/signalpb"
)

// How a route is looked at.
const (
	lookBusy = 100 * time.Millisecond // while a request runs
	lookIdle = time.Second
	// coordinatorSilence is how long the coordinator may acknowledge nothing
	// before what would need it is prepared without it.
	coordinatorSilence = 1500 * time.Millisecond
	// coordinatorAsk is how often something is said to it, to see that.
	coordinatorAsk = time.Second
	// deadTunnel is how long a tunnel that was left and is silent may finish what
	// could not move. One that is well may finish it all.
	deadTunnel = time.Second
)

// route is the way to one miner: the tunnel that is in use, and what takes it
// over when its path dies or a better one is found. Its run goroutine owns it;
// requests come and go beside it.
type route struct {
	c     *client
	found chan searched // cap 1: the search under way ends in it
	wake  chan struct{} // cap 1: a request has begun
	moved chan struct{} // cap 1: this machine is in another network
	news  chan struct{} // cap 1: a direct path may have become possible

	// The run goroutine's.
	keeper       *keeper
	s            *session // of the present path
	stop         context.CancelFunc
	standby      *link         // a tunnel that waits, over what does not need the coordinator; nil: none
	prepared     chan searched // cap 1
	watch        coordinatorWatch
	preparing    bool
	prepareAgain time.Time      // not before
	rest         sync.WaitGroup // tunnels that were left, and searches

	introduced atomic.Bool // the search under way has been granted a path

	// The client's mu guards what follows.
	link   *link
	riding map[*carriage]struct{}
	over   bool
}

// searched is the end of a search.
type searched struct {
	link    *link
	session *session
	err     error
}

func newRoute(c *client, s *session, l *link) *route {
	return &route{
		c: c, s: s, link: l, riding: make(map[*carriage]struct{}), found: make(chan searched, 1), prepared: make(chan searched, 1),
		wake: make(chan struct{}, 1), moved: make(chan struct{}, 1), news: make(chan struct{}, 1),
	}
}

// carry sends the carriage's request on its way, and returns the head of its
// answer. The carriage goes over to whatever tunnel the route takes, until alight.
func (c *client) carry(car *carriage, l *link) (*http.Response, error) {
	r := l.route
	c.mu.Lock()
	if r.over {
		c.mu.Unlock()
		return nil, &quicstream.LostError{Err: errPatience}
	}
	r.riding[car] = struct{}{}
	car.move(r.link)
	c.mu.Unlock()
	wake(r.wake)
	return car.head()
}

// alight lets the carriage go.
func (c *client) alight(car *carriage, l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(l.route.riding, car)
}

// run keeps the route until nothing uses it and its tunnel is gone, or ctx ends.
func (r *route) run(ctx context.Context) {
	defer r.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.keeper = newKeeper(r.c.deadlines.Resume, r.link.kind.Relayed(), time.Now())
	report := time.NewTicker(r.c.deadlines.Report)
	defer report.Stop()
	beat := time.NewTicker(lookIdle)
	defer beat.Stop()
	pace := lookIdle
	ended := r.link.Done()
	for {
		what := stay
		select {
		case <-report.C:
			r.c.report(r.s, signalpb.TunnelState_TUNNEL_UP, r.link)
		case now := <-beat.C:
			what = r.look(ctx, now)
		case <-r.wake:
			what = r.look(ctx, time.Now())
		case <-ended:
			ended = nil
			what = r.keeper.ended(time.Now(), closedOnPurpose(r.link.Err()))
		case <-r.moved:
			what = r.keeper.moved(time.Now())
		case <-r.news:
			r.keeper.news(time.Now())
		case f := <-r.found:
			what = r.foundOne(ctx, f)
		case f := <-r.prepared:
			r.ready(time.Now(), f)
		case <-ctx.Done():
			r.end(quicstream.Cancelled, context.Cause(ctx)) //nolint:contextcheck // the connection's own
			return
		}
		switch what {
		case rescue, upgrade:
			r.search(ctx, what)
		case take:
			ended = r.link.Done()
		case giveUp:
			r.end(quicstream.Cancelled, errPatience) //nolint:contextcheck // the connection's own
			return
		case stay, discard:
		}
		if want := r.pace(); want != pace {
			pace = want
			beat.Reset(pace)
		}
	}
}

// leave waits for what runs beside, and closes what came of it too late.
func (r *route) leave() {
	r.rest.Wait()
	for _, late := range []chan searched{r.prepared, r.found} {
		select {
		case f := <-late:
			r.refuse(f, quicstream.Done)
		default:
		}
	}
}

// refuse closes what was found and is not needed.
func (r *route) refuse(f searched, code quicstream.CloseCode) {
	if f.link == nil {
		return
	}
	f.link.close(code)
	if f.session != r.s {
		r.c.done(f.session)
		r.c.retire(f.session, "not needed")
	}
}

// closedOnPurpose reports whether an end wanted the tunnel's end, and not only
// another one in its place.
func closedOnPurpose(err error) bool {
	var closed *quicstream.CloseError
	return errors.As(err, &closed) && closed.Code != quicstream.Replaced
}

func (r *route) pace() time.Duration {
	if r.keeper.busy || r.keeper.searching == rescue {
		return lookBusy
	}
	return lookIdle
}

// look is one tick of the keeper.
func (r *route) look(ctx context.Context, now time.Time) step {
	r.c.mu.Lock()
	riding := make([]*carriage, 0, len(r.riding))
	for car := range r.riding {
		riding = append(riding, car)
	}
	r.c.mu.Unlock()
	s := seen{busy: len(riding) > 0 || r.link.InFlight() > 0, heard: r.link.LastHeard(), online: true}
	s.waits = slices.ContainsFunc(riding, (*carriage).waits)
	if s.busy && now.Sub(s.heard) >= suspectAfter {
		s.online = r.c.network.online()
	}
	if r.introduced.Load() {
		r.keeper.introduced()
	}
	what := r.keeper.tick(now, s)
	if r.keeper.searching == stay && !r.keeper.silent(now) && r.link.Err() == nil {
		for _, car := range riding {
			car.again(r.link)
		}
	}
	if s.busy {
		r.prepare(ctx, now)
	} else {
		r.standDown(quicstream.Done)
	}
	return what
}

// search looks for another path beside the present one. A search under way ends
// before.
func (r *route) search(ctx context.Context, what step) {
	r.stopSearch()
	if what == rescue && r.standby != nil {
		l := r.standby
		r.standby = nil
		if l.Err() == nil {
			r.found <- searched{link: l, session: r.s}
			return
		}
		l.close(quicstream.Replaced)
	}
	ctx, r.stop = context.WithCancel(ctx)
	r.introduced.Store(false)
	w := wanted{
		cause: causeOf(what, r.keeper.silent(time.Now())), old: r.link, until: r.deadline(what), introduced: func() { r.introduced.Store(true) },
	}
	found, s, c := r.found, r.s, r.c
	r.rest.Go(func() { found <- c.findPath(ctx, s, w) })
}

// stopSearch ends the search under way and waits for its end.
func (r *route) stopSearch() {
	if r.stop == nil { // a tunnel that waited may be in there all the same
		select {
		case f := <-r.found:
			r.refuse(f, quicstream.Replaced)
		default:
		}
		return
	}
	r.stop()
	r.stop = nil
	r.refuse(<-r.found, quicstream.Replaced)
}

// deadline is by when a search must have found something.
func (r *route) deadline(what step) time.Time {
	now := time.Now()
	if what == upgrade {
		return now.Add(upgradeLimit)
	}
	return r.keeper.searchEnds(now, r.link.Stats().RTT)
}

func causeOf(what step, silent bool) signalpb.PathCause {
	switch {
	case what == upgrade:
		return signalpb.PathCause_PATH_CAUSE_UPGRADE
	case silent:
		return signalpb.PathCause_PATH_CAUSE_LOST
	default:
		return signalpb.PathCause_PATH_CAUSE_MOVED
	}
}

// foundOne takes in the end of the search.
func (r *route) foundOne(ctx context.Context, f searched) step {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
	now := time.Now()
	r.look(ctx, now) // what was heard meanwhile decides
	if f.err != nil {
		if errors.Is(f.err, errUnlikely) {
			r.keeper.unlikely()
		}
		r.c.log.Debug().Err(f.err).Str("session", r.s.id.Short()).Str("peer", r.s.miner.Short()).Stringer("for", r.keeper.searching).Msg("no other path")
		return r.keeper.failed(now)
	}
	what := r.keeper.found(now, f.link.kind.Relayed())
	if what != take {
		r.refuse(f, quicstream.Replaced)
		return what
	}
	r.take(ctx, f.link, f.session)
	return take
}

// take makes another tunnel the route's: what the former one carries goes over,
// then that one is closed, and its relay let go.
func (r *route) take(ctx context.Context, l *link, s *session) {
	c := r.c
	former := r.s
	c.mu.Lock()
	old := r.link
	inUse := c.links[s.miner] == old
	r.link, l.route, l.since = l, r, time.Now()
	l.owner = s
	if inUse {
		c.links[s.miner] = l
	}
	riding := make([]*carriage, 0, len(r.riding))
	for car := range r.riding {
		riding = append(riding, car)
	}
	for _, car := range riding { // with the lock held, so that none is left behind
		car.move(l)
	}
	r.s = s
	c.mu.Unlock()
	if s != former {
		c.done(former)
	}
	c.log.Info().Str("session", s.id.Short()).Str("peer", s.miner.Short()).Str("from", old.kind.String()).Str("path", l.kind.String()).
		Stringer("reason", l.reason).Int("answers", len(riding)).Msg("path changed")
	c.metrics.tunnelMoved(old.Path(), l.Path())
	c.report(s, signalpb.TunnelState_TUNNEL_UP, l)
	r.rest.Go(func() { retire(ctx, old) })
}

// retire closes a tunnel that was left, when it carries nothing any more: an
// answer that could not move, because the miner has no room to keep it, ends there
// in its own time. One that is silent is of no use to anybody.
func retire(ctx context.Context, old *link) {
	code := quicstream.Replaced
	defer func() { old.close(code) }()
	tick := time.NewTicker(lookBusy / 4)
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case now := <-tick.C:
			dead := now.Sub(old.LastHeard()) >= suspectAfter && now.Sub(began) >= deadTunnel
			if old.InFlight() == 0 || dead {
				return
			}
		case <-old.Done():
			return
		case <-ctx.Done():
			code = quicstream.Cancelled
			return
		}
	}
}

// end closes what there is; what was carried fails with the reason.
func (r *route) end(code quicstream.CloseCode, why error) {
	c := r.c
	r.stopSearch()
	r.standDown(code)
	c.mu.Lock()
	r.over = true
	riding := make([]*carriage, 0, len(r.riding))
	for car := range r.riding {
		riding = append(riding, car)
	}
	l := r.link
	c.mu.Unlock()
	if cause := l.Err(); cause != nil && closedOnPurpose(cause) {
		why = cause
	}
	for _, car := range riding {
		car.giveUp(&quicstream.LostError{Err: why})
	}
	c.unlink(l)
	l.close(code)
	c.report(r.s, signalpb.TunnelState_TUNNEL_CLOSED, l)
	c.metrics.tunnelDown(l.Path())
	c.log.Debug().Str("session", r.s.id.Short()).Str("peer", r.s.miner.Short()).AnErr("cause", l.Err()).Msg("tunnel closed")
}
