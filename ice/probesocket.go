package ice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// probeSocket is one socket of a ProbeServer. As a net.PacketConn it has
// everything that arrives but Binding Requests, which it answers.
type probeSocket struct {
	*net.UDPConn
	server *ProbeServer
	port   int            // index of the port
	local  netip.AddrPort // the address is unspecified when pktinfo is set
	all    *pktinfoConn   // nil: bound to one address
}

var _ net.PacketConn = (*probeSocket)(nil)

// open opens all sockets. On any error none is open.
func (p *ProbeServer) open() error {
	addrs := p.cfg.Addrs
	if len(addrs) == 0 {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for i, port := range p.cfg.Ports {
		sockets, err := p.openPort(i, port, addrs)
		switch {
		case err == nil:
			p.sockets[i] = sockets
		case i == 1:
			p.log.Warn().Err(err).Uint16("port", port).
				Msg("the second STUN port cannot be opened: how NATs map is told with one port less")
		default:
			return err
		}
	}
	return nil
}

// openTries is how often a port that is free on one address is looked for when
// another address has it taken.
const openTries = 20

func (p *ProbeServer) openPort(index int, port uint16, addrs []netip.Addr) ([]*probeSocket, error) {
	tries := 1
	if port == 0 {
		tries = openTries
	}
	var last error
	for range tries {
		sockets, err := p.openAll(index, port, addrs)
		if err == nil {
			return sockets, nil
		}
		last = err
	}
	return nil, last
}

func (p *ProbeServer) openAll(index int, port uint16, addrs []netip.Addr) (out []*probeSocket, err error) {
	defer func() {
		if err != nil {
			for _, s := range out {
				_ = s.Close()
			}
			out = nil
		}
	}()
	for _, addr := range addrs {
		sockets, err := p.openAddr(index, port, addr)
		if err != nil {
			if len(p.cfg.Addrs) == 0 && addr.Is6() && noSuchFamily(err) {
				continue // nobody asked for IPv6 by name
			}
			return out, err
		}
		out = append(out, sockets...)
		port = sockets[0].local.Port()
	}
	return out, nil
}

func noSuchFamily(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// openAddr opens an address; a wildcard, where the system does not tell the
// destination of a datagram, as all of the machine's addresses that there are.
func (p *ProbeServer) openAddr(index int, port uint16, addr netip.Addr) ([]*probeSocket, error) {
	s, err := p.listen(index, netip.AddrPortFrom(addr, port))
	if err != nil {
		return nil, err
	}
	if !addr.IsUnspecified() {
		return []*probeSocket{s}, nil
	}
	if all, ok := withPktinfo(s.UDPConn).(*pktinfoConn); ok {
		s.all = all
		return []*probeSocket{s}, nil
	}
	port = s.local.Port()
	if err := s.Close(); err != nil {
		return nil, err
	}
	var out []*probeSocket
	for _, a := range machineAddrs() {
		if a.addr.Is6() != addr.Is6() || slices.ContainsFunc(out, func(s *probeSocket) bool { return s.local.Addr() == a.addr }) {
			continue
		}
		s, err := p.listen(index, netip.AddrPortFrom(a.addr, port))
		if err != nil {
			for _, s := range out {
				_ = s.Close()
			}
			return nil, err
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no address to listen on: %w", syscall.EADDRNOTAVAIL)
	}
	return out, nil
}

func (p *ProbeServer) listen(index int, addr netip.AddrPort) (*probeSocket, error) {
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(legSocketBuffer) // as much as the system allows
	_ = conn.SetWriteBuffer(legSocketBuffer)
	return &probeSocket{UDPConn: conn, server: p, port: index, local: addrPort(conn.LocalAddr())}, nil
}

// at returns the socket that has an address on one of the two ports, or nil.
func (p *ProbeServer) at(port int, addr netip.Addr) *probeSocket {
	var all *probeSocket
	for _, s := range p.sockets[port] {
		switch {
		case s.local.Addr() == addr:
			return s
		case s.all != nil && s.local.Addr().Is6() == addr.Is6():
			all = s
		}
	}
	return all
}

// run reads until the socket is closed, when nobody else does.
func (s *probeSocket) run() {
	buf := make([]byte, maxSTUN+1)
	for {
		if _, _, err := s.ReadFrom(buf); err != nil {
			return
		}
		s.server.counters.malformed.Add(1)
	}
}

// ReadFrom returns the next datagram that is no Binding Request.
func (s *probeSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	for failed := 1; ; failed++ {
		n, from, dst, err := s.readTo(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || failed >= maxReadErrors {
				return 0, nil, err
			}
			continue
		}
		failed = 0
		if kind, _ := classify(b[:n]); kind == bindingRequest && dst.IsValid() {
			s.server.serve(s, b[:n], from, dst, time.Now())
			continue
		}
		if s.all != nil && dst.IsValid() {
			s.all.remember(addrPort(from), dst)
		}
		return n, from, nil
	}
}

func (s *probeSocket) readTo(b []byte) (int, net.Addr, netip.Addr, error) {
	if s.all != nil {
		return s.all.readTo(b)
	}
	n, from, err := s.UDPConn.ReadFrom(b)
	return n, from, s.local.Addr(), err
}

// WriteTo sends from the address that the receiver knows.
func (s *probeSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	if s.all != nil {
		return s.all.WriteTo(b, to)
	}
	return s.UDPConn.WriteTo(b, to)
}

// writeFrom sends from an address of the socket.
func (s *probeSocket) writeFrom(b []byte, src netip.Addr, to net.Addr) error {
	var err error
	if s.all != nil {
		_, err = s.all.writeFrom(b, src, to)
	} else {
		_, err = s.UDPConn.WriteTo(b, to)
	}
	return err
}
