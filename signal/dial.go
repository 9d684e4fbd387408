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

// dial races the coordinator's addresses, the one that answered last first, and
// returns the first connection whose handshake completes (RFC 8305 §5). Only the
// first address is tried in 0-RTT.
func (n *Node) dial(ctx context.Context) (*link, error) {
	lookup, done := context.WithTimeout(ctx, n.cfg.Deadlines.Dial)
	targets, err := resolve(lookup, n.cfg.Addrs)
	done()
	if err != nil {
		return nil, fmt.Errorf("looking the coordinator up: %w", err)
	}
	n.mu.Lock()
	targets = order(targets, n.preferred)
	n.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		link   *link
		target target
		err    error
	}
	results := make(chan result, len(targets))
	var wg sync.WaitGroup
	started := 0
	start := func() {
		t, early := targets[started], started == 0
		started++
		wg.Go(func() {
			l, err := n.dialOne(ctx, t, early)
			results <- result{l, t, err}
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
				errs = append(errs, fmt.Errorf("%s: %w", r.target.remote, plain(r.err)))
			case won == nil:
				won = r.link
				n.mu.Lock()
				n.preferred = r.target.remote.String()
				n.mu.Unlock()
				cancel()
			default:
				n.discard(r.link, CloseLostRace)
			}
			if r.err != nil && won == nil && ctx.Err() == nil && started < len(targets) {
				start()
			}
		case <-stagger.C:
			if won == nil && started < len(targets) {
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

// plain replaces the many ways in which silence is reported by one.
func plain(err error) error {
	var idle *quic.IdleTimeoutError
	var handshake *quic.HandshakeTimeoutError
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &idle) || errors.As(err, &handshake) {
		return errNoAnswer
	}
	return err
}

// order moves the preferred address to the front.
func order(targets []target, preferred string) []target {
	for i, t := range targets {
		if t.remote.String() == preferred {
			copy(targets[1:i+1], targets[:i])
			targets[0] = t
			break
		}
	}
	return targets
}
