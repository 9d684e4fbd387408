package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
)

// How a client races its ways to a miner.
const (
	// maxDials bounds the QUIC handshakes of one race.
	maxDials = 6
	// relayGrace is how long a finished relay leg waits for a direct handshake
	// that is under way: the relay is for those who have no direct path.
	relayGrace = 500 * time.Millisecond
	// leastLook is how often a direct handshake under way is looked at, when the
	// head start is shorter still.
	leastLook = 50 * time.Millisecond
)

// connector finds a path to a granted miner and opens the tunnel over it.
type connector struct {
	key       *identity.Key
	socket    *ice.Socket
	deadlines Deadlines
	log       zerolog.Logger
	// trickle sends more candidates of this node to the session's other end.
	trickle func(identity.SessionID, []ice.Candidate)
	// relayHost is the address by which this node reaches the coordinator.
	relayHost func() string
}

// link is an open tunnel with the path that it runs over.
type link struct {
	*quicstream.Tunnel
	owner  *session   // whose grant it was opened with
	relay  *ice.Relay // owned; nil on a direct path
	kind   ice.Kind
	reason string
}

// Path describes the route with the round trip as measured now.
func (l *link) Path() Path {
	return Path{Kind: l.kind.String(), Reason: l.reason, RTT: l.Stats().RTT}
}

// close ends the tunnel and frees its relay.
func (l *link) close(code quicstream.CloseCode) {
	_ = l.Tunnel.Close(code) // it may be gone already: that is what was wanted
	if l.relay != nil {
		_ = l.relay.Close()
	}
}

// PathError says that no tunnel to the miner came up.
type PathError struct {
	Session identity.SessionID
	Miner   string
	Reason  string
	Err     error // the last handshake's failure; nil when none was possible
}

func (e *PathError) Error() string {
	text := fmt.Sprintf("session %s: no path to %s: %s", e.Session.Short(), e.Miner, e.Reason)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the last handshake's failure.
func (e *PathError) Unwrap() error { return e.Err }

// dialed is the end of one QUIC handshake.
type dialed struct {
	tunnel *quicstream.Tunnel
	via    ice.Reached
	err    error
}

// opened is the end of one attempt to get a relay.
type opened struct {
	relay *ice.Relay
	err   error
}

// race is the state of one connect. The goroutine in run owns it; the dials and
// the relay's allocation run beside it and send it their results.
type race struct {
	*connector
	s      *session
	direct *ice.Session
	relay  *ice.Relay

	wg     sync.WaitGroup
	dialed chan dialed // cap maxDials: a sender never blocks
	opened chan opened // cap 1

	dials, directPending, relayPending int
	relayWanted                        bool
	lastErr                            error
	relayErr                           error
}

// connect blocks until a tunnel to the session's miner is up, every way failed,
// a deadline passed, or ctx ends.
func (c *connector) connect(ctx context.Context, s *session) (*link, error) {
	s.headStart = min(s.headStart, c.deadlines.Direct) // whatever the coordinator says, this side's deadlines hold
	ctx, cancel := context.WithTimeout(ctx, max(c.deadlines.Direct, s.headStart+c.deadlines.Relay))
	defer cancel()
	direct, err := c.socket.Open(ice.SessionConfig{
		ID: s.id, Peer: s.miner, Controlling: true,
		Local: s.localICE, Remote: s.remoteICE, Candidates: s.candidates,
	})
	if err != nil {
		return nil, &PathError{Session: s.id, Miner: s.minerName, Reason: "the checks could not start", Err: err}
	}
	r := &race{
		connector: c, s: s, direct: direct,
		dialed: make(chan dialed, maxDials), opened: make(chan opened, 1),
	}
	won, err := r.run(ctx)
	cancel()
	_ = direct.Close() // QUIC's keep-alive holds the mapping from here on
	r.wg.Wait()
	r.sweep(won)
	return won, err
}

// run is the event loop of the race.
func (r *race) run(ctx context.Context) (*link, error) {
	headStart := time.NewTimer(r.s.headStart)
	defer headStart.Stop()
	directEnd := time.NewTimer(r.deadlines.Direct)
	defer directEnd.Stop()
	var relayReached <-chan ice.Reached
	var grace <-chan time.Time
	var relayed *link // up, waiting for a direct handshake to beat it
	directReached := r.direct.Addrs()
	directOpen := true
	for {
		select {
		case at, ok := <-directReached:
			if !ok {
				directReached = nil
				continue
			}
			r.dial(ctx, at)
		case at, ok := <-relayReached:
			if !ok {
				relayReached = nil
				continue
			}
			r.dial(ctx, ice.Reached{Addr: at.Addr, Kind: ice.RelayUDP, At: at.At})
		case candidate := <-r.s.trickled:
			r.addRemote(ctx, candidate)
		case <-headStart.C:
			if r.directPending == 0 {
				r.openRelay(ctx)
			} else {
				headStart.Reset(max(r.s.headStart, leastLook)) // look again: that handshake may fail
			}
		case o := <-r.opened:
			r.relayErr = o.err
			if o.err == nil {
				relayReached = r.useRelay(ctx, o.relay)
			}
		case d := <-r.dialed:
			switch {
			case d.err != nil:
				r.failed(ctx, d)
			case d.via.Kind == ice.RelayUDP:
				r.relayPending--
				if relayed != nil { // through the same relay: one is enough
					_ = d.tunnel.Close(quicstream.Done)
					continue
				}
				relayed = r.link(d)
				if r.directPending == 0 {
					return relayed, nil
				}
				grace = time.After(relayGrace)
			default:
				r.directPending--
				if relayed != nil {
					r.dropRelayed(relayed)
				}
				return r.link(d), nil
			}
			if relayed != nil && r.directPending == 0 {
				return relayed, nil
			}
		case <-grace:
			return relayed, nil
		case <-directEnd.C:
			directOpen = false
			r.openRelay(ctx)
		case <-ctx.Done():
			if relayed != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return relayed, nil
			}
			if relayed != nil {
				r.dropRelayed(relayed)
			}
			return nil, r.failure(ctx)
		}
		if !directOpen && r.directPending == 0 && r.hopeless() {
			return nil, r.failure(ctx)
		}
	}
}

