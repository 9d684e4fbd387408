package signal

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// Handler is told what comes from the coordinator, in order, from one goroutine
// of Run. Its methods must not block: meanwhile nothing else is read.
type Handler interface {
	// Connected: the coordinator admitted this node. After a reconnect it comes
	// again.
	Connected(*signalpb.Welcome)
	// Disconnected follows each Connected, with the reason. ErrMoved is none to
	// worry about: Connected comes again at once.
	Disconnected(err error)
	// Message: Offer, Candidates, LeaseAck, SessionEnd, Renewed, and a Grant or
	// NoMatch that no open Matching waits for.
	Message(*signalpb.Envelope)
}

// Deadlines are the time limits of a Node. Zero fields take the default that
// their comment names.
type Deadlines struct {
	Dial       time.Duration // for one address, from the first packet to the handshake's end; 5 s
	Welcome    time.Duration // from there to the Welcome; 5 s
	Match      time.Duration // for the first answer to Match or Models; 5 s
	Stale      time.Duration // without any packet after a request: connect anew; 1.5 s
	PathStale  time.Duration // the same for a request for another path, which is more urgent; 600 ms
	Stagger    time.Duration // head start of an address before the next is tried too (RFC 8305 §5); 250 ms
	Fallback   time.Duration // head start of UDP before the way over TLS is tried too; 100 ms
	Retry      time.Duration // while connected over TLS, between two tries of UDP, ± a quarter; 60 s
	BackoffMin time.Duration // first pause before reconnecting; 250 ms
	BackoffMax time.Duration // longest one; 30 s
}

func (d Deadlines) withDefaults() Deadlines {
	set := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	set(&d.Dial, 5*time.Second)
	set(&d.Welcome, 5*time.Second)
	set(&d.Match, 5*time.Second)
	set(&d.Stale, 1500*time.Millisecond)
	set(&d.PathStale, 600*time.Millisecond)
	set(&d.Stagger, 250*time.Millisecond)
	set(&d.Fallback, 100*time.Millisecond)
	set(&d.Retry, time.Minute)
	set(&d.BackoffMin, 250*time.Millisecond)
	set(&d.BackoffMax, 30*time.Second)
	return d
}

// NodeConfig says how a Node works. Key, Transport, Addrs and Hello are
// required.
type NodeConfig struct {
	// Key is the node's identity.
	Key *identity.Key
	// Transport carries the connection; it is the socket of the node's paths too.
	// The Node does not close it.
	Transport *quic.Transport
	// Addrs are the coordinator's addresses, host:port, the preferred first.
	Addrs []string
	// TLSAddrs are where the coordinator listens on TLS, host:port, for networks
	// that block UDP; they are given to Fallback. None: UDP only.
	TLSAddrs []string
	// Fallback opens a way over TLS to one of TLSAddrs. It returns when ctx ends
	// at the latest; ctx bounds the opening only. The Node closes the conn. The
	// same QUIC connection with the same mutual authentication runs over it, so
	// whoever the way leads past can only drop packets. Nil: UDP only.
	Fallback func(ctx context.Context, addr string) (FallbackConn, error)
	// Coordinator must answer. Zero: whoever answers, when Trust accepts it;
	// then there is no 0-RTT before the first connection of this Node.
	Coordinator identity.NodeID
	// Trust decides about an unnamed coordinator after it proved its key. It is
	// called only when Coordinator is zero; nil then accepts every one.
	Trust func(addr string, id identity.NodeID) error
	// Hello makes the first message; its proofs need the coordinator's NodeID.
	Hello func(coordinator identity.NodeID) *signalpb.Hello
	// TicketFile keeps the session ticket for 0-RTT, mode 0600, one file a
	// coordinator. Empty: memory only.
	TicketFile string
	// Handler is told what comes. Nil: only Match and Models are of use.
	Handler   Handler
	Deadlines Deadlines
	Log       zerolog.Logger
}

// Status describes the connection to the coordinator.
type Status struct {
	Connected   bool
	Since       time.Time      // of the present connection; zero when not connected
	Addr        string         // as configured, of Addrs or TLSAddrs
	Remote      netip.AddrPort // over TLS perhaps a proxy, or zero
	OverTLS     bool           // by way of Fallback; UDP is tried again from time to time
	Coordinator identity.NodeID
	Observed    netip.AddrPort   // this node's address as the coordinator sees it; of TCP when OverTLS
	Stun        []netip.AddrPort // where the coordinator answers STUN; not to be changed
	AdmittedAs  string           // "local", "member", "open"
	Err         error            // why there is no connection; nil when connected or not tried yet
	Used0RTT    bool             // the present connection's first flight was accepted early
	RTT         time.Duration    // to the coordinator; zero when not connected
}

