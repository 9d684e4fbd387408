package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/identity"
	"mintai/match"
	"mintai/reputation"
	"mintai/signal"
	"mintai/signal/signalpb"
	"mintai/wss"
)

// How the coordinator waits.
const (
	// sweepEvery is how often waiting offers, sessions and leases are looked at.
	sweepEvery = 100 * time.Millisecond
	// operatorRelayLife is how much longer than the first grant the credentials
	// for an operator's own relay last.
	operatorRelayLife = 24 * time.Hour
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
	// proofTrickle is how long after a match its ends are told of addresses that
	// the other proved only then.
	proofTrickle = 15 * time.Second
	// maxTrickles bounds the messages with candidates that one end of a session
	// may send to the other.
	maxTrickles = 16
	// renewEvery is how soon a renewal is worth telling the miner again.
	renewEvery = time.Minute
)

// coordinatorConfig is what newCoordinator needs.
type coordinatorConfig struct {
	Key        *identity.Key
	Listen     string          // UDP host:port for signaling; port 0: any free one
	JoinSecret identity.Secret // admits those who prove it
	Local      identity.Secret // admits processes of the same user on this machine
	Open       bool            // admit everyone
	Public     []string        // host names or addresses by which the Internet reaches this machine
	STUN       string          // UDP host:port for address probes, and the next port; empty: none; port 0: any two
	TURN       turnSettings
	Relays     []string // that are lent, the preferred first: RelayOwn or URLs
	TLS        tlsSettings
	PortMap    bool   // ask the router to forward the ports, when nothing here is public
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
	stun    []netip.Addr                                    // addresses for probes instead of STUN's
}

// turnSettings says which relay the coordinator lends.
type turnSettings struct {
	Enabled          bool
	Listen           string // UDP host:port of the STUN/TURN server
	PortMin, PortMax uint16
	RelayIP          string          // the address that miners reach; empty: found out
	Secret           identity.Secret // shared with relays of others, such as coturn
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
	view   *netview
	runs   probeRuns        // of hard-NAT probing
	probes *ice.ProbeServer // nil: none
	turn   *ice.TURNServer  // nil: none of our own
	relays operatorRelays   // those of others

	tls      *wss.Server // nil: none
	tlsNotes []string    // what is to be said of it, a line each
	streams  io.Closer   // the QUIC transport over tls
	home     *home       // nil: this machine needs no router to forward ports

	// mu guards what follows.
	mu       sync.Mutex
	miners   map[identity.NodeID]*minerEntry
	sessions map[identity.SessionID]*coordinatorSession
	of       map[identity.NodeID]map[*coordinatorSession]struct{} // the sessions of each end
	clients  map[*signal.Peer]int                                 // live sessions of each connected client

	addrsMu sync.Mutex // guards addrs and looked
	addrs   []netip.Addr
	looked  time.Time

	listingsMu sync.Mutex // guards listings
	listings   [2]listing // for strangers, and for the coordinator's own user
}

// minerEntry is a connected miner as its newest lease says.
type minerEntry struct {
	peer       *signal.Peer
	candidates []*signalpb.Candidate
	network    *signalpb.Network // as it said last
	lease      match.Lease
}

