package node

import (
	"context"
	"net"
	"net/netip"

	"github.com/rs/zerolog"

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
// sent to: its own, or a public one.
func (at coordinatorAt) mayRelayAt(relay netip.Addr) bool {
	relay = relay.Unmap()
	return relay == at.ip || isPublic(relay)
}
