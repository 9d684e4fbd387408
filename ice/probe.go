package ice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

// ErrNoAnswer is returned by Probe when no server answered at all.
var ErrNoAnswer = errors.New("ice: no STUN server answered")

// ProbeConfig says how Probe measures.
type ProbeConfig struct {
	Key         *identity.Key   // signs the requests
	Coordinator identity.NodeID // whose servers they are
	// Servers are the addresses at which the coordinator answers, of both
	// families; an IP address appears with each of its ports. What can be
	// measured depends on them: mapping by address needs two IP addresses of a
	// family.
	Servers []netip.AddrPort
	// Filtering says that the filtering is measured too. It takes several round
	// trips more.
	Filtering bool
	// RTO is the first retransmission timeout (RFC 8489 §6.2.1). Zero means
	// 500 ms at first, and then twice the measured round trip.
	RTO time.Duration
}

// Report is what Probe found.
type Report struct {
	V4, V6 *Family // nil: no server answered over this family
	// RTT is the round trip to each server that answered without a lost packet.
	RTT map[netip.AddrPort]time.Duration
}

const (
	firstRTO = 500 * time.Millisecond // RFC 8489 §6.2.1
	leastRTO = 100 * time.Millisecond
	// probeSends is Rc of RFC 8489 §6.2.1, which suggests 7: nobody who answers
	// at all loses four requests in a row, and silence has a meaning here.
	probeSends = 4
	// probeLastWait is Rm of RFC 8489 §6.2.1, in first timeouts, after the last.
	probeLastWait = 2
	// contactMemory is longer than a NAT keeps a filter open for an address that
	// was sent to once (RFC 4787 §4.3 asks for 5 min at most of others' REQs).
	contactMemory = 10 * time.Minute
	maxContacts   = 256
)

// Probe measures the NAT before the socket in the way of RFC 5780 §4.3 and
// §4.4, both families at the same time. It returns when all is known, or when
// ctx ends, with what is known by then: behaviors that were not measured are
// Unknown. When nothing answered the error wraps ErrNoAnswer, and the context's
// error if it ended.
//
// The filtering is measured before anything is sent to the other addresses.
// What this socket sent to them earlier, by Prove or Probe, is remembered for
// ten minutes and spoils the distinction between the first two filterings: the
// harder one is reported. Servers at the address that the socket talks to for
// other reasons, which is the coordinator's, should come first.
//
// It disturbs neither QUIC nor sessions.
func (s *Socket) Probe(ctx context.Context, cfg ProbeConfig) (Report, error) {
	p := &prober{cfg: cfg, port: s.demux, contacts: &s.contacts, local: s.isLocal, rtt: make(map[netip.AddrPort]time.Duration)}
	return p.run(ctx)
}

// isLocal reports whether an address is the socket's own.
func (s *Socket) isLocal(addr netip.AddrPort) bool {
	local := s.LocalAddr()
	if addr.Port() != local.Port() {
		return false
	}
	if !local.Addr().IsUnspecified() {
		return addr == local
	}
	return slices.ContainsFunc(systemInterfaces(), func(i netInterface) bool {
		return slices.ContainsFunc(i.addrs, func(a netip.Addr) bool { return a.Unmap().WithZone("") == addr.Addr() })
	})
}

// stunPort sends Binding Requests and gets the answers: the demux of a socket,
// or a network in memory.
type stunPort interface {
	// expect hands what answers the transaction to the channel, without blocking,
	// until forget.
	expect(id transactionID, answers chan<- probeAnswer)
	forget(id transactionID)
	send(raw []byte, to netip.AddrPort) error
}

// probeAnswer is a response to a Binding Request.
type probeAnswer struct {
	from    netip.AddrPort
	mapped  netip.AddrPort // XOR-MAPPED-ADDRESS; zero when refused
	refused bool           // an error response
	raw     []byte         // the message, of which nothing is verified yet
	at      time.Time      // when it came; zero outside of a demux
}

// readAnswer reads a response to a Binding Request. Servers do not sign theirs; who
// expects a signed one verifies raw. It keeps no reference to b.
func readAnswer(b []byte, from netip.AddrPort) (probeAnswer, bool) {
	if kind, _ := classify(b); kind != bindingResponse {
		return probeAnswer{}, false
	}
	m := &stun.Message{Raw: append([]byte(nil), b...)}
	if err := m.Decode(); err != nil {
		return probeAnswer{}, false
	}
	if m.Type.Class == stun.ClassErrorResponse {
		return probeAnswer{from: from, refused: true, raw: m.Raw}, true
	}
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(m); err != nil {
		return probeAnswer{}, false
	}
	addr := addrPort(&net.UDPAddr{IP: mapped.IP, Port: mapped.Port})
	if _, err := (Candidate{Addr: addr}).Check(); err != nil {
		return probeAnswer{}, false
	}
	return probeAnswer{from: from, mapped: addr, raw: m.Raw}, true
}

