package ice

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// maxReachedClients bounds what a pktinfoConn remembers; beyond it, it forgets
// everything and learns again from the next datagrams.
const maxReachedClients = 8192

// pktinfoConn is a UDP socket bound to every address of a machine that answers
// from the address that was asked. A plain socket lets the route choose the
// source, and a client behind a NAT, or one that compares addresses as RFC 8489
// wants, never sees the answer of a machine with several addresses.
type pktinfoConn struct {
	*net.UDPConn
	v4 *ipv4.PacketConn // one of the two is set
	v6 *ipv6.PacketConn

	mu      sync.RWMutex // guards reached
	reached map[netip.AddrPort]netip.Addr
}

// withPktinfo wraps a socket of one family that is bound to every address.
// Where the system cannot tell the destination of a datagram, or there is only
// one, the socket is returned as it is.
func withPktinfo(conn *net.UDPConn) net.PacketConn {
	local := addrPort(conn.LocalAddr()).Addr()
	if !local.IsUnspecified() {
		return conn
	}
	p := &pktinfoConn{UDPConn: conn, reached: make(map[netip.AddrPort]netip.Addr)}
	var err error
	if local.Is4() {
		p.v4 = ipv4.NewPacketConn(conn)
		err = p.v4.SetControlMessage(ipv4.FlagDst, true)
	} else {
		p.v6 = ipv6.NewPacketConn(conn)
		err = p.v6.SetControlMessage(ipv6.FlagDst, true)
	}
	if err != nil {
		return conn
	}
	return p
}

// ReadFrom returns the next datagram and remembers which address it was for.
func (p *pktinfoConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, dst, err := p.readTo(b)
	if err == nil && dst.IsValid() {
		p.remember(addrPort(from), dst)
	}
	return n, from, err
}

// readTo returns the next datagram with the address that it was for, zero when
// the system does not say, and remembers nothing.
func (p *pktinfoConn) readTo(b []byte) (n int, from net.Addr, to netip.Addr, err error) {
	var dst net.IP
	if p.v4 != nil {
		var cm *ipv4.ControlMessage
		if n, cm, from, err = p.v4.ReadFrom(b); cm != nil {
			dst = cm.Dst
		}
	} else {
		var cm *ipv6.ControlMessage
		if n, cm, from, err = p.v6.ReadFrom(b); cm != nil {
			dst = cm.Dst
		}
	}
	if err != nil {
		return 0, nil, netip.Addr{}, err
	}
	to, _ = netip.AddrFromSlice(dst)
	return n, from, to.Unmap(), nil
}

func (p *pktinfoConn) remember(from netip.AddrPort, dst netip.Addr) {
	if p.source(from) == dst {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.reached) >= maxReachedClients {
		clear(p.reached)
	}
	p.reached[from] = dst
}

// source returns the address that to last sent to, or the zero Addr.
func (p *pktinfoConn) source(to netip.AddrPort) netip.Addr {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.reached[to]
}

// WriteTo sends from the address that the receiver knows.
func (p *pktinfoConn) WriteTo(b []byte, to net.Addr) (int, error) {
	return p.writeFrom(b, p.source(addrPort(to)), to)
}

// writeFrom sends from src, or from where the route leads when that is zero.
func (p *pktinfoConn) writeFrom(b []byte, src netip.Addr, to net.Addr) (int, error) {
	switch {
	case !src.IsValid():
		return p.UDPConn.WriteTo(b, to)
	case p.v4 != nil:
		return p.v4.WriteTo(b, &ipv4.ControlMessage{Src: src.AsSlice()}, to)
	default:
		return p.v6.WriteTo(b, &ipv6.ControlMessage{Src: src.AsSlice()}, to)
	}
}
