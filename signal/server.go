package signal

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// Joining is a node that asks to be let in.
type Joining struct {
	Node    identity.NodeID // proven, or resumed from a proven session
	Remote  netip.AddrPort  // as Peer.Observed
	OverTLS bool            // as Peer.OverTLS
	Hello   *signalpb.Hello
}

// ServerHandler is told what happens to peers. Its methods are called from a
// goroutine of each peer, one at a time and in order for one peer, concurrently
// for several. They must not block for long: meanwhile that peer is not read.
type ServerHandler interface {
	// Joined: the peer proved its key and was admitted. A peer that it replaces
	// has left before.
	Joined(*Peer)
	// Message: anything that the peer's role may send except Hello and Goodbye.
	// A MatchRequest, and nothing else, may come before Joined, when
	// Peer.Early; each nonce comes once, whatever is resent or replayed. A peer
	// whose handshake then fails neither joins nor leaves.
	Message(*Peer, *signalpb.Envelope)
	// Left: the connection has ended, with nil when the node said goodbye. It is
	// called once for each Joined.
	Left(*Peer, error)
}

// ServerConfig says how a Server works. Key, Conn, Admit and Handler are
// required.
type ServerConfig struct {
	// Key is the coordinator's identity.
	Key *identity.Key
	// Conn carries the connections. The server listens on it and does not close
	// it. Give it ResetKey before its first use.
	Conn *quic.Transport
	// Streams carry further connections, whose packets travel over TLS where UDP
	// is blocked. Their remote addresses are net.Addrs with a method
	// AddrPort() netip.AddrPort and the Network "wss": TCP has validated them, so
	// they never get a Retry and count for the limits of their address at once.
	// The server listens on each and does not close it. Make them with
	// NewTransport. One that closes ends alone.
	Streams []*quic.Transport
	// Stun returns where the coordinator answers STUN, for each Welcome: each of
	// its addresses with two ports (RFC 5780). The first MaxAddresses are told. It must
	// not block. Nil: nowhere.
	Stun func() []netip.AddrPort
	// Admit decides about each connection, also a resumed one, so that a ban
	// holds at once. It returns how the node was admitted ("local", "member",
	// "open") and who is accountable for it. The text of an error reaches the
	// node; a *CloseError chooses the code too. In 0-RTT it is called before the
	// node proved its key anew: it must only decide, and write nothing.
	Admit func(Joining) (admittedAs, principal string, err error)
	// Handler is told about peers and their messages.
	Handler ServerHandler
	// Limits bounds what strangers can cost.
	Limits Limits
	// LeaseTTL is told to miners. Zero: 60 s.
	LeaseTTL time.Duration
	// Version is told to nodes; it may be empty.
	Version string
	Log     zerolog.Logger
}

// Server is the coordinator's side. Make it with NewServer, run it with Serve.
type Server struct {
	cfg       ServerConfig
	listeners []*quic.EarlyListener // of Conn, then of Streams
	early     *earlyWindow
	replies   *replies
	gate      *gate
	counters  counters
	waiting   atomic.Int64 // connections that have not joined

	mu    sync.Mutex                  // guards all below
	nodes map[identity.NodeID][]*Peer // joined, oldest first
	count int                         // of joined peers
	open  map[*Peer]struct{}          // every connection that has a stream
	down  bool
}

// NewServer starts to listen. Connections wait until Serve is called.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Key == nil || cfg.Conn == nil || cfg.Admit == nil || cfg.Handler == nil {
		return nil, errors.New("signal: ServerConfig lacks Key, Conn, Admit or Handler")
	}
	if cfg.LeaseTTL == 0 {
		cfg.LeaseTTL = time.Minute
	}
	cfg.Limits = cfg.Limits.withDefaults()
	s := &Server{
		cfg:     cfg,
		replies: newReplies(),
		nodes:   make(map[identity.NodeID][]*Peer),
		open:    make(map[*Peer]struct{}),
	}
	tlsConf, err := cfg.Key.ServerTLS(ALPN, nil)
	if err != nil {
		return nil, err
	}
	tlsConf.GetConfigForClient = s.countALPN
	s.early = newEarlyWindow(tlsConf, time.Now())
	s.gate = newGate(cfg.Limits)
	if cfg.Conn.VerifySourceAddress == nil {
		cfg.Conn.VerifySourceAddress = s.gate.needsRetry
	}
	for _, transport := range append([]*quic.Transport{cfg.Conn}, cfg.Streams...) {
		listener, err := transport.ListenEarly(tlsConf, s.quicConfig())
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("signal: %w", err)
		}
		s.listeners = append(s.listeners, listener)
	}
	return s, nil
}

