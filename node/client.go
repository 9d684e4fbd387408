package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mintai/api"
	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// janitorEvery is how often idle tunnels and old sessions are looked for.
const janitorEvery = 15 * time.Second

// renewBefore is how long before its end a session in use is renewed.
const renewBefore = 20 * time.Minute

// client is the asking role: it keeps the signaling connection, the sessions
// that were granted and the tunnels that are open. Do carries requests.
type client struct {
	membership membership
	key        *identity.Key
	socket     *ice.Socket
	sig        *signal.Node
	probing    bool // take part in hard-NAT probing
	wasOverTLS bool // the last connection to the coordinator; of the handler's goroutine
	connector  *connector
	network    *network
	deadlines  Deadlines
	name       string
	log        zerolog.Logger
	metrics    *clientMetrics

	wg sync.WaitGroup // connects and link watchers

	// mu guards what follows.
	mu       sync.Mutex
	sessions map[identity.SessionID]*session
	warm     map[warmKey][]*session
	links    map[identity.NodeID]*link
	dialing  map[identity.NodeID]*pendingLink
	closed   bool
	over     []*session      // to be ended, oldest first, see done
	early    []earlyTrickle  // of sessions that are not remembered yet, oldest first
	lifetime context.Context //nolint:containedctx // of the connects that outlive the request that began them; set once by Run
}

// warmKey says which requests a session may serve without asking the
// coordinator again.
type warmKey struct {
	model               api.Model
	miner               string
	call                api.Call
	tools, vision, json bool
	contextClass        int
}

func keyOf(n needs) warmKey {
	return warmKey{
		model: n.model, miner: n.miner, call: n.call, tools: n.Tools, vision: n.Vision, json: n.JSON,
		contextClass: bits.Len(uint(max(0, n.ContextTokens)) / 4096),
	}
}

// needs is what a request asks of a miner.
type needs struct {
	api.Needs
	model api.Model // empty: any
	miner string    // name or NodeID prefix; empty: any
	call  api.Call
}

// clientConfig is what newClient needs.
type clientConfig struct {
	Membership membership
	Key        *identity.Key
	Loopback   bool // only 127.0.0.1, for -mode dev
	TicketFile string
	Pins       *identity.Pins // may be nil when the coordinator's NodeID is known
	Notice     func(string)   // a line for the person, such as trust on first use; may be nil
	Deadlines  Deadlines
	Name       string
	Relay      RelayMode
	MapPorts   bool
	Probing    bool   // take part in hard-NAT probing
	ProbeFile  string // bounds it for all processes of this node together; empty: for this one
	Log        zerolog.Logger
	Metrics    *clientMetrics
}

