package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/identity"
	"mintai/match"
	"mintai/reputation"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// How the coordinator waits.
const (
	// sweepEvery is how often waiting offers, sessions and leases are looked at.
	sweepEvery = 100 * time.Millisecond
	// setupLimit is by when a granted session's request has reached its miner.
	setupLimit = 15 * time.Second
	// goodbyeGrace is how long the sessions of a client that said goodbye last:
	// until the miner's accounts of its requests are here.
	goodbyeGrace = 10 * time.Second
	// lostGrace is how long those of a client that vanished last. Its tunnels
	// may be well, and it may come back.
	lostGrace = 15 * time.Minute
	// maxSessionsPerClient bounds what one connection can hold.
	maxSessionsPerClient = 256
	// maxTrickles bounds the messages with candidates that one end of a session
	// may send to the other.
	maxTrickles = 16
	// renewEvery is how soon a renewal is worth telling the miner again.
	renewEvery = time.Minute
)

// The ways to be admitted, as Welcome.admitted_as says them.
const (
	admittedLocal  = "local"
	admittedMember = "member"
	admittedOpen   = "open"
)

// coordinatorConfig is what newCoordinator needs.
type coordinatorConfig struct {
	Key        *identity.Key
	Listen     string          // UDP host:port for signaling; port 0: any free one
	JoinSecret identity.Secret // admits those who prove it
	Local      identity.Secret // admits processes of the same user on this machine
	Open       bool            // admit everyone
	Public     []string        // host names or addresses by which the Internet reaches this machine
	TURN       turnSettings
	Reputation string // the ledger's file
	Deadlines  CoordinatorDeadlines
	Log        zerolog.Logger
	Metrics    *coordinatorMetrics

	hooks coordinatorHooks
}

// coordinatorHooks let tests see what reaches a coordinator. Nil: nobody looks.
type coordinatorHooks struct {
	conn    func(net.PacketConn) net.PacketConn             // around the signaling socket
	handler func(signal.ServerHandler) signal.ServerHandler // around the coordinator
	relay   func([]byte)                                    // each datagram that the relay receives
}

// turnSettings says which relay the coordinator lends.
type turnSettings struct {
	Enabled          bool
	Listen           string // UDP host:port of the STUN/TURN server
	PortMin, PortMax uint16
	RelayIP          string   // the address that miners reach; empty: found out
	URLs             []string // of the operator's own servers instead, such as coturn
	Secret           identity.Secret
}

// coordinator introduces clients to miners. It sees who talks to whom and how
// well, never what is said.
type coordinator struct {
	cfg    coordinatorConfig
	log    zerolog.Logger
	conn   *net.UDPConn
	quic   io.Closer // the QUIC transport over conn
	server *signal.Server
	board  *match.Board
	ledger *reputation.Ledger
	turn   *ice.TURNServer // nil: none of our own

	// mu guards what follows.
	mu       sync.Mutex
	miners   map[identity.NodeID]*minerEntry
	sessions map[identity.SessionID]*coordinatorSession
	clients  map[*signal.Peer]int // live sessions of each connected client

	listingsMu sync.Mutex // guards listings
	listings   [2]listing // for strangers, and for the coordinator's own user
}

// minerEntry is a connected miner as its newest lease says.
type minerEntry struct {
	peer       *signal.Peer
	candidates []*signalpb.Candidate
	lease      match.Lease
}

// coordinatorSession is one match.
//
//	offered → taken → established → ended
//	   └→ declined or not taken in time: the next miner, or NoMatch
//
// It belongs to two nodes, not to two connections: either may reconnect.
type coordinatorSession struct {
	id        identity.SessionID
	clientID  identity.NodeID
	minerID   identity.NodeID
	client    *signal.Peer // the client's connection that last spoke of the session
	principal string       // who is accountable for the client
	model     match.Model
	request   *signalpb.MatchRequest
	exclude   []identity.NodeID
	attempt   uint32
	offerEnds time.Time // zero: taken
	expires   time.Time
	orphaned  time.Time // when the session ends because its client left; zero: it is here
	renewed   time.Time // when its client last renewed it
	trickles  map[signalpb.Role]int
}