// Node is a miner's or client's side. Make it with NewNode, run it with Run;
// every other method may be called from any goroutine at any time.
type Node struct {
	cfg     NodeConfig
	tickets *tickets
	tokens  quic.TokenStore
	wake    chan struct{} // cap 1: a request waits for a connection

	mu       sync.Mutex // guards all below
	status   Status
	link     *link // handshaking in 0-RTT, or complete; nil: none
	requests map[[nonceSize]byte]*request
	past     history         // of answered requests
	changed  chan struct{}   // closed and replaced when status changes
	learned  identity.NodeID // the coordinator, once known
	blocked  bool            // the last connection was over TLS
	trouble  []error         // of the dialing under way: what failed so far

	preferred, preferredTLS string // the attempts that succeeded last

	dials sync.WaitGroup // races, and ways over TLS that are being closed; Run waits for them
}

// NewNode makes a Node. It does nothing until Run.
func NewNode(cfg NodeConfig) (*Node, error) {
	if cfg.Key == nil || cfg.Transport == nil || len(cfg.Addrs) == 0 || cfg.Hello == nil {
		return nil, errors.New("signal: NodeConfig lacks Key, Transport, Addrs or Hello")
	}
	if cfg.Handler == nil {
		cfg.Handler = noHandler{}
	}
	cfg.Deadlines = cfg.Deadlines.withDefaults()
	return &Node{
		cfg:      cfg,
		tickets:  openTickets(cfg.TicketFile, cfg.Key.ID(), cfg.Log),
		tokens:   quic.NewLRUTokenStore(4, 4),
		wake:     make(chan struct{}, 1),
		requests: make(map[[nonceSize]byte]*request),
		changed:  make(chan struct{}),
		learned:  cfg.Coordinator,
	}, nil
}

type noHandler struct{}

func (noHandler) Connected(*signalpb.Welcome) {}
func (noHandler) Disconnected(error)          {}
func (noHandler) Message(*signalpb.Envelope)  {}

// Run connects and reconnects until ctx ends, then says goodbye and returns nil.
// When the coordinator refuses this node for good, Run goes on trying slowly:
// see Status and WaitConnected.
func (n *Node) Run(ctx context.Context) error {
	defer n.dials.Wait()
	for failures := 0; ; failures++ {
		start := time.Now()
		welcomed, err := n.connect(ctx)
		if ctx.Err() != nil {
			n.failAll(context.Cause(ctx))
			return nil
		}
		if welcomed {
			failures = 0
		}
		if final(err) {
			n.failAll(err)
		}
		pause := backoff(n.cfg.Deadlines, failures, err, rand.Float64())
		n.setError(err)
		n.cfg.Log.Debug().Err(err).Dur("retry_in", pause).Msg("no connection to the coordinator")
		if !n.pause(ctx, start, pause) {
			n.failAll(context.Cause(ctx))
			return nil
		}
	}
}

// final reports whether trying again at once cannot help, so that waiting
// requests fail with the reason.
func final(err error) bool {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.Final()
	}
	return errors.Is(err, identity.ErrPeer) || errors.Is(err, ErrUntrusted)
}

// backoff is the pause before the next try: it doubles with each failure, is
// spread over half its length so that nodes do not return all at once, and
// follows the coordinator's advice. random is in [0, 1).
func backoff(d Deadlines, failures int, err error, random float64) time.Duration {
	pause := d.BackoffMax
	if failures < 20 && !final(err) {
		pause = min(pause, d.BackoffMin<<failures)
	}
	pause = time.Duration(float64(pause) * (0.5 + random/2))
	var refused *RefusedError
	if errors.As(err, &refused) {
		pause = max(pause, min(refused.RetryAfter, d.BackoffMax))
	}
	return pause
}

// pause waits, at most until a request wants a connection; but two tries are
// never closer than BackoffMin. It reports false when ctx ended.
func (n *Node) pause(ctx context.Context, start time.Time, d time.Duration) bool {
	least := time.NewTimer(min(d, n.cfg.Deadlines.BackoffMin-time.Since(start)))
	defer least.Stop()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-least.C:
	}
	if n.waiting() {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-n.wake:
	case <-timer.C:
	}
	return true
}

// waiting reports whether a request waits for its first answer.
func (n *Node) waiting() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.wake: // seen
	default:
	}
	for _, r := range n.requests {
		if !r.done {
			return true
		}
	}
	return false
}

// Send queues a message. It never blocks. The error is ErrNotConnected,
// ErrQueueFull or ErrTooLarge; nothing is resent after a reconnect.
func (n *Node) Send(env *signalpb.Envelope) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.status.Connected {
		return ErrNotConnected
	}
	err := n.link.out.send(env)
	if errors.Is(err, ErrClosed) {
		return ErrNotConnected
	}
	return err
}

// Status returns the present state.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.status
	if s.Connected {
		s.RTT = n.link.conn.ConnectionStats().SmoothedRTT
	}
	return s
}

// WaitConnected returns when the node is connected and admitted. It returns a
// reason that trying again cannot remove (*RefusedError, an identity error), or
// the cause of ctx.
func (n *Node) WaitConnected(ctx context.Context) error {
	for {
		n.mu.Lock()
		status, changed := n.status, n.changed
		n.mu.Unlock()
		if status.Connected {
			return nil
		}
		if final(status.Err) {
			return status.Err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (n *Node) setError(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status = Status{Err: err, Coordinator: n.learned}
	n.changedLocked()
}

func (n *Node) changedLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}