// newClient opens the client's socket. Run must follow; it closes the socket.
func newClient(cfg clientConfig) (*client, error) {
	socket, err := ice.Listen(ice.SocketConfig{Loopback: cfg.Loopback, PunchFile: cfg.ProbeFile, Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("opening a UDP socket: %w", err)
	}
	c := &client{
		membership: cfg.Membership, key: cfg.Key, socket: socket, deadlines: cfg.Deadlines,
		name: cfg.Name, probing: cfg.Probing, log: cfg.Log, metrics: cfg.Metrics,
		sessions: map[identity.SessionID]*session{}, warm: map[warmKey][]*session{},
		links: map[identity.NodeID]*link{}, dialing: map[identity.NodeID]*pendingLink{},
	}
	c.network = newNetwork(networkConfig{
		key: cfg.Key, socket: socket, coordinator: cfg.Membership.id, addrs: cfg.Membership.addrs, stunPort: cfg.Membership.stun,
		relay: cfg.Relay, probing: cfg.Probing, loopback: cfg.Loopback, mapper: mapperFor(cfg.MapPorts, socket, cfg.Loopback, cfg.Log),
		overTLS: func() bool { return c.sig.Status().OverTLS }, log: cfg.Log,
	})
	tls := newTLSWay(cfg.Log)
	c.sig, err = signal.NewNode(signal.NodeConfig{
		Key: cfg.Key, Transport: socket.Transport(),
		Addrs: cfg.Membership.addrs, TLSAddrs: cfg.Membership.tlsAddrs(), Fallback: tls.signaling,
		Coordinator: cfg.Membership.id,
		Trust:       cfg.Membership.trust(cfg.Pins, cfg.Notice),
		TicketFile:  cfg.TicketFile,
		Hello: func(coordinator identity.NodeID) *signalpb.Hello {
			return cfg.Membership.hello(signalpb.Role_ROLE_CLIENT, cfg.Key.ID(), coordinator, cfg.Name, c.network)
		},
		Handler: (*clientHandler)(c), Deadlines: signal.Deadlines{Match: cfg.Deadlines.Match}, Log: cfg.Log,
	})
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	c.connector = &connector{
		key: cfg.Key, socket: socket, deadlines: cfg.Deadlines, relayMode: cfg.Relay, log: cfg.Log,
		trickle: c.trickle, unsaid: c.network.unsaid, seen: c.peerSeen, dialTLS: tls.turn, foretell: c.foretell,
		stun:        c.stun,
		coordinator: func() coordinatorAt { return whereIs(c.sig.Status(), c.membership) },
	}
	return c, nil
}

// stun is where the coordinator answers STUN, as far as it may be believed.
func (c *client) stun() []netip.AddrPort {
	st := c.sig.Status()
	return whereIs(st, c.membership).probed(st.Stun)
}

// Run keeps the client connected until ctx ends, then closes every tunnel with
// code CANCELLED, so that no AI server works for nobody.
func (c *client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	c.lifetime = ctx
	c.mu.Unlock()
	var beside sync.WaitGroup
	beside.Go(func() { _ = c.network.mapPorts(ctx) }) // without forwarded ports it goes on
	if c.network.named() {
		beside.Go(func() { c.network.greet(ctx) })
	} else {
		c.network.greet(ctx)
	}
	beside.Go(func() { _ = c.network.Run(ctx) })
	beside.Go(func() { c.network.watch(ctx, c.relocated) })
	signaling := make(chan error, 1)
	go func() { signaling <- c.sig.Run(ctx) }()
	every(ctx, janitorEvery, c.dropIdle)
	c.closeLinks()
	c.wg.Wait()
	err := <-signaling
	beside.Wait()
	if cerr := c.socket.Close(); err == nil || errors.Is(err, context.Canceled) {
		err = cerr
	}
	return err
}

// dropIdle drops idle tunnels and ends expired sessions.
func (c *client) dropIdle(now time.Time) {
	c.mu.Lock()
	var idle []*link
	for _, l := range c.links {
		if l.InFlight() == 0 && now.Sub(l.LastUsed()) > c.deadlines.IdleTunnel {
			idle = append(idle, l)
		}
	}
	var ended []*session
	for _, s := range c.sessions {
		if s.expired(now) && c.retireLocked(s) {
			ended = append(ended, s)
		}
	}
	ended = append(ended, c.over...)
	c.over = nil
	for _, l := range c.links {
		if l.InFlight() > 0 && l.endsSoon(now) {
			c.renew(l.owner)
		}
	}
	c.mu.Unlock()
	for _, l := range idle {
		l.close(quicstream.Idle)
	}
	c.end("over", ended...)
}

func (c *client) closeLinks() {
	c.mu.Lock()
	c.closed = true
	links := make([]*link, 0, len(c.links))
	for _, l := range c.links {
		links = append(links, l)
	}
	c.mu.Unlock()
	for _, l := range links {
		l.close(quicstream.Cancelled)
	}
}

// warmSession returns a session that can carry the request at once: granted
// for the same needs, its tunnel up, and, as long as the coordinator could name
// another miner, with a slot that this client does not use itself. The session
// is in use until done.
func (c *client) warmSession(n needs, exclude []identity.NodeID) (*session, *link) {
	connected := c.sig.Status().Connected
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var best *session
	var bestLink *link
	for _, s := range c.warm[keyOf(n)] {
		l := c.links[s.miner]
		if l == nil || closedOnPurpose(l.Err()) || s.expired(now) || contains(exclude, s.miner) {
			continue
		}
		if connected && l.InFlight() >= max(1, s.slots) {
			continue
		}
		if best == nil || l.InFlight() < bestLink.InFlight() {
			best, bestLink = s, l
		}
	}
	if best != nil {
		best.uses++
		if connected && now.After(best.expires.Add(-renewBefore)) {
			c.renew(best)
		}
	}
	return best, bestLink
}

func (c *client) renew(s *session) {
	_ = c.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Renew{Renew: &signalpb.Renew{Session: s.id[:]}}})
}

func contains(ids []identity.NodeID, id identity.NodeID) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}

// open asks the coordinator for a miner and connects to it. It follows the
// coordinator to the next miner when one declines meanwhile. The session that it
// returns with a link is in use until done.
func (c *client) open(ctx context.Context, n needs, exclude []identity.NodeID, attempt int, tr *trace) (*session, *link, error) {
	tr.stage("matching…")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	matching, err := c.sig.Match(ctx, c.matchRequest(n, exclude, attempt))
	if err != nil {
		return nil, nil, err
	}
	defer matching.Close()
	grant := matching.Grant
	for {
		s, err := readGrant(grant)
		if err != nil {
			return nil, nil, err
		}
		if pinned, err := identity.ParseNodeID(n.miner); err == nil && pinned != s.miner {
			c.endSession(s.id, "not the pinned miner")
			return nil, nil, &Error{
				Exit: ExitNoMiner, Code: "not_pinned",
				Message: fmt.Sprintf("the coordinator named %s instead of the pinned %s", s.miner.Short(), pinned.Short()),
				Hint:    "it is not to be trusted: nothing was sent",
			}
		}
		c.remember(s, n)
		tr.match(s)
		s.stage = tr.stage
		s.stage("connecting " + s.minerName + " (direct)…")
		l, update, err := c.await(ctx, s, matching.Updates())
		switch {
		case update == nil:
			return s, l, err
		case err != nil:
			return nil, nil, err
		}
		tr.try()
		grant = update.Grant
	}
}

