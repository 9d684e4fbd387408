package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal/signalpb"
)

// connector finds a path to a granted miner and opens the tunnel over it.
type connector struct {
	key       *identity.Key
	socket    *ice.Socket
	deadlines Deadlines
	relayMode RelayMode
	log       zerolog.Logger
	// trickle sends more candidates of this node to the session's other end.
	trickle func(identity.SessionID, []ice.Candidate)
	// unsaid are forwarded ports that the coordinator does not know of yet, and a
	// channel that is closed when there may be more.
	unsaid func() ([]ice.Candidate, <-chan struct{})
	// seen tells the coordinator from where the session's other end arrived.
	seen func(identity.SessionID, ice.Reached)
	// foretell tells the session's other end of ports at which this node may be
	// reached.
	foretell func(*session, []uint16)
	// stun is where the coordinator answers STUN.
	stun func() []netip.AddrPort
	// coordinator is how this node reaches the coordinator now.
	coordinator func() coordinatorAt
	// dialTLS opens a TURN connection over TLS to host:port.
	dialTLS func(ctx context.Context, addr string) (net.Conn, error)
}

// link is an open tunnel with the path that it runs over.
type link struct {
	*quicstream.Tunnel
	owner  *session   // whose grant it was opened with
	route  *route     // that it is, or was, the tunnel of
	leg    io.Closer  // owned: a relay's, or a further socket; nil: the node's own socket
	lent   *lentRelay // the relay of the leg; nil: none
	kind   ice.Kind
	reason ice.Reason
	miner  string
	since  time.Time // when it came into use
}

// Path describes the route with the round trip as measured now.
func (l *link) Path() Path {
	return Path{
		Kind: l.kind.String(), Code: l.reason.String(), Reason: reasonText(l.reason, l.miner), RTT: l.Stats().RTT, Since: l.since,
		reason: l.reason,
	}
}

// endsSoon reports whether the relay, be it this node's or the miner's, will end
// with the session for which it was lent. The client's mu must be held.
func (l *link) endsSoon(now time.Time) bool {
	return l.kind.Relayed() && now.After(l.owner.expires.Add(-renewBefore))
}

// close ends the tunnel and frees its relay. Closing again does nothing.
func (l *link) close(code quicstream.CloseCode) {
	_ = l.Tunnel.Close(code) // it may be gone already: that is what was wanted
	if l.leg != nil {
		_ = l.leg.Close()
	}
}

// connect blocks until a tunnel to the session's miner is up, every way failed,
// a deadline passed, or ctx ends.
func (c *connector) connect(ctx context.Context, s *session, want wanted) (*link, error) {
	p := c.plan(s, want)
	ctx, cancel := context.WithTimeout(ctx, max(p.direct, p.headStart+c.deadlines.Relay))
	defer cancel()
	w := ways{
		addRemote: func(trickled) {},
		heard:     func() bool { return false },
		allowed:   func(h hop) bool { return c.mayDial(s, h) },
		dial:      func(ctx context.Context, h hop) (tunnel, error) { return c.handshake(ctx, s, h) },
	}
	var lent *lentRelay // that the leg is of; written before the race has it
	if len(s.relays) > 0 && c.relayMode != RelayNever && !want.isUpgrade() {
		w.openRelay = func(ctx context.Context) (relayLeg, error) {
			leg, from, err := c.openRelay(ctx, s, want)
			if err != nil {
				return nil, err // and not a nil of another type
			}
			lent = from
			return leg, nil
		}
	}
	if c.relayMode != RelayAlways && !want.relayOnly {
		direct, err := c.socket.Open(ice.SessionConfig{
			ID: s.id, Peer: s.miner, Controlling: true,
			Local: s.localICE, Remote: s.remoteICE, Candidates: s.candidates, Policy: c.coordinator().policy(s.policy),
		})
		if err != nil {
			return nil, &PathError{Session: s.id, Miner: s.minerName, Reason: "the checks could not start", Err: err}
		}
		defer func() { _ = direct.Close() }() // QUIC's keep-alive holds the mapping from there on
		w.heard = func() bool { return direct.Stats().Authenticated > 0 }
		w.reached = c.watch(s, direct.Addrs())
		stop := c.tellMapped(ctx, s.id)
		defer stop()
		w.addRemote = func(more trickled) { c.addRemote(s, direct, more) }
		c.probeWays(&w, s)
	}
	found, err := newRace(w, p).run(ctx)
	if err != nil {
		var path *PathError
		if errors.As(err, &path) {
			path.Session, path.Miner = s.id, s.minerName
			if s.unproven() {
				path.Reason += "; the coordinator is older than this program: it does not say where it has seen " + s.minerName
			}
		}
		return nil, err
	}
	t, _ := found.tunnel.(*quicstream.Tunnel)
	l := &link{Tunnel: t, leg: found.hop.leg, kind: found.hop.kind, reason: found.reason, miner: s.minerName, since: time.Now()}
	if found.hop.leg != nil && found.hop.kind.Relayed() {
		l.lent = lent
	}
	return l, nil
}

// addRemote gives the checks what came later of the miner.
func (c *connector) addRemote(s *session, direct *ice.Session, more trickled) {
	direct.Prove(c.coordinator().believes(more.proven)...)
	if !more.candidate.Addr.IsValid() {
		return
	}
	if at := more.candidate.Addr.Addr(); more.candidate.Kind.Relayed() && c.coordinator().mayRelayAt(at) {
		direct.AllowRelay(at)
	}
	if err := direct.AddRemote(more.candidate); err != nil {
		c.log.Debug().Err(err).Str("session", s.id.Short()).Msg("candidate not used")
	}
}