// prober is one run of Probe.
type prober struct {
	cfg      ProbeConfig
	port     stunPort
	contacts *contacts
	local    func(netip.AddrPort) bool

	mu  sync.Mutex // guards what follows
	rtt map[netip.AddrPort]time.Duration
}

func (p *prober) run(ctx context.Context) (Report, error) {
	var r Report
	v4, v6 := p.servers(netip.Addr.Is4), p.servers(netip.Addr.Is6)
	var wg sync.WaitGroup
	wg.Go(func() { r.V4 = p.family(ctx, v4) })
	wg.Go(func() { r.V6 = p.family(ctx, v6) })
	wg.Wait()
	if r.V4 == nil && r.V6 == nil {
		if err := ctx.Err(); err != nil {
			return Report{}, fmt.Errorf("%w: %w", ErrNoAnswer, err)
		}
		return Report{}, ErrNoAnswer
	}
	r.RTT = p.rtt
	return r, nil
}

// servers returns the usable servers of one family, an IP address with all of
// its ports after the other, in the order of their first mention.
func (p *prober) servers(family func(netip.Addr) bool) [][]netip.AddrPort {
	var out [][]netip.AddrPort
	for _, a := range p.cfg.Servers {
		c, err := Candidate{Addr: a}.Check()
		if err != nil || !family(c.Addr.Addr()) {
			continue
		}
		i := slices.IndexFunc(out, func(of []netip.AddrPort) bool { return of[0].Addr() == c.Addr.Addr() })
		switch {
		case i < 0:
			out = append(out, []netip.AddrPort{c.Addr})
		case !slices.Contains(out[i], c.Addr):
			out[i] = append(out[i], c.Addr)
		}
	}
	return out
}

// family measures one family; nil when nothing answered.
func (p *prober) family(ctx context.Context, servers [][]netip.AddrPort) *Family {
	var first probeAnswer
	var rto time.Duration
	var at int
	for at = range servers {
		var ok bool
		if first, rto, ok = p.ask(ctx, servers[at][0], 0, p.rto(firstRTO), whatever); ok && !first.refused {
			break
		}
		first = probeAnswer{}
	}
	if !first.mapped.IsValid() {
		return nil
	}
	rto = p.rto(max(2*rto, leastRTO))
	servers[0], servers[at] = servers[at], servers[0]
	f := &Family{Observed: first.mapped, NoNAT: p.local(first.mapped)}
	if p.cfg.Filtering {
		f.Filtering = p.filtering(ctx, servers, rto)
	}
	if f.NoNAT {
		f.Mapping = EndpointIndependent
		return f
	}
	f.Mapping, f.Doubtful = p.mapping(ctx, servers, first.mapped, rto)
	return f
}

// rto returns the configured timeout, or else the given one.
func (p *prober) rto(otherwise time.Duration) time.Duration {
	if p.cfg.RTO > 0 {
		return p.cfg.RTO
	}
	return otherwise
}

// filtering is RFC 5780 §4.4, with the tests II and III at the same time: what
// comes in opens nothing.
func (p *prober) filtering(ctx context.Context, servers [][]netip.AddrPort, rto time.Duration) Behavior {
	to := servers[0][0]
	var knownIP bool
	for _, other := range servers[1:] {
		knownIP = knownIP || slices.ContainsFunc(other, p.contacts.recent)
	}
	knownPort := slices.ContainsFunc(servers[0][1:], p.contacts.recent)
	var both, port tested
	var wg sync.WaitGroup
	if len(servers) > 1 {
		wg.Go(func() {
			both = p.changed(ctx, to, ChangeIP|ChangePort, rto, func(from netip.AddrPort) bool {
				return from.Addr() != to.Addr() && from.Port() != to.Port()
			})
		})
	}
	wg.Go(func() {
		port = p.changed(ctx, to, ChangePort, rto, func(from netip.AddrPort) bool {
			return from.Addr() == to.Addr() && from.Port() != to.Port()
		})
	})
	wg.Wait()
	return judgeFiltering(both, port, knownIP, knownPort)
}

// tested is the outcome of one test of filtering.
type tested uint8

const (
	untested tested = iota // not done, or the server did not do its part
	passed                 // the answer came from the other address
	silent                 // no answer came
)

// judgeFiltering reads the outcomes: of the answer from another IP address and
// port, and of that from another port only. An answer from an address that was
// sent to before says less.
func judgeFiltering(both, port tested, knownIP, knownPort bool) Behavior {
	switch {
	case both == passed && !knownIP:
		return EndpointIndependent
	case port == passed && !knownPort, both == passed && !knownPort:
		return AddressDependent
	case port == silent && both != passed:
		return AddressAndPortDependent
	default:
		return Unknown
	}
}

