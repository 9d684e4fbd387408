package signal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// target is one resolved address of the coordinator.
type target struct {
	addr   string // as configured
	remote netip.AddrPort
}

// resolve looks all configured names up, in order.
func resolve(ctx context.Context, addrs []string) ([]target, error) {
	var targets []target
	var errs []error
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		number, err := net.DefaultResolver.LookupPort(ctx, "udp", port)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, ip := range ips {
			targets = append(targets, target{addr, netip.AddrPortFrom(ip.Unmap(), uint16(number))})
		}
	}
	if len(targets) == 0 {
		return nil, &dialError{errs}
	}
	return targets, nil
}

// dialing is a race in a goroutine of its own. Whoever holds it takes its result
// or drops it.
type dialing struct {
	cancel context.CancelFunc
	result chan dialed // cap 1
}

type dialed struct {
	link *link // nil with err
	err  error
}

func (n *Node) start(ctx context.Context, dial func(context.Context, bool) (*link, error), early bool) *dialing {
	ctx, cancel := context.WithCancel(ctx)
	d := &dialing{cancel, make(chan dialed, 1)}
	n.dials.Go(func() {
		defer cancel()
		l, err := dial(ctx, early)
		d.result <- dialed{l, err}
	})
	return d
}

// dropDial ends a race whose result nobody needs, without waiting.
func (n *Node) dropDial(d *dialing) {
	d.cancel()
	n.dials.Go(func() {
		if r := <-d.result; r.link != nil {
			n.discard(r.link, CloseLostRace)
		}
	})
}

// dial connects over UDP, and over TLS when no handshake over UDP has completed
// after its head start. The first complete handshake wins. When that is the one
// over TLS, the race over UDP goes on and is returned too; nil: it has failed.
func (n *Node) dial(ctx context.Context) (*link, *dialing, error) {
	n.mu.Lock()
	blocked := n.blocked
	n.trouble = nil
	n.mu.Unlock()
	udp := n.start(ctx, n.dialUDP, true)
	if n.cfg.Fallback == nil || len(n.cfg.TLSAddrs) == 0 {
		r := <-udp.result
		return r.link, nil, r.err
	}
	headStart := n.cfg.Deadlines.Fallback
	if blocked { // the last time, so that nothing is to be expected of UDP
		headStart = 0
	}
	timer := time.NewTimer(headStart)
	defer timer.Stop()
	var overTLS *dialing
	var overTLSResult chan dialed // nil until it starts
	begin := func() {
		if overTLS == nil {
			overTLS = n.start(ctx, n.dialTLS, false)
			overTLSResult = overTLS.result
		}
	}
	udpResult := udp.result
	var errs [2]error
	for errs[0] == nil || errs[1] == nil {
		select {
		case r := <-udpResult:
			if r.err == nil {
				if overTLS != nil && errs[1] == nil {
					n.dropDial(overTLS)
				}
				return r.link, nil, nil
			}
			errs[0], udpResult = r.err, nil
			begin()
		case <-timer.C:
			begin()
		case r := <-overTLSResult:
			if r.err != nil {
				errs[1], overTLSResult = r.err, nil
				continue
			}
			if errs[0] != nil {
				udp = nil
			}
			return r.link, udp, nil
		}
	}
	return nil, nil, &dialError{errs[:]}
}

// dialUDP races the coordinator's addresses. Only the first is tried in 0-RTT.
func (n *Node) dialUDP(ctx context.Context, early bool) (*link, error) {
	lookup, done := context.WithTimeout(ctx, n.cfg.Deadlines.Dial)
	targets, err := resolve(lookup, n.cfg.Addrs)
	done()
	if err != nil {
		err = &AttemptError{Err: fmt.Errorf("looking the coordinator up: %w", err)}
		n.note(ctx, err)
		return nil, err
	}
	var attempts []attempt
	for _, t := range targets {
		w := way{addr: t.addr, trusted: t.addr, remote: net.UDPAddrFromAddrPort(t.remote), transport: n.cfg.Transport}
		attempts = append(attempts, attempt{t.remote.String(), false, func(ctx context.Context, early bool) (*link, error) {
			return n.handshake(ctx, w, early)
		}})
	}
	return n.race(ctx, attempts, &n.preferred, early)
}

// dialTLS races the ways over TLS. None is early: the Hello of one that loses to
// UDP could arrive after that of the winner, and replace it at the coordinator.
func (n *Node) dialTLS(ctx context.Context, _ bool) (*link, error) {
	var attempts []attempt
	for _, addr := range n.cfg.TLSAddrs {
		attempts = append(attempts, attempt{addr, true, func(ctx context.Context, _ bool) (*link, error) {
			return n.dialOverTLS(ctx, addr)
		}})
	}
	return n.race(ctx, attempts, &n.preferredTLS, false)
}