// hopeless reports whether the relay can no longer come up.
func (r *race) hopeless() bool {
	return r.s.relay == nil || r.relayErr != nil
}

// dial starts one QUIC handshake with an address that has shown itself.
func (r *race) dial(ctx context.Context, at ice.Reached) {
	if r.dials == maxDials {
		return
	}
	r.dials++
	cfg := quicstream.DialConfig{
		Transport: r.socket.Transport(), Addr: net.UDPAddrFromAddrPort(at.Addr), Key: r.key, Peer: r.s.miner,
		MaxIdle: r.deadlines.MaxIdle, Log: r.log,
	}
	if at.Kind == ice.RelayUDP {
		r.relayPending++
		cfg.Transport, cfg.Relayed = r.relay.Transport(), true
	} else {
		r.directPending++
	}
	r.wg.Add(1)
	go r.handshake(ctx, cfg, at)
}

func (r *race) handshake(ctx context.Context, cfg quicstream.DialConfig, at ice.Reached) {
	defer r.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, r.deadlines.QUIC)
	defer cancel()
	t, err := quicstream.Dial(ctx, cfg)
	r.dialed <- dialed{tunnel: t, via: at, err: err}
}

func (r *race) failed(ctx context.Context, d dialed) {
	if d.via.Kind == ice.RelayUDP {
		r.relayPending--
	} else {
		r.directPending--
	}
	if ctx.Err() == nil {
		r.lastErr = d.err
		r.log.Debug().Err(d.err).Str("session", r.s.id.Short()).Str("path", d.via.Kind.String()).
			Stringer("addr", d.via.Addr).Msg("handshake failed")
	}
}

// openRelay starts the relay once, if there is one to be had.
func (r *race) openRelay(ctx context.Context) {
	if r.relayWanted || r.s.relay == nil {
		return
	}
	r.relayWanted = true
	if r.s.stage != nil {
		r.s.stage("connecting " + r.s.minerName + " (relay)…")
	}
	r.wg.Add(1)
	go r.allocate(ctx)
}

func (r *race) allocate(ctx context.Context) {
	defer r.wg.Done()
	cfg := *r.s.relay
	if len(r.s.candidates) > 0 {
		cfg.Peer = r.s.candidates[0].Addr.Addr() // where the coordinator sees the miner
	}
	var last error
	for _, server := range r.relayServers() {
		cfg.Server = server
		relay, err := ice.OpenRelay(ctx, cfg)
		if err == nil {
			r.opened <- opened{relay: relay}
			return
		}
		last = err
	}
	if last == nil {
		last = errors.New("the coordinator named no relay")
	}
	r.opened <- opened{err: last}
}