// quicConfig keeps an idle connection small: one stream, no datagrams, small
// windows. The node keeps the connection alive, not the coordinator.
func (s *Server) quicConfig() *quic.Config {
	base := &quic.Config{
		HandshakeIdleTimeout:           handshakeTimeout,
		MaxIdleTimeout:                 idleTimeout,
		InitialStreamReceiveWindow:     2 * MaxMessage,
		MaxStreamReceiveWindow:         2 * MaxMessage,
		InitialConnectionReceiveWindow: 2 * MaxMessage,
		MaxConnectionReceiveWindow:     2 * MaxMessage,
		MaxIncomingStreams:             1,
		MaxIncomingUniStreams:          -1,
		InitialPacketSize:              1200,
		DisablePathMTUDiscovery:        true, // small messages; probes cost every idle peer
		Allow0RTT:                      true,
	}
	listen := base.Clone()
	listen.GetConfigForClient = func(info *quic.ClientInfo) (*quic.Config, error) {
		s.early.tick(time.Now())
		if err := s.gate.admit(info); err != nil {
			s.counters.rateLimited.Add(1)
			return nil, err
		}
		s.counters.handshakes.Add(1)
		return base, nil
	}
	return listen
}

// Serve accepts nodes until ctx ends or ServerConfig.Conn closes. At the end
// every peer is told that the coordinator shuts down; Serve returns when all have
// left. The error is nil when ctx ended.
func (s *Server) Serve(ctx context.Context) error {
	peers, stop := context.WithCancel(ctx)
	defer stop()
	accepting, full := context.WithCancel(ctx)
	defer full()
	var wg, streams sync.WaitGroup
	for _, l := range s.listeners[1:] {
		streams.Go(func() {
			if err := s.accept(accepting, peers, l, &wg); accepting.Err() == nil {
				s.cfg.Log.Error().Err(err).Stringer("addr", l.Addr()).Msg("nodes can no longer connect over TLS")
			}
		})
	}
	err := s.accept(ctx, peers, s.listeners[0], &wg)
	full()
	streams.Wait()
	s.shutdown()
	stop()
	_ = s.Close()
	for _, l := range s.listeners { // what was accepted by the listener alone
		_ = s.accept(context.WithoutCancel(ctx), peers, l, &wg)
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("signal: accepting: %w", err)
}

// accept serves what comes to l until ctx ends or l closes. The goroutines of
// the connections go into wg, and their contexts come from peers.
func (s *Server) accept(ctx, peers context.Context, l *quic.EarlyListener, wg *sync.WaitGroup) error {
	for {
		conn, err := l.Accept(ctx)
		if err != nil {
			return err
		}
		wg.Go(func() { s.serveConn(peers, conn) })
	}
}

// Close stops listening when Serve was never called.
func (s *Server) Close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

func (s *Server) shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	for p := range s.open {
		p.end(&CloseError{Code: CloseShuttingDown, Message: "the coordinator shuts down"})
	}
}

// serveConn owns one connection from its first stream to its end. While the
// peer is idle its stack is small: what is needed only at the start and at the
// end stands in functions of its own.
func (s *Server) serveConn(ctx context.Context, conn *quic.Conn) {
	s.counters.accepted.Add(1)
	if s.waiting.Add(1) > int64(s.cfg.Limits.MaxWaiting) {
		s.counters.rateLimited.Add(1)
		_ = conn.CloseWithError(quic.ApplicationErrorCode(CloseTooMany), "the coordinator is full")
		s.waiting.Add(-1)
		return
	}
	if p := s.begin(ctx, conn); p != nil {
		s.finish(p, p.serve(ctx))
	} else {
		s.waiting.Add(-1)
	}
}

// begin waits for the peer's stream; nil when none came.
//
//go:noinline
func (s *Server) begin(ctx context.Context, conn *quic.Conn) *Peer {
	hello, cancel := context.WithTimeout(ctx, handshakeTimeout+helloTimeout)
	defer cancel()
	stream, err := conn.AcceptStream(hello)
	if err != nil {
		s.noStream(conn, err)
		return nil
	}
	p := &Peer{
		server: s, conn: conn, stream: stream, done: make(chan struct{}),
		pace: rate.NewLimiter(rate.Limit(s.cfg.Limits.MessagesPerSecond), s.cfg.Limits.MessageBurst),
	}
	p.out = newOutbox(stream, func(err error) {
		p.end(&CloseError{Code: CloseSlow, Message: "messages are not read", Err: err})
	})
	_ = stream.SetReadDeadline(time.Now().Add(helloTimeout))
	if reason := s.admitOpen(p); reason != nil {
		p.end(reason)
	}
	return p
}

// finish ends the connection for the reason err.
//
//go:noinline
func (s *Server) finish(p *Peer, err error) {
	p.hangUp(err)
	s.mu.Lock()
	delete(s.open, p)
	s.mu.Unlock()
	s.logEnd(p, err)
	p.leave(err)
}

// noStream ends a connection that said nothing.
func (s *Server) noStream(conn *quic.Conn, err error) {
	code := CloseTimeout
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) { // ours, not the connection's
		s.counters.helloTimeout.Add(1)
	} else {
		s.counters.handshakeFailed.Add(1)
	}
	if s.isDown() {
		code = CloseShuttingDown
	}
	_ = conn.CloseWithError(quic.ApplicationErrorCode(code), "no Hello in time")
	s.cfg.Log.Debug().Stringer("remote", conn.RemoteAddr()).Err(err).Msg("connection without a Hello")
}

