package ice

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/turn/v5"
	"github.com/rs/zerolog"

	"mintai/identity"
)

// TURNConfig configures StartTURN. The zero value listens nowhere: Listen or
// Conns must be given.
type TURNConfig struct {
	// Listen are UDP addresses to open. An unspecified address takes its own
	// family only: for both, list "0.0.0.0:3478" and "[::]:3478".
	Listen []netip.AddrPort
	// Conns are sockets that are open already. The server closes them.
	Conns []net.PacketConn
	// RelayIP is the address that relayed addresses get. Zero means the address
	// of the listener, or, when it listens on every address, the one from which
	// the system would send to the session's miner, whom it is for. Behind a
	// one-to-one NAT it must be set to the public address.
	RelayIP netip.Addr
	// Outside, when set, is asked for each new IPv4 allocation how a NAT shows this
	// machine to sessions whose other end is beyond it. RelayIP goes before it.
	// The server's lock is held: it must return at once and not call the server.
	Outside func() Outside
	// PortMin and PortMax bound the relayed ports, both included. Zero: any.
	PortMin, PortMax uint16
	// Realm is part of the credentials (RFC 8489 §9.2), at most 32 bytes. Empty
	// means "mintai".
	Realm string
	// MaxAllocations bounds the allocations of all sessions. Zero: 256.
	MaxAllocations int
	// PerSession bounds those of one leg of a session. Zero: 3, one in use, one that
	// is tried, and one whose client lost it. One more takes the place of the one
	// whose client is silent for longest.
	PerSession int
	// BytesPerSecond bounds one allocation, both directions together; what is
	// over it is dropped. Zero: 16 MiB. Negative: no bound.
	BytesPerSecond int
	// PeersSpeakFirst lets clients send only to ports from which the session's
	// miner has sent to the relayed address before. Legs answer checks and never
	// begin, so it costs them nothing, and nobody can reach other services at the
	// miner's address, which is the coordinator's own when both share a machine.
	PeersSpeakFirst bool
	// Streams accepts TURN over streams (RFC 8656 §2.1) whose TLS has been taken
	// off already. Nil: none. The server closes it, and its connections.
	Streams net.Listener
	// MaxStreams bounds the connections of Streams that are open at a time, more
	// are closed at once. Zero: 1024.
	MaxStreams int
	// OnAllocated is told of each new relayed address, before its client is: of
	// which session, whether of the miner's leg, and whether the leg came over
	// "udp" or "tls". It is called without locks, but the server's reading waits
	// for it. Nil: nobody is told.
	OnAllocated func(session identity.SessionID, miner bool, relayed netip.AddrPort, over string)
	// MaxPerNode bounds the allocations of all sessions of one node. Zero: 16.
	// Sessions that name no node are not bounded by it.
	MaxPerNode int
	// NodeBytesPerSecond bounds all allocations of one node together, as
	// BytesPerSecond does a single one. Zero: 32 MiB. Negative: no bound.
	NodeBytesPerSecond int
	// Lifetime is how long an allocation lives without a Refresh. Zero: 10
	// minutes, the default of RFC 8656 §3.2.
	Lifetime time.Duration
	Log      zerolog.Logger
	// Tap, when set, sees every datagram that the server receives from clients
	// and peers, before anything looks at it. It must not keep the slice, and is
	// called from several goroutines.
	Tap func([]byte)
}

const (
	defaultRealm       = "mintai"
	defaultAllocations = 256
	defaultPerSession  = 3
	defaultPerNode     = 16
	defaultRate        = 16 << 20
	defaultNodeRate    = 32 << 20
	defaultLifetime    = 10 * time.Minute

	// maxRealm keeps the demand for credentials, which has the realm, within three
	// times the 36 bytes of a client's first request.
	maxRealm = 32
)

