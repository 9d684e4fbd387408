package node

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"mintai/portmap"
)

// fakeRouter forwards what the test says.
type fakeRouter struct {
	mappings []portmap.Mapping
	changed  chan struct{}
}

func (r *fakeRouter) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (r *fakeRouter) Mappings() []portmap.Mapping { return r.mappings }

func (r *fakeRouter) Changed() <-chan struct{} { return r.changed }

// atHome gives a coordinator a router that forwards its ports from external.
func atHome(l *lab, external netip.Addr, shift uint16) (*fakeRouter, chan []string) {
	r := &fakeRouter{changed: make(chan struct{}, 1)}
	for _, p := range l.co.mappedPorts() {
		r.mappings = append(r.mappings, portmap.Mapping{Internal: p.Number, TCP: p.TCP, External: netip.AddrPortFrom(external, p.Number+shift)})
	}
	told := make(chan []string, 4)
	l.co.home = &home{c: l.co, mapper: r, wake: make(chan struct{}, 1), tell: func(_ bool, lines []string) { told <- lines }}
	return r, told
}

// newHomeLab is a coordinator that does not run yet.
func newHomeLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t, func(c *coordinatorConfig) { c.STUN, c.TLS.Listen = "127.0.0.1:0", "127.0.0.1:0" })
	l.part.stop()
	config := l.config
	config.Listen, config.Metrics = "127.0.0.1:0", nil
	co, err := newCoordinator(config)
	if err != nil {
		t.Fatal(err)
	}
	l.co, l.addr = co, co.Addr().String()
	t.Cleanup(co.close)
	return l
}

func TestHome(t *testing.T) {
	t.Parallel()
	l := newHomeLab(t)
	r, told := atHome(l, netip.MustParseAddr("30.0.0.1"), 1000)
	ports := l.co.mappedPorts()
	if len(ports) != 4 || ports[0].Number != l.co.Addr().Port() || !ports[3].TCP { // signaling, two of STUN and TURN, TLS
		t.Errorf("ports %+v", ports)
	}
	part := start(t, "a coordinator at home", l.co.Run)
	r.changed <- struct{}{}
	if lines := receive(t, "the verdict", told); len(lines) != 2 || !strings.HasPrefix(lines[0], "reachable: unknown: the router forwards 30.0.0.1:") ||
		!strings.HasPrefix(lines[1], "forwarded: UDP ") || !strings.Contains(lines[1], "TCP") {
		t.Errorf("%q", lines)
	}
	l.co.home.reached.Store(true)
	l.co.home.wake <- struct{}{}
	if lines := receive(t, "what is new", told); len(lines) != 1 || !strings.HasPrefix(lines[0], "reachable: yes: 30.0.0.1:") {
		t.Errorf("%q", lines)
	}
	var out bytes.Buffer
	l.co.announceHome(&out, l.join, true, []string{"reachable: unknown"})
	links := printed(t, out.String())["Internet"]
	if len(links) != 1 || !slices.Equal(links[0].Addrs, []string{netip.AddrPortFrom(netip.MustParseAddr("30.0.0.1"), l.co.Addr().Port()+1000).String()}) ||
		links[0].TLSPort != l.co.tlsPort()+1000 || links[0].STUNPort != l.co.stunPort()+1000 {
		t.Errorf("%v", links)
	}
	if !slices.Contains(l.co.stunAddrs(), netip.AddrPortFrom(netip.MustParseAddr("30.0.0.1"), l.co.stunPort()+1000)) {
		t.Errorf("STUN at %v", l.co.stunAddrs())
	}
	if out, in := l.co.home.port(l.co.tlsPort(), true, true), l.co.home.port(l.co.tlsPort(), true, false); out != in+1000 {
		t.Errorf("TLS outside %d, inside %d", out, in)
	}
	part.stop()
}

