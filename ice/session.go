package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pionice "github.com/pion/ice/v2"
	"github.com/pion/stun"
	"github.com/rs/zerolog"

	"mintai/identity"
)

var (
	// ErrTooManySessions is returned by Open when the socket has maxSessions.
	ErrTooManySessions = errors.New("ice: too many sessions are open")
	// ErrTooManyCandidates is returned by AddRemote beyond MaxRemote.
	ErrTooManyCandidates = errors.New("ice: too many candidates")
)

// MaxRemote is how many candidates of the peer one session checks.
const MaxRemote = 8

const (
	// maxSessions bounds the agents of one socket. One lasts from a match to the
	// QUIC handshake, a few seconds.
	maxSessions = 512
	// checkInterval is how often unanswered pairs are checked; the pacer thins
	// it out. pion's default of 200 ms costs several round trips.
	checkInterval = 20 * time.Millisecond
	// nominateAfter is when the controlling side settles for a pair. Until then
	// both sides go on checking the others, so that the caller learns of every
	// path that works and not only of the first, which may carry checks but not
	// a QUIC handshake. Nothing waits for it: the caller dials on Reached.
	nominateAfter = 5 * time.Second
	// agentTimeout is longer than any session: the caller decides when to stop.
	agentTimeout = 2 * time.Hour
	maxReached   = 16
	// maxRefused bounds the candidates that wait for a proof.
	maxRefused = 16
)

// SessionConfig describes one attempt to reach a peer.
type SessionConfig struct {
	ID            identity.SessionID
	Peer          identity.NodeID
	Controlling   bool        // RFC 8445 §6.1.1: the client is, the miner is not
	Local, Remote Credentials // as minted for this session
	// Candidates are the peer's known so far, at most MaxRemote. Those that
	// cannot be used are skipped.
	Candidates []Candidate
	// Policy says to which addresses the session may send anything: checks,
	// answers to checks, whatever the peer or the coordinator name. It is copied.
	// Nil allows every unicast address.
	Policy *Policy
}

// Reached is an address of the peer that works, at least from there to here.
type Reached struct {
	Addr netip.AddrPort
	Kind Kind // of the peer's candidate; Prflx for an address that nobody named
	At   time.Time
}

// CheckStats counts the checks of one session.
type CheckStats struct {
	Sent          uint64 // binding requests sent
	Received      uint64 // binding requests that named this session
	Authenticated uint64 // those of them that the peer had signed
}

// Session is one ICE agent. Close it once QUIC is up: the connection's own
// keep-alives hold the mapping, and a new path needs a new session.
type Session struct {
	socket *Socket
	cfg    SessionConfig
	log    zerolog.Logger
	agent  *pionice.Agent
	conns  *sessionConns
	cancel context.CancelFunc
	wg     sync.WaitGroup

	authenticated atomic.Uint64
	closeOnce     sync.Once
	closeErr      error

	mu      sync.Mutex // guards what follows
	closed  bool
	kinds   map[netip.AddrPort]Kind // the peer's candidates
	refused []Candidate             // by the policy; a proof may come
	seen    map[netip.AddrPort]bool // what was sent to addrs
	addrs   chan Reached
	started time.Time
}

// Open starts checking at once and returns without waiting. The session runs
// until Close, also when nothing answers.
func (s *Socket) Open(cfg SessionConfig) (*Session, error) {
	if err := checkBoth(cfg.Local, cfg.Remote); err != nil {
		return nil, fmt.Errorf("ice: %w", err)
	}
	x := &Session{
		socket:  s,
		cfg:     cfg,
		log:     s.log.With().Str("session", cfg.ID.Short()).Str("peer", cfg.Peer.Short()).Logger(),
		kinds:   make(map[netip.AddrPort]Kind),
		seen:    make(map[netip.AddrPort]bool),
		addrs:   make(chan Reached, maxReached),
		started: time.Now(),
	}
	local, _ := s.conn.LocalAddr().(*net.UDPAddr)
	x.conns = newSessionConns(s.demux, local, cfg.Local.Pwd, cfg.Policy)
	if err := s.adopt(x); err != nil {
		return nil, err
	}
	if err := x.start(local); err != nil {
		_ = x.Close()
		return nil, fmt.Errorf("ice: session %s: %w", cfg.ID.Short(), err)
	}
	return x, nil
}

