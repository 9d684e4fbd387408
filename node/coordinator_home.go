package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mintai/identity"
	"mintai/portmap"
	"mintai/signal"
)

const (
	// routerWait is how long a router may take to answer before the person is
	// told that there is none.
	routerWait = 6 * time.Second
	// selfTestWait is for one packet to the router and back, tried selfTests times.
	selfTestWait = 500 * time.Millisecond
	selfTests    = 3
)

// portMapper is a portmap.Mapper.
type portMapper interface {
	Run(ctx context.Context) error
	Mappings() []portmap.Mapping
	Changed() <-chan struct{}
}

var _ portMapper = (*portmap.Mapper)(nil)

// home is a coordinator behind a router that is asked to forward its ports. Its
// methods accept a nil receiver, for one that is not.
type home struct {
	c      *coordinator
	mapper portMapper
	tell   func(lines []string) // prints what came of it; nil: only the log says

	reached atomic.Bool // by a node from outside

	mu       sync.Mutex // guards mappings
	mappings []portmap.Mapping
}

// newHome returns nil when the Internet reaches this machine by other means, or
// is not meant to.
func newHome(c *coordinator) *home {
	at := c.Addr().Addr()
	if !c.cfg.PortMap || len(c.cfg.Public) > 0 || at.IsLoopback() || isPublic(at) {
		return nil
	}
	if at.IsUnspecified() && slices.ContainsFunc(localAddrs(), func(a netip.Addr) bool { return a.Is4() && isPublic(a) }) {
		return nil
	}
	return &home{c: c, mapper: portmap.New(portmap.Config{Ports: c.mappedPorts(), Log: c.log})}
}

// mappedPorts are the ports that nodes must reach. Relayed ports are too many
// for a home router: the relay reaches peers from there, who then can answer.
func (c *coordinator) mappedPorts() []portmap.Port {
	udp := []uint16{c.Addr().Port()}
	if c.probes != nil {
		for _, a := range c.probes.Addrs() {
			udp = append(udp, a.Port())
		}
	}
	if c.turn != nil {
		udp = append(udp, c.turnPort())
	}
	var out []portmap.Port
	for i, port := range udp {
		if !slices.Contains(udp[:i], port) {
			out = append(out, portmap.Port{Number: port})
		}
	}
	if port := c.tlsPort(); port != 0 {
		out = append(out, portmap.Port{Number: port, TCP: true})
	}
	return out
}

// run keeps the ports mapped until ctx ends, and tells what came of it each
// time that changes.
func (h *home) run(ctx context.Context) {
	if h == nil {
		return
	}
	var mapper sync.WaitGroup
	defer mapper.Wait()
	mapper.Go(func() { _ = h.mapper.Run(ctx) }) // it ends with ctx only
	nobody := time.NewTimer(routerWait)
	defer nobody.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.mapper.Changed():
			nobody.Stop()
		case <-nobody.C:
		}
		mappings := h.mapper.Mappings()
		h.mu.Lock()
		h.mappings = mappings
		h.mu.Unlock()
		external := h.external(h.c.Addr().Port(), false)
		verdict := reachable(external, h.c.portList(), func() bool { return h.selfTest(ctx) })
		if key := external.String() + verdict; key != told && ctx.Err() == nil {
			told = key
			h.c.log.Info().Stringer("external", external).Str("reachable", verdict).Msg("port mapping")
			if h.tell != nil {
				h.tell([]string{"reachable: " + verdict})
			}
		}
	}
}

// reachable says in a line whether the Internet reaches a coordinator whose
// router has given it an external address, or none. It says no more than is
// known: a test from inside is not one from outside.
func reachable(external netip.AddrPort, ports string, selfTest func() bool) string {
	switch {
	case !external.IsValid():
		return "unknown: the router forwards no ports by itself (UPnP, NAT-PMP, PCP); forward " + ports + " to this machine in it, and set [coordinator] public"
	case !portmap.Public(external.Addr()):
		return fmt.Sprintf("no: the router's own address %s is not public, so there is another NAT behind it (a second router, or the provider's); "+
			"run the coordinator on a machine with a public address", external.Addr())
	case selfTest():
		return fmt.Sprintf("yes: %s leads here, also from inside", external)
	default:
		return fmt.Sprintf("unknown: the router forwards %s, but leads nothing from inside back in; try the link from elsewhere, such as a phone without Wi-Fi", external)
	}
}

// external is where the router listens for a port of ours; zero: nowhere.
func (h *home) external(port uint16, tcp bool) netip.AddrPort {
	if h == nil {
		return netip.AddrPort{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.mappings {
		if m.Internal == port && m.TCP == tcp {
			return m.External
		}
	}
	return netip.AddrPort{}
}

// port is a port of ours as a node knows it, which is outside or not.
func (h *home) port(port uint16, tcp, outside bool) uint16 {
	if external := h.external(port, tcp); outside && external.Port() != 0 {
		return external.Port()
	}
	return port
}

// selfTest sends a packet to the external address of the probe server, from
// another socket, and reports whether it was answered.
func (h *home) selfTest(ctx context.Context) bool {
	to := h.external(h.c.stunPort(), false)
	if !to.IsValid() {
		return false
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	return probed(conn, to)
}

// probed asks a STUN server, and reports whether it answered.
func probed(conn *net.UDPConn, to netip.AddrPort) bool {
	request := make([]byte, 20) // RFC 8489 §5: type, length, magic cookie, transaction ID
	binary.BigEndian.PutUint16(request, 0x0001)
	binary.BigEndian.PutUint32(request[4:], 0x2112A442)
	_, _ = rand.Read(request[8:]) // never fails: crypto/rand aborts the process instead
	answer := make([]byte, 1500)
	for range selfTests {
		if _, err := conn.WriteToUDPAddrPort(request, to); err != nil {
			return false
		}
		_ = conn.SetReadDeadline(time.Now().Add(selfTestWait))
		for {
			n, _, err := conn.ReadFromUDPAddrPort(answer)
			if err != nil {
				break
			}
			if n >= len(request) && binary.BigEndian.Uint16(answer) == 0x0101 && bytes.Equal(answer[8:20], request[8:]) {
				return true
			}
		}
	}
	return false
}

// joined notes the first node that came from outside: whatever the router says,
// from then on the Internet is known to reach this machine.
func (h *home) joined(p *signal.Peer) {
	if h == nil {
		return
	}
	from := p.Observed()
	external := h.external(h.c.Addr().Port(), false)
	if isPublic(from.Addr()) && from.Addr() != external.Addr() && h.reached.CompareAndSwap(false, true) {
		h.c.log.Info().Stringer("addr", from).Str("peer", p.Node().Short()).Msg("reachable from outside: the first node came from there")
	}
}

// announceHome prints what came of asking the router.
func (c *coordinator) announceHome(w io.Writer, secret identity.Secret, lines []string) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	external := c.home.external(c.Addr().Port(), false)
	if external.IsValid() && portmap.Public(external.Addr()) {
		link := c.link(append([]string{external.String()}, c.places().internet...), secret)
		link.TLSPort = c.home.port(link.TLSPort, true, true)
		link.STUNPort = c.home.port(link.STUNPort, false, true)
		printLink(p, "Internet", link)
	}
	for _, line := range lines {
		p("  %s", line)
	}
}