func (s *Server) isDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// admitOpen makes a connection known to shutdown, and refuses it when there is
// no room.
func (s *Server) admitOpen(p *Peer) *CloseError {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[p] = struct{}{}
	switch {
	case s.down:
		return &CloseError{Code: CloseShuttingDown, Message: "the coordinator shuts down"}
	case s.count >= s.cfg.Limits.MaxNodes:
		s.counters.rateLimited.Add(1)
		return &CloseError{Code: CloseTooMany, Message: "the coordinator is full"}
	}
	return nil
}

// hangUp sends the reason, lets it arrive, and closes the connection.
func (p *Peer) hangUp(err error) {
	var reason *CloseError
	switch {
	case err == nil:
		reason = &CloseError{Code: CloseDone}
	case !errors.As(err, &reason): // the other end or the network ended it
		reason = &CloseError{Code: CloseDone}
	}
	if code := reason.Code.refusal(); code != signalpb.RefusalCode_REFUSAL_UNSPECIFIED && p.conn.Context().Err() == nil {
		message := truncate(reason.Message, MaxText)
		_ = p.out.send(&signalpb.Envelope{Message: &signalpb.Envelope_Refused{Refused: &signalpb.Refused{
			Code: code, Message: message, RetryAfterMs: retryAfter(reason.Code).Milliseconds(),
		}}})
		p.out.finish(linger)
		timer := time.NewTimer(linger)
		select {
		case <-p.conn.Context().Done(): // a node that reads the reason hangs up
		case <-timer.C:
		}
		timer.Stop()
	}
	_ = p.conn.CloseWithError(quic.ApplicationErrorCode(reason.Code), truncate(reason.Message, 128))
	p.out.shut()
}

// retryAfter is the advice that a Refused carries; 0: do not retry by yourself.
func retryAfter(code CloseCode) time.Duration {
	switch code {
	case CloseShuttingDown:
		return time.Second
	case CloseTooMany, CloseSlow, CloseTimeout:
		return 5 * time.Second
	case CloseDone, CloseBadMessage, CloseNotAdmitted, CloseReplaced, CloseLostRace, closeCodes:
	}
	return 0
}

func (s *Server) logEnd(p *Peer, err error) {
	event := s.cfg.Log.Debug()
	var reason *CloseError
	if errors.As(err, &reason) && reason.Code != CloseShuttingDown && reason.Code != CloseReplaced {
		event = s.cfg.Log.Warn()
	}
	if !p.node.IsZero() {
		event = event.Str("peer", p.node.Short())
	}
	event.Stringer("remote", p.conn.RemoteAddr()).Err(err).Msg("connection ended")
}

// enter puts a peer into the table. It ends the ones that it replaces and waits
// until they have left: another connection of the same miner, or the oldest
// ones of a client that has too many.
func (s *Server) enter(p *Peer) {
	allowed := s.cfg.Limits.MaxPerClient
	if p.role == signalpb.Role_ROLE_MINER {
		allowed = 1
	}
	s.mu.Lock()
	var replaced []*Peer
	for _, old := range s.nodes[p.node] {
		if old.role == p.role {
			replaced = append(replaced, old)
		}
	}
	replaced = replaced[:max(0, len(replaced)-allowed+1)]
	s.nodes[p.node] = append(s.nodes[p.node], p)
	s.count++
	s.mu.Unlock()
	for _, old := range replaced {
		s.counters.replaced.Add(1)
		old.Close(CloseReplaced, "the same key connected again")
		<-old.done // bounded by linger and the write timeout
	}
	s.waiting.Add(-1)
	s.counters.joined.Add(1)
	if p.OverTLS() {
		s.counters.joinedTLS.Add(1)
	}
}

func (s *Server) exit(p *Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.nodes[p.node][:0]
	for _, q := range s.nodes[p.node] {
		if q != p {
			kept = append(kept, q)
		}
	}
	if len(kept) == 0 {
		delete(s.nodes, p.node)
	} else {
		s.nodes[p.node] = kept
	}
	s.count--
}

// stun is what a Welcome tells of ServerConfig.Stun.
func (s *Server) stun() []*signalpb.Address {
	if s.cfg.Stun == nil {
		return nil
	}
	var addrs []*signalpb.Address
	for _, a := range s.cfg.Stun() {
		if a.IsValid() && a.Port() != 0 && len(addrs) < MaxAddresses {
			addrs = append(addrs, Address(a))
		}
	}
	return addrs
}

// Peer returns the newest connection of a node that has joined.
func (s *Server) Peer(id identity.NodeID) (*Peer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	peers := s.nodes[id]
	if len(peers) == 0 {
		return nil, false
	}
	return peers[len(peers)-1], true
}

// Len is the number of joined connections.
func (s *Server) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// truncate cuts s to at most n bytes without breaking a character.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 { // RFC 3629: a continuation byte
		n--
	}
	return s[:n]
}
