package ice

import (
	"net"
	"net/netip"

	"github.com/rs/zerolog"

	"mintai/identity"
)

// ProbeServerConfig configures StartProbes.
type ProbeServerConfig struct {
	// Coordinator is whom probes must be signed for.
	Coordinator identity.NodeID
	// Addrs are the addresses to answer at. An unspecified address means all of
	// this machine's addresses of its family. None: all of both families.
	Addrs []netip.Addr
	// Ports are the two ports that are opened on each address; zero is any free
	// one, the same on all addresses. The first is 3478 by custom.
	Ports [2]uint16
	// Shared leaves the reading of the first port to whoever gets Conns: a
	// TURNServer that listens on the same sockets.
	Shared bool
	// OnProof is told where a node's signed packet came from, once per packet.
	// It is called from several goroutines and must not block. May be nil.
	OnProof func(Proof)
	Log     zerolog.Logger
	// Tap, when set, sees every datagram before anything looks at it. It must not
	// keep the slice, and is called from several goroutines.
	Tap func([]byte)
}

// ProbeServer answers STUN Binding Requests.
type ProbeServer struct{}

// StartProbes opens the sockets and answers until Close.
func StartProbes(cfg ProbeServerConfig) (*ProbeServer, error) { return &ProbeServer{}, nil }

// Addrs returns the addresses to announce to nodes (signalpb.Welcome.stun).
func (p *ProbeServer) Addrs() []netip.AddrPort { return nil }

// Conns returns the sockets of the first port, without the Binding Requests that
// arrive there: for TURNConfig.Conns.
func (p *ProbeServer) Conns() []net.PacketConn { return nil }

// ProbeStats describes the server since its start.
type ProbeStats struct {
	Answered  uint64 // requests that were answered
	Proofs    uint64 // addresses proven, each packet once
	Replayed  uint64 // signed requests that proved nothing: seen before, or off the clock
	Refused   uint64 // requests with a wrong signature or asking for what is not given
	Flood     uint64 // requests of a source, or in all, that are too many
	Malformed uint64 // datagrams that are no Binding Request
}

// Stats returns the counters of the server.
func (p *ProbeServer) Stats() ProbeStats { return ProbeStats{} }

// Close closes all sockets and waits for the goroutines that read them.
func (p *ProbeServer) Close() error { return nil }
