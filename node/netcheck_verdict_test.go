package node

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"mintai/ice"
)

var update = flag.Bool("update", false, "write the golden files anew")

// netMeasured is a report as it looks after measuring, before judge.
func netMeasured(change ...func(*netReport)) *netReport {
	r := newNetReport("client")
	t := true
	f := false
	r.UDP, r.Captive = &t, &f
	r.Relay.UDP, r.Relay.TLS = &t, &t
	r.Coordinators = []netCoordinator{{Addr: "20.0.0.1:4433", Remote: "20.0.0.1:4433", Over: "udp", RTT: 50.4}}
	r.STUN = []netSTUN{{Addr: "20.0.0.1:3478", RTT: new(50.1)}, {Addr: "20.0.0.1:3479"}, {Addr: "20.0.0.2:3478", RTT: new(50.2)}}
	r.TLS = []netTLS{{Addr: "20.0.0.1:443", Works: true, TookMS: 151}}
	r.MTU = &netMTU{Path: 1500, Payload: 1472, AtLeast: true}
	r.PortMapping = &netPortMapping{Gateway: "192.168.1.1"}
	r.missing("ipv6", "no address of the coordinator is of this family")
	for _, c := range change {
		c(r)
	}
	r.judge()
	return r
}

// netV4 is IPv4 behind a NAT, or without one.
func netV4(mapping, filtering ice.Behavior, nat bool) func(*netReport) {
	return func(r *netReport) {
		r.IPv4 = &netFamily{Local: []string{"192.168.1.10"}}
		if !nat {
			r.IPv4.Local = []string{"30.0.0.10"}
			r.PortMapping.Gateway = "30.0.0.254"
		}
		r.IPv4.classify(&ice.Family{Mapping: mapping, Filtering: filtering, NoNAT: !nat, Observed: netip.MustParseAddrPort("30.0.0.1:40001")}, 2)
		hairpin := mapping == ice.EndpointIndependent
		if nat {
			r.Hairpin = &hairpin
		} else {
			r.missing("hairpin", "there is no NAT")
		}
	}
}

func netV6(r *netReport) {
	r.IPv6 = &netFamily{Local: []string{"2a00:30:0:1::1a"}}
	r.IPv6.classify(&ice.Family{Mapping: ice.EndpointIndependent, Filtering: ice.AddressAndPortDependent, NoNAT: true, Observed: netip.MustParseAddrPort("[2a00:30:0:1::1a]:40001")}, 2)
	delete(r.NotMeasured, "ipv6")
}

func netRouter(external string) func(*netReport) {
	return func(r *netReport) {
		r.PortMapping = &netPortMapping{UPnP: true, NATPMP: true, PCP: true, Gateway: "192.168.1.1", External: external}
	}
}

func netNoUDP(r *netReport) {
	f := false
	r.UDP, r.Relay.UDP = &f, &f
	r.IPv4 = &netFamily{Local: []string{"192.168.1.10"}}
	r.STUN = []netSTUN{{Addr: "20.0.0.1:3478"}}
	r.Coordinators[0].Over = "tls"
	r.MTU = nil
	r.missing("mtu", "no answer over UDP")
	r.missing("hairpin", "no answer over UDP")
}

func netProxied(r *netReport) {
	t := true
	r.Proxy = &netProxy{URL: "http://192.168.1.1:3128", Works: &t}
}