// await returns the tunnel to the session's miner, or an update when the
// coordinator grants another session in place of this one.
func (c *client) await(ctx context.Context, s *session, updates <-chan signal.Update) (*link, *signal.Update, error) {
	for {
		pending := c.linkTo(s) //nolint:contextcheck // whether it has ended is the connection's own
		select {
		case <-pending.done:
			if errors.Is(pending.err, errAbandoned) {
				continue
			}
			if pending.err != nil {
				c.done(s)
				c.retire(s, "no path")
				return nil, nil, pending.err
			}
			c.report(s, signalpb.TunnelState_TUNNEL_UP, pending.link)
			return pending.link, nil, nil
		case update := <-updates: // the miner declined, or was late
			c.done(s)
			c.abandon(s)
			c.forget(s) // the coordinator has ended it
			return nil, &update, update.Err
		case <-ctx.Done():
			c.done(s)
			if pending.owner != s { // else the tunnel needs it, and others may wait for that
				c.retire(s, "cancelled")
			}
			return nil, nil, ctx.Err()
		}
	}
}

func (c *client) matchRequest(n needs, exclude []identity.NodeID, attempt int) *signalpb.MatchRequest {
	req := &signalpb.MatchRequest{
		Nonce:   make([]byte, 16),
		Attempt: uint32(attempt),
		Needs: &signalpb.Needs{
			Model: string(n.model), Miner: n.miner, Call: string(n.call),
			Tools: n.Tools, Vision: n.Vision, Json: n.JSON, ContextTokens: uint32(max(0, n.ContextTokens)),
		},
	}
	if c.sig.Status().Connected { // else the Hello says it, as late as can be
		req.Network, req.Candidates = c.network.message(), writeCandidates(c.network.candidates())
	}
	_, _ = rand.Read(req.Nonce) // never fails: crypto/rand aborts the process instead
	for _, id := range exclude {
		req.Exclude = append(req.Exclude, id[:])
	}
	return req
}

func (c *client) trickle(id identity.SessionID, candidates []ice.Candidate) {
	_ = c.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{
		Candidates: &signalpb.Candidates{Session: id[:], Candidates: writeCandidates(candidates)},
	}})
}

// peerSeen tells the coordinator from where the session's other end arrived: it
// corrects what is believed of that end's NAT.
func (c *client) peerSeen(id identity.SessionID, at ice.Reached) {
	_ = c.sig.Send(peerSeenMessage(id, at))
}

func peerSeenMessage(id identity.SessionID, at ice.Reached) *signalpb.Envelope {
	return &signalpb.Envelope{Message: &signalpb.Envelope_PeerSeen{PeerSeen: &signalpb.PeerSeen{
		Session: id[:], Address: writeAddress(at.Addr),
	}}}
}

// clientHandler receives what the coordinator sends on its own.
type clientHandler client

var _ signal.Handler = (*clientHandler)(nil)

// Connected is called when the coordinator has admitted this node.
func (h *clientHandler) Connected(w *signalpb.Welcome) {
	h.log.Debug().Str("admitted_as", w.GetAdmittedAs()).Bool("over_tls", w.GetOverTls()).Msg("coordinator connected")
	(*client)(h).reattach()
	st := h.sig.Status()
	c := (*client)(h)
	if c.wasOverTLS && !w.GetOverTls() { // UDP is back
		c.wakeRoutes(func(r *route) chan struct{} { return r.news })
	}
	c.wasOverTLS = w.GetOverTls()
	h.network.connected(st, whereIs(st, h.membership).probed(readAddresses(w.GetStun())))
}

// Disconnected is called when the connection is gone; signaling reconnects by itself.
func (h *clientHandler) Disconnected(err error) {
	h.log.Debug().Err(err).Msg("coordinator away; tunnels stay up")
}

// Message takes trickled candidates, renewals and revocations.
func (h *clientHandler) Message(env *signalpb.Envelope) {
	c := (*client)(h)
	switch m := env.GetMessage().(type) {
	case *signalpb.Envelope_Grant: // nobody waits for it any more
		id, err := identity.SessionIDFromBytes(m.Grant.GetSession())
		if err == nil && m.Grant.GetPath() == 0 && c.sessionOf(id[:]) == nil { // else of a session that goes on
			c.endSession(id, "not wanted any more")
		}
	case *signalpb.Envelope_Candidates:
		c.tricklesTo(m.Candidates)
	case *signalpb.Envelope_ProbePorts:
		c.foretold(m.ProbePorts)
	case *signalpb.Envelope_Renewed:
		c.mu.Lock()
		defer c.mu.Unlock()
		if id, err := identity.SessionIDFromBytes(m.Renewed.GetSession()); err == nil && c.sessions[id] != nil {
			c.sessions[id].expires = expiry(m.Renewed)
		}
	case *signalpb.Envelope_SessionEnd:
		if s := c.sessionOf(m.SessionEnd.GetSession()); s != nil {
			c.forget(s)
		}
	}
}

func (c *client) sessionOf(raw []byte) *session {
	id, err := identity.SessionIDFromBytes(raw)
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[id]
}
