package portmap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// home is a network in virtual time: a router that speaks some protocols.
type home struct {
	mu      sync.Mutex // guards what follows
	link    link
	noRoute bool
	speak   map[Protocol]time.Duration // how long its first answer takes
	refuse  map[Protocol]error         // of add
	lifeMax time.Duration
	public  netip.Addr
	table   map[string]Mapping // protocol and port
	log     []string
	slow    time.Duration // of add
}

func newHome(speak map[Protocol]time.Duration) *home {
	return &home{
		link: link{gateway: netip.MustParseAddr("192.168.1.1"), local: netip.MustParseAddr("192.168.1.2"), name: "eth0"}, speak: speak,
		refuse: map[Protocol]error{}, lifeMax: 24 * time.Hour, public: netip.MustParseAddr("30.0.0.1"), table: map[string]Mapping{},
	}
}

func (h *home) network() network {
	n := network{route: func(netip.Addr) (link, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.noRoute {
			return link{}, ErrNoGateway
		}
		return h.link, nil
	}, finders: map[Protocol]finder{}}
	for _, p := range Protocols() {
		n.finders[p] = func(ctx context.Context, l link) (answer, error) {
			h.mu.Lock()
			delay, ok := h.speak[p]
			ok = ok && l == h.link
			h.mu.Unlock()
			if !ok {
				delay = 2 * time.Second
			}
			select {
			case <-ctx.Done():
				return answer{}, ctx.Err()
			case <-time.After(delay):
			}
			if !ok {
				return answer{}, ErrSilent
			}
			return answer{router: homeRouter{h, p, l}, external: h.public}, nil
		}
	}
	return n
}

func (h *home) set(how func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	how()
}

func (h *home) entries() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.table))
}

func (h *home) asked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.log)
}

type homeRouter struct {
	home *home
	p    Protocol
	link link
}

func (r homeRouter) protocol() Protocol { return r.p }

func (r homeRouter) add(ctx context.Context, a ask) (Mapping, error) {
	select {
	case <-time.After(r.home.slow):
	case <-ctx.Done():
	}
	r.home.mu.Lock()
	defer r.home.mu.Unlock()
	r.home.log = append(r.home.log, fmt.Sprintf("%s %d", r.p, a.port.Number))
	if err := r.home.refuse[r.p]; err != nil {
		return Mapping{}, err
	}
	m := a.mapping(r.p, netip.AddrPortFrom(r.home.public, a.external), min(a.lifetime, r.home.lifeMax), time.Now())
	r.home.table[fmt.Sprintf("%s %d", r.p, a.port.Number)] = m
	return m, ctx.Err() // an answer that nobody waits for any more
}

func (r homeRouter) remove(ctx context.Context, a ask) error {
	r.home.mu.Lock()
	defer r.home.mu.Unlock()
	if r.link != r.home.link {
		return ErrSilent
	}
	delete(r.home.table, fmt.Sprintf("%s %d", r.p, a.port.Number))
	return ctx.Err()
}

// start runs a Mapper in the home network; stop ends it and returns how long that took.
func (h *home) start(t *testing.T, cfg Config) (m *Mapper, stop func() time.Duration) {
	t.Helper()
	if cfg.Ports == nil {
		cfg.Ports = []Port{{Number: 5000, External: 40000}}
	}
	cfg.net, cfg.Log = h.network(), zerolog.Nop()
	m = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return m, func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		return time.Since(began)
	}
}

func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func expect(t *testing.T, m *Mapper, want string) {
	t.Helper()
	var got []string
	for _, x := range m.Mappings() {
		got = append(got, fmt.Sprintf("%s %s", x.Protocol, x.External))
	}
	if s := fmt.Sprint(got); s != want {
		t.Errorf("mappings %s instead of %s", s, want)
	}
}

func changes(m *Mapper) bool {
	select {
	case <-m.Changed():
		return true
	default:
		return false
	}
}

