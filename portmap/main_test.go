package portmap

import (
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testWait = 10 * time.Second

// loopback is a link on which the test itself is the gateway.
var loopback = link{gateway: netip.MustParseAddr("127.0.0.1"), local: netip.MustParseAddr("127.0.0.1"), name: "lo"}

func udpAsk(internal, external uint16) ask {
	return ask{port: Port{Number: internal}, nonce: nonce{1, 2, 3}, external: external, lifetime: defaultLifetime, description: "MintAI <test>"}
}

func TestNew(t *testing.T) {
	ports := []Port{{Number: 0}, {Number: 5}, {Number: 5, TCP: true}, {Number: 5, External: 7}}
	for i := range 20 {
		ports = append(ports, Port{Number: uint16(100 + i)})
	}
	m := New(Config{Ports: ports, Lifetime: time.Second})
	if len(m.cfg.Ports) != maxPorts || m.cfg.Ports[0] != (Port{Number: 5}) || m.cfg.Ports[1] != (Port{Number: 5, TCP: true}) || m.cfg.Ports[2].Number != 100 {
		t.Errorf("ports %v", m.cfg.Ports)
	}
	if m.cfg.Lifetime != minLifetime || m.cfg.Description != "MintAI" || len(m.cfg.Only) != 3 || m.Mappings() != nil {
		t.Errorf("config %+v", m.cfg)
	}
	if m.nonces[0] == m.nonces[1] || m.nonces[0] == (nonce{}) {
		t.Error("nonces are not random")
	}
	if got := New(Config{}).cfg.Lifetime; got != defaultLifetime {
		t.Errorf("lifetime %v", got)
	}
	if p := (Port{Number: 5, External: 9}); p.wanted() != 9 || (Port{Number: 5}).wanted() != 5 {
		t.Error("wanted")
	}
}

func TestPublic(t *testing.T) {
	for s, want := range map[string]bool{
		"30.0.0.1": true, "8.8.8.8": true, "::ffff:8.8.8.8": true, "2001:4860::1": true, "172.32.0.1": true, "100.128.0.1": true,
		"10.0.0.2": false, "192.168.1.1": false, "172.16.5.5": false, "100.64.0.1": false, "100.127.255.255": false,
		"127.0.0.1": false, "169.254.1.1": false, "224.0.0.1": false, "0.0.0.0": false, "0.1.2.3": false,
		"192.0.0.2": false, "192.0.2.1": false, "198.18.0.1": false, "203.0.113.9": false, "240.0.0.1": false, "255.255.255.255": false,
		"fe80::1": false, "fd00::1": false, "::1": false,
	} {
		if got := Public(netip.MustParseAddr(s)); got != want {
			t.Errorf("Public(%s) = %v", s, got)
		}
	}
	if Public(netip.Addr{}) {
		t.Error("no address is public")
	}
	if (Mapping{External: netip.MustParseAddrPort("100.64.3.4:5")}).Public() {
		t.Error("a mapping of a provider's NAT is public")
	}
}
