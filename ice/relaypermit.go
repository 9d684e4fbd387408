package ice

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// maxPermits bounds the addresses for which one leg asks permission.
const maxPermits = 32

// checkPauses are the waits between the checks of a leg to one peer. A check
// may overtake its permission, or find that the peer has none for this leg yet.
var checkPauses = [...]time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}

// Permit asks the server to let peer's datagrams through, and sends checks to
// peer right behind the request, without waiting for its answer. Permissions
// are for an IP address, whatever the port, and refresh themselves; those for
// several peers do not wait for each other. The error wraps ErrRelayRefused
// when the server does not serve that peer. It takes a round trip to the
// server, during which the peer can be told of Addr already, and can be dialed:
// its datagrams take longer to arrive.
func (r *Relay) Permit(ctx context.Context, peer netip.AddrPort) error {
	done, err := r.ask(peer)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("relay: %w: %w", ErrNoRelay, context.Cause(ctx))
	case err := <-done:
		return err
	}
}

// ask does what Permit does and does not wait: the result is sent later.
func (r *Relay) ask(peer netip.AddrPort) (<-chan error, error) {
	peer = netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())
	if _, err := (Candidate{Kind: Host, Addr: peer}).Check(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, ErrClosed
	case len(r.permits) >= maxPermits && !r.permits[peer]:
		return nil, fmt.Errorf("relay: %w: %d addresses have permission already", ErrRelayRefused, maxPermits)
	}
	r.permits[peer] = true
	r.early[peer] = true
	done := make(chan error, 1)
	r.wg.Go(func() {
		err := r.permit(peer)
		if err != nil {
			r.log.Debug().Err(err).Stringer("addr", peer).Msg("no permission for a peer")
		}
		done <- err
	})
	return done, nil
}

// permit sends past the leg: the TURN client asks for the permission first,
// and remembers to refresh it.
func (r *Relay) permit(peer netip.AddrPort) error {
	check, err := r.responder.checkTo(peer)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	if r.leg.permission(peer.Addr()) != none {
		r.asked(peer.Addr()) // for another port of it, or by permitOwnAddress
	}
	if _, err := r.allocated.WriteTo(check, net.UDPAddrFromAddrPort(peer)); err != nil {
		r.leg.refuse(peer.Addr())
		r.mu.Lock()
		delete(r.permits, peer)
		delete(r.early, peer)
		r.mu.Unlock()
		return fmt.Errorf("relay: %w", relayError(err))
	}
	r.leg.permit(peer.Addr(), granted)
	return nil
}

// asked is called when a request for a permission has left: what is sent now
// arrives behind it.
func (r *Relay) asked(ip netip.Addr) {
	r.leg.permit(ip, asked)
	r.mu.Lock()
	defer r.mu.Unlock()
	for peer := range r.early {
		if peer.Addr() != ip || r.closed {
			continue
		}
		delete(r.early, peer)
		r.check(peer)
		r.wg.Go(func() { r.checkOn(peer) })
	}
}

// check sends one check to a peer.
func (r *Relay) check(peer netip.AddrPort) {
	if check, err := r.responder.checkTo(peer); err == nil {
		_, _ = r.leg.WriteTo(check, net.UDPAddrFromAddrPort(peer))
	}
}

// checkOn repeats the check a few times, until the peer was reached.
func (r *Relay) checkOn(peer netip.AddrPort) {
	t := time.NewTimer(checkPauses[0])
	defer t.Stop()
	for _, pause := range checkPauses[1:] {
		select {
		case <-r.leg.done:
			return
		case <-t.C:
		}
		r.mu.Lock()
		reached := r.seen[peer]
		r.mu.Unlock()
		if reached || r.leg.permission(peer.Addr()) == none {
			return
		}
		r.check(peer)
		t.Reset(pause)
	}
}

// permitOwnAddress asks for permission for the relayed address's own IP, where
// another leg over the same server will be. No port is known yet, and
// permissions have none.
func (r *Relay) permitOwnAddress() {
	own := r.Addr()
	if err := r.client.CreatePermission(net.UDPAddrFromAddrPort(own)); err != nil {
		r.leg.refuse(own.Addr())
		r.log.Debug().Err(relayError(err)).Msg("no permission for another leg")
	}
}