func TestRunChoosesAmongProtocols(t *testing.T) {
	ms := time.Millisecond
	for name, c := range map[string]struct {
		speak  map[Protocol]time.Duration
		refuse []Protocol
		only   []Protocol
		within time.Duration
		want   string
	}{
		"all":                    {speak: map[Protocol]time.Duration{PCP: 2 * ms, NATPMP: 1 * ms, UPnP: 50 * ms}, within: 3 * ms, want: "pcp 5000"},
		"NAT-PMP before PCP":     {speak: map[Protocol]time.Duration{PCP: 300 * ms, NATPMP: 1 * ms, UPnP: 50 * ms}, within: 16 * ms, want: "nat-pmp 5000"},
		"UPnP alone":             {speak: map[Protocol]time.Duration{UPnP: 50 * ms}, within: 101 * ms, want: "upnp 5000"},
		"UPnP later":             {speak: map[Protocol]time.Duration{UPnP: 900 * ms}, within: 941 * ms, want: "upnp 5000"},
		"PCP refuses":            {speak: map[Protocol]time.Duration{PCP: 2 * ms, NATPMP: 1 * ms, UPnP: 50 * ms}, refuse: []Protocol{PCP}, within: 3 * ms, want: "nat-pmp 5000"},
		"all but UPnP refuse":    {speak: map[Protocol]time.Duration{PCP: 2 * ms, NATPMP: 1 * ms, UPnP: 50 * ms}, refuse: []Protocol{PCP, NATPMP}, within: 91 * ms, want: "upnp 5000"},
		"PCP is not to be asked": {speak: map[Protocol]time.Duration{PCP: 2 * ms, NATPMP: 1 * ms}, only: []Protocol{UPnP, NATPMP}, within: 2 * ms, want: "nat-pmp 5000"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHome(c.speak)
				for _, p := range c.refuse {
					h.refuse[p] = ErrRefused
				}
				m, stop := h.start(t, Config{Only: c.only})
				after(c.within)
				if got := fmt.Sprint(h.entries()); got != "["+c.want+"]" {
					t.Errorf("entries %s", got)
				}
				if !changes(m) || len(m.Mappings()) != 1 || m.Mappings()[0].External.String() != "30.0.0.1:40000" || !m.Mappings()[0].Public() {
					t.Errorf("mappings %+v", m.Mappings())
				}
				after(time.Minute) // later, better ones change nothing
				if got := fmt.Sprint(h.entries()); got != "["+c.want+"]" || changes(m) {
					t.Errorf("later: entries %s", got)
				}
				if d := stop(); d > time.Second || len(h.entries()) != 0 || m.Mappings() != nil {
					t.Errorf("after %v left %v", d, h.entries())
				}
			})
		})
	}
}

func TestRunRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(map[Protocol]time.Duration{PCP: 0})
		h.lifeMax = 4 * time.Minute
		m, stop := h.start(t, Config{Ports: []Port{{Number: 5000}, {Number: 5001, TCP: true}}})
		after(time.Second)
		first := m.Mappings()[0].Expires
		after(time.Minute + 50*time.Second)
		if n := h.asked(); n != 2 {
			t.Fatalf("before half its life asked %d times", n)
		}
		after(45 * time.Second)
		if n := h.asked(); n != 4 || !m.Mappings()[0].Expires.After(first) {
			t.Errorf("after half its life asked %d times", n)
		}
		changes(m)
		after(time.Hour)
		if changes(m) || len(m.Mappings()) != 2 || time.Until(m.Mappings()[1].Expires) < time.Minute {
			t.Errorf("after an hour %+v", m.Mappings())
		}
		stop()
	})
}

// A long lease is asked for again too: the router may have forgotten it.
func TestRunAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(map[Protocol]time.Duration{UPnP: 0})
		m, stop := h.start(t, Config{Lifetime: 24 * time.Hour})
		after(time.Minute)
		h.set(func() { clear(h.table) }) // it restarted
		after(renewAtMax)
		if len(h.entries()) != 1 {
			t.Error("the mapping is not back")
		}
		h.set(func() { h.public = netip.MustParseAddr("30.0.0.9") })
		changes(m)
		after(renewAtMax)
		if !changes(m) {
			t.Error("another external address is no change")
		}
		expect(t, m, "[upnp 30.0.0.9:40000]")
		stop()
	})
}

func TestRunLosesAndFindsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(map[Protocol]time.Duration{PCP: 0, UPnP: 0})
		m, stop := h.start(t, Config{Lifetime: 10 * time.Minute})
		after(time.Second)
		expect(t, m, "[pcp 30.0.0.1:40000]")
		h.set(func() { h.refuse[PCP] = ErrRefused })
		after(10 * time.Minute)
		expect(t, m, "[upnp 30.0.0.1:40000]")
		h.set(func() { h.refuse[UPnP] = ErrSilent })
		after(20 * time.Minute)
		expect(t, m, "[]")
		h.set(func() { clear(h.refuse) })
		after(retryMax)
		expect(t, m, "[pcp 30.0.0.1:40000]")
		stop()
		if len(h.entries()) != 0 { // UPnP's answers were lost: what it may have is deleted too
			t.Errorf("left %v", h.entries())
		}
	})
}

func TestRunFollowsTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(map[Protocol]time.Duration{PCP: 0})
		h.noRoute = true
		m, stop := h.start(t, Config{})
		after(time.Minute)
		expect(t, m, "[]")
		h.set(func() { h.noRoute = false })
		after(pollEvery)
		expect(t, m, "[pcp 30.0.0.1:40000]")
		if !changes(m) {
			t.Error("no change")
		}
		h.set(func() { h.link.local, h.public = netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("100.64.0.9") })
		m.NetworkChanged()
		m.NetworkChanged()
		after(time.Millisecond)
		expect(t, m, "[pcp 100.64.0.9:40000]")
		if m.Mappings()[0].Public() {
			t.Error("a provider's NAT is not public")
		}
		h.set(func() { h.noRoute = true })
		after(pollEvery)
		expect(t, m, "[]")
		stop()
	})
}

func TestRunNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(nil)
		m, stop := h.start(t, Config{})
		after(time.Hour)
		expect(t, m, "[]")
		h.set(func() { h.speak = map[Protocol]time.Duration{NATPMP: 0} })
		m.NetworkChanged()
		after(100 * time.Millisecond)
		expect(t, m, "[nat-pmp 30.0.0.1:40000]")
		if d := stop(); d > time.Second {
			t.Errorf("ended after %v", d)
		}
	})
}

// Run ends while the router has a mapping whose answer never came.
func TestRunEndsMidway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(map[Protocol]time.Duration{PCP: 0})
		h.slow = 3 * time.Second
		m, stop := h.start(t, Config{})
		after(time.Second)
		if d := stop(); d > time.Second || len(h.entries()) != 0 || len(m.Mappings()) != 0 || len(h.log) != 1 {
			t.Errorf("after %v left %v, log %v", d, h.entries(), h.log)
		}
	})
}

func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(map[Protocol]time.Duration{UPnP: time.Second, NATPMP: time.Millisecond})
		r := check(t.Context(), h.network())
		if r.PCP || !r.NATPMP || !r.UPnP || !r.Any() || r.Gateway != h.link.gateway || r.External != h.public {
			t.Errorf("%+v", r)
		}
		if len(r.Detail) != 3 || r.Detail[PCP] != ErrSilent.Error() || r.Detail[UPnP] != "answers, external address 30.0.0.1" {
			t.Errorf("%v", r.Detail)
		}
		if len(h.table) != 0 || len(h.log) != 0 {
			t.Error("Check mapped something")
		}
		h.public = netip.MustParseAddr("10.9.9.9")
		r = check(t.Context(), h.network())
		if want := "answers, but its external address 10.9.9.9 is not public: another NAT lies beyond the router"; r.Detail[NATPMP] != want || Public(r.External) {
			t.Errorf("%+v", r)
		}
		h.noRoute = true
		if r = check(t.Context(), h.network()); r.Any() || r.Gateway.IsValid() || r.Detail[PCP] != ErrNoGateway.Error() {
			t.Errorf("%+v", r)
		}
		h.noRoute = false
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if r = check(ctx, h.network()); r.UPnP || r.Detail[UPnP] != ErrSilent.Error() {
			t.Errorf("given up: %+v", r)
		}
	})
}
