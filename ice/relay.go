package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	stunv4 "github.com/pion/stun/v4"
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

// RelayConfig describes a client's leg over a TURN server.
type RelayConfig struct {
	// Server is "host:port" or a URL of RFC 7065 such as
	// "turn:relay.example:3478?transport=udp".
	Server             string
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
	// Peer is the address of the miner, or one of them: the relayed address is
	// of its family. Zero means IPv4.
	Peer netip.Addr
	Log  zerolog.Logger
}

// String names the server and shows no password.
func (c RelayConfig) String() string { return "relay " + c.Server }

// Format shows what String does, whatever the verb.
func (c RelayConfig) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// Relay is a client's leg over a TURN server: an allocation, a second QUIC
// transport over it and an answer to the peer's checks. The peer sees it as
// one more UDP address.
type Relay struct {
	log       zerolog.Logger
	conn      *net.UDPConn
	client    *turn.Client
	allocated net.PacketConn
	leg       *legConn
	transport *quic.Transport
	responder *responder
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	closeOnce sync.Once
	closeErr  error

	mu     sync.Mutex // guards what follows
	closed bool
	seen   map[netip.AddrPort]bool
	addrs  chan Reached
}

// OpenRelay allocates on the first of the server's addresses that answers. It
// ends with ctx; the Relay itself lasts, and refreshes itself, until Close.
func OpenRelay(ctx context.Context, cfg RelayConfig) (*Relay, error) { //nolint:contextcheck // the Relay outlives the opening
	if err := checkBoth(cfg.Local, cfg.Remote); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	host, port, err := parseRelayURL(cfg.Server)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	addrs, err := resolve(ctx, host, port)
	if err != nil {
		return nil, fmt.Errorf("relay: %w: %w", ErrNoRelay, err)
	}
	conn, client, allocated, wg, err := allocateAny(ctx, cfg, addrs)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	leg := newLegConn(allocated)
	runCtx, cancel := context.WithCancel(context.Background())
	r := &Relay{
		log:       cfg.Log,
		conn:      conn,
		client:    client,
		allocated: allocated,
		leg:       leg,
		transport: &quic.Transport{Conn: leg},
		responder: newResponder(cfg.Local, cfg.Remote),
		cancel:    cancel,
		seen:      make(map[netip.AddrPort]bool),
		addrs:     make(chan Reached, maxReached),
	}
	r.wg.Go(wg.Wait) // the reader of conn
	r.wg.Go(func() { r.answer(runCtx) })
	return r, nil
}

// parseRelayURL reads "turn:host[:port][?transport=udp]" (RFC 7065 §3.1) or a
// bare "host:port".
func parseRelayURL(s string) (host, port string, err error) {
	rest, isURL := strings.CutPrefix(s, "turn:")
	if strings.HasPrefix(s, "turns:") {
		return "", "", fmt.Errorf("%w: %q asks for TLS", ErrRelayURL, s)
	}
	rest, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery && query != "transport=udp" {
		return "", "", fmt.Errorf("%w: %q asks for another transport", ErrRelayURL, s)
	}
	host, port, err = net.SplitHostPort(rest)
	if err != nil && isURL && rest != "" && !strings.Contains(strings.Trim(rest, "[]"), "]") {
		host, port, err = strings.Trim(rest, "[]"), "3478", nil
	}
	if err != nil || host == "" {
		return "", "", fmt.Errorf("%w: %q is not turn:host:port", ErrRelayURL, s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("%w: %q has no valid port", ErrRelayURL, s)
	}
	return host, port, nil
}

func resolve(ctx context.Context, host, port string) ([]*net.UDPAddr, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	n, _ := strconv.ParseUint(port, 10, 16) // checked by parseRelayURL
	var addrs []*net.UDPAddr
	for _, ip := range ips {
		addrs = append(addrs, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), uint16(n))))
		if len(addrs) == maxRelayAddrs {
			break
		}
	}
	return addrs, nil
}

// allocation is the outcome of one try.
type allocation struct {
	conn   *net.UDPConn
	client *turn.Client
	relay  net.PacketConn
	reader *sync.WaitGroup
	err    error
}

func (a allocation) discard() {
	if a.err != nil {
		return
	}
	_ = a.relay.Close()
	a.client.Close()
	_ = a.conn.Close()
	a.reader.Wait()
}

// allocateAny tries the addresses, each a little after the one before, and
// keeps the first allocation. All tries have ended when it returns.
func allocateAny(ctx context.Context, cfg RelayConfig, addrs []*net.UDPAddr) (*net.UDPConn, *turn.Client, net.PacketConn, *sync.WaitGroup, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan allocation, len(addrs))
	for i, addr := range addrs {
		go func() {
			if !pause(ctx, time.Duration(i)*relayStagger) {
				results <- allocation{err: ctx.Err()}
				return
			}
			results <- allocate(ctx, cfg, addr)
		}()
	}
	var winner allocation
	var errs []error
	for range addrs {
		switch a := <-results; {
		case a.err != nil:
			errs = append(errs, a.err)
		case winner.relay != nil:
			a.discard()
		default:
			winner = a
			cancel()
		}
	}
	if winner.relay == nil {
		return nil, nil, nil, nil, relayError(errs...)
	}
	return winner.conn, winner.client, winner.relay, winner.reader, nil
}

func pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// relayError tells an answer that refuses from no answer, in one line.
func relayError(errs ...error) error {
	for _, err := range errs {
		var refused *stunv4.TurnError
		if errors.As(err, &refused) {
			return fmt.Errorf("%w: %d %s", ErrRelayRefused, refused.ErrorCodeAttr.Code, refused.ErrorCodeAttr.Reason)
		}
	}
	for _, err := range errs {
		if !errors.Is(err, context.Canceled) || len(errs) == 1 {
			return fmt.Errorf("%w: %w", ErrNoRelay, err)
		}
	}
	return ErrNoRelay
}

func allocate(ctx context.Context, cfg RelayConfig, server *net.UDPAddr) allocation {
	network := "udp4"
	if server.IP.To4() == nil {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return allocation{err: err}
	}
	_ = conn.SetReadBuffer(legSocketBuffer) // as much as the system allows
	_ = conn.SetWriteBuffer(legSocketBuffer)
	family := turn.RequestedAddressFamilyIPv4
	if cfg.Peer.Is6() && !cfg.Peer.Is4In6() {
		family = turn.RequestedAddressFamilyIPv6
	}
	client, err := turn.NewClient(&turn.ClientConfig{
		TURNServerAddr:         server.String(),
		Username:               cfg.Username,
		Password:               cfg.Password,
		Realm:                  cfg.Realm,
		RTO:                    relayRTO,
		Conn:                   conn,
		LoggerFactory:          pionLog{cfg.Log},
		RequestedAddressFamily: family,
	})
	if err != nil {
		_ = conn.Close()
		return allocation{err: err}
	}
	reader := new(sync.WaitGroup)
	reader.Go(func() { readServer(conn, client, addrPort(server)) })
	relay, err := client.AllocateWithContext(ctx)
	if err != nil {
		client.Close()
		_ = conn.Close()
		reader.Wait()
		return allocation{err: err}
	}
	return allocation{conn: conn, client: client, relay: relay, reader: reader}
}

// readServer feeds the client until conn is closed. pion's own loop ends for
// good at the first malformed datagram, which anybody may send.
func readServer(conn *net.UDPConn, client *turn.Client, server netip.AddrPort) {
	buf := make([]byte, legMTU)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()) != server {
			continue
		}
		_, _ = client.HandleInbound(buf[:n], net.UDPAddrFromAddrPort(server))
	}
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
	defer r.mu.Unlock()
	if r.closed || r.seen[addr] || len(r.seen) >= maxReached {
		return
	}
	r.seen[addr] = true
	r.addrs <- Reached{Addr: addr, Kind: RelayUDP, At: time.Now()}
	r.log.Debug().Stringer("addr", addr).Stringer("path", RelayUDP).Msg("peer reached")
}

// Addr returns the relayed address: the candidate to tell the peer.
func (r *Relay) Addr() netip.AddrPort { return addrPort(r.leg.local) }

// Kind is how the server is reached: RelayUDP or RelayTLS.
func (r *Relay) Kind() Kind { return RelayUDP }

// Dropped returns how many datagrams were not sent, for want of a permission or
// of a server.
func (r *Relay) Dropped() uint64 { return r.leg.dropped.Load() }

// Transport returns the QUIC transport over the allocation. Close ends it.
func (r *Relay) Transport() *quic.Transport { return r.transport }

// Permit asks the server to let peer's datagrams through, and sends one check
// to peer. Permissions are for an IP address, whatever the port, and refresh
// themselves. The error wraps ErrRelayRefused when the server does not serve
// that peer. It takes a round trip to the server, during which the peer can be
// told of Addr already: its checks take longer to arrive.
func (r *Relay) Permit(ctx context.Context, peer netip.AddrPort) error {
	peer = netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())
	if _, err := (Candidate{Kind: Host, Addr: peer}).Check(); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrClosed
	}
	done := make(chan error, 1)
	r.wg.Go(func() { done <- r.permit(peer) })
	r.mu.Unlock()
	select {
	case <-ctx.Done():
		return fmt.Errorf("relay: %w: %w", ErrNoRelay, context.Cause(ctx))
	case err := <-done:
		return err
	}
}

// permit sends past the leg: the TURN client asks for the permission first,
// and remembers to refresh it.
func (r *Relay) permit(peer netip.AddrPort) error {
	check, err := r.responder.check()
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	if _, err := r.allocated.WriteTo(check, net.UDPAddrFromAddrPort(peer)); err != nil {
		return fmt.Errorf("relay: %w", relayError(err))
	}
	r.leg.permit(peer.Addr())
	return nil
}

// Addrs returns the channel of addresses from which the peer's signed checks
// arrived, each once, at most sixteen. A miner behind an address-dependent NAT
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
		r.closeErr = errors.Join(err, r.conn.Close())
		r.wg.Wait()
	})
	return r.closeErr
}
