package ice

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

// natNet is a NAT with a STUN server behind it, in memory. It is the stunPort
// of a prober, and lives in a bubble of virtual time.
type natNet struct {
	mapping, filtering Behavior
	noNAT              bool
	servers            []netip.AddrPort
	down               func(netip.AddrPort) bool // servers that do not answer
	disobeys           bool                      // refuses CHANGE-REQUEST
	ignores            bool                      // answers as if there were no CHANGE-REQUEST
	noRoute            bool
	lose               func(n int) bool // whether the n-th request is lost on its way
	rtt                time.Duration

	mu       sync.Mutex // guards what follows
	answers  map[transactionID]chan<- probeAnswer
	requests []netip.AddrPort
	mapped   map[netip.AddrPort]netip.AddrPort   // by what the mapping depends on
	sentTo   map[netip.AddrPort][]netip.AddrPort // by mapped address
	changes  int
}

const natRTT = 40 * time.Millisecond

var (
	natOwn    = netip.MustParseAddrPort("192.0.2.77:5000")
	natOne    = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:3478"), netip.MustParseAddrPort("198.51.100.1:3479")}
	natTwo    = append(slices.Clone(natOne), netip.MustParseAddrPort("198.51.100.2:3478"), netip.MustParseAddrPort("198.51.100.2:3479"))
	natSix    = []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:3478"), netip.MustParseAddrPort("[2001:db8::1]:3479")}
	natNobody = func(netip.AddrPort) bool { return false }
)

func newNATNet(mapping, filtering Behavior, servers ...netip.AddrPort) *natNet {
	return &natNet{
		mapping: mapping, filtering: filtering, servers: servers, down: natNobody, rtt: natRTT,
		lose:    func(int) bool { return false },
		answers: make(map[transactionID]chan<- probeAnswer),
		mapped:  make(map[netip.AddrPort]netip.AddrPort),
		sentTo:  make(map[netip.AddrPort][]netip.AddrPort),
	}
}

// like cuts an address to what a behavior looks at.
func (b Behavior) like(a netip.AddrPort) netip.AddrPort {
	switch b {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(a.Addr(), 0)
	default:
		return a
	}
}

func (n *natNet) expect(id transactionID, answers chan<- probeAnswer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[id] = answers
}

func (n *natNet) forget(id transactionID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.answers, id)
}

func (n *natNet) send(raw []byte, to netip.AddrPort) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.noRoute {
		return errors.New("no route")
	}
	mapped := natOwn
	if !n.noNAT {
		key := n.mapping.like(to)
		if _, ok := n.mapped[key]; !ok {
			n.mapped[key] = netip.AddrPortFrom(natOwn.Addr(), uint16(10000+len(n.mapped)))
		}
		mapped = n.mapped[key]
	}
	n.sentTo[mapped] = append(n.sentTo[mapped], to)
	n.requests = append(n.requests, to)
	if n.lose(len(n.requests)) || n.down(to) || !slices.Contains(n.servers, to) {
		return nil
	}
	req, err := VerifyProbe(raw, testCoordinator, time.Now())
	if err != nil || !req.Fresh {
		return err
	}
	from := to
	if req.Change != 0 {
		n.changes++
	}
	if !n.ignores {
		from = n.origin(to, req.Change)
	}
	var answer *stun.Message
	if n.disobeys && req.Change != 0 || !from.IsValid() {
		from = to
		answer = stun.MustBuild(stun.NewTransactionIDSetter(req.Transaction), stun.BindingError, stun.CodeUnknownAttribute)
	} else {
		answer = stun.MustBuild(stun.NewTransactionIDSetter(req.Transaction), stun.BindingSuccess,
			&stun.XORMappedAddress{IP: mapped.Addr().AsSlice(), Port: int(mapped.Port())})
	}
	if !slices.ContainsFunc(n.sentTo[mapped], func(a netip.AddrPort) bool { return n.filtering.like(a) == n.filtering.like(from) }) {
		return nil
	}
	time.AfterFunc(n.rtt, func() { n.deliver(answer.Raw, from, req.Transaction) })
	return nil
}

// origin is where the server answers from: the first other address and port.
func (n *natNet) origin(to netip.AddrPort, change Change) netip.AddrPort {
	for _, s := range n.servers {
		if (s.Addr() != to.Addr()) == (change&ChangeIP != 0) && (s.Port() != to.Port()) == (change&ChangePort != 0) {
			return s
		}
	}
	return netip.AddrPort{}
}

func (n *natNet) deliver(raw []byte, from netip.AddrPort, id transactionID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := readAnswer(raw, from)
	answers := n.answers[id]
	if !ok || answers == nil {
		return
	}
	select {
	case answers <- a:
	default:
	}
}

