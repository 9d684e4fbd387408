package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"mintai/ice"
)

// tlsRelayAfter is how long a relay over UDP may take before it is tried over
// TLS as well.
const tlsRelayAfter = 750 * time.Millisecond

// nextRelayAfter is how long one relay may take until the other is tried as well.
const nextRelayAfter = 250 * time.Millisecond

// relayOpener opens a leg of a client or of a miner.
type relayOpener struct {
	at      coordinatorAt
	dialTLS func(context.Context, string) (net.Conn, error)
	log     zerolog.Logger
}

// open opens a leg at one relay.
func (o relayOpener) open(ctx context.Context, cfg ice.RelayConfig, lent *lentRelay) (*ice.Relay, error) {
	one := *lent
	one.config = cfg
	relay, _, err := o.openAny(ctx, []*lentRelay{&one}, func(*ice.RelayConfig) {})
	return relay, err
}

// openAny tries the ways to the relays, each a little after the one before, and
// keeps the first that works. Each relay is tried by its best way before any is
// by another. It says which relay it is.
func (o relayOpener) openAny(ctx context.Context, lents []*lentRelay, complete func(*ice.RelayConfig)) (*ice.Relay, *lentRelay, error) {
	var first, more []relayTry
	for i, lent := range lents {
		cfg := lent.config
		complete(&cfg)
		cfg.Log = o.log
		if len(cfg.Permit) > 0 {
			cfg.Peer = cfg.Permit[0].Addr() // where the coordinator sees the other end
		}
		for j, way := range o.tries(cfg, lent) {
			switch {
			case j > 0:
				more = append(more, relayTry{way, lent, tlsRelayAfter})
			case i > 0:
				first = append(first, relayTry{way, lent, nextRelayAfter})
			default:
				first = append(first, relayTry{way, lent, 0})
			}
		}
	}
	tries := append(first, more...)
	if len(tries) == 0 {
		return nil, nil, errors.New("the coordinator named no relay")
	}
	return firstRelay(ctx, tries)
}

// relayTry is one way to one relay.
type relayTry struct {
	cfg   ice.RelayConfig
	lent  *lentRelay
	after time.Duration // the one before, unless that has failed
}

// tries are the ways to the relay, the most promising first. Over UDP that is
// where the coordinator answers: a name would have to be looked up once more, and
// may have addresses that lead nowhere from here. It comes last, for a relay that
// has another address than signaling.
func (o relayOpener) tries(cfg ice.RelayConfig, lent *lentRelay) []ice.RelayConfig {
	var tries []ice.RelayConfig
	add := func(server string, dial func(context.Context) (net.Conn, error)) {
		next := cfg
		next.Server, next.Dial = server, dial
		tries = append(tries, next)
	}
	at := func(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
	overTLS := func() {
		if lent.tlsPort != 0 && o.dialTLS != nil {
			addr := at(o.at.host, lent.tlsPort)
			add(addr, func(ctx context.Context) (net.Conn, error) { return o.dialTLS(ctx, addr) })
		}
	}
	if o.at.overTLS {
		overTLS()
	}
	byIP := lent.port != 0 && o.at.ip.IsValid()
	if byIP {
		add(at(o.at.ip.String(), lent.port), nil)
	}
	for _, url := range lent.urls {
		add(url, nil)
		tries[len(tries)-1].Within = o.at.mayBeAt
	}
	_, err := netip.ParseAddr(o.at.host)
	byName := lent.port != 0 && (!byIP || err != nil)
	if byName && !byIP {
		add(at(o.at.host, lent.port), nil)
	}
	if !o.at.overTLS {
		overTLS()
	}
	if byName && byIP {
		add(at(o.at.host, lent.port), nil)
	}
	return tries
}

// openOne is ice.OpenRelay. Where nothing says of which family the relayed
// address must be, because the other end comes to a relay of its own, it is IPv4,
// and IPv6 with a coordinator that has nothing else.
func openOne(ctx context.Context, cfg ice.RelayConfig) (*ice.Relay, error) {
	relay, err := ice.OpenRelay(ctx, cfg)
	if errors.Is(err, ice.ErrRelayRefused) && !cfg.Peer.IsValid() {
		cfg.Peer = netip.IPv6Unspecified()
		if second, serr := ice.OpenRelay(ctx, cfg); serr == nil {
			return second, nil
		}
	}
	return relay, err
}

// firstRelay starts the tries one after the other: the next when one fails or
// takes long. All have ended when it returns.
func firstRelay(ctx context.Context, tries []relayTry) (*ice.Relay, *lentRelay, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		relay *ice.Relay
		lent  *lentRelay
		err   error
	}
	results := make(chan outcome, len(tries))
	next := time.NewTimer(0)
	defer next.Stop()
	var won outcome
	var first error
	for started, ended := 0, 0; ended < len(tries) && (won.relay == nil || ended < started); {
		select {
		case <-next.C:
			if won.relay != nil || started == len(tries) {
				continue
			}
			try := tries[started]
			started++
			go func() {
				relay, err := openOne(ctx, try.cfg)
				results <- outcome{relay, try.lent, err}
			}()
			if started < len(tries) {
				next.Reset(tries[started].after)
			}
		case o := <-results:
			ended++
			switch {
			case o.err == nil && won.relay == nil:
				won = o
				cancel()
			case o.err == nil:
				_ = o.relay.Close()
			case first == nil:
				first = o.err
			}
			if won.relay == nil {
				next.Reset(0)
			}
		}
	}
	if won.relay == nil {
		return nil, nil, first
	}
	return won.relay, won.lent, nil
}
