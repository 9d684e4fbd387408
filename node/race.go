package node

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	"mintai/ice"
	"mintai/quicstream"
)

// How a client races its ways to a miner.
const (
	// maxDials bounds the QUIC handshakes of one race.
	maxDials = 8
	// relayGrace is how long a finished relay leg waits for a direct handshake
	// that is under way: the relay is for those who have no direct path.
	relayGrace = 500 * time.Millisecond
	// leastLook is how often a direct handshake under way is looked at, when the
	// head start is shorter still.
	leastLook = 50 * time.Millisecond
	// nearHeadStart is how long an address outside the network that both seem to
	// share waits for one within it. Their router may turn packets round as well,
	// and answers as soon, but what it turns round costs its own time, and a
	// machine of the same network should not depend on it.
	nearHeadStart = 25 * time.Millisecond
	// redialAfter is sooner than QUIC repeats the first packet of a handshake.
	redialAfter = 80 * time.Millisecond
	// maxLate bounds what is taken in of the peer's candidates, and of its proven
	// addresses, that come after the grant, whatever the coordinator sends.
	maxLate = 16
)

// tunnel is what a handshake ends in.
type tunnel interface {
	Close(quicstream.CloseCode) error
}

// relayLeg is this node's end of a relay; *ice.Relay is one.
type relayLeg interface {
	Addr() netip.AddrPort
	Kind() ice.Kind
	Addrs() <-chan ice.Reached
	Permit(context.Context, netip.AddrPort) error
	Close() error
}

// fannedOut is a socket of its own, behind a NAT that maps per destination, that
// reaches the peer; *ice.Punched is one.
type fannedOut interface {
	Peer() netip.AddrPort
	Close() error
}

// hop is where one handshake goes, and from which end.
type hop struct {
	addr netip.AddrPort
	kind ice.Kind  // of the path: relayed when either end is a leg
	leg  io.Closer // a relayLeg or fannedOut; nil: from the node's own socket
	// blind: nothing has come from there yet. A relay does not wait for it.
	blind bool
}

// ways is what a race can do in the world. Tests put a simulated network here.
type ways struct {
	reached   <-chan ice.Reached // addresses from which the peer's signed checks came
	addRemote func(trickled)     // checks one more address of the peer
	heard     func() bool        // whether any signed check came directly
	allowed   func(hop) bool     // whether anything may be sent to an address that has not shown itself
	dial      func(context.Context, hop) (tunnel, error)
	openRelay func(context.Context) (relayLeg, error) // nil: there is none to be had
	// fanOut opens many sockets until one reaches the peer, probe sends to many of
	// the peer's ports until ctx ends: hard-NAT probing. Nil: none.
	fanOut func(context.Context) (fannedOut, error)
	probe  func(context.Context)
}

// plan is what is known when a race begins.
type plan struct {
	expect      ice.Expectation
	reason      ice.Reason // of the expectation
	headStart   time.Duration
	direct      time.Duration // limit of the direct path
	legWanted   bool          // false: the miner's own leg is enough
	minerLeg    bool          // the miner is reached through a leg of its own only
	predictable bool          // the miner's NAT maps its socket to one address for everybody
	candidates  []ice.Candidate
	trickled    <-chan trickled
	minerName   string
	stage       func(string)  // may be nil
	relayOff    bool          // by this node's own setting
	grace       time.Duration // of a direct handshake under way before a relayed tunnel; 0: relayGrace
}

// won is the outcome of a race.
type won struct {
	tunnel tunnel
	hop    hop
	reason ice.Reason
}

// dialed is the end of one QUIC handshake.
type dialed struct {
	tunnel tunnel
	via    hop
	err    error
}

// fanned is the end of fanOut.
type fanned struct {
	out fannedOut
	err error
}

// opened is the end of one attempt to get a relay.
type opened struct {
	leg relayLeg
	err error
}

// race is the state of one connect. The goroutine in run owns it; the handshakes
// and the relay's allocation run beside it and send it their results.
type race struct {
	ways
	plan

	wg     sync.WaitGroup
	dialed chan dialed // cap maxDials: a sender never blocks
	opened chan opened // cap 1
	again  chan hop    // cap maxDials: to be dialed later, or once more
	fanned chan fanned // cap 1

	granted       int              // how many candidates came with the grant
	proven        []netip.AddrPort // by the miner, since the grant
	leg           relayLeg
	fan           fannedOut
	dials         int
	tried         map[hop]bool
	directPending int // handshakes with addresses that have shown themselves
	yielding      int // such addresses that wait for a better one
	otherPending  int // relayed and blind ones
	relayWanted   bool
	lastErr       error
	relayErr      error
}

func newRace(w ways, p plan) *race {
	if p.grace == 0 {
		p.grace = relayGrace
	}
	return &race{
		ways: w, plan: p, granted: len(p.candidates), tried: make(map[hop]bool),
		dialed: make(chan dialed, maxDials), opened: make(chan opened, 1), again: make(chan hop, maxDials), fanned: make(chan fanned, 1),
	}
}

