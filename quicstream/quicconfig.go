package quicstream

import (
	"time"

	"github.com/quic-go/quic-go"

	"mintai/api"
)

// Limits of the wire that both ends share.
const (
	// MaxHeaderBytes bounds the head of a request and of an answer.
	MaxHeaderBytes = api.MaxHeader
	// streamWindow is how far a client lets an answer run ahead of its reader
	// (RFC 9000 §4.1). The answer buffer keeps at least as much, so that every
	// byte in flight can be sent again on another connection.
	streamWindow = 6 << 20

	handshakeTimeout = 5 * time.Second
	keepAlive        = 15 * time.Second
)

// clientQUIC is the configuration of a dialing tunnel: it receives answers.
func clientQUIC(relayed bool, idle time.Duration) *quic.Config {
	c := baseQUIC(idle)
	c.InitialStreamReceiveWindow = 1 << 20
	c.MaxStreamReceiveWindow = streamWindow
	c.InitialConnectionReceiveWindow = 2 << 20
	c.MaxConnectionReceiveWindow = 16 << 20
	c.MaxIncomingStreams = -1 // RFC 9114 §6.1: servers open no request streams
	c.DisablePathMTUDiscovery = relayed
	return c
}

// serverQUIC is the configuration of an accepting tunnel: it receives prompts
// from strangers, so its windows bound memory.
func serverQUIC(maxStreams int64, idle time.Duration) *quic.Config {
	c := baseQUIC(idle)
	c.InitialStreamReceiveWindow = 256 << 10
	c.MaxStreamReceiveWindow = 1 << 20
	c.InitialConnectionReceiveWindow = 1 << 20
	c.MaxConnectionReceiveWindow = 4 << 20
	c.MaxIncomingStreams = maxStreams
	return c
}

func baseQUIC(idle time.Duration) *quic.Config {
	return &quic.Config{
		Versions:              []quic.Version{quic.Version1},
		HandshakeIdleTimeout:  handshakeTimeout,
		MaxIdleTimeout:        idle, // the shorter one of both ends counts (RFC 9000 §10.1)
		KeepAlivePeriod:       keepAlive,
		InitialPacketSize:     1200, // RFC 9000 §14.1; more dies in a 1280-byte network behind a relay
		MaxIncomingUniStreams: 8,    // RFC 9114 §6.2: control, QPACK encoder and decoder, and a margin for reserved types
		EnableDatagrams:       true, // for the heartbeat only
		// The bytes before a reset arrive: a client sees all tokens up to the
		// failure, then the error.
		EnableStreamResetPartialDelivery: true,
	}
}
