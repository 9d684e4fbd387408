package node

import (
	"context"
	"net/netip"
	"time"

	"mintai/identity"
	"mintai/quicstream"
)

const (
	// silenceLook is how often a miner looks at what its clients send.
	silenceLook = 100 * time.Millisecond
	// clientSilence is how long a client whose request runs may acknowledge
	// nothing: it acknowledges each heartbeat. A false alarm costs two packets.
	clientSilence = 700 * time.Millisecond
	// silenceTold is between two reports of where this miner is, in one silence,
	// maxSilenceTold how many there are.
	silenceTold    = 2 * time.Second
	maxSilenceTold = 5
)

// silences watches for clients that have fallen silent in a request. Their path
// may be dead at this end: a NAT that has forgotten its mappings lets nothing in
// any more, not even the coordinator's words, until something goes out.
type silences map[silentTunnel]*silentSince

// silentTunnel names one tunnel.
type silentTunnel struct {
	peer   identity.NodeID
	remote netip.AddrPort
	since  time.Time
}

type silentSince struct {
	received uint64
	at       time.Time // of the last packet
	told     int
	next     time.Time
}

// look reports whether a client has been silent for so long that the coordinator
// should be shown from where this miner sends.
func (s silences) look(now time.Time, tunnels []quicstream.TunnelInfo) (tell bool) {
	live := make(map[silentTunnel]bool, len(tunnels))
	for _, t := range tunnels {
		if t.Requests == 0 {
			continue
		}
		key := silentTunnel{t.Peer, t.Remote, t.Since}
		live[key] = true
		seen := s[key]
		switch {
		case seen == nil:
			s[key] = &silentSince{received: t.PacketsReceived, at: now}
		case seen.received != t.PacketsReceived:
			*seen = silentSince{received: t.PacketsReceived, at: now}
		case now.Sub(seen.at) >= clientSilence && seen.told < maxSilenceTold && !now.Before(seen.next):
			seen.told++
			seen.next = now.Add(silenceTold)
			tell = true
		}
	}
	for key := range s {
		if !live[key] {
			delete(s, key)
		}
	}
	return tell
}

// watchClients shows the coordinator from where this miner sends when a client
// falls silent, until ctx ends.
func (m *miner) watchClients(ctx context.Context) {
	s := silences{}
	every(ctx, silenceLook, func(now time.Time) {
		if s.look(now, m.server.Tunnels()) {
			m.log.Debug().Msg("a client has fallen silent in a request")
			m.network.prove()
			m.sendLease()
		}
	})
}