func newCoordinator(cfg coordinatorConfig) (_ *coordinator, err error) {
	c := &coordinator{
		cfg: cfg, log: cfg.Log,
		miners: map[identity.NodeID]*minerEntry{}, sessions: map[identity.SessionID]*coordinatorSession{},
		clients: map[*signal.Peer]int{},
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.conn, err = listenUDP(cfg.Listen, "[coordinator] listen"); err != nil {
		return nil, err
	}
	var packets net.PacketConn = c.conn
	if cfg.hooks.conn != nil {
		packets = cfg.hooks.conn(c.conn)
	}
	transport := signal.NewTransport(packets, cfg.Key)
	c.quic = transport
	if c.ledger, err = openLedger(cfg.Reputation, cfg.Log); err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "reputation", Message: "the reputation store: " + err.Error(), Err: err}
	}
	c.board = match.NewBoard(c.ledger)
	if cfg.TURN.Enabled && len(cfg.TURN.URLs) == 0 {
		if err := c.startTURN(); err != nil {
			return nil, err
		}
	}
	handler := signal.ServerHandler(c)
	if cfg.hooks.handler != nil {
		handler = cfg.hooks.handler(c)
	}
	c.server, err = signal.NewServer(signal.ServerConfig{
		Key: cfg.Key, Conn: transport, Admit: c.admit, Handler: handler, LeaseTTL: cfg.Deadlines.Lease, Version: Version, Log: cfg.Log,
	})
	return c, err
}

// openLedger opens the reputation store. One that is damaged has been moved
// aside: that is logged, and an empty one begins.
func openLedger(path string, log zerolog.Logger) (*reputation.Ledger, error) {
	opts := reputation.Options{Log: log}
	ledger, err := reputation.Open(path, opts)
	if errors.Is(err, reputation.ErrCorrupt) {
		log.Error().Err(err).Msg("reputation begins anew")
		ledger, err = reputation.Open(path, opts)
	}
	return ledger, err
}

// listenUDP opens the address, IPv6 and IPv4 alike when it names no host.
func listenUDP(addr, setting string) (*net.UDPConn, error) {
	resolved, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("%s = %q: %v", setting, addr, err), Err: err}
	}
	conn, err := net.ListenUDP("udp", resolved)
	if err != nil {
		return nil, &Error{
			Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("cannot listen on UDP %s: %v", addr, errors.Unwrap(err)), Err: err,
			Hint: fmt.Sprintf("is another coordinator running? Choose another port with %s", setting),
		}
	}
	return conn, nil
}

func (c *coordinator) startTURN() error {
	listen, err := net.ResolveUDPAddr("udp", c.cfg.TURN.Listen)
	if err != nil {
		return &Error{Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("[coordinator.turn] listen = %q: %v", c.cfg.TURN.Listen, err), Err: err}
	}
	addr := listen.AddrPort()
	addrs := []netip.AddrPort{addr}
	if listen.IP == nil || listen.IP.IsUnspecified() { // one listener for each family that this machine has
		addrs = []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())}
		if hasIPv6() {
			addrs = append(addrs, netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port()))
		}
	}
	c.turn, err = ice.StartTURN(ice.TURNConfig{
		Listen: addrs, RelayIP: c.relayIP(), PortMin: c.cfg.TURN.PortMin, PortMax: c.cfg.TURN.PortMax, Realm: "mintai", Log: c.log,
		PeersSpeakFirst: true, Tap: c.cfg.hooks.relay,
	})
	if err != nil {
		return &Error{
			Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("the relay cannot listen on UDP %s: %v", c.cfg.TURN.Listen, err), Err: err,
			Hint: "choose another port with [coordinator.turn] listen, or set enabled = false",
		}
	}
	return nil
}

// hasIPv6 reports whether a socket of that family can be opened.
func hasIPv6() bool {
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// relayIP is the address that relayed ports are announced with: the configured
// one, else the first public address that is written down; zero leaves it to
// the relay, which takes the address from which the miner is reached.
func (c *coordinator) relayIP() netip.Addr {
	if addr, err := netip.ParseAddr(c.cfg.TURN.RelayIP); err == nil {
		return addr
	}
	for _, public := range c.cfg.Public {
		host := public
		if h, _, err := net.SplitHostPort(public); err == nil {
			host = h
		}
		if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
			return addr.Unmap()
		}
		ips, err := net.LookupIP(host)
		if err != nil {
			c.log.Warn().Err(err).Str("public", public).Msg("this name does not resolve here: set [coordinator.turn] relay_ip if this machine is behind a NAT")
			continue
		}
		for _, ip := range ips {
			if addr, ok := netip.AddrFromSlice(ip); ok && addr.Unmap().Is4() {
				return addr.Unmap()
			}
		}
	}
	return netip.Addr{}
}

