package portmap

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestMakeLink(t *testing.T) {
	eth := &net.Interface{Index: 2, Name: "eth0"}
	ip := net.ParseIP
	for name, c := range map[string]struct {
		iface          *net.Interface
		gateway, local net.IP
		ok             bool
	}{
		"home":          {eth, ip("192.168.1.1"), ip("192.168.1.2"), true},
		"mapped":        {eth, ip("::ffff:192.168.1.1"), ip("192.168.1.2").To4(), true},
		"no gateway":    {eth, nil, ip("192.168.1.2"), false},
		"unspecified":   {eth, ip("0.0.0.0"), ip("192.168.1.2"), false},
		"IPv6 gateway":  {eth, ip("fe80::1"), ip("192.168.1.2"), false},
		"no address":    {eth, ip("192.168.1.1"), nil, false},
		"IPv6 address":  {eth, ip("192.168.1.1"), ip("2001:db8::1"), false},
		"no interface":  {nil, ip("192.168.1.1"), ip("192.168.1.2"), false},
		"no bytes left": {eth, net.IP{1, 2, 3}, ip("192.168.1.2"), false},
	} {
		l, err := makeLink(c.iface, c.gateway, c.local)
		if (err == nil) != c.ok || !c.ok && (!errors.Is(err, ErrNoGateway) || l != link{}) {
			t.Errorf("%s: %v, %v", name, l, err)
		}
		if c.ok && l.String() != "192.168.1.1 via eth0 from 192.168.1.2" {
			t.Errorf("%s: %v", name, l)
		}
	}
}

// The machine that runs the test has a gateway or says that it has none.
func TestRoute(t *testing.T) {
	for _, toward := range []netip.Addr{{}, netip.MustParseAddr("::1"), netip.MustParseAddr("8.8.8.8")} {
		l, err := route(toward)
		if err != nil && !errors.Is(err, ErrNoGateway) || err == nil && (!l.gateway.Is4() || !l.local.Is4()) {
			t.Errorf("%v: %v, %v", toward, l, err)
		}
	}
	if _, err := route(netip.MustParseAddr("127.0.0.1")); !errors.Is(err, ErrNoGateway) {
		t.Errorf("loopback has a gateway: %v", err)
	}
}