// adopt enters the session into the socket's tables. Several sessions may look
// for the same peer: checks are told apart by their user names, and one key may
// be in use by several processes of one user.
func (s *Socket) adopt(x *Session) error {
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return ErrClosed
	case len(s.sessions) >= maxSessions:
		s.mu.Unlock()
		return ErrTooManySessions
	}
	s.sessions[x] = struct{}{}
	s.mu.Unlock()
	if !s.demux.register(x.cfg.Local.Ufrag, x.conns) {
		s.forget(x)
		return fmt.Errorf("ice: %w: the name is in use", ErrBadCredentials)
	}
	return nil
}

func (s *Socket) forget(x *Session) {
	s.demux.unregister(x.cfg.Local.Ufrag, x.conns)
	s.mu.Lock()
	delete(s.sessions, x)
	s.mu.Unlock()
}

func ptr[T any](v T) *T { return &v }

// start makes the agent, gives it what is known and lets it run.
func (x *Session) start(local *net.UDPAddr) error {
	mux := &agentMux{ufrag: x.cfg.Local.Ufrag, conns: x.conns, port: local.Port, v6: local.IP.To4() == nil}
	if !local.IP.IsUnspecified() {
		mux.bound = local.IP
	}
	agent, err := pionice.NewAgent(&pionice.AgentConfig{
		LocalUfrag:       x.cfg.Local.Ufrag,
		LocalPwd:         x.cfg.Local.Pwd,
		MulticastDNSMode: pionice.MulticastDNSModeDisabled,
		NetworkTypes:     []pionice.NetworkType{pionice.NetworkTypeUDP4, pionice.NetworkTypeUDP6},
		CandidateTypes:   []pionice.CandidateType{pionice.CandidateTypeHost},
		UDPMux:           mux,
		Net:              x.socket.net,
		LoggerFactory:    pionLog{x.log},
		CheckInterval:    ptr(checkInterval),
		// A pair never fails here: a peer that starts late, or whose NAT opens
		// late, is still found. The pacer bounds what is sent meanwhile.
		MaxBindingRequests:     ptr(uint16(65535)),
		HostAcceptanceMinWait:  ptr(x.socket.nominateAfter),
		PrflxAcceptanceMinWait: ptr(x.socket.nominateAfter),
		SrflxAcceptanceMinWait: ptr(x.socket.nominateAfter),
		RelayAcceptanceMinWait: ptr(x.socket.nominateAfter),
		DisconnectedTimeout:    ptr(agentTimeout),
		FailedTimeout:          ptr(agentTimeout),
		BindingRequestHandler:  x.onCheck,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	x.agent, x.cancel = agent, cancel
	if err := agent.OnCandidate(func(pionice.Candidate) {}); err != nil {
		return err
	}
	if err := agent.OnSelectedCandidatePairChange(x.onSelected); err != nil {
		return err
	}
	if err := agent.GatherCandidates(); err != nil {
		return err
	}
	for _, c := range x.cfg.Candidates {
		if err := x.AddRemote(c); err != nil {
			x.log.Debug().Err(err).Stringer("kind", c.Kind).Msg("candidate skipped")
		}
	}
	x.wg.Go(func() { x.run(ctx) })
	return nil
}

// run starts the checks and ends with the session.
func (x *Session) run(ctx context.Context) {
	var err error
	if x.cfg.Controlling {
		_, err = x.agent.Dial(ctx, x.cfg.Remote.Ufrag, x.cfg.Remote.Pwd)
	} else {
		_, err = x.agent.Accept(ctx, x.cfg.Remote.Ufrag, x.cfg.Remote.Pwd)
	}
	if err != nil && ctx.Err() == nil {
		x.log.Debug().Err(err).Msg("checks ended")
	}
}

// onCheck is called by the agent for each check whose MESSAGE-INTEGRITY holds.
// It never asks for a switch of the pair.
func (x *Session) onCheck(_ *stun.Message, _, remote pionice.Candidate, _ *pionice.CandidatePair) bool {
	x.authenticated.Add(1)
	if ip, err := netip.ParseAddr(remote.Address()); err == nil {
		x.socket.Admit(x.cfg.ID, ip)
	}
	x.reached(remote)
	return false
}

// onSelected is called by the agent when it settles for a pair.
func (x *Session) onSelected(_, remote pionice.Candidate) { x.reached(remote) }

func (x *Session) reached(remote pionice.Candidate) {
	ip, err := netip.ParseAddr(remote.Address())
	if err != nil {
		return
	}
	addr := netip.AddrPortFrom(ip.Unmap(), uint16(remote.Port()))
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || x.seen[addr] || len(x.seen) >= maxReached {
		return
	}
	x.seen[addr] = true
	kind, known := x.kinds[addr]
	if !known {
		kind = Prflx
	}
	r := Reached{Addr: addr, Kind: kind, At: time.Now()}
	x.addrs <- r // never blocks: the channel holds maxReached
	x.log.Debug().Stringer("addr", addr).Stringer("path", kind).
		Dur("after", r.At.Sub(x.started)).Msg("peer reached")
}

// AddRemote checks one more candidate of the peer. A candidate that is known
// already is not an error. One that the policy forbids is kept until Prove
// allows it; the error wraps ErrForbidden.
func (x *Session) AddRemote(c Candidate) error {
	c, err := c.Check()
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.addRemoteLocked(c)
}

func (x *Session) addRemoteLocked(c Candidate) error {
	switch _, known := x.kinds[c.Addr]; {
	case x.closed:
		return ErrClosed
	case known:
		return nil
	}
	if err := x.conns.allows(c); err != nil {
		if len(x.refused) < maxRefused && !slices.Contains(x.refused, c) {
			x.refused = append(x.refused, c)
		}
		return err
	}
	if len(x.kinds) >= MaxRemote || !x.conns.pacer.remote(c.Addr) {
		return fmt.Errorf("%w: %d are checked already", ErrTooManyCandidates, MaxRemote)
	}
	// Every candidate is a host candidate to the agent, which asks the others
	// for a base that the peer does not tell. The priority says the rest.
	remote, err := pionice.NewCandidateHost(&pionice.CandidateHostConfig{
		Network:   "udp",
		Address:   c.Addr.Addr().String(),
		Port:      int(c.Addr.Port()),
		Component: pionice.ComponentRTP,
		Priority:  c.Priority,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadCandidate, err)
	}
	if err := x.agent.AddRemoteCandidate(remote); err != nil {
		return fmt.Errorf("ice: session %s: %w", x.cfg.ID.Short(), err)
	}
	x.kinds[c.Addr] = c.Kind
	x.socket.Admit(x.cfg.ID, c.Addr.Addr())
	return nil
}

// Prove adds addresses to those that the policy's Proven has, and checks the
// candidates that were forbidden for want of them. Without a policy it does
// nothing.
func (x *Session) Prove(addrs ...netip.AddrPort) {
	x.conns.prove(addrs)
	x.mu.Lock()
	defer x.mu.Unlock()
	waiting := x.refused
	x.refused = nil
	for _, c := range waiting {
		if err := x.addRemoteLocked(c); err != nil && !errors.Is(err, ErrForbidden) {
			x.log.Debug().Err(err).Stringer("kind", c.Kind).Msg("candidate skipped")
		}
	}
}

// AllowRelay adds the address of a relay to those that the policy's Relays has,
// at most MaxRemote. Without a policy it does nothing.
func (x *Session) AllowRelay(addr netip.Addr) { x.conns.allowRelay(addr) }

// Addrs returns the channel of addresses that work, each once, at most
// sixteen: first the source of each check that the peer signed, as it arrives,
// then what ICE selects. It is closed by Close.
func (x *Session) Addrs() <-chan Reached { return x.addrs }

// Stats returns the counters of the session.
func (x *Session) Stats() CheckStats {
	return CheckStats{
		Sent:          x.conns.pacer.total(),
		Received:      x.conns.received.Load(),
		Authenticated: x.authenticated.Load(),
	}
}

// Close stops the checks and waits until the agent has ended. The socket and
// its QUIC connections stay.
func (x *Session) Close() error {
	x.closeOnce.Do(func() {
		if x.cancel != nil {
			x.cancel()
		}
		if x.agent != nil {
			x.closeErr = x.agent.GracefulClose()
		}
		x.wg.Wait()
		x.conns.close()
		x.socket.forget(x)
		x.mu.Lock()
		x.closed = true
		close(x.addrs)
		x.mu.Unlock()
	})
	return x.closeErr
}