func newCoordinator(cfg coordinatorConfig) (_ *coordinator, err error) {
	c := &coordinator{
		cfg: cfg, log: cfg.Log,
		miners: map[identity.NodeID]*minerEntry{}, sessions: map[identity.SessionID]*coordinatorSession{},
		of: map[identity.NodeID]map[*coordinatorSession]struct{}{}, clients: map[*signal.Peer]int{}, view: newNetview(),
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.conn, err = listenUDP(cfg.Listen, "[coordinator] listen"); err != nil {
		return nil, err
	}
	packets := ice.Frugal(c.conn)
	if cfg.hooks.conn != nil {
		packets = cfg.hooks.conn(c.conn)
	}
	transport := signal.NewTransport(packets, cfg.Key)
	c.quic = transport
	if c.ledger, err = openLedger(cfg.Reputation, cfg.Log); err != nil {
		return nil, &Error{Exit: ExitUsage, Code: "reputation", Message: "the reputation store: " + err.Error(), Err: err}
	}
	c.board = match.NewBoard(c.ledger)
	c.relays.urls = slices.DeleteFunc(slices.Clone(cfg.Relays), func(r string) bool { return r == RelayOwn })
	if err := c.startProbes(); err != nil {
		return nil, err
	}
	if err := c.startTLS(); err != nil {
		return nil, err
	}
	if c.lendsOwn() {
		if err := c.startTURN(); err != nil {
			return nil, err
		}
	}
	handler := signal.ServerHandler(c)
	if cfg.hooks.handler != nil {
		handler = cfg.hooks.handler(c)
	}
	server := signal.ServerConfig{
		Key: cfg.Key, Conn: transport, Stun: c.stunAddrs, Admit: c.admit, Handler: handler, LeaseTTL: cfg.Deadlines.Lease,
		Version: Version, Log: cfg.Log,
	}
	c.overTLS(&server)
	if c.server, err = signal.NewServer(server); err != nil {
		return nil, err
	}
	c.home = newHome(c)
	return c, nil
}

// Run serves until ctx ends and every connection is closed.
func (c *coordinator) Run(ctx context.Context) error {
	defer c.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	tasks.Go(func() { every(ctx, sweepEvery, c.sweep) })
	tasks.Go(func() { c.relays.run(ctx, c.log) })
	tasks.Go(func() { c.home.run(ctx) })
	carried, endTLS := context.WithCancel(context.WithoutCancel(ctx)) // until every node has been told
	defer endTLS()
	tasks.Go(func() { c.serveTLS(carried) })
	err := c.server.Serve(ctx)
	cancel()
	if c.streams != nil {
		_ = c.streams.Close()
	}
	endTLS()
	tasks.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

func (c *coordinator) close() {
	if c.turn != nil {
		_ = c.turn.Close()
	}
	if c.probes != nil {
		_ = c.probes.Close()
	}
	if c.streams != nil {
		_ = c.streams.Close()
	}
	if c.tls != nil {
		_ = c.tls.Close()
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

var _ signal.ServerHandler = (*coordinator)(nil)

// Joined is called when a node is admitted.
func (c *coordinator) Joined(p *signal.Peer) {
	c.log.Info().Str("peer", p.Node().Short()).Str("role", roleName(p.Role())).Str("name", p.Name()).
		Str("admitted_as", p.AdmittedAs()).Stringer("addr", p.Observed()).Msg("joined")
	c.cfg.Metrics.joined(p.Role())
	c.view.Joined(p.Node())
	keepPlace(p, true)
	c.home.joined(p)
	c.heard(p, time.Now())
}

// Left is called when a node's connection is gone. Its tunnels are not touched.
func (c *coordinator) Left(p *signal.Peer, err error) {
	c.log.Info().Str("peer", p.Node().Short()).Str("role", roleName(p.Role())).AnErr("cause", err).Msg("left")
	c.cfg.Metrics.left(p.Role())
	c.view.Left(p.Node())
	keepPlace(p, false)
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
				if err == nil && c.turn != nil {
					c.turn.Revoke(s.id) // its process is gone, and with it all that was relayed
				}
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
		c.heard(p, now)
		c.match(p, m.MatchRequest, now)
	case *signalpb.Envelope_PathRequest:
		c.heard(p, now)
		c.anotherPath(p, m.PathRequest, now)
	case *signalpb.Envelope_ProbePorts:
		c.passPorts(p, m.ProbePorts)
	case *signalpb.Envelope_Lease:
		c.lease(p, m.Lease, now)
	case *signalpb.Envelope_Taken:
		c.taken(p, m.Taken, now)
	case *signalpb.Envelope_Decline:
		c.declined(p, m.Decline, now)
	case *signalpb.Envelope_Candidates:
		c.passCandidates(p, m.Candidates, now)
	case *signalpb.Envelope_PeerSeen:
		c.peerSeen(p, m.PeerSeen, now)
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
	c.heard(p, now)
	lease := readLease(p, l, now.Add(c.cfg.Deadlines.Lease))
	network := l.GetNetwork()
	if network == nil {
		network = p.Hello().GetNetwork()
	}
	c.mu.Lock()
	c.miners[p.Node()] = &minerEntry{peer: p, candidates: l.GetCandidates(), network: network, lease: lease}
	c.mu.Unlock()
	c.board.Put(lease)
	_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_LeaseAck{
		LeaseAck: &signalpb.LeaseAck{Sequence: l.GetSequence(), Observed: writeAddress(p.Observed())},
	}})
}
