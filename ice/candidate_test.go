package ice

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/turn/v5"

	"mintai/identity"
)

func TestCandidateCheck(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.7:4433":          "203.0.113.7:4433",
		"127.0.0.1:1":               "127.0.0.1:1",
		"[2001:db8::1]:4433":        "[2001:db8::1]:4433",
		"[::ffff:203.0.113.7]:4433": "203.0.113.7:4433",
		"203.0.113.7:0":             "",
		"0.0.0.0:4433":              "",
		"[::]:4433":                 "",
		"224.0.0.251:5353":          "",
		"[ff02::fb]:5353":           "",
		"[::ffff:224.0.0.1]:5353":   "",
		"255.255.255.255:4433":      "",
		"[fe80::1%eth0]:4433":       "",
	} {
		c, err := Candidate{Kind: Srflx, Addr: netip.MustParseAddrPort(in)}.Check()
		switch {
		case want == "" && !errors.Is(err, ErrBadCandidate):
			t.Errorf("%s: %v", in, err)
		case want != "" && (err != nil || c.Addr.String() != want || c.Priority != Priority(Srflx, 0)):
			t.Errorf("%s: %v, %v", in, c, err)
		}
	}
	if _, err := (Candidate{}).Check(); !errors.Is(err, ErrBadCandidate) {
		t.Errorf("the zero candidate: %v", err)
	}
}

func TestPriorityOrdersTheKinds(t *testing.T) {
	order := []Kind{Host, Prflx, Mapped, Srflx, RelayUDP, RelayTLS}
	for i := 1; i < len(order); i++ {
		if Priority(order[i-1], 0) <= Priority(order[i], 65535) {
			t.Errorf("%s does not come before %s", order[i-1], order[i])
		}
	}
	// RFC 8445 §5.1.2.1 with type preference 126, local preference 65535, component 1.
	if got := Priority(Host, 65535); got != 2130706431 {
		t.Errorf("priority %d", got)
	}
}

func TestHostCandidates(t *testing.T) {
	addrs := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	lo := netInterface{name: "lo", up: true, loopback: true, addrs: addrs("127.0.0.1", "::1")}
	eth := netInterface{name: "eth0", up: true, addrs: addrs("192.168.1.5", "2001:db8::5", "fe80::5", "fd00::5")}
	docker := netInterface{name: "docker0", up: true, addrs: addrs("172.17.0.1", "2001:db8:d::1")}
	down := netInterface{name: "wlan0", addrs: addrs("192.168.2.5")}
	crowded := netInterface{name: "eth1", up: true, addrs: addrs("10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8:1::1", "2001:db8:1::2", "2001:db8:1::3")}
	for _, tc := range []struct {
		name   string
		ifaces []netInterface
		v6     bool
		filter func(netip.Addr) bool
		want   string
	}{
		{"nothing", nil, true, nil, ""},
		{"loopback when there is nothing else", []netInterface{lo, down}, true, nil, "127.0.0.1 ::1"},
		{"containers last", []netInterface{lo, docker, eth}, true, nil, "192.168.1.5 2001:db8::5 fd00::5 172.17.0.1 2001:db8:d::1"},
		{"IPv4 only", []netInterface{eth, docker}, false, nil, "192.168.1.5 172.17.0.1"},
		{"capped", []netInterface{crowded, docker, eth}, true, nil, "10.0.0.1 10.0.0.2 192.168.1.5 2001:db8:1::1 2001:db8:1::2 2001:db8::5"},
		{"filtered", []netInterface{eth}, true, netip.Addr.Is4, "192.168.1.5"},
		{"each address once", []netInterface{eth, eth}, false, nil, "192.168.1.5"},
	} {
		got := hostCandidates(tc.ifaces, 4433, tc.v6, tc.filter)
		var names []string
		for _, c := range got {
			names = append(names, c.Addr.Addr().String())
			if c.Kind != Host || c.Addr.Port() != 4433 {
				t.Errorf("%s: %v", tc.name, c)
			}
		}
		if s := strings.Join(names, " "); s != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, s, tc.want)
		}
		if !slices.IsSortedFunc(got, func(a, b Candidate) int { return int(b.Priority) - int(a.Priority) }) {
			t.Errorf("%s: not in order of priority", tc.name)
		}
	}
}

func TestSocketHostCandidates(t *testing.T) {
	s := testSocket(t, SocketConfig{Loopback: true})
	if got := s.HostCandidates(); len(got) != 1 || got[0].Addr != s.LocalAddr() {
		t.Errorf("a loopback socket offers %v", got)
	}
	s = testSocket(t, SocketConfig{})
	for _, c := range s.HostCandidates() {
		if _, err := c.Check(); err != nil || c.Addr.Port() != s.LocalAddr().Port() {
			t.Errorf("%v: %v", c, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	a, b := NewCredentials(), NewCredentials()
	if a == b || a.check() != nil || b.check() != nil {
		t.Error("fresh credentials are alike or malformed")
	}
	for _, s := range []string{
		fmt.Sprint(a), fmt.Sprintf("%v %+v %#v %s %q %x", a, a, a, a, a, a), fmt.Sprintf("%v", struct{ C Credentials }{a}),
		fmt.Sprintf("%+v", TURNSession{Password: a.Pwd}), fmt.Sprintf("%#v", RelayConfig{Password: a.Pwd, Local: a}),
	} {
		if strings.Contains(s, a.Pwd) || strings.Contains(s, fmt.Sprintf("%x", a.Pwd)) {
			t.Errorf("%q shows the password", s)
		}
	}
}

// An independent implementation of the same scheme must accept the result.
func TestRESTCredentials(t *testing.T) {
	id := identity.SessionID{0xab, 15: 0xcd}
	expires := time.Now().Add(time.Hour)
	user, password := RESTCredentials("the operator's secret", id, expires)
	if want := fmt.Sprintf("%d:%s", expires.Unix(), id); user != want {
		t.Errorf("user name %q, want %q", user, want)
	}
	check := turn.LongTermTURNRESTAuthHandler("the operator's secret", pionLog{})
	who, key, ok := check(&turn.RequestAttributes{Username: user, Realm: "r"})
	if !ok || who != id.String() || string(key) != string(turn.GenerateAuthKey(user, "r", password)) {
		t.Errorf("refused: %q %v", who, ok)
	}
}
