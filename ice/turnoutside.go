package ice

import "net/netip"

// Outside is how a NAT that forwards some ports shows this machine to those
// beyond it. The zero Outside says that there is none, or that nothing is known.
type Outside struct {
	// IP is the address of the NAT.
	IP netip.Addr
	// Ports are the relayed ports that it forwards to this machine, and where it
	// listens for each. When all are taken, or none is there, another port of the
	// range is announced as it is: that works with NATs which keep port numbers,
	// once the relay itself has sent something.
	Ports map[uint16]netip.AddrPort
}

// at is where a port of this machine is seen from outside.
func (o Outside) at(port uint16) netip.AddrPort {
	if a := o.Ports[port]; a.IsValid() {
		return a
	}
	return netip.AddrPortFrom(o.IP, port)
}

// beyond reports whether a session's other end is beyond the NAT, going by the
// addresses at which it was seen, and whether it needs a forwarded port: without
// an address of its own it comes by a relayed one, inside the server.
func (r *rights) beyond() (is, byUDP bool) {
	for peer := range r.peers {
		if peer.IsPrivate() || peer.IsLoopback() || peer.IsLinkLocalUnicast() || shared.Contains(peer) {
			return false, false
		}
		byUDP = byUDP || peer.Is4()
	}
	return true, byUDP
}

// outsideFor says how a session's next relayed address is seen, if its other end
// is beyond a NAT, and which ports it should have while there are any: forwarded
// ones are left to those who need them.
func (t *TURNServer) outsideFor(ts *turnSession, v6 bool) (o Outside, beyond bool, preferred func(port uint16) bool) {
	if t.cfg.Outside != nil && !v6 && !t.cfg.RelayIP.Is4() {
		o = t.cfg.Outside()
	}
	beyond, byUDP := ts.rights.beyond()
	return o, beyond && o.IP.IsValid(), func(port uint16) bool { return o.Ports[port].IsValid() == (beyond && byUDP) }
}