func (n *natNet) prober(key *identity.Key) *prober {
	return &prober{
		cfg:      ProbeConfig{Key: key, Coordinator: testCoordinator, Servers: n.servers, Filtering: true},
		port:     n,
		contacts: new(contacts),
		local:    func(a netip.AddrPort) bool { return a == natOwn },
		rtt:      make(map[netip.AddrPort]time.Duration),
	}
}

// probe runs one measurement of a fresh socket in virtual time.
func probe(t *testing.T, n *natNet) (Report, time.Duration, error) {
	t.Helper()
	return reprobe(t, n, n.prober(newTestKey(t)))
}

func reprobe(t *testing.T, n *natNet, p *prober) (Report, time.Duration, error) {
	t.Helper()
	start := time.Now()
	r, err := p.run(t.Context())
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.answers) != 0 {
		t.Errorf("%d transactions were not forgotten", len(n.answers))
	}
	return r, time.Since(start), err
}

var allBehaviors = []Behavior{EndpointIndependent, AddressDependent, AddressAndPortDependent}

func TestProbeTellsEveryNAT(t *testing.T) {
	for _, mapping := range allBehaviors {
		for _, filtering := range allBehaviors {
			synctest.Test(t, func(t *testing.T) {
				r, took, err := probe(t, newNATNet(mapping, filtering, natTwo...))
				if err != nil || r.V4 == nil || r.V6 != nil {
					t.Fatalf("%+v, %v", r, err)
				}
				f := *r.V4
				if f.Mapping != mapping || f.Filtering != filtering || f.Doubtful || f.NoNAT || f.Observed.Port() != 10000 {
					t.Errorf("%s mapping, %s filtering: %+v", mapping, filtering, f)
				}
				if took > 30*natRTT {
					t.Errorf("%s mapping, %s filtering took %s", mapping, filtering, took)
				}
				if r.RTT[natOne[0]] != natRTT {
					t.Errorf("round trips %v", r.RTT)
				}
			})
		}
	}
}

func TestProbeWithoutNAT(t *testing.T) {
	for _, filtering := range allBehaviors {
		synctest.Test(t, func(t *testing.T) {
			n := newNATNet(EndpointIndependent, filtering, natTwo...)
			n.noNAT = true
			r, _, err := probe(t, n)
			if err != nil || *r.V4 != (Family{Mapping: EndpointIndependent, Filtering: filtering, NoNAT: true, Observed: natOwn}) {
				t.Errorf("%+v, %v", r.V4, err)
			}
		})
	}
}