func (c *TURNConfig) setDefaults() error {
	if len(c.Listen)+len(c.Conns) == 0 {
		return errors.New("no address to listen on")
	}
	if c.PortMin > c.PortMax {
		return fmt.Errorf("relay ports %d-%d are upside down", c.PortMin, c.PortMax)
	}
	if c.PortMin == 0 && c.PortMax != 0 {
		return fmt.Errorf("relay ports 0-%d: port 0 cannot be relayed", c.PortMax)
	}
	if c.Realm == "" {
		c.Realm = defaultRealm
	}
	if len(c.Realm) > maxRealm {
		return fmt.Errorf("realm %q has more than %d bytes", c.Realm, maxRealm)
	}
	if c.MaxAllocations == 0 {
		c.MaxAllocations = defaultAllocations
	}
	if c.PerSession == 0 {
		c.PerSession = defaultPerSession
	}
	if c.BytesPerSecond == 0 {
		c.BytesPerSecond = defaultRate
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = defaultMaxStreams
	}
	if c.MaxPerNode == 0 {
		c.MaxPerNode = defaultPerNode
	}
	if c.NodeBytesPerSecond == 0 {
		c.NodeBytesPerSecond = defaultNodeRate
	}
	if c.Lifetime == 0 {
		c.Lifetime = defaultLifetime
	}
	c.RelayIP = c.RelayIP.Unmap()
	return nil
}

// TURNServer relays for sessions that Allow told it of, between the two ends of
// each and with nobody else. It answers STUN binding requests of
// anybody (RFC 8489), so nodes can learn their address from it.
type TURNServer struct {
	cfg       TURNConfig
	log       zerolog.Logger
	began     time.Time
	server    *turn.Server
	listeners []*turnListener
	readers   sync.WaitGroup // the server's goroutines, by listener and allocation

	counters turnCounters
	requests requestLimit
	clients  turnClients
	nonces   nonceSource

	mu       sync.Mutex // guards what follows
	closed   bool
	sessions map[string]*turnSession // by user name
	nodes    map[identity.NodeID]*nodeUse
	relays   map[*relayConn]struct{}
	streams  map[*net.TCPAddr]*turnStream
	swept    time.Time // when sessions were last looked through for their end
}

// TURNStats describes the server since its start.
type TURNStats struct {
	Sessions, Allocations int    // now
	BytesToPeers          uint64 // from clients to miners
	BytesToClients        uint64 // from miners to clients
	DroppedRate           uint64 // datagrams over BytesPerSecond
	DroppedPeer           uint64 // datagrams to or from an address that is not the session's
	DroppedFlood          uint64 // requests of a source that sends too many, and answers too long for theirs
	RefusedAuth           uint64 // requests with unknown, expired or wrong credentials
	RefusedPeer           uint64 // permissions asked for another than the session's miner
	RefusedQuota          uint64 // allocations over a limit
	RefusedOther          uint64 // TCP allocations, chosen ports and other unused features
	Malformed             uint64 // datagrams that the server could not use
}

type turnCounters struct {
	toPeers, toClients, droppedRate, droppedPeer, droppedFlood        atomic.Uint64
	refusedAuth, refusedPeer, refusedQuota, refusedOther, failedOther atomic.Uint64
}

