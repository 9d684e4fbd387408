package node

import (
	"context"
	"errors"
	"time"

	"mintai/identity"
	"mintai/signal"
)

// troubleEvery is how often a miner looks whether its coordinator takes it.
const troubleEvery = time.Second

// sayTrouble tells the miner's owner why there is no connection to the
// coordinator, once for each reason, until ctx ends.
func (m *miner) sayTrouble(ctx context.Context) error {
	tick := time.NewTicker(troubleEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		st := m.sig.Status()
		switch {
		case st.Connected:
			said = ""
		case st.Err != nil && ctx.Err() == nil:
			if line := troubleLine(m.cfg.Membership, st.Err); line != said {
				said = line
				m.log.Warn().Msg(line + "; trying again")
			}
		}
	}
}

// troubleLine is why a miner is not connected, and what to do about it.
func troubleLine(member membership, err error) string {
	var refused *signal.RefusedError
	var changed *identity.KeyChangedError
	switch {
	case errors.As(err, &refused) && refused.Close == signal.CloseNotAdmitted:
		e := explainRefused(refused, err)
		e.Hint = "ask its owner for the current join link"
		return e.line()
	case errors.As(err, &refused):
		return explainRefused(refused, err).line()
	case errors.As(err, &changed):
		return (&Error{Message: changed.Error()}).line()
	case errors.Is(err, identity.ErrPeer):
		return (&Error{Message: "not the coordinator that is named by " + string(member.origin) + ": " + err.Error()}).line()
	default:
		return unreachableError(member, err, err).line()
	}
}
