package signal

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"mintai/signal/signalpb"
)

// move looks for a way over UDP while a link over TLS serves, and makes the link
// that follows it before that one is left:
//
//	dialing --handshake--> greeting --Welcome--> moved --one round trip--> from ends,
//	   ^  |                    |                                           next serves
//	   |  +---- no answer -----+
//	   +--- Deadlines.Retry ---+
type move struct {
	node   *Node
	from   *link
	cancel context.CancelFunc // ends dialing and waiting, not greeting
	done   chan struct{}
	next   *link // nil: none; written before done is closed
}

// startMove starts with a race that still runs, or with a pause when udp is nil.
// finish must be called.
func (n *Node) startMove(ctx context.Context, from *link, udp *dialing) *move {
	m := &move{node: n, from: from, done: make(chan struct{})}
	dialing, cancel := context.WithCancel(ctx)
	m.cancel = cancel
	go m.run(ctx, dialing, udp)
	return m
}

func (m *move) run(ctx, dialing context.Context, udp *dialing) {
	defer close(m.done)
	for {
		if udp != nil {
			if l := udp.await(dialing); l != nil && m.take(ctx, l) {
				m.retire(dialing)
				return
			}
		}
		if !m.pause(dialing) {
			return
		}
		udp = m.node.start(dialing, m.node.dialUDP, false)
	}
}

// await returns the race's link, or nil. The end of ctx ends the race.
func (d *dialing) await(ctx context.Context) *link {
	select {
	case r := <-d.result:
		return r.link
	case <-ctx.Done():
		d.cancel()
		return (<-d.result).link
	}
}

// pause waits for the next try, and reports false when ctx ended.
func (m *move) pause(ctx context.Context) bool {
	pause := float64(m.node.cfg.Deadlines.Retry) * (0.75 + rand.Float64()/2)
	timer := time.NewTimer(time.Duration(pause))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// take greets the coordinator on l, and moves over when it welcomes this node:
// from now on everything is sent on l.
func (m *move) take(ctx context.Context, l *link) bool {
	n := m.node
	w, err := m.greet(ctx, l)
	if err != nil {
		n.cfg.Log.Debug().Err(err).Msg("the coordinator answers over UDP, but did not take this node there; it stays on TLS")
		n.discard(l, CloseDone)
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l.complete = true
	n.link = l
	n.publishLocked(l, w)
	n.flushLocked(l, n.askAgainLocked(m.from, l)...)
	m.next = l
	return true
}

// retire ends the link over TLS. What is under way on it arrives before, in both
// directions; ctx ends when there is nothing to wait for.
func (m *move) retire(ctx context.Context) {
	timer := time.NewTimer(min(m.from.conn.ConnectionStats().SmoothedRTT, linger))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.from.conn.Context().Done():
	case <-ctx.Done():
	}
	m.from.abort(CloseLostRace, ErrMoved)
}

// greet sends the Hello, if it was not sent early, and reads the Welcome.
func (m *move) greet(ctx context.Context, l *link) (*signalpb.Welcome, error) {
	n := m.node
	if l.coordinator != m.from.coordinator {
		return nil, errors.New("another coordinator than over TLS")
	}
	if l.stream == nil {
		hello, err := n.open(l)
		if err != nil {
			return nil, err
		}
		if err := l.out.send(hello); err != nil {
			return nil, err
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan struct{})
	defer close(ended)
	wg.Go(func() { n.leave(ctx, l, ended) })
	return l.readWelcome(n.cfg.Deadlines.Welcome)
}

// finish ends the search, because the link over TLS ended with err, and returns
// the link that follows it, or nil. It may be called often. A coordinator that
// has replaced that link, as it does with a miner's, was greeted by another: then
// the race under way is that one's, and is awaited.
func (m *move) finish(err error) *link {
	if m == nil {
		return nil
	}
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Close != CloseReplaced {
		m.cancel()
	}
	select {
	case <-m.done:
	case <-time.After(m.node.cfg.Deadlines.Dial):
		m.cancel()
		<-m.done
	}
	m.cancel()
	return m.next
}
