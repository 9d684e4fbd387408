package node

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"mintai/identity"
	"mintai/portmap"
)

func TestPlaces(t *testing.T) {
	bound := []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("30.0.0.1"),
		netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fd00::1"),
	}
	tests := []struct {
		public              []string
		here, lan, internet []string
	}{
		{nil, []string{"127.0.0.1:4433"}, []string{"192.168.1.2:4433", "100.64.0.1:4433", "[fd00::1]:4433"}, []string{"30.0.0.1:4433", "[2001:db8::1]:4433"}},
		{
			[]string{"Mint.example.org", "[2001:db8::1]:5000", "2001:db8::1", "192.168.1.2", "mint.example.org:4433"},
			[]string{"127.0.0.1:4433"},
			[]string{"100.64.0.1:4433", "[fd00::1]:4433"},
			[]string{"mint.example.org:4433", "[2001:db8::1]:5000", "[2001:db8::1]:4433", "192.168.1.2:4433", "30.0.0.1:4433"},
		},
	}
	for _, tt := range tests {
		got := sortPlaces(bound, 4433, tt.public)
		if !slices.Equal(got.here, tt.here) || !slices.Equal(got.lan, tt.lan) || !slices.Equal(got.internet, tt.internet) {
			t.Errorf("public %q: %+v", tt.public, got)
		}
	}
	mixed := preferred([]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("172.17.0.1")})
	if !mixed[0].Is4() || !mixed[1].Is4() || !mixed[2].Is6() {
		t.Errorf("preferred: %v", mixed)
	}
}

// printed returns the links that the coordinator prints, by group.
func printed(t *testing.T, text string) map[string][]identity.Link {
	t.Helper()
	out := map[string][]identity.Link{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.HasPrefix(fields[1], "mintai://") {
			continue
		}
		link, err := identity.ParseLink(fields[1])
		if err != nil {
			t.Fatalf("%s: %v", fields[1], err)
		}
		out[fields[0]] = append(out[fields[0]], link)
	}
	return out
}

// Each group of addresses has one link, which carries all that a node must know.
func TestPrintedLinks(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *coordinatorConfig) {
		c.Public = []string{"mint.example.org", "30.0.0.1:5000"}
		c.STUN, c.TLS.Listen = "127.0.0.1:0", "127.0.0.1:0"
		c.TURN.Listen = c.STUN
	})
	var out bytes.Buffer
	l.co.announce(&out, l.join, nil)
	links := printed(t, out.String())
	_, port, _ := net.SplitHostPort(l.addr)
	if got := links["Internet"]; len(got) != 1 || !slices.Equal(got[0].Addrs, []string{"mint.example.org:" + port, "30.0.0.1:5000"}) {
		t.Errorf("%v in\n%s", got, out.String())
	}
	if got := links["here"]; len(got) != 1 || !slices.Equal(got[0].Addrs, []string{l.addr}) {
		t.Errorf("%v in\n%s", got, out.String())
	}
	for group, of := range links {
		for _, link := range of {
			if link.TLSPort != l.co.tls.Addr().Port() || link.STUNPort != l.co.probes.Addrs()[0].Port() || link.ID != l.key.ID() || link.Secret != l.join {
				t.Errorf("%s: %+v", group, link)
			}
		}
	}
	for _, want := range []string{"(TLS: signaling", "(STUN and TURN)", "(STUN)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	stun := l.co.stunAddrs()
	if len(stun) != 4 || stun[0].Addr() != netip.MustParseAddr("30.0.0.1") || stun[1].Port() != stun[0].Port()+1 && stun[1].Port() == stun[0].Port() || !stun[2].Addr().IsLoopback() {
		t.Errorf("STUN at %v", stun)
	}
}

// Without TLS and probes the links say so, and nodes try neither.
func TestPrintedLinksOfLittle(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var out bytes.Buffer
	l.co.announce(&out, l.join, nil)
	if got := printed(t, out.String())["here"]; len(got) != 1 || got[0].TLSPort != 0 || got[0].STUNPort != 0 {
		t.Errorf("%v in\n%s", got, out.String())
	}
	if !strings.Contains(out.String(), "Internet  none yet: forward UDP ") {
		t.Error(out.String())
	}
}

func taken(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String()
}

// A default port that cannot be had is said, not failed for.
func TestTLSPortThatIsTaken(t *testing.T) {
	t.Parallel()
	first := taken(t)
	l := newLab(t, func(c *coordinatorConfig) { c.TLS.Listen, c.TLS.Otherwise = first, "127.0.0.1:0" })
	var out bytes.Buffer
	l.co.announce(&out, l.join, nil)
	if l.co.tlsPort() == 0 || !strings.Contains(out.String(), "TCP "+first+" cannot be had here") || printed(t, out.String())["here"][0].TLSPort != l.co.tlsPort() {
		t.Errorf("port %d\n%s", l.co.tlsPort(), out.String())
	}
	second := taken(t)
	l = newLab(t, func(c *coordinatorConfig) { c.TLS.Listen, c.TLS.Otherwise = first, second })
	out.Reset()
	l.co.announce(&out, l.join, nil)
	if l.co.tlsPort() != 0 || !strings.Contains(out.String(), "nodes whose network blocks UDP stay out") || printed(t, out.String())["here"][0].TLSPort != 0 {
		t.Errorf("port %d\n%s", l.co.tlsPort(), out.String())
	}
	config := l.config
	config.Listen, config.TLS, config.Metrics = "127.0.0.1:0", tlsSettings{Listen: first}, nil
	config.Reputation, config.Log = t.TempDir()+"/r.db", zerolog.Nop()
	co, err := newCoordinator(config)
	if err == nil {
		co.close()
		t.Fatal("a port that was asked for by name is not missed")
	}
	if !strings.Contains(err.Error(), "cannot listen on TCP "+first) {
		t.Error(err)
	}
	if got := tlsOf(TLSConfig{Listen: ":443"}, "x"); got.Otherwise != ":4443" {
		t.Errorf("%+v", got)
	}
	if got := tlsOf(TLSConfig{Listen: "127.0.0.1:443"}, "x"); got.Otherwise != "" {
		t.Errorf("%+v", got)
	}
}

func TestReachable(t *testing.T) {
	tests := []struct {
		external       netip.AddrPort
		reached, leads bool
		want           string
	}{
		{netip.AddrPort{}, false, false, "unknown: the router forwards no ports by itself (UPnP, NAT-PMP, PCP); forward UDP 4433"},
		{netip.AddrPort{}, true, false, "yes: a node came in from outside; set [coordinator] public"},
		{at("100.64.3.2:4433"), false, false, "no: the router's own address 100.64.3.2 is not public"},
		{at("192.168.0.2:4433"), false, false, "no: "},
		{at("30.0.0.1:4433"), false, true, "yes: 30.0.0.1:4433 leads here, also from inside"},
		{at("30.0.0.1:4433"), true, false, "yes: 30.0.0.1:4433 leads here, a node came in"},
		{at("30.0.0.1:4433"), false, false, "unknown: the router forwards 30.0.0.1:4433"},
	}
	for _, tt := range tests {
		if got := reachable(tt.external, "UDP 4433", tt.reached, tt.leads); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%v: %s", tt.external, got)
		}
	}
	if portmap.Public(at("100.64.3.2:1").Addr()) {
		t.Error("a carrier's address is public")
	}
}
