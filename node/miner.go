package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mintai/api"
	"mintai/backend"
	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// How a miner waits.
const (
	// leaseEvery is how often the lease is renewed without a reason.
	leaseEvery = 20 * time.Second
	// leaseSoon is how soon a lease tells of models or of slots that ran out.
	leaseSoon = 100 * time.Millisecond
	// leaseLoad is how soon one tells of any other change of the load.
	leaseLoad = time.Second
	// checkLife is how long a miner keeps checking for a client that never
	// comes: a little longer than the client's own deadlines.
	checkLife = 12 * time.Second
	// unusedLife is how long a session lasts in which nothing was ever asked. A
	// client that comes later still is told, and asks the coordinator again.
	unusedLife = 2 * time.Minute
	// maxMinerSessions bounds the live sessions of one miner.
	maxMinerSessions = 4096
	// offerGrace is how long a request waits for the offer of its session, which
	// comes by way of the coordinator and may be overtaken on a warm tunnel.
	offerGrace = 1500 * time.Millisecond
	// maxEnded is how many sessions that are over are remembered.
	maxEnded = 4096
	// maxChecking bounds the sessions that look for a path at once.
	maxChecking = 64
)

// minerConfig is what newMiner needs.
type minerConfig struct {
	Membership membership
	Key        *identity.Key
	Name       string
	Loopback   bool
	TicketFile string
	Pins       *identity.Pins
	Notice     func(string)
	Backends   *backend.Pool
	Deadlines  MinerDeadlines
	Relay      RelayMode
	MapPorts   bool
	Probing    bool   // take part in hard-NAT probing
	ProbeFile  string // bounds it for all processes of this node together; empty: for this one
	NoPadding  bool   // let the lengths of packets follow those of tokens
	Log        zerolog.Logger
	Metrics    *minerMetrics
}

// miner is the serving role: it keeps a lease at the coordinator, expects the
// clients that it offers, and answers them from its backends.
type miner struct {
	cfg     minerConfig
	log     zerolog.Logger
	socket  *ice.Socket
	sig     *signal.Node
	server  *quicstream.Server
	loaded  chan struct{} // cap 1: a request has begun or ended
	network *network
	dialTLS func(context.Context, string) (net.Conn, error)
	beside  sync.WaitGroup  // legs and watchers of sessions
	work    context.Context //nolint:containedctx // of the legs, set once by Run

	leaseMu  sync.Mutex // guards sequence; taken before mu
	sequence uint64     // of the newest lease

	// mu guards what follows.
	mu       sync.Mutex
	sessions map[identity.SessionID]*minerSession
	granted  map[identity.NodeID]int          // live sessions of each client
	ended    map[identity.SessionID]time.Time // lately, or declined: no request waits for them
	offers   chan struct{}                    // closed and replaced when sessions or ended have more
	draining bool
}

// minerSession is a miner's side of one match.
type minerSession struct {
	id        identity.SessionID
	client    identity.NodeID
	model     api.Model
	expires   time.Time
	checks    *ice.Session     // nil once the client has come, or never will
	checked   time.Time        // when they began
	policy    ice.Policy       // to which addresses of the client anything may be sent
	relays    []netip.AddrPort // where relays are that the client may come by
	pathSince time.Time        // of pathCount
	pathCount int              // paths asked for in pathWindow
	path      uint32           // number of the path that was looked for last
	lent      bool             // a relay, for a leg of this miner's own
	legs      []*minerLeg      // that are open, or being opened; the newest last
	probe     *probeRun        // nil: none
	since     time.Time
	used      bool // something was asked
}

func newMiner(cfg minerConfig) (*miner, error) {
	socket, err := ice.Listen(ice.SocketConfig{Loopback: cfg.Loopback, PunchFile: cfg.ProbeFile, Gate: true, Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("opening a UDP socket: %w", err)
	}
	m := &miner{
		cfg: cfg, log: cfg.Log, socket: socket, loaded: make(chan struct{}, 1),
		sessions: map[identity.SessionID]*minerSession{}, granted: map[identity.NodeID]int{},
		ended: map[identity.SessionID]time.Time{}, offers: make(chan struct{}),
	}
	m.server, err = quicstream.NewServer(quicstream.ServerConfig{
		Key: cfg.Key, Authorize: m.authorize, Await: m.awaitClient, Handler: http.HandlerFunc(m.serve),
		ResumeWindow: cfg.Deadlines.ResumeWindow, MaxIdle: cfg.Deadlines.MaxIdle, NoPadding: cfg.NoPadding, Log: cfg.Log,
	})
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	m.network = newNetwork(networkConfig{
		key: cfg.Key, socket: socket, coordinator: cfg.Membership.id, addrs: cfg.Membership.addrs, stunPort: cfg.Membership.stun,
		relay: cfg.Relay, probing: cfg.Probing, loopback: cfg.Loopback, mapper: mapperFor(cfg.MapPorts, socket, cfg.Loopback, cfg.Log),
		overTLS: func() bool { return m.sig.Status().OverTLS }, log: cfg.Log,
	})
	tls := newTLSWay(cfg.Log)
	m.dialTLS = tls.turn
	m.sig, err = signal.NewNode(signal.NodeConfig{
		Key: cfg.Key, Transport: socket.Transport(),
		Addrs: cfg.Membership.addrs, TLSAddrs: cfg.Membership.tlsAddrs(), Fallback: tls.signaling,
		Coordinator: cfg.Membership.id,
		Trust:       cfg.Membership.trust(cfg.Pins, cfg.Notice), TicketFile: cfg.TicketFile,
		Hello: func(coordinator identity.NodeID) *signalpb.Hello {
			return cfg.Membership.hello(signalpb.Role_ROLE_MINER, cfg.Key.ID(), coordinator, cfg.Name, m.network)
		},
		Handler: (*minerHandler)(m), Log: cfg.Log,
	})
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	return m, nil
}

// Run serves until ctx ends; then it takes nothing new, lets running answers
// finish within [miner.deadlines] drain, and closes everything.
func (m *miner) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the draining
	defer stop()
	m.mu.Lock()
	m.work = work
	m.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.network.Run(work) }) // beside the work: what
	wg.Go(func() { m.network.watch(work, m.relocated) })
	wg.Go(func() { m.watchClients(work) })
	wg.Go(func() { _ = m.network.mapPorts(work) }) // fails there is not an error here
	errs := make(chan error, 3)
	for _, part := range []func(context.Context) error{m.sig.Run, m.cfg.Backends.Run, m.serveTunnels} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs <- part(work)
		}()
	}
	var err error
	leases := make(chan struct{})
	go func() {
		defer close(leases)
		m.leaseLoop(work)
	}()
	select {
	case <-ctx.Done():
		m.drain(work)
	case err = <-errs: // a part ended that never should
	}
	stop()
	<-leases
	wg.Wait()
	m.closeSessions()
	m.beside.Wait()
	if cerr := m.socket.Close(); err == nil || errors.Is(err, context.Canceled) {
		err = cerr
	}
	return err
}

