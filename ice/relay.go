package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/turn/v5"
	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"
)

var (
	// ErrRelayURL is wrapped when RelayConfig.Server names no TURN server that
	// can be reached over UDP.
	ErrRelayURL = errors.New("not a TURN server over UDP")
	// ErrRelayRefused is wrapped when the TURN server answered, and refused.
	ErrRelayRefused = errors.New("the relay refused")
	// ErrNoRelay is wrapped when no TURN server answered in time.
	ErrNoRelay = errors.New("the relay does not answer")
)

const (
	maxRelayAddrs   = 4                      // addresses of the server's name that are tried
	relayStagger    = 250 * time.Millisecond // between them, as in RFC 8305 §5
	relayRTO        = 200 * time.Millisecond // first retransmission of a TURN request
	legSocketBuffer = 7 << 20
	legMTU          = 2048
)

// RelayConfig describes a leg over a TURN server.
type RelayConfig struct {
	// Server is "host:port" or a URL of RFC 7065 such as
	// "turn:relay.example:3478?transport=udp".
	Server string
	// Within reports whether a server may be at an address; those for which it is
	// false are left out. Who names a server names where packets go. Nil: every
	// unicast address.
	Within             func(netip.Addr) bool
	Username, Password string
	Realm              string // empty: the server tells
	// Nonce, when Realm is given too, is one that the server accepts now: it
	// spares the round trip in which the server would tell it. One that is stale
	// costs that round trip.
	Nonce string
	// Dial opens a stream to the server, TLS included, in place of a UDP socket;
	// Server is then only a name. Nil: UDP.
	Dial func(ctx context.Context) (net.Conn, error)
	// Miner says that this is the leg of the session's miner: its checks are
	// those of the controlled side.
	Miner bool
	// Permit are addresses of the other end for which permission is asked right
	// behind the allocation, in the same flight as a first check to each.
	// OpenRelay does not wait for the answers.
	Permit []netip.AddrPort
	// PeerRelayed says that the other end may have a leg over the same server.
	// Permission for the server's own relay address is then asked for as well,
	// before the exact address is known.
	PeerRelayed bool
	// Local and Remote are the session's credentials, the same ones as the
	// socket's session uses.
	Local, Remote Credentials
	// Peer is the address of the other end, or one of them: the relayed address
	// is of its family. Zero means IPv4.
	Peer netip.Addr
	Log  zerolog.Logger
}

// String names the server and shows no password.
func (c RelayConfig) String() string { return "relay " + c.Server }

// Format shows what String does, whatever the verb.
func (c RelayConfig) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// Relay is a leg over a TURN server: an allocation, a second QUIC transport
// over it, which dials and listens, and an answer to the peer's checks. The
// peer sees it as one more UDP address.
type Relay struct {
	log       zerolog.Logger
	kind      Kind
	wire      *turnWire
	client    *turn.Client
	allocated net.PacketConn
	leg       *legConn
	transport *quic.Transport
	responder *responder
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	closeOnce sync.Once
	closeErr  error

	mu      sync.Mutex // guards what follows
	closed  bool
	seen    map[netip.AddrPort]bool
	early   map[netip.AddrPort]bool // get a check as soon as their permission is asked for
	permits map[netip.AddrPort]bool // asked for, or granted
	addrs   chan Reached
}

// OpenRelay allocates on the first of the server's addresses that answers, or
// over the stream that cfg.Dial opens. With a nonce that takes one round trip.
// It ends with ctx; the Relay itself lasts, and refreshes itself, until Close.
func OpenRelay(ctx context.Context, cfg RelayConfig) (*Relay, error) { //nolint:contextcheck // the Relay outlives the opening
	if err := checkBoth(cfg.Local, cfg.Remote); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	a, kind, err := cfg.allocate(ctx)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	leg := newLegConn(a.relay, a.wire)
	runCtx, cancel := context.WithCancel(context.Background())
	r := &Relay{
		log:       cfg.Log,
		kind:      kind,
		wire:      a.wire,
		client:    a.client,
		allocated: a.relay,
		leg:       leg,
		transport: &quic.Transport{Conn: leg},
		responder: newLegResponder(cfg.Local, cfg.Remote, cfg.Miner, kind),
		cancel:    cancel,
		seen:      make(map[netip.AddrPort]bool),
		early:     make(map[netip.AddrPort]bool),
		permits:   make(map[netip.AddrPort]bool),
		addrs:     make(chan Reached, maxReached),
	}
	a.wire.onAsked(r.asked)
	r.wg.Go(a.reader.Wait)
	r.wg.Go(func() { r.answer(runCtx) })
	if cfg.PeerRelayed {
		r.wg.Go(r.permitOwnAddress)
	}
	for _, peer := range cfg.Permit {
		if _, err := r.ask(peer); err != nil {
			r.log.Debug().Err(err).Stringer("addr", peer).Msg("no permission for a peer")
		}
	}
	return r, nil
}