// StartTURN opens the listeners and serves until Close.
func StartTURN(cfg TURNConfig) (*TURNServer, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("turn: %w", err)
	}
	t := &TURNServer{
		cfg:      cfg,
		log:      cfg.Log,
		began:    time.Now(),
		sessions: make(map[string]*turnSession),
		nodes:    make(map[identity.NodeID]*nodeUse),
		relays:   make(map[*relayConn]struct{}),
		streams:  make(map[*net.TCPAddr]*turnStream),
	}
	conns := slices.Clone(cfg.Conns)
	for _, addr := range cfg.Listen {
		network := "udp4"
		if !addr.Addr().Unmap().Is4() {
			network = "udp6" // a wildcard of one family leaves the other to its own listener
		}
		conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
			return nil, fmt.Errorf("turn: %w", err)
		}
		_ = conn.SetReadBuffer(legSocketBuffer)
		_ = conn.SetWriteBuffer(legSocketBuffer)
		conns = append(conns, withPktinfo(conn))
	}
	var listeners []turn.PacketConnConfig
	for _, conn := range conns {
		l := newTURNListener(t, conn)
		t.listeners = append(t.listeners, l)
		listeners = append(listeners, turn.PacketConnConfig{
			PacketConn:            l,
			RelayAddressGenerator: &relayGenerator{server: t},
			PermissionHandler:     l.permit,
		})
	}
	t.readers.Add(1)
	t.nonces.conn = newNonceConn(t.readers.Done)
	listeners = append(listeners, turn.PacketConnConfig{PacketConn: t.nonces.conn})
	var streams []turn.ListenerConfig
	if cfg.Streams != nil {
		streams = append(streams, turn.ListenerConfig{
			Listener:              newTURNStreams(t, cfg.Streams),
			RelayAddressGenerator: &relayGenerator{server: t},
			PermissionHandler:     t.permitOnStream,
		})
	}
	server, err := turn.NewServer(turn.ServerConfig{
		PacketConnConfigs:  listeners,
		ListenerConfigs:    streams,
		LoggerFactory:      pionLog{cfg.Log},
		Realm:              cfg.Realm,
		AuthHandler:        t.authenticate,
		QuotaHandler:       t.quota,
		EventHandler:       turn.EventHandler{OnAuth: t.onAuth, OnAllocationCreated: t.onAllocated, OnAllocationError: t.onError},
		AllocationLifetime: cfg.Lifetime,
		// RFC 6156 §4.2: without REQUESTED-ADDRESS-FAMILY the relayed address is
		// IPv4, also for a client that came over IPv6.
		StrictAddressFamily: true,
	})
	if err != nil { // nothing was started
		for _, l := range t.listeners {
			_ = l.Close()
		}
		if cfg.Streams != nil {
			_ = cfg.Streams.Close()
		}
		return nil, fmt.Errorf("turn: %w", err)
	}
	t.server = server
	return t, nil
}

// Addrs returns the addresses that the server listens on, as the system sees
// them.
func (t *TURNServer) Addrs() []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(t.listeners))
	for _, l := range t.listeners {
		out = append(out, addrPort(l.LocalAddr()))
	}
	return out
}

// Realm returns the realm that goes with the credentials.
func (t *TURNServer) Realm() string { return t.cfg.Realm }

// Stats returns the counters of the server.
func (t *TURNServer) Stats() TURNStats {
	c := &t.counters
	st := TURNStats{
		BytesToPeers:   c.toPeers.Load(),
		BytesToClients: c.toClients.Load(),
		DroppedRate:    c.droppedRate.Load(),
		DroppedPeer:    c.droppedPeer.Load(),
		DroppedFlood:   c.droppedFlood.Load(),
		RefusedAuth:    c.refusedAuth.Load(),
		RefusedPeer:    c.refusedPeer.Load(),
		RefusedQuota:   c.refusedQuota.Load(),
		RefusedOther:   c.refusedOther.Load(),
		Malformed:      c.failedOther.Load(),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	st.Sessions, st.Allocations = len(t.sessions), len(t.relays)
	return st
}

// Close frees all allocations and closes all sockets, and waits for the
// goroutines that read them.
func (t *TURNServer) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		t.readers.Wait()
		return nil
	}
	t.closed = true
	relays := slices.Collect(maps.Keys(t.relays))
	streams := slices.Collect(maps.Values(t.streams))
	clear(t.sessions)
	t.mu.Unlock()
	err := t.server.Close()
	for _, s := range streams {
		_ = s.Close()
	}
	for _, r := range relays {
		r.kill()
	}
	t.readers.Wait()
	return err
}

// onError is called by the server for each datagram that it could not serve.
func (t *TURNServer) onError(_, _ net.Addr, _, _ string) { t.counters.failedOther.Add(1) }