// The kinds of networks of testdata/natlab, and what is to be said of them.
func TestVerdictOfEveryKind(t *testing.T) {
	t.Parallel()
	const ei, ad, apd = ice.EndpointIndependent, ice.AddressDependent, ice.AddressAndPortDependent
	cone := []func(*netReport){netV4(ei, apd, true)}
	sym := []func(*netReport){netV4(apd, apd, true)}
	for _, c := range []struct {
		kind    string
		network []func(*netReport)
		class   string
		verdict netVerdict
		advice  string // a part of it
	}{
		{"none", []func(*netReport){netV4(ei, ei, false)}, "public address, no firewall", verdictOpen, "nothing to do: every peer"},
		{"none-fw", []func(*netReport){netV4(ei, apd, false)}, "public address behind a firewall", verdictDirect, "let UDP in through the firewall"},
		{"eim-eif", []func(*netReport){netV4(ei, ei, true)}, "full-cone NAT", verdictOpen, "nothing to do: every peer"},
		{"eim-adf", []func(*netReport){netV4(ei, ad, true)}, "address-restricted cone NAT", verdictDirect, "turn on UPnP"},
		{"eim-apdf", cone, "port-restricted cone NAT", verdictDirect, "turn on UPnP"},
		{"adm-apdf", []func(*netReport){netV4(ad, apd, true)}, "symmetric NAT", verdictHard, "turn on UPnP"},
		{"sym", sym, "symmetric NAT", verdictHard, "turn on UPnP"},
		{"sym-seq", sym, "symmetric NAT", verdictHard, "or use IPv6"},
		{"sym-pp", sym, "symmetric NAT", verdictHard, "or use IPv6"},
		{"cgnat", cone, "port-restricted cone NAT", verdictDirect, "turn on UPnP"},
		{"cgnat with a router that tells", append(cone, netRouter("100.64.0.11")), "port-restricted cone NAT", verdictDirect, "second NAT"},
		{"cgnat-eif", cone, "port-restricted cone NAT", verdictDirect, "turn on UPnP"},
		{"cgnat-sym", sym, "symmetric NAT", verdictHard, "many paths need the relay"},
		{"cgnat-sym with a router that tells", append(sym, netRouter("100.64.0.11")), "symmetric NAT", verdictHard, "ask the provider"},
		{"nf", cone, "port-restricted cone NAT", verdictDirect, "turn on UPnP"},
		{"nf-open", cone, "port-restricted cone NAT", verdictDirect, "turn on UPnP"},
		{"nf-random", sym, "symmetric NAT", verdictHard, "turn on UPnP"},
		{"upnp", append(cone, netRouter("30.0.0.1")), "port-restricted cone NAT", verdictOpen, "the router opens a port"},
		{"short", cone, "port-restricted cone NAT", verdictDirect, "turn on UPnP"},
		{"udp-blocked", []func(*netReport){netNoUDP}, "", verdictRelayed, "relay over TLS: for direct paths allow UDP"},
		{"proxy-only", []func(*netReport){netNoUDP, netProxied}, "", verdictRelayed, "through the proxy"},
		{"dual", append(cone, netV6), "port-restricted cone NAT", verdictDirect, "nothing to do"},
		{"dual-sym", append(sym, netV6), "symmetric NAT", verdictDirect, "over IPv4 this NAT maps per destination"},
		{"ipv6-only", []func(*netReport){netV6}, "", verdictDirect, "IPv4 alone are reached over the relay"},
	} {
		r := netMeasured(c.network...)
		class := ""
		if r.IPv4 != nil {
			class = r.IPv4.Class
		}
		if class != c.class || r.Verdict != c.verdict || !strings.Contains(r.Advice, c.advice) {
			t.Errorf("%s: %q, %s: %s; want %q, %s: …%s…", c.kind, class, r.Verdict, r.Advice, c.class, c.verdict, c.advice)
		}
		if strings.ContainsAny(r.Advice, "\n\r") || r.Advice == "" || utf8.RuneCountInString(r.Advice) > 220 {
			t.Errorf("%s: the advice is not one line: %q", c.kind, r.Advice)
		}
		if r.IPv6 != nil && r.IPv6.Class != "public address behind a firewall" {
			t.Errorf("%s: IPv6: %q", c.kind, r.IPv6.Class)
		}
	}
}

