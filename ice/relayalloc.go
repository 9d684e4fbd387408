package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	stunv4 "github.com/pion/stun/v4"
	"github.com/pion/turn/v5"
)

// allocation is the outcome of one try.
type allocation struct {
	wire   *turnWire
	client *turn.Client
	relay  net.PacketConn
	reader *sync.WaitGroup
	err    error
}

func (a allocation) discard() {
	if a.err != nil {
		return
	}
	_ = a.relay.Close()
	a.client.Close()
	_ = a.wire.Close()
	a.reader.Wait()
}

// allocateAny tries the addresses, each a little after the one before, and
// keeps the first allocation. All tries have ended when it returns.
func allocateAny(ctx context.Context, cfg RelayConfig, addrs []*net.UDPAddr) (allocation, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan allocation, len(addrs))
	for i, addr := range addrs {
		go func() {
			if !pause(ctx, time.Duration(i)*relayStagger) {
				results <- allocation{err: ctx.Err()}
				return
			}
			results <- allocateUDP(ctx, cfg, addr)
		}()
	}
	var winner allocation
	var errs []error
	for range addrs {
		switch a := <-results; {
		case a.err != nil:
			errs = append(errs, a.err)
		case winner.relay != nil:
			a.discard()
		default:
			winner = a
			cancel()
		}
	}
	if winner.relay == nil {
		return allocation{}, relayError(errs...)
	}
	return winner, nil
}

func pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// relayError tells an answer that refuses from no answer, in one line.
func relayError(errs ...error) error {
	for _, err := range errs {
		var refused *stunv4.TurnError
		if errors.As(err, &refused) {
			return fmt.Errorf("%w: %d %s", ErrRelayRefused, refused.ErrorCodeAttr.Code, refused.ErrorCodeAttr.Reason)
		}
	}
	for _, err := range errs {
		if !errors.Is(err, context.Canceled) || len(errs) == 1 {
			return fmt.Errorf("%w: %w", ErrNoRelay, err)
		}
	}
	return ErrNoRelay
}

func allocateUDP(ctx context.Context, cfg RelayConfig, server *net.UDPAddr) allocation {
	network := "udp4"
	if server.IP.To4() == nil {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return allocation{err: err}
	}
	_ = conn.SetReadBuffer(legSocketBuffer) // as much as the system allows
	_ = conn.SetWriteBuffer(legSocketBuffer)
	return allocate(ctx, cfg, newUDPWire(conn, server), relayRTO)
}

// allocateStream opens one stream, since whoever dials it knows where to.
func allocateStream(ctx context.Context, cfg RelayConfig) (allocation, error) {
	conn, err := cfg.Dial(ctx)
	if err != nil {
		return allocation{}, fmt.Errorf("%w: %w", ErrNoRelay, err)
	}
	a := allocate(ctx, cfg, newStreamWire(conn), streamRTO)
	if a.err != nil {
		return allocation{}, relayError(a.err)
	}
	return a, nil
}

// allocate asks for an allocation over wire, which it closes when that fails.
func allocate(ctx context.Context, cfg RelayConfig, wire *turnWire, rto time.Duration) allocation {
	family := turn.RequestedAddressFamilyIPv4
	if cfg.Peer.Is6() && !cfg.Peer.Is4In6() {
		family = turn.RequestedAddressFamilyIPv6
	}
	client, err := turn.NewClient(&turn.ClientConfig{
		TURNServerAddr:         wire.server.String(),
		Username:               cfg.Username,
		Password:               cfg.Password,
		Realm:                  cfg.Realm,
		RTO:                    rto,
		Conn:                   wire,
		LoggerFactory:          pionLog{cfg.Log},
		RequestedAddressFamily: family,
	})
	if err != nil {
		_ = wire.Close()
		return allocation{err: err}
	}
	wire.client = client
	wire.expect(cfg.Realm, cfg.Nonce)
	reader := new(sync.WaitGroup)
	wire.start(reader)
	relay, err := client.AllocateWithContext(ctx)
	if isStale(err) {
		relay, err = client.AllocateWithContext(ctx) // with the nonce that came with the refusal
	}
	if err != nil {
		client.Close()
		_ = wire.Close()
		reader.Wait()
		return allocation{err: err}
	}
	return allocation{wire: wire, client: client, relay: newFirstWrites(relay), reader: reader}
}

// isStale reports whether the server wants another nonce (RFC 8489 §9.2.5).
func isStale(err error) bool {
	var refused *stunv4.TurnError
	return errors.As(err, &refused) && refused.ErrorCodeAttr.Code == stunv4.CodeStaleNonce
}