// With one address of the server, a NAT that maps or filters by address cannot
// be told from one that does not.
func TestProbeOneAddress(t *testing.T) {
	for _, tc := range []struct {
		mapping, filtering, wantMapping, wantFiltering Behavior
		doubtful                                       bool
	}{
		{EndpointIndependent, EndpointIndependent, EndpointIndependent, AddressDependent, true},
		{AddressDependent, AddressDependent, EndpointIndependent, AddressDependent, true},
		{AddressAndPortDependent, AddressAndPortDependent, AddressAndPortDependent, AddressAndPortDependent, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, _, err := probe(t, newNATNet(tc.mapping, tc.filtering, natOne...))
			if err != nil || r.V4.Mapping != tc.wantMapping || r.V4.Filtering != tc.wantFiltering || r.V4.Doubtful != tc.doubtful {
				t.Errorf("%s, %s: %+v, %v", tc.mapping, tc.filtering, r.V4, err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // and with one port nothing is known
		r, _, err := probe(t, newNATNet(EndpointIndependent, EndpointIndependent, natOne[0]))
		if err != nil || r.V4.Mapping != Unknown || r.V4.Filtering != Unknown || !r.V4.Doubtful {
			t.Errorf("%+v, %v", r.V4, err)
		}
	})
}

// A second measurement from the same socket cannot tell the two easy filterings
// apart, and must not call a closed one open.
func TestProbeAgain(t *testing.T) {
	for _, filtering := range allBehaviors {
		for _, servers := range [][]netip.AddrPort{natTwo, natOne} {
			synctest.Test(t, func(t *testing.T) {
				n := newNATNet(EndpointIndependent, filtering, servers...)
				p := n.prober(newTestKey(t))
				if _, _, err := reprobe(t, n, p); err != nil {
					t.Fatal(err)
				}
				want := max(filtering, AddressDependent)
				if len(servers) == 2 {
					want = Unknown // its other port was used to measure the mapping
				}
				r, _, err := reprobe(t, n, p)
				if err != nil || r.V4.Filtering != want {
					t.Errorf("%s, %d servers: %+v, %v", filtering, len(servers), r.V4, err)
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) { // NATs forget, and so does the socket
		n := newNATNet(EndpointIndependent, EndpointIndependent, natTwo...)
		p := n.prober(newTestKey(t))
		_, _, _ = reprobe(t, n, p)
		time.Sleep(contactMemory + time.Second)
		if r, _, err := reprobe(t, n, p); err != nil || r.V4.Filtering != EndpointIndependent {
			t.Errorf("%+v, %v", r.V4, err)
		}
	})
}

func TestProbeSurvivesLoss(t *testing.T) {
	for first := 1; first <= 8; first++ {
		synctest.Test(t, func(t *testing.T) {
			n := newNATNet(AddressDependent, AddressDependent, natTwo...)
			n.lose = func(i int) bool { return i >= first && i < first+2 }
			r, _, err := probe(t, n)
			if err != nil || r.V4.Mapping != AddressDependent || r.V4.Filtering != AddressDependent {
				t.Errorf("requests %d and %d lost: %+v, %v", first, first+1, r.V4, err)
			}
		})
	}
}

func TestProbeOfServersThatDoNotHelp(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*natNet)
		want   Family
	}{
		"one that refuses to change": {
			func(n *natNet) { n.disobeys = true }, Family{Mapping: EndpointIndependent},
		},
		"one that changes nothing": {
			// An answer from the address that was asked passes every filter.
			func(n *natNet) { n.ignores = true }, Family{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent},
		},
		"the first address is down": {
			func(n *natNet) { n.down = func(a netip.AddrPort) bool { return a.Addr() == natOne[0].Addr() } },
			Family{Mapping: EndpointIndependent, Filtering: AddressDependent, Doubtful: true},
		},
		"the second address is down": {
			func(n *natNet) { n.down = func(a netip.AddrPort) bool { return a.Addr() != natOne[0].Addr() } },
			Family{Mapping: EndpointIndependent, Filtering: EndpointIndependent, Doubtful: true},
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNATNet(EndpointIndependent, EndpointIndependent, natTwo...)
			tc.change(n)
			r, _, err := probe(t, n)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			r.V4.Observed = netip.AddrPort{}
			if *r.V4 != tc.want {
				t.Errorf("%s: %+v, want %+v", name, *r.V4, tc.want)
			}
		})
	}
}

func TestProbeWithoutFiltering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNATNet(AddressAndPortDependent, AddressAndPortDependent, append(natTwo, natSix...)...)
		p := n.prober(newTestKey(t))
		p.cfg.Filtering = false
		r, took, err := reprobe(t, n, p)
		if err != nil || r.V4.Mapping != AddressAndPortDependent || r.V4.Filtering != Unknown || n.changes != 0 || took != 3*natRTT {
			t.Errorf("%+v after %s, %v", r.V4, took, err)
		}
		if r.V6 == nil || r.V6.Mapping != AddressAndPortDependent {
			t.Errorf("IPv6: %+v", r.V6)
		}
	})
}

func TestProbeWhenNothingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNATNet(EndpointIndependent, EndpointIndependent, natTwo...)
		n.down = func(netip.AddrPort) bool { return true }
		if _, took, err := probe(t, n); !errors.Is(err, ErrNoAnswer) || took > 10*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
		if len(n.requests) != 2*probeSends {
			t.Errorf("%d requests", len(n.requests))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		n := newNATNet(EndpointIndependent, EndpointIndependent, natTwo...)
		n.noRoute = true
		if _, took, err := probe(t, n); !errors.Is(err, ErrNoAnswer) || took != 0 {
			t.Errorf("no route: after %s: %v", took, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		n := newNATNet(EndpointIndependent, EndpointIndependent)
		if _, _, err := probe(t, n); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("no servers: %v", err)
		}
	})
}

// What is known when the time is up is reported; nothing is guessed.
func TestProbeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNATNet(EndpointIndependent, AddressAndPortDependent, natTwo...)
		p := n.prober(newTestKey(t))
		ctx, cancel := context.WithTimeout(t.Context(), 3*natRTT)
		defer cancel()
		r, err := p.run(ctx)
		if err != nil || r.V4 == nil || r.V4.Mapping != Unknown || r.V4.Filtering != Unknown || !r.V4.Doubtful {
			t.Errorf("%+v, %v", r.V4, err)
		}
		if _, err := n.prober(newTestKey(t)).run(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrNoAnswer) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// Nothing goes to the other addresses before the filtering is known.
func TestProbeOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNATNet(AddressAndPortDependent, AddressAndPortDependent, natTwo...)
		if _, _, err := probe(t, n); err != nil {
			t.Fatal(err)
		}
		others := slices.IndexFunc(n.requests, func(a netip.AddrPort) bool { return a != natOne[0] })
		if others < 1+2*probeSends || slices.Contains(n.requests[others:], natOne[0]) {
			t.Errorf("requests went to %v", n.requests)
		}
		if slices.Contains(n.requests, natOne[1]) {
			t.Error("the first address's other port was used, which spoils the next measurement")
		}
	})
}