// attempt is one entrant of a race.
type attempt struct {
	addr    string // in errors, and to remember the winner
	overTLS bool   // all of a race are, or none
	dial    func(ctx context.Context, early bool) (*link, error)
}

// race makes the attempts, the one that succeeded last first, each when the one
// before has failed or had its head start, and returns the first link (RFC 8305
// §5). Only the first attempt may be early. winner is guarded by Node.mu.
func (n *Node) race(ctx context.Context, attempts []attempt, winner *string, early bool) (*link, error) {
	n.mu.Lock()
	preferFirst(attempts, *winner)
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		link    *link
		attempt attempt
		err     error
	}
	results := make(chan result, len(attempts))
	var wg sync.WaitGroup
	started := 0
	start := func() {
		a, early := attempts[started], early && started == 0
		started++
		wg.Go(func() {
			l, err := a.dial(ctx, early)
			results <- result{l, a, err}
		})
	}
	start()
	stagger := time.NewTicker(n.cfg.Deadlines.Stagger)
	defer stagger.Stop()
	var won *link
	var errs []error
	for ended := 0; ended < started; {
		select {
		case r := <-results:
			ended++
			switch {
			case r.err != nil:
				err := &AttemptError{Addr: r.attempt.addr, OverTLS: r.attempt.overTLS, Err: plain(r.err)}
				errs = append(errs, err)
				n.note(ctx, err)
			case won == nil:
				won = r.link
				n.mu.Lock()
				*winner = r.attempt.addr
				n.mu.Unlock()
				cancel()
			default:
				n.discard(r.link, CloseLostRace)
			}
			if r.err != nil && won == nil && ctx.Err() == nil && started < len(attempts) {
				start()
			}
		case <-stagger.C:
			if won == nil && started < len(attempts) {
				start()
			}
		}
	}
	wg.Wait()
	if won == nil {
		return nil, &dialError{errs}
	}
	return won, nil
}

// maxTrouble is how many failed attempts are remembered.
const maxTrouble = 16

// note remembers why one attempt failed, for those who cannot wait until all
// have failed.
func (n *Node) note(ctx context.Context, err error) {
	if ctx.Err() != nil { // it was cancelled
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.status.Connected && len(n.trouble) < maxTrouble {
		n.trouble = append(n.trouble, err)
	}
}

// WhyNot is the newest known reason for having no connection; nil: none yet. While
// the first dialing is under way it holds what has failed so far, of which
// Status.Err tells nothing. How each way failed is in its *AttemptError.
func (n *Node) WhyNot() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.status.Err == nil && len(n.trouble) > 0 {
		return &dialError{n.trouble}
	}
	return n.status.Err
}

// AttemptError says how one way to the coordinator failed.
type AttemptError struct {
	Addr    string // host:port; empty: it could not be looked up
	OverTLS bool
	Err     error
}

// Error names the way and the reason.
func (e *AttemptError) Error() string {
	switch {
	case e.Addr == "":
		return e.Err.Error()
	case e.OverTLS:
		return e.Addr + " over TLS: " + e.Err.Error()
	}
	return e.Addr + ": " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *AttemptError) Unwrap() error { return e.Err }

// Silent reports whether the reason is that nothing came.
func (e *AttemptError) Silent() bool { return errors.Is(e.Err, errNoAnswer) }

// dialError holds why each address failed. Unlike errors.Join it takes one line.
type dialError struct{ errs []error }

func (e *dialError) Error() string {
	lines := make([]string, len(e.errs))
	for i, err := range e.errs {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "; ")
}

func (e *dialError) Unwrap() []error { return e.errs }

// plain replaces the many ways in which silence is reported by one, and leaves
// of a lost way over TLS the reason only.
func plain(err error) error {
	var idle *quic.IdleTimeoutError
	var handshake *quic.HandshakeTimeoutError
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &idle) || errors.As(err, &handshake) {
		return errNoAnswer
	}
	var lost interface{ Unwrap() []error } // net.ErrClosed and the cause
	if errors.Is(err, quic.ErrTransportClosed) && errors.As(err, &lost) {
		if causes := lost.Unwrap(); len(causes) > 0 && causes[len(causes)-1] != nil {
			return causes[len(causes)-1]
		}
	}
	return err
}

// preferFirst moves the attempt that won a race before to the front.
func preferFirst(attempts []attempt, winner string) {
	for i, a := range attempts {
		if a.addr == winner {
			copy(attempts[1:i+1], attempts[:i])
			attempts[0] = a
			break
		}
	}
}
