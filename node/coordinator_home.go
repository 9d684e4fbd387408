package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mintai/ice"
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
	// homeRelays bounds the relayed addresses for peers outside that are forwarded
	// at a time: a router at home takes each as a rule of its own.
	homeRelays = 12
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
	mapper portMapper // of what every node must reach
	relay  portMapper // of relayed addresses, asked after the others; nil: none
	// tell prints what came of it, the link too if that is new; nil: only the log
	// says.
	tell func(link bool, lines []string)

	reached atomic.Bool   // by a node from outside
	wake    chan struct{} // holds one: reached has changed

	mu       sync.Mutex // guards what follows
	mappings []portmap.Mapping
	relays   map[uint16]netip.AddrPort // the forwarded ones; it is replaced, never changed
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
	h := &home{c: c, mapper: portmap.New(portmap.Config{Ports: c.mappedPorts(), Log: c.log}), wake: make(chan struct{}, 1)}
	if ports := c.mappedRelays(); len(ports) > 0 {
		h.relay = portmap.New(portmap.Config{Ports: ports, Log: c.log})
	}
	return h
}

// mappedPorts are the ports that every node must reach.
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

// mappedRelays are the first ports of relayed addresses.
func (c *coordinator) mappedRelays() []portmap.Port {
	t := c.cfg.TURN
	if c.turn == nil || t.RelayIP != "" || t.PortMin == 0 {
		return nil
	}
	var out []portmap.Port
	for port := int(t.PortMin); port <= int(t.PortMax) && len(out) < homeRelays; port++ {
		out = append(out, portmap.Port{Number: uint16(port)})
	}
	return out
}

// outsideRelays is how the relay is seen from beyond the router.
func (c *coordinator) outsideRelays() ice.Outside {
	h := c.home
	external := h.external(c.Addr().Port(), false)
	if !portmap.Public(external.Addr()) {
		return ice.Outside{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return ice.Outside{IP: external.Addr(), Ports: h.relays}
}

// run keeps the ports mapped until ctx ends, and tells what came of it each
// time that changes.
func (h *home) run(ctx context.Context) {
	if h == nil {
		return
	}
	var mappers sync.WaitGroup
	defer mappers.Wait()
	mappers.Go(func() { _ = h.mapper.Run(ctx) }) // it ends with ctx only
	var relayed <-chan struct{}
	patience := time.NewTimer(routerWait)
	defer patience.Stop()
	news := homeNews{h: h}
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.mapper.Changed():
		case <-relayed:
		case <-h.wake:
		case <-patience.C:
			news.settled = true
		}
		if relayed == nil && h.relay != nil { // what every node needs has been asked for
			relayed = h.relay.Changed()
			mappers.Go(func() { _ = h.relay.Run(ctx) })
		}
		h.note()
		news.tell(ctx)
	}
}

// note takes over what the router forwards now.
func (h *home) note() {
	mappings := h.mapper.Mappings()
	relays := map[uint16]netip.AddrPort{}
	if h.relay != nil {
		for _, m := range h.relay.Mappings() {
			relays[m.Internal] = m.External
		}
	}
	h.mu.Lock()
	h.mappings, h.relays = mappings, relays
	h.mu.Unlock()
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
	if h == nil || p.OverTLS() {
		return
	}
	from := p.Observed()
	external := h.external(h.c.Addr().Port(), false)
	if from.Addr().Unmap().Is4() && isPublic(from.Addr()) && from.Addr() != external.Addr() && h.reached.CompareAndSwap(false, true) {
		h.c.log.Info().Stringer("addr", from).Str("peer", p.Node().Short()).Msg("reachable from outside: the first node came from there")
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}