// run races until a tunnel is up, every way failed, or ctx ends. Nothing that it
// started is left when it returns; what lost is closed.
func (r *race) run(ctx context.Context) (*won, error) {
	ctx, cancel := context.WithCancel(ctx)
	w, err := r.loop(ctx)
	cancel()
	r.wg.Wait()
	r.sweep(w)
	return w, err
}

func (r *race) loop(ctx context.Context) (*won, error) {
	headStart := time.NewTimer(r.headStart)
	defer headStart.Stop()
	directEnd := time.NewTimer(r.direct)
	defer directEnd.Stop()
	r.begin(ctx)
	var relayReached <-chan ice.Reached
	var grace <-chan time.Time
	var relayed *won // up, waiting for a direct handshake to beat it
	directReached := r.reached
	directOpen := true
	for {
		select {
		case at, ok := <-directReached:
			if !ok {
				directReached = nil
				continue
			}
			if h := (hop{addr: at.Addr, kind: r.kindOf(at)}); r.yields(h) {
				r.yielding++
				r.tryLater(ctx, h, nearHeadStart)
			} else {
				r.try(ctx, h)
			}
		case at, ok := <-relayReached:
			if !ok {
				relayReached = nil
				continue
			}
			r.try(ctx, hop{addr: at.Addr, kind: r.leg.Kind(), leg: r.leg})
		case more := <-r.trickled:
			r.learn(ctx, more)
		case h := <-r.again:
			if !h.kind.Relayed() {
				r.yielding--
			}
			r.try(ctx, h)
		case f := <-r.fanned:
			if r.fan = f.out; f.err == nil {
				r.try(ctx, hop{addr: r.fan.Peer(), kind: ice.Prflx, leg: r.fan})
			}
		case <-headStart.C:
			if !r.directUnderWay() {
				r.startRelay(ctx)
			} else {
				headStart.Reset(max(r.headStart, leastLook)) // look again: that handshake may fail
			}
		case o := <-r.opened:
			r.relayErr = o.err
			if o.err == nil {
				relayReached = r.useLeg(ctx, o.leg)
			}
		case d := <-r.dialed:
			r.settle(ctx, d)
			switch {
			case d.err != nil:
			case d.via.kind.Relayed() && relayed != nil: // one is enough
				_ = d.tunnel.Close(quicstream.Replaced)
			case d.via.kind.Relayed():
				relayed = r.winner(d)
				grace = time.After(r.grace)
			default:
				if relayed != nil {
					_ = relayed.tunnel.Close(quicstream.Replaced)
				}
				return r.winner(d), nil
			}
			if relayed != nil && !r.directUnderWay() {
				return relayed, nil
			}
		case <-grace:
			return relayed, nil
		case <-directEnd.C:
			directOpen = false
			r.startRelay(ctx)
		case <-ctx.Done():
			if relayed != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return relayed, nil
			}
			if relayed != nil {
				_ = relayed.tunnel.Close(quicstream.Replaced)
			}
			return nil, r.failure(ctx)
		}
		if !directOpen && !r.directUnderWay() && r.otherPending == 0 && r.hopeless() {
			return nil, r.failure(ctx)
		}
	}
}

// begin does what need not wait: a relay that is needed for certain, and a
// handshake with a miner whose address is the same for everybody. Its own check
// opens its NAT at the same moment.
func (r *race) begin(ctx context.Context) {
	if r.expect == ice.RelayNeeded {
		r.startRelay(ctx)
	}
	if r.expect == ice.Direct && r.predictable && len(r.candidates) > 0 && !r.candidates[0].Kind.Relayed() {
		first := r.candidates[0]
		r.try(ctx, hop{addr: first.Addr, kind: first.Kind, blind: true})
	}
	r.probePorts(ctx)
}

// probePorts begins hard-NAT probing, where it was agreed.
func (r *race) probePorts(ctx context.Context) {
	if r.probe != nil {
		r.wg.Go(func() { r.probe(ctx) })
	}
	if r.fanOut != nil {
		r.wg.Go(func() {
			out, err := r.fanOut(ctx)
			r.fanned <- fanned{out: out, err: err}
		})
	}
}

// kindOf is the kind of a path to an address that has shown itself.
func (r *race) kindOf(at ice.Reached) ice.Kind {
	if at.Kind.Relayed() {
		return ice.RelayTLS // the miner's own leg: it has one only where UDP is blocked
	}
	return at.Kind
}

// directUnderWay reports whether an address that has shown itself may still
// become the path.
func (r *race) directUnderWay() bool { return r.directPending+r.yielding > 0 }

