package ice

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"mintai/identity"
)

// lookSettle is how long an answer that would have come from another port may
// be behind its sibling: both were sent at the same moment.
const lookSettle = time.Millisecond

// Look is a first look at the network: what can be told after one round trip,
// without waiting for it. A node that asks for a match right away knows no more
// by then; Probe finds out the rest.
type Look struct {
	socket *Socket

	mu    sync.Mutex // guards what follows
	asked []*looked
}

// looked is one request of a Look.
type looked struct {
	id      transactionID
	to      netip.AddrPort
	change  Change
	answers chan probeAnswer // cap 1

	answered probeAnswer
	at       time.Time // of the answer; zero: none yet
	refused  bool      // the server does not do what was asked
}

// Look sends one signed probe to each server, and to the first of each family
// one more that asks for an answer from another port. It shows the coordinator
// the node's addresses as Prove does. It waits for nothing; Close ends it.
func (s *Socket) Look(key *identity.Key, coordinator identity.NodeID, servers []netip.AddrPort) *Look {
	l := &Look{socket: s}
	var v4, v6 bool
	for _, to := range servers {
		if _, err := (Candidate{Addr: to}).Check(); err != nil {
			continue
		}
		to = canonical(to)
		l.ask(key, coordinator, to, 0)
		if done := map[bool]*bool{false: &v4, true: &v6}[to.Addr().Is6()]; !*done {
			*done = true
			l.ask(key, coordinator, to, ChangePort)
		}
	}
	return l
}

func (l *Look) ask(key *identity.Key, coordinator identity.NodeID, to netip.AddrPort, change Change) {
	now := time.Now()
	raw, id := SignProbe(key, coordinator, change, now)
	x := &looked{id: id, to: to, change: change, answers: make(chan probeAnswer, 1)}
	l.mu.Lock()
	l.asked = append(l.asked, x)
	l.mu.Unlock()
	l.socket.contacts.note(to, now)
	l.socket.demux.expect(id, x.answers)
	_, _ = l.socket.transport.WriteTo(raw, net.UDPAddrFromAddrPort(to)) // no route: no answer
}

// Report is what is known by now. A family is nil until something answered over
// it. Mapping and Filtering come from single packets: one that was lost makes a
// network look harder than it is, which costs a relay that was not needed.
func (l *Look) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for _, x := range l.asked {
		select {
		case a := <-x.answers:
			if x.refused = a.refused; !a.refused {
				x.answered, x.at = a, a.at
			}
		default:
		}
	}
	return Report{V4: l.familyLocked(false, now), V6: l.familyLocked(true, now)}
}

func (l *Look) familyLocked(v6 bool, now time.Time) *Family {
	var f *Family
	var first *looked
	servers := make(map[netip.Addr]bool)
	same := true
	var changed *looked // the request for an answer from another port
	settled := false    // its answer would be here
	for _, x := range l.asked {
		if x.change != 0 && x.to.Addr().Is6() == v6 {
			changed = x
		}
	}
	for _, x := range l.asked {
		switch {
		case x.to.Addr().Is6() != v6, x.at.IsZero(), x.change != 0:
		default:
			if first == nil {
				first, f = x, &Family{Observed: x.answered.mapped}
			}
			settled = settled || changed != nil && x.to == changed.to && now.Sub(x.at) >= lookSettle
			servers[x.to.Addr()] = true
			same = same && x.answered.mapped == f.Observed
		}
	}
	if f == nil {
		return nil
	}
	f.NoNAT = l.socket.isLocal(f.Observed)
	switch {
	case f.NoNAT:
		f.Mapping = EndpointIndependent
	case !same:
		f.Mapping, f.Doubtful = AddressDependent, true // or by port as well: as hard for a peer
	case len(servers) > 1:
		f.Mapping = EndpointIndependent
	}
	switch {
	case changed != nil && !changed.at.IsZero() && changed.answered.from.Port() != changed.to.Port():
		f.Filtering = AddressDependent // or none: as easy for a peer
	case settled && !changed.refused: // a clock that is off by minutes, or a server with one port
		f.Filtering = AddressAndPortDependent
	}
	return f
}

// Close forgets what has not been answered.
func (l *Look) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.asked {
		l.socket.demux.forget(x.id)
	}
}
