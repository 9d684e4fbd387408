package quicstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"mintai/identity"
)

// Defaults of ServerConfig.
const (
	DefaultResumeWindow    = 30 * time.Second
	DefaultBufferPerClient = 64 << 20
	DefaultBufferTotal     = 512 << 20
	DefaultMaxStreams      = 1280
	DefaultMaxBody         = 32<<20 + 64<<10
	DefaultBodyTimeout     = time.Minute
	DefaultStallTimeout    = 2 * time.Minute
	DefaultMaxIdle         = 30 * time.Second // also of DialConfig
)

const (
	headTimeout   = 10 * time.Second // for a request's head on an open stream
	stopTimeout   = 5 * time.Second  // for handlers after their context ended
	lingerTimeout = 3 * time.Second  // for clients to take the last bytes at shutdown
)

// ServerConfig configures a Server. Key and Handler are required; zero values of
// the rest mean the defaults above.
type ServerConfig struct {
	Key *identity.Key
	// Authorize says whether a client has a live grant, on each connection and
	// on each request. It is called from many goroutines and must not block.
	// Nil accepts every client that proves a NodeID.
	Authorize func(identity.NodeID) error
	// Await, when set, is called before Authorize for each new connection. It may
	// block a moment for a grant that is on its way, which comes by another path
	// and may be overtaken; ctx ends with the connection.
	Await func(ctx context.Context, client identity.NodeID)
	// Handler serves the requests. It runs on a goroutine and a context of its
	// own; the request's body is complete in memory when it starts. Panicking
	// with http.ErrAbortHandler breaks the answer off, visibly to the client.
	Handler http.Handler

	ResumeWindow    time.Duration // how long an answer waits for a lost client
	BufferPerClient int64         // bytes of requests and answers kept for one client
	BufferTotal     int64         // bytes of requests and answers kept in all
	MaxStreams      int64         // concurrent requests in one tunnel
	MaxBody         int64         // bytes of one request body
	BodyTimeout     time.Duration // longest wait for a request body
	StallTimeout    time.Duration // longest time a client may not read at all
	MaxIdle         time.Duration // a connection that hears nothing for so long is lost
	// NoPadding lets the lengths of an answer's packets follow those of its pieces.
	NoPadding bool

	// Log gets one line for a connection or an answer that ended badly. The
	// zero Logger is silent.
	Log zerolog.Logger
}

func (c *ServerConfig) setDefaults() {
	setDefault(&c.ResumeWindow, DefaultResumeWindow)
	setDefault(&c.BufferPerClient, DefaultBufferPerClient)
	setDefault(&c.BufferTotal, DefaultBufferTotal)
	setDefault(&c.MaxStreams, DefaultMaxStreams)
	setDefault(&c.MaxBody, DefaultMaxBody)
	setDefault(&c.BodyTimeout, DefaultBodyTimeout)
	setDefault(&c.StallTimeout, DefaultStallTimeout)
	setDefault(&c.MaxIdle, DefaultMaxIdle)
}