// relayServers lists the relays to try, the coordinator's own first.
func (r *race) relayServers() []string {
	var servers []string
	if r.s.relayPort != 0 {
		servers = append(servers, net.JoinHostPort(r.relayHost(), fmt.Sprint(r.s.relayPort)))
	}
	return append(servers, r.s.relayURLs...)
}

// useRelay tells the miner of the relayed address and lets the miner in.
func (r *race) useRelay(ctx context.Context, relay *ice.Relay) <-chan ice.Reached {
	r.relay = relay
	r.trickle(r.s.id, []ice.Candidate{{Kind: ice.RelayUDP, Addr: relay.Addr()}})
	for _, c := range r.s.candidates {
		r.permit(ctx, c)
	}
	return relay.Addrs()
}

// permit opens the relay for one of the miner's addresses. The server refuses
// those at which it has not seen the miner; that is its business.
func (r *race) permit(ctx context.Context, c ice.Candidate) {
	if c.Kind == ice.RelayUDP || c.Kind == ice.RelayTLS {
		return
	}
	relay := r.relay
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		if err := relay.Permit(ctx, c.Addr); err != nil {
			r.log.Trace().Err(err).Str("session", r.s.id.Short()).Stringer("addr", c.Addr).Msg("relay permission")
		}
	}()
}

func (r *race) addRemote(ctx context.Context, c ice.Candidate) {
	if err := r.direct.AddRemote(c); err != nil {
		r.log.Debug().Err(err).Str("session", r.s.id.Short()).Msg("candidate not used")
	}
	if r.relay != nil {
		r.permit(ctx, c)
	}
}

// link makes the winner out of a finished handshake.
func (r *race) link(d dialed) *link {
	l := &link{Tunnel: d.tunnel, kind: d.via.Kind}
	if d.via.Kind == ice.RelayUDP {
		l.relay = r.relay
		l.reason = r.relayReason()
	} else {
		l.reason = directReason(d.via)
	}
	return l
}

func (r *race) dropRelayed(l *link) {
	_ = l.Tunnel.Close(quicstream.Done)
}

// sweep closes what lost the race.
func (r *race) sweep(won *link) {
	close(r.dialed)
	for d := range r.dialed {
		if d.tunnel != nil {
			_ = d.tunnel.Close(quicstream.Done)
		}
	}
	close(r.opened)
	for o := range r.opened {
		if o.relay != nil {
			_ = o.relay.Close()
		}
	}
	if r.relay != nil && (won == nil || won.relay != r.relay) {
		_ = r.relay.Close()
	}
}

// failure explains why no way worked.
func (r *race) failure(ctx context.Context) error {
	if context.Cause(ctx) != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	stats := r.direct.Stats()
	reason := "the direct handshake did not finish"
	if stats.Authenticated == 0 {
		reason = "no direct packet came through"
	}
	switch {
	case r.s.relay == nil:
		reason += " and the coordinator lends no relay"
	case r.relayErr != nil:
		reason += "; the relay failed: " + r.relayErr.Error()
	case r.relay != nil:
		reason += "; the relay was open but the miner did not answer through it"
	case r.relayWanted:
		reason += "; the relay did not answer in time"
	}
	return &PathError{Session: r.s.id, Miner: r.s.minerName, Reason: reason, Err: r.lastErr}
}

// relayReason says why the packets pass a relay.
func (r *race) relayReason() string {
	stats := r.direct.Stats()
	if stats.Authenticated == 0 {
		return fmt.Sprintf("no direct packet from %s came through within %d ms", r.s.minerName, r.s.headStart.Milliseconds())
	}
	return "packets came through directly, but the handshake did not finish"
}

// directReason says what made the direct path possible.
func directReason(at ice.Reached) string {
	addr := at.Addr.Addr().Unmap()
	switch {
	case addr.IsLoopback(), slices.Contains(localAddrs(), addr):
		return "same machine"
	case addr.IsPrivate(), addr.IsLinkLocalUnicast(), isCarrierNAT(addr):
		return "same network"
	case at.Kind == ice.Host:
		return "public address"
	case at.Kind == ice.Mapped:
		return "port mapping"
	default:
		return "NAT traversed"
	}
}

// isCarrierNAT reports whether addr is of the shared space 100.64.0.0/10 (RFC 6598).
func isCarrierNAT(addr netip.Addr) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10).Contains(addr)
}