func (m *miner) serveTunnels(ctx context.Context) error {
	return m.server.Serve(ctx, m.socket.Transport())
}

// drain tells the coordinator to send nobody else and waits for running answers.
func (m *miner) drain(ctx context.Context) {
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	m.sendLease()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Drain)
	defer cancel()
	if err := m.server.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		m.log.Warn().Err(err).Msg("answers were cut off by the stop")
	}
}

func (m *miner) closeSessions() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		s.stopChecksLocked()
		s.stopProbeLocked()
		s.closeLegsLocked()
	}
}

// leaseLoop renews the lease on time, and soon after something changed.
func (m *miner) leaseLoop(ctx context.Context) {
	sweep := time.NewTicker(time.Second)
	defer sweep.Stop()
	next := time.NewTimer(leaseEvery)
	defer next.Stop()
	due := time.Now().Add(leaseEvery)
	within := func(d time.Duration) {
		if at := time.Now().Add(d); at.Before(due) {
			due = at
			next.Reset(d)
		}
	}
	var models int
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			m.sendLease()
			models = m.sayModels(models)
			due = time.Now().Add(leaseEvery)
			next.Reset(leaseEvery)
		case <-m.cfg.Backends.Changed():
			within(leaseSoon)
		case <-m.network.changed:
			within(leaseSoon)
		case <-m.loaded:
			within(leaseLoad)
		case now := <-sweep.C:
			m.sweep(now)
		}
	}
}

// relocated tells the coordinator at once from where this miner is reached now.
func (m *miner) relocated() {
	m.log.Info().Msg("this machine is in another network")
	m.network.relocated()
	m.sendLease()
}

// noteLoad makes the next lease come sooner.
func (m *miner) noteLoad() {
	select {
	case m.loaded <- struct{}{}:
	default:
	}
}

// sayModels logs what is offered when the number of models changed.
func (m *miner) sayModels(before int) int {
	snap := m.cfg.Backends.Snapshot()
	if len(snap.Models) == before {
		return before
	}
	names := make([]string, 0, len(snap.Models))
	ownUser := len(snap.Models) > 0
	for _, model := range snap.Models {
		names = append(names, string(model.Name))
		ownUser = ownUser && model.SameUserOnly
	}
	said := "offering"
	if ownUser {
		said = "no AI server found: offering the built-in engine to this user on this machine only"
	}
	if len(names) == 0 {
		said = "offering nothing"
	}
	m.log.Info().Strs("models", names).Int("slots", snap.Slots).Msg(said)
	for _, problem := range snap.Problems {
		m.log.Warn().Msg(problem)
	}
	return len(snap.Models)
}

// sweep ends the checks of clients that did not come and the sessions that are over.
func (m *miner) sweep(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		if s.checks != nil && now.Sub(s.checked) > checkLife {
			s.stopChecksLocked()
		}
		if !s.expires.After(now) || !s.used && now.Sub(s.since) > unusedLife {
			m.endLocked(s)
		}
	}
	for id, at := range m.ended {
		if now.Sub(at) > offerGrace {
			delete(m.ended, id)
		}
	}
}

// noteEndedLocked lets nobody wait for the session's offer.
func (m *miner) noteEndedLocked(id identity.SessionID) {
	if len(m.ended) < maxEnded {
		m.ended[id] = time.Now()
	}
	m.wakeLocked()
}

func (m *miner) wakeLocked() {
	close(m.offers)
	m.offers = make(chan struct{})
}

func (m *miner) endLocked(s *minerSession) {
	m.noteEndedLocked(s.id)
	s.stopChecksLocked()
	s.stopProbeLocked()
	s.closeLegsLocked()
	m.socket.Dismiss(s.id)
	delete(m.sessions, s.id)
	if n := m.granted[s.client]; n > 1 {
		m.granted[s.client] = n - 1
	} else {
		delete(m.granted, s.client)
	}
}

// stopChecksLocked closes the agent; QUIC's keep-alive holds the mapping.
func (s *minerSession) stopChecksLocked() {
	if s.checks != nil {
		_ = s.checks.Close()
		s.checks = nil
	}
}