func setDefault[T ~int64](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Server is the miner's end of the tunnels.
type Server struct {
	cfg   ServerConfig
	reg   *registry
	stats counters

	mu       sync.Mutex // guards what follows
	conns    map[*serverConn]struct{}
	running  int           // handlers
	draining bool          // Shutdown was called: no new requests
	closed   bool          // Shutdown is over: no new connections
	changed  chan struct{} // closed and replaced when something ends
	stop     chan struct{} // closed when closed becomes true
}

// NewServer checks the configuration. The server does nothing until Serve.
func NewServer(cfg ServerConfig) (*Server, error) {
	switch {
	case cfg.Key == nil:
		return nil, errors.New("quicstream: a server needs a key")
	case cfg.Handler == nil:
		return nil, errors.New("quicstream: a server needs a handler")
	}
	cfg.setDefaults()
	return &Server{
		cfg:     cfg,
		reg:     newRegistry(cfg.BufferPerClient, cfg.BufferTotal),
		conns:   make(map[*serverConn]struct{}),
		changed: make(chan struct{}),
		stop:    make(chan struct{}),
	}, nil
}

// Serve accepts tunnels on transport until ctx ends or Shutdown is over, closes
// those it accepted and waits for their goroutines. It closes them with the code
// of a *CloseError that is ctx's cause, else as GoingAway. Answers outlive it for
// their resume window; Shutdown ends them. It may run on several transports at
// once. The transport stays open and belongs to the caller.
func (s *Server) Serve(ctx context.Context, transport *quic.Transport) error {
	tlsConf, err := s.cfg.Key.ServerTLS(ALPN, nil) // Authorize is asked after the handshake, to answer with a code
	if err != nil {
		return fmt.Errorf("tunnel server: %w", err)
	}
	tlsConf.SessionTicketsDisabled = true
	listener, err := transport.Listen(tlsConf, serverQUIC(s.cfg.MaxStreams, s.cfg.MaxIdle))
	if err != nil {
		return fmt.Errorf("tunnel server: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	conns.Go(func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	})
	defer func() { _ = listener.Close() }()
	for {
		conn, err := listener.Accept(ctx)
		if err != nil {
			select {
			case <-s.stop:
				return ErrServerClosed
			default:
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("tunnel server: %w", err)
		}
		conns.Go(func() { s.serveConn(ctx, conn) })
	}
}

// Shutdown refuses new requests, lets running answers finish until ctx ends,
// then cancels the rest, closes every tunnel and makes Serve return. It returns
// ctx's error when answers had to be cancelled.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	conns := s.connsLocked(identity.NodeID{})
	s.mu.Unlock()
	for _, c := range conns {
		c.announceDrain()
	}
	err := s.wait(ctx, s.idleLocked)
	if err == nil {
		// What was sent last may still be on its way. A client that has
		// everything closes its tunnel.
		linger, cancel := context.WithTimeout(ctx, lingerTimeout)
		_ = s.wait(linger, func() bool { return len(s.conns) == 0 })
		cancel()
	}
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	conns = s.connsLocked(identity.NodeID{})
	s.mu.Unlock()
	for _, c := range conns {
		c.close(GoingAway)
	}
	for _, a := range s.reg.of(identity.NodeID{}) {
		a.stop(ErrServerClosed)
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if gerr := s.wait(grace, func() bool { return s.running == 0 }); gerr != nil {
		return fmt.Errorf("tunnel server: a handler ignores its context: %w", gerr)
	}
	return err
}

// idleLocked reports that no handler runs and no stream has bytes to send.
func (s *Server) idleLocked() bool {
	if s.running > 0 {
		return false
	}
	for c := range s.conns {
		if c.requests() > 0 {
			return false
		}
	}
	return true
}

// wait returns when done, which is called with the mutex held, reports true, or
// with ctx's error.
func (s *Server) wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wakeLocked lets wait look again.
func (s *Server) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Kick closes the tunnels of a client whose grant ended and cancels its
// answers.
func (s *Server) Kick(peer identity.NodeID) {
	if peer.IsZero() {
		return
	}
	s.mu.Lock()
	conns := s.connsLocked(peer)
	s.mu.Unlock()
	for _, a := range s.reg.of(peer) {
		a.stop(ErrKicked)
	}
	for _, c := range conns {
		c.close(Unauthorized)
	}
}

// TunnelInfo describes one tunnel of a Server.
type TunnelInfo struct {
	Peer     identity.NodeID
	Since    time.Time
	Requests int // running now
	Stats
}

// Tunnels lists the live tunnels, in no order.
func (s *Server) Tunnels() []TunnelInfo {
	s.mu.Lock()
	conns := s.connsLocked(identity.NodeID{})
	s.mu.Unlock()
	infos := make([]TunnelInfo, len(conns))
	for i, c := range conns {
		infos[i] = TunnelInfo{Peer: c.peer, Since: c.since, Requests: c.requests(), Stats: connStats(c.conn)}
	}
	return infos
}

// connsLocked lists the tunnels of one client, or of all when peer is zero.
func (s *Server) connsLocked(peer identity.NodeID) []*serverConn {
	out := make([]*serverConn, 0, len(s.conns))
	for c := range s.conns {
		if peer.IsZero() || c.peer == peer {
			out = append(out, c)
		}
	}
	return out
}

// counters are the live values behind Counters.
type counters struct {
	tunnels, refusedTunnels, requests, refused         atomic.Uint64
	resumed, lost, cancelled, expired, brokenOff, busy atomic.Uint64
}

// Counters count events since the server was made.
type Counters struct {
	Tunnels        uint64 // accepted
	RefusedTunnels uint64 // closed as unauthorized or after a failed set-up
	Requests       uint64 // given to the handler
	Refused        uint64 // answered by the tunnel itself
	Busy           uint64 // of those: for lack of memory
	Resumed        uint64 // re-attached
	Lost           uint64 // attachments lost with their path
	Cancelled      uint64 // by the client
	Expired        uint64 // running answers whose client did not come back
	BrokenOff      uint64 // by the handler
	BufferedBytes  int64  // charged now
}

// Counters returns the counts so far.
func (s *Server) Counters() Counters {
	return Counters{
		Tunnels:        s.stats.tunnels.Load(),
		RefusedTunnels: s.stats.refusedTunnels.Load(),
		Requests:       s.stats.requests.Load(),
		Refused:        s.stats.refused.Load(),
		Busy:           s.stats.busy.Load(),
		Resumed:        s.stats.resumed.Load(),
		Lost:           s.stats.lost.Load(),
		Cancelled:      s.stats.cancelled.Load(),
		Expired:        s.stats.expired.Load(),
		BrokenOff:      s.stats.brokenOff.Load(),
		BufferedBytes:  s.reg.usage(),
	}
}

type contextKey int

const (
	peerKey contextKey = iota
	remoteKey
)

// PeerFromContext returns the client behind a request of the Handler.
func PeerFromContext(ctx context.Context) (identity.NodeID, bool) {
	id, ok := ctx.Value(peerKey).(identity.NodeID)
	return id, ok
}

// RemoteFromContext returns the address from which the request first came; the
// zero AddrPort when ctx is not a request's.
func RemoteFromContext(ctx context.Context) netip.AddrPort {
	addr, _ := ctx.Value(remoteKey).(netip.AddrPort)
	return addr
}