// Run serves until ctx ends and every connection is closed.
func (c *coordinator) Run(ctx context.Context) error {
	defer c.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		c.sweepLoop(ctx)
	}()
	err := c.server.Serve(ctx)
	cancel()
	<-swept
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

func (c *coordinator) close() {
	if c.turn != nil {
		_ = c.turn.Close()
	}
	if c.ledger != nil {
		if err := c.ledger.Close(); err != nil {
			c.log.Error().Err(err).Msg("closing the reputation store")
		}
	}
	if c.quic != nil {
		_ = c.quic.Close()
	}
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// Addr is where the coordinator's signaling listens.
func (c *coordinator) Addr() netip.AddrPort { return c.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Runtime is what processes of the same user on this machine need to know.
func (c *coordinator) Runtime(pid int) identity.Runtime {
	at := c.Addr()
	host := at.Addr().Unmap()
	if host.IsUnspecified() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return identity.Runtime{Addr: netip.AddrPortFrom(host, at.Port()).String(), ID: c.cfg.Key.ID(), Secret: c.cfg.Local, PID: pid}
}

// admit decides about a node that introduces itself (design §2).
func (c *coordinator) admit(j signal.Joining) (admittedAs, principal string, err error) {
	self := c.cfg.Key.ID()
	if !c.cfg.Local.IsZero() && j.Remote.Addr().Unmap().IsLoopback() &&
		identity.CheckProof(j.Hello.GetLocalProof(), identity.LocalProof(c.cfg.Local, j.Node, self)) {
		return admittedLocal, admittedLocal, nil
	}
	if !c.cfg.JoinSecret.IsZero() && identity.CheckProof(j.Hello.GetJoinProof(), identity.JoinProof(c.cfg.JoinSecret, j.Node, self)) {
		return admittedMember, principalOf(j.Remote.Addr()), nil
	}
	if c.cfg.Open {
		return admittedOpen, principalOf(j.Remote.Addr()), nil
	}
	if len(j.Hello.GetJoinProof()) == 0 {
		return "", "", errors.New("it admits only holders of its join link")
	}
	return "", "", errors.New("the join link's secret is not the coordinator's")
}

// principalOf groups nodes that are likely one party: an IPv4 /24, an IPv6 /48.
func principalOf(addr netip.Addr) string {
	bits := 24
	if addr = addr.Unmap(); addr.Is6() {
		bits = 48
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return addr.String()
	}
	return prefix.String()
}

var _ signal.ServerHandler = (*coordinator)(nil)

// Joined is called when a node is admitted.
func (c *coordinator) Joined(p *signal.Peer) {
	c.log.Info().Str("peer", p.Node().Short()).Str("role", roleName(p.Role())).Str("name", p.Name()).
		Str("admitted_as", p.AdmittedAs()).Stringer("addr", p.Observed()).Msg("joined")
	c.cfg.Metrics.joined(p.Role())
}

// Left is called when a node's connection is gone. Its tunnels are not touched.
func (c *coordinator) Left(p *signal.Peer, err error) {
	c.log.Info().Str("peer", p.Node().Short()).Str("role", roleName(p.Role())).AnErr("cause", err).Msg("left")
	c.cfg.Metrics.left(p.Role())
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.miners[p.Node()]; m != nil && m.peer == p {
		delete(c.miners, p.Node())
		c.board.Remove(p.Node())
		for _, s := range c.sessions {
			if s.minerID == p.Node() && !s.offerEnds.IsZero() {
				s.offerEnds = now // it will never take it: the next sweep asks another
			}
		}
	}
	grace := lostGrace
	if err == nil {
		grace = goodbyeGrace
	}
	if c.clients[p] > 0 {
		for _, s := range c.sessions {
			if s.client == p {
				s.offerEnds, s.orphaned = time.Time{}, now.Add(grace)
				c.board.End(s.id) // what it carries shows in the miner's lease
			}
		}
	}
	delete(c.clients, p)
}

func roleName(r signalpb.Role) string {
	if r == signalpb.Role_ROLE_MINER {
		return "miner"
	}
	return "client"
}

// Message handles what a node says. signal has checked its form.
func (c *coordinator) Message(p *signal.Peer, env *signalpb.Envelope) {
	now := time.Now()
	switch m := env.GetMessage().(type) {
	case *signalpb.Envelope_MatchRequest:
		c.match(p, m.MatchRequest, now)
	case *signalpb.Envelope_Lease:
		c.lease(p, m.Lease, now)
	case *signalpb.Envelope_Taken:
		c.taken(p, m.Taken.GetSession(), now)
	case *signalpb.Envelope_Decline:
		c.declined(p, m.Decline, now)
	case *signalpb.Envelope_Candidates:
		c.relayCandidates(p, m.Candidates)
	case *signalpb.Envelope_TunnelStatus:
		c.tunnelStatus(p, m.TunnelStatus)
	case *signalpb.Envelope_Receipt:
		c.receipt(p, m.Receipt, now)
	case *signalpb.Envelope_ModelsRequest:
		c.models(p, m.ModelsRequest, now)
	case *signalpb.Envelope_Renew:
		c.renew(p, m.Renew.GetSession(), now)
	case *signalpb.Envelope_SessionEnd:
		c.sessionEnd(p, m.SessionEnd)
	}
}

// lease replaces what the miner said before.
func (c *coordinator) lease(p *signal.Peer, l *signalpb.Lease, now time.Time) {
	if p.Role() != signalpb.Role_ROLE_MINER {
		return
	}
	lease := readLease(p, l, now.Add(c.cfg.Deadlines.Lease))
	c.mu.Lock()
	c.miners[p.Node()] = &minerEntry{peer: p, candidates: l.GetCandidates(), lease: lease}
	c.mu.Unlock()
	c.board.Put(lease)
	_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_LeaseAck{
		LeaseAck: &signalpb.LeaseAck{Sequence: l.GetSequence(), Observed: writeAddress(p.Observed())},
	}})
}

