package node

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/signal"
	"mintai/wss"
)

// tlsWay is how a node gets out where UDP is blocked: TCP and TLS, through a
// proxy if the environment names one.
type tlsWay struct{ dialer *wss.Dialer }

func newTLSWay(log zerolog.Logger) tlsWay { return tlsWay{&wss.Dialer{Log: log}} }

// signaling opens a way for the packets of the connection to the coordinator.
func (w tlsWay) signaling(ctx context.Context, addr string) (signal.FallbackConn, error) {
	conn, err := w.dialer.Packets(ctx, addr)
	if err != nil {
		return nil, err // and not a nil of another type
	}
	return conn, nil
}

// turn opens a TURN connection.
func (w tlsWay) turn(ctx context.Context, addr string) (net.Conn, error) {
	return w.dialer.TURN(ctx, addr)
}

// coordinatorAt is where a node reaches its coordinator, and how.
type coordinatorAt struct {
	host    string
	overTLS bool       // nothing else gets through
	ip      netip.Addr // zero: not known
}

// whereIs says where the coordinator answers, or is looked for while it is away.
func whereIs(st signal.Status, m membership) coordinatorAt {
	at := coordinatorAt{overTLS: st.OverTLS}
	if !st.OverTLS { // else it may be a proxy's
		at.ip = st.Remote.Addr().Unmap()
	}
	for _, addr := range append([]string{st.Addr}, m.addrs...) {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			at.host = host
			return at
		}
	}
	return at
}

// mayRelayAt reports whether a relayed address that the coordinator named may be
// sent to: its own, or a public one. One that answers on loopback has every
// address of this machine.
func (at coordinatorAt) mayRelayAt(relay netip.Addr) bool {
	relay = relay.Unmap()
	return relay == at.ip || isPublic(relay) || at.ip.IsLoopback() && slices.Contains(localAddrs(), relay)
}

// place is the coordinator's IP address as this node, and nobody else, knows it:
// where its packets come from, else what its link says; zero for a name.
func (at coordinatorAt) place() netip.Addr {
	if at.ip.IsValid() {
		return at.ip
	}
	ip, err := netip.ParseAddr(at.host)
	if err != nil {
		return netip.Addr{}
	}
	return ip.Unmap()
}

// mayBeAt reports whether something that the coordinator names can be meant: an
// address of loopback or of a link only if the coordinator is there itself.
func (at coordinatorAt) mayBeAt(ip netip.Addr) bool {
	place := at.place()
	return (!ip.IsLoopback() || place.IsLoopback()) && (!ip.IsLinkLocalUnicast() || place.IsLinkLocalUnicast())
}

// believes drops addresses of peers that the coordinator cannot have seen from
// where it is.
func (at coordinatorAt) believes(proven []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(proven))
	for _, a := range proven {
		if at.mayBeAt(a.Addr()) {
			out = append(out, a)
		}
	}
	return out
}

// policy is what a session's Policy is after believes.
func (at coordinatorAt) policy(said *ice.Policy) *ice.Policy {
	return &ice.Policy{Proven: at.believes(said.Proven), Near: said.Near, Relays: said.Relays}
}

// probed are the addresses at which the coordinator may answer probes, of those
// that it names: nothing private when it is itself in the Internet, so that no
// coordinator elsewhere makes this node send to the machines around it.
func (at coordinatorAt) probed(servers []netip.AddrPort) []netip.AddrPort {
	place := at.place()
	out := make([]netip.AddrPort, 0, len(servers))
	for _, a := range at.believes(servers) {
		if _, err := (ice.Candidate{Addr: a}).Check(); err != nil || len(out) == maxProbed {
			continue
		}
		if ip := a.Addr(); isPublic(ip) || ip == place || place.IsValid() && !isPublic(place) {
			out = append(out, a)
		}
	}
	return out
}
