package ice

import (
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
)

// gatedConn is the node's UDP socket with a gate before what is read from it.
// quic-go keeps all of its optimisations over it: it reads in batches, and
// writes with control messages.
type gatedConn struct {
	*net.UDPConn
	batch *ipv4.PacketConn
	gate  *gate
}

var _ quic.OOBCapablePacketConn = (*gatedConn)(nil)

func newGatedConn(conn *net.UDPConn, g *gate) *gatedConn {
	return &gatedConn{UDPConn: conn, batch: ipv4.NewPacketConn(conn), gate: g}
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
		if b := m.Buffers[0][:m.N]; longHeader(b) && !c.gate.lets(b, addrPort(m.Addr), time.Now()) {
			m.N = 0
		}
	}
	return n, nil
}

// ReadFrom is what quic-go reads with elsewhere.
func (c *gatedConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, addr, err := c.UDPConn.ReadFrom(b)
	if err == nil && longHeader(b[:n]) && !c.gate.lets(b[:n], addrPort(addr), time.Now()) {
		n = 0
	}
	return n, addr, err
}

// ReadMsgUDP has no reader in quic-go, whose interface asks for it.
func (c *gatedConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	n, oobn, flags, addr, err = c.UDPConn.ReadMsgUDP(b, oob)
	if err == nil && longHeader(b[:n]) && !c.gate.lets(b[:n], addrPort(addr), time.Now()) {
		n = 0
	}
	return n, oobn, flags, addr, err
}

// WriteMsgUDP is what quic-go writes with where the system takes control
// messages.
func (c *gatedConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	if longHeader(b) && addr != nil {
		c.gate.dialing(addrPort(addr), time.Now())
	}
	return c.UDPConn.WriteMsgUDP(b, oob, addr)
}

// WriteTo is what quic-go writes with elsewhere.
func (c *gatedConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	if a := addrPort(addr); longHeader(b) && a != (netip.AddrPort{}) {
		c.gate.dialing(a, time.Now())
	}
	return c.UDPConn.WriteTo(b, addr)
}