// mayDial reports whether a handshake may go to an address that only the
// coordinator names. What holds for checks holds for it, too.
func (c *connector) mayDial(s *session, h hop) bool {
	candidate := ice.Candidate{Kind: h.kind, Addr: h.addr}
	if h.kind.Relayed() {
		_, err := candidate.Check()
		return err == nil && c.coordinator().mayRelayAt(h.addr.Addr())
	}
	return c.coordinator().policy(s.policy).Allows(candidate) == nil
}

// plan reads the grant and this node's own settings.
func (c *connector) plan(s *session, want wanted) plan {
	p := plan{
		expect: s.expect, reason: s.expectReason,
		headStart: min(s.headStart, c.deadlines.Direct), // whatever the coordinator says, this side's deadlines hold
		direct:    c.deadlines.Direct,
		legWanted: true, minerLeg: s.minerBlocked && len(s.relays) > 0 /* else it has none either */, predictable: s.predictable,
		candidates: s.candidates, trickled: s.trickled, minerName: s.minerName, stage: s.stage,
	}
	switch {
	case want.isUpgrade():
		p.legWanted, p.minerLeg, p.direct = false, false, time.Until(want.until)
	case want.isRescue(): // no path waits for another
		p.headStart, p.grace, p.direct = 0, rescueGrace, time.Until(want.until)
	}
	p.relayOff = c.relayMode == RelayNever
	blocked := c.coordinator().overTLS
	if blocked && p.expect != ice.RelayNeeded {
		p.expect, p.reason = ice.RelayNeeded, ice.ClientUDPBlocked
	}
	if c.relayMode == RelayAlways {
		p.expect, p.reason = ice.RelayNeeded, ice.RelayChosen
	}
	if p.minerLeg && !blocked && c.relayMode != RelayAlways {
		p.legWanted = false // one relay on the way is enough
	}
	return p
}

// tellMapped tells the miner of ports that the router forwards meanwhile, until
// the returned function is called.
func (c *connector) tellMapped(ctx context.Context, id identity.SessionID) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			fresh, more := c.unsaid()
			if len(fresh) > 0 {
				c.trickle(id, fresh)
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// watch passes on where the miner's checks come from, and tells the coordinator
// of the first public one.
func (c *connector) watch(s *session, in <-chan ice.Reached) <-chan ice.Reached {
	out := make(chan ice.Reached, cap(in))
	go func() { // ends with the session, which closes in
		defer close(out)
		told := false
		for at := range in {
			if !told && isPublic(at.Addr.Addr()) && !at.Kind.Relayed() {
				told = true
				c.seen(s.id, at)
			}
			out <- at // never blocks: it holds as much as in ever carries
		}
	}()
	return out
}

// handshake opens the tunnel over one hop.
func (c *connector) handshake(ctx context.Context, s *session, h hop) (tunnel, error) {
	cfg := quicstream.DialConfig{
		Transport: c.socket.Transport(), Addr: net.UDPAddrFromAddrPort(h.addr), Key: c.key, Peer: s.miner,
		MaxIdle: c.deadlines.MaxIdle, Relayed: h.kind.Relayed(), Log: c.log,
	}
	switch leg := h.leg.(type) {
	case *ice.Relay:
		cfg.Transport = leg.Transport()
	case *ice.Punched:
		cfg.Transport = leg.Transport()
	}
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.QUIC)
	defer cancel()
	t, err := quicstream.Dial(ctx, cfg)
	if err != nil {
		c.log.Debug().Err(err).Str("session", s.id.Short()).Str("path", h.kind.String()).
			Stringer("addr", h.addr).Bool("blind", h.blind).Msg("handshake failed")
		return nil, err
	}
	return t, nil
}

// openRelay allocates at the first relay that answers. Over TLS it is tried
// where nothing else gets through, and where UDP takes too long. The relay of a
// path that is lost comes last.
func (c *connector) openRelay(ctx context.Context, s *session, want wanted) (*ice.Relay, *lentRelay, error) {
	lents := slices.Clone(s.relays)
	if want.cause == signalpb.PathCause_PATH_CAUSE_LOST && want.old != nil && want.old.lent != nil {
		slices.SortStableFunc(lents, func(a, b *lentRelay) int {
			return cmp.Compare(btoi(a.same(want.old.lent)), btoi(b.same(want.old.lent)))
		})
	}
	permit := permitted(s.candidates, s.policy.Proven)
	opener := relayOpener{at: c.coordinator(), dialTLS: c.dialTLS, log: c.log}
	leg, lent, err := opener.openAny(ctx, lents, func(cfg *ice.RelayConfig) {
		cfg.Permit, cfg.PeerRelayed = permit, s.minerBlocked
	})
	if err != nil {
		return nil, nil, err
	}
	candidates := []ice.Candidate{{Kind: ice.RelayUDP, Addr: leg.Addr()}}
	switch {
	case want.tell != nil:
		if err := want.tell(ctx, candidates); err != nil {
			_ = leg.Close()
			return nil, nil, fmt.Errorf("telling the miner of the relay: %w", err)
		}
	case !lent.own(): // the coordinator does not know of it
		c.trickle(s.id, candidates)
	}
	return leg, lent, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// permitted are the addresses that a relay is asked to let in, one of each IP
// address: permissions are for all ports (RFC 8656 §9).
func permitted(candidates []ice.Candidate, proven []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	add := func(a netip.AddrPort) {
		if !slices.ContainsFunc(out, func(b netip.AddrPort) bool { return a.Addr() == b.Addr() }) {
			out = append(out, a)
		}
	}
	for _, c := range candidates {
		add(c.Addr)
	}
	for _, a := range proven {
		add(a)
	}
	return out
}