// Who can be reached at the router's address from inside is found by trying.
func TestHomeSelfTest(t *testing.T) {
	t.Parallel()
	l := newHomeLab(t)
	r, _ := atHome(l, netip.MustParseAddr("127.0.0.1"), 0)
	l.co.home.mappings = r.mappings
	if !l.co.home.selfTest(t.Context()) {
		t.Error("the probe server does not answer")
	}
	r, _ = atHome(l, netip.MustParseAddr("127.0.0.1"), 0)
	for i := range r.mappings {
		r.mappings[i].External = netip.MustParseAddrPort("127.0.0.1:9")
	}
	l.co.home.mappings = r.mappings
	if l.co.home.selfTest(t.Context()) {
		t.Error("nobody answers, and the test succeeds")
	}
	if l.co.home = nil; l.co.home.external(1, true).IsValid() || l.co.home.port(5, true, true) != 5 {
		t.Error("without a router there is nothing outside")
	}
}

// Only who needs a router asks one.
func TestWhoIsAtHome(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *coordinatorConfig) { c.PortMap = true })
	if l.co.home != nil {
		t.Error("a coordinator on loopback asks the router")
	}
	config := coordinatorConfig{PortMap: true, Public: []string{"mint.example.org"}}
	if newHome(&coordinator{cfg: config, conn: l.co.conn}) != nil {
		t.Error("a coordinator with a public name asks the router")
	}
}

// What the router does not forward is said, with what it costs.
func TestHomeForwardsSome(t *testing.T) {
	t.Parallel()
	ports := func(tcp, relay bool, numbers ...uint16) (out []homePort) {
		for _, n := range numbers {
			out = append(out, homePort{portmap.Port{Number: n, TCP: tcp}, relay})
		}
		return out
	}
	udp := append(ports(false, false, 4433, 3479, 3478), ports(false, true, 49160, 49161, 49162)...)
	for _, tt := range []struct {
		forwarded, missing []homePort
		want               []string
	}{
		{append(ports(true, false, 443), udp...), nil, []string{"forwarded: UDP 3478-3479, 4433, 49160-49162 and TCP 443"}},
		{udp, ports(true, false, 443), []string{"forwarded: UDP", "not forwarded: TCP 443, so nodes whose network blocks UDP cannot come in"}},
		{
			ports(false, false, 4433), append(ports(true, false, 443), udp[1:]...),
			[]string{"forwarded: UDP 4433", "not forwarded: TCP 443, so", "not forwarded: UDP 3478-3479, so", "not forwarded: UDP 49160-49162, so nodes outside may not reach each other"},
		},
	} {
		got := forwardedLines(tt.forwarded, tt.missing)
		if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
			t.Errorf("%q", got)
		}
	}
}

// Relayed addresses for peers outside are those that the router forwards.
func TestHomeRelays(t *testing.T) {
	t.Parallel()
	l := newHomeLab(t)
	l.co.cfg.TURN.PortMin, l.co.cfg.TURN.PortMax = 50000, 50099
	ports := l.co.mappedRelays()
	if len(ports) != homeRelays || ports[0].Number != 50000 || ports[11].Number != 50011 {
		t.Errorf("relay ports %+v", ports)
	}
	if got := l.co.outsideRelays(); got.IP.IsValid() {
		t.Errorf("without a router: %+v", got)
	}
	r, _ := atHome(l, netip.MustParseAddr("30.0.0.1"), 0)
	l.co.home.relay = &fakeRouter{mappings: []portmap.Mapping{{Internal: 50003, External: at("30.0.0.1:60003")}}}
	l.co.home.note()
	if got := l.co.outsideRelays(); got.IP != netip.MustParseAddr("30.0.0.1") || len(got.Ports) != 1 || got.Ports[50003] != at("30.0.0.1:60003") {
		t.Errorf("outside: %+v", got)
	}
	if forwarded, missing := l.co.home.sorted(); len(forwarded) != len(l.co.mappedPorts())+1 || len(missing) != homeRelays-1 {
		t.Errorf("forwarded %v, missing %v", forwarded, missing)
	}
	for i := range r.mappings {
		r.mappings[i].External = at("100.64.0.9:4433")
	}
	l.co.home.note()
	if got := l.co.outsideRelays(); got.IP.IsValid() {
		t.Errorf("behind a second NAT: %+v", got)
	}
	l.co.cfg.TURN.RelayIP = "203.0.113.7"
	if ports := l.co.mappedRelays(); ports != nil {
		t.Errorf("with relay_ip: %v", ports)
	}
}