func TestVerdictElsewhere(t *testing.T) {
	t.Parallel()
	yes, not := true, false
	const ei, apd = ice.EndpointIndependent, ice.AddressAndPortDependent
	silent := func(r *netReport) {
		netNoUDP(r)
		r.Coordinators[0].Over, r.Coordinators[0].Error = "", "no answer"
		r.Relay.TLS = &not
		r.TLS[0] = netTLS{Addr: "20.0.0.1:443", Error: "connection refused"}
	}
	for _, c := range []struct {
		name    string
		network []func(*netReport)
		verdict netVerdict
		advice  string
	}{
		{"nobody known", []func(*netReport){func(r *netReport) { r.UDP, r.Coordinators = nil, nil }}, verdictOffline, "client join LINK"},
		{"nobody answers", []func(*netReport){silent}, verdictOffline, "set HTTPS_PROXY"},
		{"no network at all", []func(*netReport){silent, func(r *netReport) { r.IPv4 = nil }}, verdictOffline, "no network"},
		{"a proxy that refuses", []func(*netReport){silent, func(r *netReport) {
			r.Proxy = &netProxy{URL: "http://p:3128", Works: &not, Error: "407"}
		}}, verdictOffline, "the proxy lets nothing through"},
		{"a portal", []func(*netReport){silent, func(r *netReport) { r.Captive = &yes }}, verdictCaptive, "log in"},
		{"a portal that was no obstacle", []func(*netReport){netV4(ei, ei, true), func(r *netReport) { r.Captive = &yes }}, verdictOpen, "nothing"},
		{"no UDP and no relay", []func(*netReport){netNoUDP, func(r *netReport) { r.Relay.TLS = &not }}, verdictRelayed, "which does not answer"},
		{"symmetric and no relay", []func(*netReport){netV4(apd, apd, true), func(r *netReport) {
			r.Relay.UDP, r.Relay.TLS = &not, &not
		}}, verdictHard, "which does not answer either"},
		{"the class unknown", []func(*netReport){netV4(ice.Unknown, ice.Unknown, true)}, verdictUnclear, "could not be measured"},
		{"signaling only", []func(*netReport){func(r *netReport) { r.IPv4 = &netFamily{} }}, verdictUnclear, "could not be measured"},
		{"a coordinator in this network", []func(*netReport){func(r *netReport) {
			r.IPv4 = &netFamily{}
			r.IPv4.classify(&ice.Family{Mapping: ei, Filtering: ei, NoNAT: true, Observed: netip.MustParseAddrPort("192.168.1.10:5000")}, 2)
		}}, verdictLocal, "peers in this network"},
		{"not admitted", []func(*netReport){silent, func(r *netReport) { r.Coordinators[0].Refused = true }}, verdictUnclear, "refuses this node"},
		{"not admitted, probes answered", []func(*netReport){netV4(ei, ei, true), func(r *netReport) {
			r.Coordinators[0] = netCoordinator{Refused: true}
		}}, verdictOpen, "refuses this node"},
		{"a narrow tunnel", []func(*netReport){netV4(ei, ei, true), func(r *netReport) { r.MTU = &netMTU{Path: 1180, Payload: 1152} }}, verdictOpen, "1200 bytes do not pass"},
	} {
		r := netMeasured(c.network...)
		if r.Verdict != c.verdict || !strings.Contains(r.Advice, c.advice) {
			t.Errorf("%s: %s: %s; want %s: …%s…", c.name, r.Verdict, r.Advice, c.verdict, c.advice)
		}
	}
}