// yields reports whether a path should wait for a better one: both peers are
// behind one IPv4 address, the miner named one within their network, and this is
// another. Nobody knows yet whether that network lets its members talk. Who has
// lost a path waits for nothing.
func (r *race) yields(h hop) bool {
	near := func(h hop) bool {
		reason := directReason(h, r.reason)
		return reason == ice.SameMachine || reason == ice.SameNetwork
	}
	return r.reason == ice.SameNetworkBlocked && r.headStart > 0 && h.addr.Addr().Unmap().Is4() && !h.kind.Relayed() && !near(h) &&
		slices.ContainsFunc(r.candidates, func(c ice.Candidate) bool {
			return !c.Kind.Relayed() && near(hop{addr: c.Addr, kind: c.Kind})
		})
}

// hopeless reports whether no relay can come up any more.
func (r *race) hopeless() bool {
	return !r.minerLeg && (r.openRelay == nil || r.relayErr != nil)
}

// try starts one QUIC handshake. An address that was tried blindly is tried
// again when it shows itself.
func (r *race) try(ctx context.Context, h hop) {
	if r.dials == maxDials || r.tried[h] || h.blind && h.leg == nil && !r.allowed(h) {
		return
	}
	r.tried[h] = true
	r.dials++
	if h.blind || h.kind.Relayed() {
		r.otherPending++
	} else {
		r.directPending++
	}
	r.wg.Go(func() {
		t, err := r.dial(ctx, h)
		r.dialed <- dialed{tunnel: t, via: h, err: err}
	})
}

// settle books the end of a handshake.
func (r *race) settle(ctx context.Context, d dialed) {
	if d.via.blind || d.via.kind.Relayed() {
		r.otherPending--
	} else {
		r.directPending--
	}
	if d.err != nil && ctx.Err() == nil {
		r.lastErr = d.err
	}
}

// startRelay opens a leg once, if one is to be had and of use.
func (r *race) startRelay(ctx context.Context) {
	if r.relayWanted {
		return
	}
	r.relayWanted = true
	if r.stage != nil && (r.openRelay != nil || r.minerLeg) {
		r.stage("connecting " + r.minerName + " (relay)…")
	}
	if r.openRelay == nil || !r.legWanted {
		return
	}
	r.wg.Go(func() {
		leg, err := r.openRelay(ctx)
		r.opened <- opened{leg: leg, err: err}
	})
}

// useLeg lets the miner in.
func (r *race) useLeg(ctx context.Context, leg relayLeg) <-chan ice.Reached {
	r.leg = leg
	for _, c := range r.candidates[r.granted:] { // for those of the grant it has been asked already
		r.permit(ctx, c)
	}
	for _, addr := range r.proven {
		r.wg.Go(func() { _ = leg.Permit(ctx, addr) })
	}
	if r.predictable && len(r.candidates) > 0 && !r.candidates[0].Kind.Relayed() {
		// The coordinator has told the miner of this leg: its check has opened its NAT.
		r.try(ctx, hop{addr: r.candidates[0].Addr, kind: leg.Kind(), leg: leg, blind: true})
	}
	return leg.Addrs()
}

// permit opens the leg for one of the miner's addresses, and, when that is the
// miner's own leg, dials it: it answers and never begins. The server refuses
// addresses at which it has not seen the miner; that is its business.
func (r *race) permit(ctx context.Context, c ice.Candidate) {
	leg := r.leg
	r.wg.Go(func() { _ = leg.Permit(ctx, c.Addr) })
	if !c.Kind.Relayed() {
		return
	}
	// Two legs do not check each other, and the first packet may be there before
	// the miner's permission is: a second handshake follows soon.
	h := hop{addr: c.Addr, kind: leg.Kind(), leg: leg}
	first := h
	first.blind = true
	r.try(ctx, first)
	r.tryLater(ctx, h, redialAfter)
}

// tryLater is try after a while.
func (r *race) tryLater(ctx context.Context, h hop, after time.Duration) {
	r.wg.Go(func() {
		timer := time.NewTimer(after)
		defer timer.Stop()
		select {
		case <-timer.C:
			select {
			case r.again <- h:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	})
}

// learn takes in what came later: a candidate, or only a proof.
func (r *race) learn(ctx context.Context, more trickled) {
	c := more.candidate
	if c.Kind.Relayed() && r.relayOff {
		return
	}
	r.addRemote(more)
	r.prove(ctx, more.proven)
	if !c.Addr.IsValid() || len(r.candidates)-r.granted == maxLate {
		return
	}
	r.candidates = append(r.candidates, c)
	if c.Kind.Relayed() && !r.legWanted {
		r.try(ctx, hop{addr: c.Addr, kind: ice.RelayTLS, blind: true})
	}
	if r.leg != nil {
		r.permit(ctx, c)
	}
}

// prove lets the miner in at its leg from where it was seen meanwhile.
func (r *race) prove(ctx context.Context, addrs []netip.AddrPort) {
	for _, addr := range addrs {
		if len(r.proven) == maxLate || slices.Contains(r.proven, addr) {
			continue
		}
		r.proven = append(r.proven, addr)
		if leg := r.leg; leg != nil {
			r.wg.Go(func() { _ = leg.Permit(ctx, addr) })
		}
	}
}