// sessionLocked returns the session if p's node is one of its two ends.
func (c *coordinator) sessionLocked(p *signal.Peer, raw []byte) *coordinatorSession {
	id, err := identity.SessionIDFromBytes(raw)
	if err != nil {
		return nil
	}
	s := c.sessions[id]
	switch {
	case s == nil:
		return nil
	case p.Role() == signalpb.Role_ROLE_MINER && s.minerID == p.Node():
		return s
	case p.Role() == signalpb.Role_ROLE_CLIENT && s.clientID == p.Node():
		if s.client != p { // it has reconnected
			c.countLocked(s.client, -1)
			c.countLocked(p, 1)
			s.client = p
		}
		s.orphaned = time.Time{}
		return s
	}
	return nil
}

// countLocked adds to the live sessions of a client's connection.
func (c *coordinator) countLocked(p *signal.Peer, n int) {
	if n += c.clients[p]; n > 0 {
		c.clients[p] = n
	} else {
		delete(c.clients, p)
	}
}

// tellMiner sends to the session's miner, if it is connected.
func (c *coordinator) tellMiner(s *coordinatorSession, env *signalpb.Envelope) bool {
	c.mu.Lock()
	m := c.miners[s.minerID]
	c.mu.Unlock()
	return m != nil && m.peer.TrySend(env) == nil // whose haste it was is not the miner's fault
}

// relayCandidates passes trickled candidates to the session's other end.
func (c *coordinator) relayCandidates(p *signal.Peer, m *signalpb.Candidates) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	if s == nil || s.trickles[p.Role()] >= maxTrickles {
		c.mu.Unlock()
		return
	}
	if s.trickles == nil {
		s.trickles = make(map[signalpb.Role]int, 2)
	}
	s.trickles[p.Role()]++
	to := s.client
	if miner := c.miners[s.minerID]; p.Role() == signalpb.Role_ROLE_CLIENT {
		if miner == nil {
			c.mu.Unlock()
			return
		}
		to = miner.peer
	}
	c.mu.Unlock()
	_ = to.TrySend(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{
		Session: m.GetSession(), Candidates: relayable(m.GetCandidates(), p, to),
	}}})
}

// relayable leaves out loopback addresses unless both ends are on this machine:
// elsewhere they name services of the machine that is told to send to them.
func relayable(candidates []*signalpb.Candidate, from, to *signal.Peer) []*signalpb.Candidate {
	if from.Observed().Addr().IsLoopback() && to.Observed().Addr().IsLoopback() {
		return candidates
	}
	out := make([]*signalpb.Candidate, 0, len(candidates))
	for _, candidate := range candidates {
		if addr, ok := readAddress(candidate.GetAddress()); ok && !addr.Addr().IsLoopback() {
			out = append(out, candidate)
		}
	}
	return out
}

