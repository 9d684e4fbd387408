package portmap

import (
	"context"
	"net/netip"
	"time"
)

// router is a gateway that answered by one protocol. Its methods may be called
// at the same time for different ports, and end soon after ctx.
type router interface {
	protocol() Protocol
	// add makes or renews a mapping. After an error there may be one all the same:
	// the answer may have been lost.
	add(ctx context.Context, a ask) (Mapping, error)
	// remove deletes what add made for the same port, and nothing of others.
	remove(ctx context.Context, a ask) error
}

// ask is what a router is asked for.
type ask struct {
	port        Port
	nonce       nonce  // PCP: whose mapping it is
	external    uint16 // the port that is wanted, or that we have
	lifetime    time.Duration
	description string
}

func (a ask) mapping(p Protocol, external netip.AddrPort, granted time.Duration, now time.Time) Mapping {
	m := Mapping{Internal: a.port.Number, TCP: a.port.TCP, External: external, Protocol: p}
	if granted > 0 {
		m.Expires = now.Add(min(granted, maxLifetime))
	}
	return m
}

// answer is what a router said to the first question.
type answer struct {
	router   router
	external netip.Addr // as the router tells it; invalid if this protocol does not tell
}

// finder asks whether the gateway speaks a protocol. It returns soon after ctx
// ended, at the latest with the deadline that it brings itself.
type finder func(ctx context.Context, l link) (answer, error)

// network is how the world is reached.
type network struct {
	route   func(toward netip.Addr) (link, error)
	finders map[Protocol]finder
}

// orReal is the real network where nothing else was set.
func (n network) orReal() network {
	if n.route == nil {
		n.route = route
	}
	if n.finders == nil {
		n.finders = map[Protocol]finder{
			PCP:    pcpServer{}.find,
			NATPMP: natpmpServer{}.find,
			UPnP:   ssdpSearch{}.find,
		}
	}
	return n
}
