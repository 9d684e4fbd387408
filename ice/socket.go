// Package ice finds a path between two nodes and carries nothing over it.
//
// A Socket is the one UDP socket of a node: QUIC owns it, STUN is taken out of
// it and drives ICE agents (RFC 8445, by pion/ice). A Session tells the address
// of its peer as soon as an authenticated check arrives from there; the caller
// then dials QUIC to that address over the same socket. Where no direct path
// exists, a Relay is the client's leg over a TURN server (RFC 8656), and a
// TURNServer is the server of such legs, which lends a session nothing but the
// observed addresses of that session's miner.
//
// A Socket also measures the NAT before it (Probe) and shows the coordinator
// from which addresses it sends (Prove); Predict says what two such NATs do to
// a pair of peers. What a session may send to is its Policy's to say.
//
// The package knows neither the coordinator's protocol nor what is in the
// tunnel.
package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/pion/transport/v2"
	"github.com/pion/transport/v2/stdnet"
	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"
)

// ErrClosed is returned by everything that is used after its Close.
var ErrClosed = errors.New("ice: closed")

// SocketConfig configures Listen. The zero value listens on every address of
// the machine, on a port that the system chooses.
type SocketConfig struct {
	// Listen is the local address. Zero means the wildcard of both families and
	// any free port; a port alone can be given with an unspecified address.
	Listen netip.AddrPort
	// Loopback binds to 127.0.0.1, so that nothing outside the machine reaches
	// the socket. The port of Listen still counts.
	Loopback bool
	// IPFilter, when set, is asked about each address of the machine before it
	// is offered to peers.
	IPFilter func(netip.Addr) bool
	// Gate keeps QUIC handshakes of strangers from QUIC: only addresses of
	// sessions that were admitted, and those that this socket dials, are heard.
	// It is for nodes that accept connections; see Admit.
	Gate bool
	// PunchFile is the file by which all processes of a node bound their runs of
	// hard-NAT probing together; it is made when missing. Empty, or where it cannot
	// be had: the socket bounds its own.
	PunchFile string
	Log       zerolog.Logger
}

// Socket is the one UDP socket of a node. QUIC, signaling and ICE checks of
// all sessions share it, and so they share one NAT mapping.
type Socket struct {
	cfg       SocketConfig
	log       zerolog.Logger
	conn      *net.UDPConn
	transport *quic.Transport
	demux     *demux
	gate      *gate // nil: everybody is heard
	contacts  contacts
	punches   punchLimit
	net       transport.Net // of pion, which else asks the system for every agent
	stop      context.CancelFunc
	wg        sync.WaitGroup

	nominateAfter time.Duration // the constant, but for tests

	mu        sync.Mutex // guards what follows
	closed    bool
	sessions  map[*Session]struct{}
	stopPunch context.CancelFunc // of the run that began last; nil: none did
}

// Listen opens the socket and starts the goroutine that reads STUN from it.
// Close ends both.
func Listen(cfg SocketConfig) (*Socket, error) {
	quietBuffers()
	conn, err := listenUDP(cfg)
	if err != nil {
		return nil, fmt.Errorf("ice: %w", err)
	}
	pionNet, err := stdnet.NewNet()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("ice: reading the machine's interfaces: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var owned net.PacketConn = conn
	var g *gate
	if cfg.Gate {
		g = newGate()
		owned = newGatedConn(conn, g)
	}
	s := &Socket{
		cfg:       cfg,
		log:       cfg.Log,
		conn:      conn,
		transport: &quic.Transport{Conn: owned}, // asks for socket buffers of 7 MB
		gate:      g,
		net:       pionNet,
		punches:   punchLimit{path: cfg.PunchFile, log: cfg.Log},
		stop:      stop,
		sessions:  make(map[*Session]struct{}),

		nominateAfter: nominateAfter,
	}
	s.demux = newDemux(s.transport)
	if err := s.demux.arm(); err != nil {
		stop()
		_ = conn.Close()
		return nil, fmt.Errorf("ice: %w", err)
	}
	s.wg.Go(func() { s.demux.run(ctx) })
	return s, nil
}

// quietBuffers keeps quic-go from printing to standard error that the system
// grants less than 7 MB of socket buffer, as most do to ordinary users. The
// variable is its documented switch; who has set it is left alone.
func quietBuffers() {
	const name = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"
	if _, set := os.LookupEnv(name); !set {
		_ = os.Setenv(name, "true") // fails for malformed names only
	}
}

func listenUDP(cfg SocketConfig) (*net.UDPConn, error) {
	listen := cfg.Listen
	if cfg.Loopback {
		listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), listen.Port())
	}
	if !listen.Addr().IsValid() {
		// An IPv6 wildcard takes IPv4 as well, where the machine has IPv6 at all.
		return net.ListenUDP("udp", &net.UDPAddr{Port: int(listen.Port())})
	}
	return net.ListenUDP("udp", net.UDPAddrFromAddrPort(listen))
}

// Transport returns the QUIC transport that owns the socket. It is closed by
// Close, which ends its connections without a word to the peers: close those
// first.
func (s *Socket) Transport() *quic.Transport { return s.transport }

// LocalAddr returns the address that the socket is bound to. The IP is
// unspecified when it is bound to every address.
func (s *Socket) LocalAddr() netip.AddrPort { return addrPort(s.conn.LocalAddr()) }

// SocketStats counts the datagrams that were not QUIC, from the opening of the
// socket on.
type SocketStats struct {
	Received  uint64 // datagrams that QUIC handed over
	Malformed uint64 // not STUN, or not a well-formed message
	Unknown   uint64 // STUN of no open session
	Overflow  uint64 // dropped because a session did not keep up, or had too many sources
	Forbidden uint64 // checks and answers from addresses that a policy forbids
	Withheld  uint64 // checks that were not sent: too many went to that address in vain
	Gated     uint64 // QUIC handshake packets of strangers, dropped by the gate
	Sessions  int    // open sessions
}

// Stats returns the counters of the socket.
func (s *Socket) Stats() SocketStats {
	st := s.demux.stats()
	if s.gate != nil {
		st.Gated = s.gate.dropped.Load()
	}
	s.mu.Lock()
	st.Sessions = len(s.sessions)
	s.mu.Unlock()
	return st
}

// Close closes all sessions, the transport and the socket, and waits until
// every goroutine has ended.
func (s *Socket) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closed = true
	sessions := make([]*Session, 0, len(s.sessions))
	for x := range s.sessions {
		sessions = append(sessions, x)
	}
	if s.stopPunch != nil {
		s.stopPunch()
	}
	s.mu.Unlock()

	var errs []error
	for _, x := range sessions {
		errs = append(errs, x.Close())
	}
	s.stop()
	errs = append(errs, s.transport.Close(), s.conn.Close())
	s.wg.Wait()
	return errors.Join(errs...)
}
