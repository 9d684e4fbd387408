package wss

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
)

// Network is what Addr.Network returns.
const Network = "wss"

// Addr is one end of one connection. Two connections never have the same, even
// between the same machines: whoever keeps a state per address keeps one per
// connection.
type Addr struct {
	peer netip.AddrPort
	id   uint64
	out  *queue      // to this end; nil: this end is here
	conn *serverConn // of a Server; nil otherwise
}

var _ net.Addr = (*Addr)(nil)

var lastAddr atomic.Uint64

func newAddr(a net.Addr, out *queue) *Addr {
	return &Addr{peer: addrPort(a), id: lastAddr.Add(1), out: out}
}

// Network returns "wss".
func (a *Addr) Network() string { return Network }

// String is unique among all connections of the process.
func (a *Addr) String() string { return fmt.Sprintf("wss-%d/%s", a.id, a.peer) }

// AddrPort returns the TCP address of that end as seen here: with a proxy in
// between, the proxy's. It says nothing about where the peer's UDP comes from.
func (a *Addr) AddrPort() netip.AddrPort { return a.peer }

// Admit says that the connection is that of a node that was let in, so that it
// keeps its place when all are taken; or, with false, that it no longer is. It
// is for addresses that a Server's Packets returned.
func (a *Addr) Admit(yes bool) {
	if a.conn != nil {
		a.conn.admit(yes)
	}
}

// addrPort returns the address with IPv4 as IPv4, and zero when it is no TCP
// address.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