// One address of the coordinator shows less than two do, and no more is claimed.
func TestVerdictFromOneAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		seen  ice.Family
		class string
	}{
		{ice.Family{Mapping: ice.EndpointIndependent, Filtering: ice.AddressDependent, NoNAT: true}, "public address, no firewall or one that goes by addresses"},
		{ice.Family{Mapping: ice.EndpointIndependent, Filtering: ice.AddressDependent, Doubtful: true}, "full-cone or address-restricted cone NAT"},
		{ice.Family{Mapping: ice.EndpointIndependent, Filtering: ice.AddressAndPortDependent, Doubtful: true}, "port-restricted cone NAT"},
	} {
		c.seen.Observed = netip.MustParseAddrPort("30.0.0.1:40001")
		r := netMeasured(func(r *netReport) {
			r.IPv4 = &netFamily{}
			r.IPv4.classify(&c.seen, 1)
		})
		if want := c.class + ", as far as one address of the coordinator shows"; r.IPv4.Class != want || r.Verdict != verdictDirect {
			t.Errorf("%+v: %q, %s", c.seen, r.IPv4.Class, r.Verdict)
		}
		if strings.Contains(r.Advice, "firewall") {
			t.Errorf("%+v: advice against a firewall that may not be there: %s", c.seen, r.Advice)
		}
		var out bytes.Buffer
		if err := r.text(&out); err != nil || strings.Contains(out.String(), "the coordinator has one address") != (c.seen.Doubtful || c.seen.Filtering == ice.AddressDependent) {
			t.Errorf("%+v: %v:\n%s", c.seen, err, out.String())
		}
	}
}

// A second NAT is only claimed where the router's own address shows it.
func TestSecondNATIsNotGuessed(t *testing.T) {
	t.Parallel()
	cone := netV4(ice.EndpointIndependent, ice.AddressAndPortDependent, true)
	for _, c := range []struct {
		external string
		double   *bool
		usable   *bool
	}{
		{"", nil, nil},
		{"30.0.0.1", new(false), new(true)},
		{"100.64.0.11", new(true), new(false)},
		{"31.0.0.1", new(true), new(false)},
	} {
		r := netMeasured(cone, netRouter(c.external))
		if !reflect.DeepEqual(r.Double, c.double) || !reflect.DeepEqual(r.PortMapping.Usable, c.usable) {
			t.Errorf("%q: second NAT %v, usable %v", c.external, r.Double, r.PortMapping.Usable)
		}
		if c.double == nil && r.NotMeasured["double_nat"] == "" {
			t.Errorf("%q: nothing says why it is not known", c.external)
		}
	}
}

// The report as a person and as a program see it.
func TestReportGolden(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*netReport{
		"home":    netMeasured(netV4(ice.EndpointIndependent, ice.AddressAndPortDependent, true), netV6, netRouter("30.0.0.1")),
		"blocked": netMeasured(netNoUDP, netProxied),
		"offline": netMeasured(func(r *netReport) {
			r.UDP, r.Captive, r.MTU, r.Coordinators, r.STUN, r.TLS = nil, nil, nil, []netCoordinator{}, []netSTUN{}, []netTLS{}
			r.Relay.UDP, r.Relay.TLS = nil, nil
			r.IPv4 = &netFamily{Local: []string{"192.168.1.10"}}
			for _, field := range needCoordinator {
				r.missing(field, "no coordinator is known")
			}
		}),
	} {
		var out bytes.Buffer
		if err := r.text(&out); err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n") {
			if len(line) > factColumn && (line[factColumn-1] != ' ' || line[factColumn] == ' ') {
				t.Errorf("%s: not aligned: %q", name, line)
			}
		}
		enc := json.NewEncoder(&out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join("testdata", "netcheck-"+name+".golden"), out.Bytes())
	}
}

// golden compares with a file, which -update writes.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s (write it anew with -update):\n%s", path, got)
	}
}

// What the router or the coordinator says cannot steer a terminal.
func TestReportIsHarmless(t *testing.T) {
	t.Parallel()
	r := netMeasured(func(r *netReport) {
		r.Coordinators[0].Over, r.Coordinators[0].Error = "", "gone\x1b[2J\nUDP yes"
		r.TLS[0] = netTLS{Addr: "20.0.0.1:443", Error: "\u202ebad\r\n"}
	})
	var out bytes.Buffer
	if err := r.text(&out); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\r\u202e") || strings.Contains(out.String(), "\nUDP yes") {
		t.Errorf("%q", out.String())
	}
}