func (c RelayConfig) allocate(ctx context.Context) (allocation, Kind, error) {
	if c.Dial != nil {
		a, err := allocateStream(ctx, c)
		return a, RelayTLS, err
	}
	host, port, err := parseRelayURL(c.Server)
	if err != nil {
		return allocation{}, RelayUDP, err
	}
	addrs, err := resolve(ctx, host, port)
	if err != nil {
		return allocation{}, RelayUDP, fmt.Errorf("%w: %w", ErrNoRelay, err)
	}
	if addrs = c.within(addrs); len(addrs) == 0 {
		return allocation{}, RelayUDP, fmt.Errorf("%w: %s is at no address where a relay may be", ErrNoRelay, host)
	}
	a, err := allocateAny(ctx, c, addrs)
	return a, RelayUDP, err
}

// within leaves out where no server may be.
func (c RelayConfig) within(addrs []*net.UDPAddr) []*net.UDPAddr {
	return slices.DeleteFunc(addrs, func(a *net.UDPAddr) bool {
		_, err := Candidate{Addr: addrPort(a)}.Check()
		return err != nil || c.Within != nil && !c.Within(addrPort(a).Addr())
	})
}

// answer is the only reader of the transport's STUN.
func (r *Relay) answer(ctx context.Context) {
	buf := make([]byte, maxSTUN+1)
	for {
		n, from, err := r.transport.ReadNonQUICPacket(ctx, buf)
		if err != nil {
			return
		}
		src := addrPort(from)
		if r.responder.answered(buf[:n], src) {
			r.reached(src)
			continue
		}
		out, err := r.responder.answer(buf[:n], src)
		if err != nil {
			r.log.Trace().Err(err).Stringer("addr", src).Msg("relay: datagram ignored")
			continue
		}
		_, _ = r.transport.WriteTo(out, from)
		r.reached(src)
	}
}

func (r *Relay) reached(addr netip.AddrPort) {
	r.mu.Lock()
	if r.closed || r.seen[addr] || len(r.seen) >= maxReached {
		r.mu.Unlock()
		return
	}
	r.seen[addr] = true
	r.addrs <- Reached{Addr: addr, Kind: r.kind, At: time.Now()}
	r.mu.Unlock()
	r.log.Debug().Stringer("addr", addr).Stringer("path", r.kind).Msg("peer reached")
	if r.leg.permission(addr.Addr()) != granted {
		_, _ = r.ask(addr) // another leg, whose address nobody told: keep the permission alive
	}
}

// Addr returns the relayed address: the candidate to tell the peer.
func (r *Relay) Addr() netip.AddrPort { return addrPort(r.leg.local) }

// Kind is how the server is reached: RelayUDP or RelayTLS.
func (r *Relay) Kind() Kind { return r.kind }

// Dropped returns how many datagrams were not sent, for want of a permission or
// of a server.
func (r *Relay) Dropped() uint64 { return r.leg.dropped.Load() }

// Transport returns the QUIC transport over the allocation, to dial or to listen
// on. Close ends it.
func (r *Relay) Transport() *quic.Transport { return r.transport }

// Addrs returns the channel of addresses from which the peer's signed checks, or
// its answers to checks of this leg, arrived, each once, at most sixteen. A miner behind an address-dependent NAT
// arrives from a port that nobody could foretell. It is closed by Close.
func (r *Relay) Addrs() <-chan Reached { return r.addrs }

// Close ends the transport, frees the allocation and waits until every
// goroutine has ended. Close QUIC connections first: they end without a word.
func (r *Relay) Close() error {
	r.closeOnce.Do(func() {
		r.mu.Lock()
		r.closed = true
		close(r.addrs)
		r.mu.Unlock()
		r.cancel()
		r.leg.stop()
		err := r.transport.Close()
		_ = r.allocated.Close() // sends a Refresh with lifetime zero
		r.client.Close()
		r.closeErr = errors.Join(err, r.wire.Close())
		r.wg.Wait()
	})
	return r.closeErr
}
