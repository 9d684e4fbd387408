package signal

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

// Limits bounds what strangers can cost a coordinator. Zero fields take the
// default that their comment names.
type Limits struct {
	MaxNodes            int     // joined connections; 20,000
	MaxWaiting          int     // connections that have not joined yet; 2,048
	MaxPerClient        int     // connections of one client key at a time, those of several processes; 128. A miner has one.
	HandshakesPerSecond float64 // of all unverified addresses, then they get a Retry (RFC 9000 §8.1.2); 500
	PerIPPerSecond      float64 // handshakes of one IPv4 address or IPv6 /64; 50
	PerIPBurst          int     // 1,000
	MessagesPerSecond   float64 // of one peer, then it is read more slowly; 200
	MessageBurst        int     // 400
}

func (l Limits) withDefaults() Limits {
	setInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	setFloat := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	setInt(&l.MaxNodes, 20_000)
	setInt(&l.MaxWaiting, 2_048)
	setInt(&l.MaxPerClient, 128)
	setFloat(&l.HandshakesPerSecond, 500)
	setFloat(&l.PerIPPerSecond, 50)
	setInt(&l.PerIPBurst, 1_000)
	setFloat(&l.MessagesPerSecond, 200)
	setInt(&l.MessageBurst, 400)
	return l
}

var errHandshakeRate = errors.New("signal: too many handshakes")

// maxGateEntries bounds the table of addresses.
const maxGateEntries = 1 << 14

// gate paces handshakes. An unverified address may be spoofed: it is never
// refused, only asked to come back with a Retry token. A verified one, and one
// that came over TLS, is refused when it is too fast.
type gate struct {
	limits Limits
	all    *rate.Limiter // unverified handshakes of everybody

	mu    sync.Mutex // guards all below
	perIP map[netip.Prefix]*rate.Limiter
}

func newGate(l Limits) *gate {
	return &gate{
		limits: l, all: rate.NewLimiter(rate.Limit(l.HandshakesPerSecond), int(2*l.HandshakesPerSecond)),
		perIP: make(map[netip.Prefix]*rate.Limiter),
	}
}

// needsRetry is the VerifySourceAddress of the UDP transport.
func (g *gate) needsRetry(net.Addr) bool { return !g.all.Allow() }

func (g *gate) admit(info *quic.ClientInfo) error {
	if !info.AddrVerified && !overTLS(info.RemoteAddr) {
		return nil
	}
	if !g.limiter(info.RemoteAddr).Allow() {
		return errHandshakeRate
	}
	return nil
}

func (g *gate) limiter(a net.Addr) *rate.Limiter {
	addr := addrPortOf(a).Addr()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // the zero prefix collects what is no UDP address
	g.mu.Lock()
	defer g.mu.Unlock()
	l, ok := g.perIP[prefix]
	if !ok {
		if len(g.perIP) >= maxGateEntries {
			g.sweepLocked()
		}
		l = rate.NewLimiter(rate.Limit(g.limits.PerIPPerSecond), g.limits.PerIPBurst)
		g.perIP[prefix] = l
	}
	return l
}

// sweepLocked forgets addresses that may do a full burst again anyway, and all
// of them when that frees nothing.
func (g *gate) sweepLocked() {
	now := time.Now()
	for p, l := range g.perIP {
		if l.TokensAt(now) >= float64(g.limits.PerIPBurst) {
			delete(g.perIP, p)
		}
	}
	if len(g.perIP) >= maxGateEntries {
		clear(g.perIP)
	}
}

// counters count events since the start.
type counters struct {
	handshakes, accepted, handshakeFailed, wrongALPN, helloTimeout atomic.Uint64
	joined, joinedTLS, notAdmitted, replaced, rateLimited          atomic.Uint64
	malformed, oversized, outOfOrder, unknown                      atomic.Uint64
	early, replayed, repeated, queueFull                           atomic.Uint64
}

// Counters returns what happened since the start, by snake_case names fit for
// metrics. "nodes" and "early_nonces" are the present numbers, not sums, and
// "handshake_failed" includes handshakes of this moment: the listener shows no
// connection that fails early.
func (s *Server) Counters() map[string]uint64 {
	c := &s.counters
	accepted := c.accepted.Load() // before handshakes, which is never smaller
	nonces, rotations := s.early.size()
	return map[string]uint64{
		"nodes":            uint64(s.Len()),
		"early_nonces":     uint64(nonces),
		"ticket_rotations": rotations,
		"handshakes":       c.handshakes.Load(),
		"handshake_failed": c.handshakes.Load() - accepted + c.handshakeFailed.Load(),
		"wrong_alpn":       c.wrongALPN.Load(),
		"hello_timeout":    c.helloTimeout.Load(),
		"joined":           c.joined.Load(),
		"joined_over_tls":  c.joinedTLS.Load(),
		"not_admitted":     c.notAdmitted.Load(),
		"replaced":         c.replaced.Load(),
		"rate_limited":     c.rateLimited.Load(),
		"malformed":        c.malformed.Load(),
		"oversized":        c.oversized.Load(),
		"out_of_order":     c.outOfOrder.Load(),
		"unknown":          c.unknown.Load(),
		"early_requests":   c.early.Load(),
		"replayed":         c.replayed.Load(),
		"repeated":         c.repeated.Load(),
		"queue_full":       c.queueFull.Load(),
	}
}

// countALPN looks at a ClientHello, and leaves the decision to crypto/tls.
func (s *Server) countALPN(info *tls.ClientHelloInfo) (*tls.Config, error) {
	if !slices.Contains(info.SupportedProtos, ALPN) {
		s.counters.wrongALPN.Add(1)
	}
	return nil, nil
}