// tunnelStatus watches the health of a connection.
func (c *coordinator) tunnelStatus(p *signal.Peer, m *signalpb.TunnelStatus) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	c.mu.Unlock()
	if s == nil || p.Role() != signalpb.Role_ROLE_CLIENT {
		return
	}
	if m.GetState() == signalpb.TunnelState_TUNNEL_UP {
		c.board.Established(s.id)
	}
	c.cfg.Metrics.tunnel(m)
	c.log.Debug().Str("session", s.id.Short()).Str("peer", p.Node().Short()).Str("state", m.GetState().String()).
		Str("path", m.GetPathKind()).Str("reason", m.GetPathReason()).Dur("rtt", time.Duration(m.GetRttUs())*time.Microsecond).
		Uint64("lost", m.GetPacketsLost()).Msg("tunnel")
}

func (c *coordinator) renew(p *signal.Peer, raw []byte, now time.Time) {
	c.mu.Lock()
	s := c.sessionLocked(p, raw)
	if s == nil || p.Role() != signalpb.Role_ROLE_CLIENT {
		c.mu.Unlock()
		return
	}
	if !s.renewed.IsZero() && now.Sub(s.renewed) < renewEvery {
		c.mu.Unlock()
		return
	}
	s.renewed, s.expires = now, now.Add(c.cfg.Deadlines.Session)
	env := &signalpb.Envelope{Message: &signalpb.Envelope_Renewed{
		Renewed: &signalpb.Renewed{Session: s.id[:], ExpiresUnixMs: s.expires.UnixMilli(), LifetimeMs: time.Until(s.expires).Milliseconds()},
	}}
	if c.turn != nil {
		c.turn.Extend(s.id, s.expires)
	}
	c.mu.Unlock()
	if c.tellMiner(s, env) {
		_ = p.TrySend(env)
	}
}

func (c *coordinator) sessionEnd(p *signal.Peer, m *signalpb.SessionEnd) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	if s == nil || p.Role() != signalpb.Role_ROLE_CLIENT {
		c.mu.Unlock()
		return
	}
	c.endLocked(s)
	c.mu.Unlock()
	c.tellMiner(s, sessionEndMessage(s.id, m.GetReason()))
}

func sessionEndMessage(id identity.SessionID, reason string) *signalpb.Envelope {
	return &signalpb.Envelope{Message: &signalpb.Envelope_SessionEnd{
		SessionEnd: &signalpb.SessionEnd{Session: id[:], Reason: reason},
	}}
}

// endLocked forgets the session and what was lent to it.
func (c *coordinator) endLocked(s *coordinatorSession) {
	delete(c.sessions, s.id)
	c.countLocked(s.client, -1)
	c.board.End(s.id)
	if c.turn != nil {
		c.turn.Revoke(s.id)
	}
}

// sweepLoop moves on what waits in vain, until ctx ends.
func (c *coordinator) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			c.sweep(now)
		}
	}
}

func (c *coordinator) sweep(now time.Time) {
	c.mu.Lock()
	var late, over []*coordinatorSession
	for _, s := range c.sessions {
		if s.orphaned.IsZero() && isDone(s.client) {
			// Matched for a client that had left, or whose handshake failed: it
			// may be back and only not have spoken of the session yet.
			s.orphaned = now.Add(setupLimit)
		}
		switch {
		case !s.expires.After(now), !s.orphaned.IsZero() && !s.orphaned.After(now):
			c.endLocked(s)
			over = append(over, s)
		case !s.offerEnds.IsZero() && !s.offerEnds.After(now):
			late = append(late, s)
		}
	}
	c.mu.Unlock()
	for _, s := range over {
		c.tellMiner(s, sessionEndMessage(s.id, "over"))
	}
	for _, s := range late {
		c.nextMiner(s, "did not take the offer in time", now)
	}
	c.cfg.Metrics.load(c.counts())
}

func isDone(p *signal.Peer) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

func (c *coordinator) counts() (sessions, miners int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions), len(c.miners)
}

// localAddrs lists this machine's usable unicast addresses, sorted.
func localAddrs() []netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range addrs {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(ipnet.IP)
		if ok && addr.Unmap().IsGlobalUnicast() {
			out = append(out, addr.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
