package ice

import (
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
)

// gatedConn is a UDP socket with a gate before what is read from it, and an
// allowance for what is written to it. quic-go keeps all of its optimisations
// over it: it reads in batches, and writes with control messages.
type gatedConn struct {
	*net.UDPConn
	batch     *ipv4.PacketConn
	gate      *gate // nil: everybody is heard
	allowance *allowance
}

var _ quic.OOBCapablePacketConn = (*gatedConn)(nil)

func newGatedConn(conn *net.UDPConn, g *gate) *gatedConn {
	return &gatedConn{UDPConn: conn, batch: ipv4.NewPacketConn(conn), gate: g, allowance: newAllowance()}
}

// hears reports whether a datagram may reach QUIC. Packets of connections that
// are up pass without a look.
func (c *gatedConn) hears(b []byte, from net.Addr) bool {
	if !longHeader(b) {
		return true
	}
	now, addr := time.Now(), addrPort(from)
	if c.gate != nil && !c.gate.lets(b, addr, now) {
		return false
	}
	c.allowance.received(addr, len(b), now)
	return true
}

// says reports whether a datagram may leave. One that may not is lost, as on any
// network.
func (c *gatedConn) says(b []byte, to netip.AddrPort) bool {
	if !longHeader(b) || !to.IsValid() {
		return true
	}
	now := time.Now()
	if c.gate != nil {
		c.gate.dialing(to, now)
	}
	return c.allowance.send(to, len(b), now)
}

// ReadBatch is what quic-go reads with where the system can read several
// datagrams at once. A dropped one gets length zero, which quic-go skips: it
// keeps the buffers of a batch by position, so nothing may move.
func (c *gatedConn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	n, err := c.batch.ReadBatch(ms, flags)
	if err != nil {
		return n, err
	}
	for i := range ms[:n] {
		m := &ms[i]
		if !c.hears(m.Buffers[0][:m.N], m.Addr) {
			m.N = 0
		}
	}
	return n, nil
}

// ReadFrom is what quic-go reads with elsewhere.
func (c *gatedConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, addr, err := c.UDPConn.ReadFrom(b)
	if err == nil && !c.hears(b[:n], addr) {
		n = 0
	}
	return n, addr, err
}

// ReadMsgUDP has no reader in quic-go, whose interface asks for it.
func (c *gatedConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	n, oobn, flags, addr, err = c.UDPConn.ReadMsgUDP(b, oob)
	if err == nil && !c.hears(b[:n], addr) {
		n = 0
	}
	return n, oobn, flags, addr, err
}

// WriteMsgUDP is what quic-go writes with where the system takes control
// messages.
func (c *gatedConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	if addr != nil && !c.says(b, addrPort(addr)) {
		return len(b), len(oob), nil
	}
	return c.UDPConn.WriteMsgUDP(b, oob, addr)
}

// WriteTo is what quic-go writes with elsewhere.
func (c *gatedConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	if !c.says(b, addrPort(addr)) {
		return len(b), nil
	}
	return c.UDPConn.WriteTo(b, addr)
}