// changed asks for an answer from elsewhere.
func (p *prober) changed(ctx context.Context, to netip.AddrPort, change Change, rto time.Duration, elsewhere func(netip.AddrPort) bool) tested {
	a, _, ok := p.ask(ctx, to, change, rto, elsewhere)
	switch {
	case ok && !a.refused:
		return passed
	case ok || ctx.Err() != nil:
		return untested
	default:
		return silent
	}
}

// mapping is RFC 5780 §4.3: the first address is known already; the second
// request goes to another IP address and the same port, the third to another
// port there. With one IP address only the port can be another: who maps by
// port is found, who maps by address is not.
func (p *prober) mapping(ctx context.Context, servers [][]netip.AddrPort, first netip.AddrPort, rto time.Duration) (b Behavior, doubtful bool) {
	for _, other := range servers[1:] {
		to := other[0]
		if i := slices.IndexFunc(other, func(a netip.AddrPort) bool { return a.Port() == servers[0][0].Port() }); i >= 0 {
			to = other[i]
		}
		second, _, ok := p.ask(ctx, to, 0, rto, whatever)
		switch {
		case !ok || second.refused:
			continue // that address is out of order; another may do
		case second.mapped == first:
			return EndpointIndependent, false
		}
		i := slices.IndexFunc(other, func(a netip.AddrPort) bool { return a != to })
		if i < 0 {
			return AddressDependent, true
		}
		third, _, ok := p.ask(ctx, other[i], 0, rto, whatever)
		switch {
		case !ok || third.refused:
			return AddressDependent, true
		case third.mapped == second.mapped:
			return AddressDependent, false
		default:
			return AddressAndPortDependent, false
		}
	}
	if len(servers[0]) < 2 {
		return Unknown, true
	}
	second, _, ok := p.ask(ctx, servers[0][1], 0, rto, whatever)
	switch {
	case !ok || second.refused:
		return Unknown, true
	case second.mapped == first:
		return EndpointIndependent, true
	default:
		return AddressAndPortDependent, false
	}
}

// whatever accepts an answer from any address: the transaction ID is the proof.
func whatever(netip.AddrPort) bool { return true }

// ask sends one request until it is answered from where it is accepted, or
// refused. It returns the answer and, when nothing was sent twice, the round
// trip; else the current timeout stands for it.
func (p *prober) ask(ctx context.Context, to netip.AddrPort, change Change, rto time.Duration, accept func(netip.AddrPort) bool) (probeAnswer, time.Duration, bool) {
	start := time.Now()
	raw, id := SignProbe(p.cfg.Key, p.cfg.Coordinator, change, start)
	answers := make(chan probeAnswer, probeSends)
	p.port.expect(id, answers)
	defer p.port.forget(id)
	wait := rto
	for sent := 1; sent <= probeSends; sent++ {
		p.contacts.note(to, time.Now())
		if err := p.port.send(raw, to); err != nil {
			return probeAnswer{}, 0, false // no route: the family does not work
		}
		if sent == probeSends {
			wait = probeLastWait * rto
		}
		if a, ok := awaitAnswer(ctx, answers, wait, accept); ok {
			took := wait
			if sent == 1 {
				took = time.Since(start)
				p.took(to, change, took)
			}
			return a, took, true
		}
		if ctx.Err() != nil {
			break
		}
		wait *= 2
	}
	return probeAnswer{}, 0, false
}

// awaitAnswer waits for an answer that counts. Every server's refusal does.
func awaitAnswer(ctx context.Context, answers <-chan probeAnswer, wait time.Duration, accept func(netip.AddrPort) bool) (probeAnswer, bool) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return probeAnswer{}, false
		case <-timer.C:
			return probeAnswer{}, false
		case a := <-answers:
			if a.refused || accept(a.from) {
				return a, true
			}
		}
	}
}

func (p *prober) took(server netip.AddrPort, change Change, d time.Duration) {
	if change == 0 {
		p.mu.Lock()
		p.rtt[server] = d
		p.mu.Unlock()
	}
}

// contacts remembers to which servers a socket has sent: NATs let their answers
// in from then on, whether they would have without or not.
type contacts struct {
	mu sync.Mutex // guards what follows
	at map[netip.AddrPort]time.Time
}

func (c *contacts) note(addr netip.AddrPort, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = make(map[netip.AddrPort]time.Time)
	}
	if _, known := c.at[addr]; !known && len(c.at) >= maxContacts {
		maps.DeleteFunc(c.at, func(_ netip.AddrPort, at time.Time) bool { return now.Sub(at) > contactMemory })
		if len(c.at) >= maxContacts {
			return
		}
	}
	c.at[addr] = now
}

// recent reports whether something went to addr within contactMemory.
func (c *contacts) recent(addr netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.at[addr]
	return ok && time.Since(at) <= contactMemory
}
