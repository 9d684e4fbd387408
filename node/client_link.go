package node

import (
	"context"
	"errors"
	"time"

	"mintai/quicstream"
	"mintai/signal/signalpb"
)

// pendingLink is a connect under way, shared by everyone who waits for it.
type pendingLink struct {
	owner *session // whose grant is used for it
	stop  context.CancelFunc
	done  chan struct{}
	link  *link
	err   error // errAbandoned: connect with another session
}

// errAbandoned says that a connect was given up because its session is over.
var errAbandoned = errors.New("the session is over")

// abandon ends the connect that uses the session's grant, if there is one.
func (c *client) abandon(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.dialing[s.miner]; p != nil && p.owner == s {
		delete(c.dialing, s.miner)
		p.stop()
	}
}

// linkTo returns the tunnel to the session's miner, opening it if need be.
// Sessions with one miner share one tunnel.
func (c *client) linkTo(s *session) *pendingLink {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.links[s.miner]; l != nil && !closedOnPurpose(l.Err()) {
		p := &pendingLink{done: make(chan struct{}), link: l}
		close(p.done)
		return p
	}
	if p := c.dialing[s.miner]; p != nil {
		return p
	}
	p := &pendingLink{owner: s, done: make(chan struct{})}
	if c.closed || c.lifetime == nil {
		p.err = context.Canceled
		close(p.done)
		return p
	}
	c.dialing[s.miner] = p
	s.uses++ // until the tunnel is gone: a relay is lent for this session
	connecting, stop := context.WithCancel(c.lifetime)
	p.stop = stop
	c.wg.Add(1)
	go c.establish(c.lifetime, connecting, s, p)
	return p
}

// establish opens one tunnel and then stays with it until it is gone.
func (c *client) establish(ctx, connecting context.Context, s *session, p *pendingLink) {
	defer c.wg.Done()
	defer p.stop()
	started := time.Now()
	c.report(s, signalpb.TunnelState_TUNNEL_CONNECTING, nil)
	l, err := c.connector.connect(connecting, s, wanted{})
	c.mu.Lock()
	switch {
	case c.dialing[s.miner] == p:
		delete(c.dialing, s.miner)
	case ctx.Err() == nil:
		err = errAbandoned
	}
	if err == nil && c.closed {
		err = context.Canceled
	}
	if err == nil {
		l.owner = s
		l.route = newRoute(c, s, l)
		c.links[s.miner] = l
	}
	c.mu.Unlock()
	if err != nil {
		if l != nil {
			l.close(quicstream.Cancelled)
		}
		c.log.Debug().Err(err).Str("session", s.id.Short()).Str("peer", s.miner.Short()).Msg("no tunnel")
		c.report(s, signalpb.TunnelState_TUNNEL_FAILED, nil)
		if !errors.Is(err, context.Canceled) && !errors.Is(err, errAbandoned) {
			c.metrics.tunnelFailed(s.expectReason)
			c.receipt(s, account{outcome: signalpb.Outcome_OUTCOME_NO_PATH}) // while the session is known
		}
		c.forget(s)
		c.end("no path", s)
		p.err = err
		close(p.done)
		return
	}
	p.link = l
	close(p.done)
	c.metrics.tunnelUp(l.Path(), time.Since(started))
	l.route.run(ctx)
	c.done(l.route.s)
}

// report tells the coordinator how the tunnel is. It is lost when the
// coordinator is away: the tunnel does not need it.
func (c *client) report(s *session, state signalpb.TunnelState, l *link) {
	status := &signalpb.TunnelStatus{Session: s.id[:], State: state}
	if l != nil {
		fillStatus(status, l.Path(), l.Stats())
	}
	_ = c.sig.Send(&signalpb.Envelope{Message: &signalpb.Envelope_TunnelStatus{TunnelStatus: status}})
}

// reattach speaks of the tunnels that are up, or being opened, on a new connection
// to the coordinator. What that tells of a session, such as the address of the
// miner's relay, it sends to the connection that spoke of the session last.
func (c *client) reattach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.dialing {
		c.report(p.owner, signalpb.TunnelState_TUNNEL_CONNECTING, nil)
	}
	for _, l := range c.links {
		c.report(l.owner, signalpb.TunnelState_TUNNEL_UP, l)
	}
}

func fillStatus(m *signalpb.TunnelStatus, p Path, st quicstream.Stats) {
	m.PathKind, m.PathReason, m.RttUs = p.Kind, p.Reason, st.RTT.Microseconds()
	m.Reason = signalpb.PathReason(p.reason)
	m.BytesSent, m.BytesReceived = st.BytesSent, st.BytesReceived
	m.PacketsSent, m.PacketsLost = st.PacketsSent, st.PacketsLost
}
