package node

import (
	"context"
	"errors"
	"fmt"

	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
)

// winner names the path of a finished handshake.
func (r *race) winner(d dialed) *won {
	w := &won{tunnel: d.tunnel, hop: d.via}
	if d.via.kind.Relayed() {
		w.reason = r.relayReason()
	} else if d.via.kind == ice.Prflx && (r.fanOut != nil || r.probe != nil) {
		w.reason = ice.PortsProbed
	} else {
		w.reason = directReason(d.via, r.reason)
	}
	return w
}

// relayReason says why the packets pass a relay.
func (r *race) relayReason() ice.Reason {
	switch {
	case r.expect == ice.RelayNeeded && r.reason != 0:
		return r.reason
	case r.heard():
		return ice.HandshakeFailed
	case r.expect == ice.Doubtful && r.reason != 0: // what was suspected has shown itself
		return r.reason
	default:
		return ice.NothingCame
	}
}

// sweep closes what lost the race, as replaced: answers may wait at the miner for
// the tunnel that won, and the miner may learn of this end before.
func (r *race) sweep(w *won) {
	close(r.dialed)
	for d := range r.dialed {
		if d.tunnel != nil {
			_ = d.tunnel.Close(quicstream.Replaced)
		}
	}
	close(r.opened)
	for o := range r.opened {
		if o.leg != nil {
			_ = o.leg.Close()
		}
	}
	close(r.fanned)
	for f := range r.fanned {
		if f.out != nil {
			_ = f.out.Close()
		}
	}
	if r.leg != nil && (w == nil || w.hop.leg != r.leg) {
		_ = r.leg.Close()
	}
	if r.fan != nil && (w == nil || w.hop.leg != r.fan) {
		_ = r.fan.Close()
	}
}

// failure explains why no way worked. PathError.Session and Miner are the
// caller's to fill.
func (r *race) failure(ctx context.Context) error {
	if context.Cause(ctx) != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	why := "no direct packet came through"
	switch {
	case r.expect == ice.RelayNeeded && r.reason != 0:
		why = "a relay is needed (" + reasonText(r.reason, r.minerName) + ")"
	case r.heard():
		why = "the direct handshake did not finish"
	}
	switch {
	case r.relayOff:
		why += ", and relays are turned off here (relay = \"never\")"
	case r.openRelay == nil && (r.legWanted || !r.minerLeg):
		why += ", and no relay may be used: the coordinator lends none, or " + r.minerName + " wants none"
	case r.relayErr != nil:
		why += "; the relay failed: " + r.relayErr.Error()
	case r.leg != nil:
		why += "; the relay was open but the miner did not answer through it"
	case r.minerLeg:
		why += "; the miner did not come to the relay in time"
	case r.relayWanted:
		why += "; the relay did not answer in time"
	}
	return &PathError{Reason: why, Err: r.lastErr}
}

// PathError says that no tunnel to the miner came up.
type PathError struct {
	Session identity.SessionID
	Miner   string
	Reason  string
	Err     error // the last handshake's failure; nil when none was possible
}

func (e *PathError) Error() string {
	text := fmt.Sprintf("session %s: no path to %s: %s", e.Session.Short(), e.Miner, e.Reason)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the last handshake's failure.
func (e *PathError) Unwrap() error { return e.Err }
