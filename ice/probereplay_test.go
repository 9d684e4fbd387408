package ice

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

func newKey(t testing.TB) *identity.Key {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func plainBinding(setters ...stun.Setter) []byte {
	return stun.MustBuild(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, setters...)...).Raw
}

func TestReplays(t *testing.T) {
	var r replays
	now := time.Unix(1000, 0)
	from, at := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	req := ProbeRequest{Transaction: [12]byte{1}, Node: newKey(t).ID()}
	for _, tc := range []struct {
		from  netip.AddrPort
		after time.Duration
		want  probeAge
	}{
		{from, 0, newProbe},
		{from, time.Second, repeatedProbe},
		{at, time.Second, replayedProbe},
		{at, 2*probeWindow + time.Second, replayedProbe}, // one generation later
		{from, 4*probeWindow + 2*time.Second, newProbe},
	} {
		if got := r.see(req, tc.from, at, now.Add(tc.after)); got != tc.want {
			t.Errorf("from %s after %v: %d, want %d", tc.from, tc.after, got, tc.want)
		}
	}
	for i := range 2*maxReplays + 10 {
		req.Transaction = [12]byte{2, byte(i), byte(i >> 8), byte(i >> 16)}
		if r.see(req, from, at, now) != newProbe {
			t.Fatal("a new probe was taken for an old one")
		}
	}
	if n := len(r.now) + len(r.last); n > 2*maxReplays {
		t.Errorf("%d probes are remembered", n)
	}
}

func TestAnnouncedAddrs(t *testing.T) {
	at := func(addr, iface string) ifaceAddr { return ifaceAddr{netip.MustParseAddr(addr), iface} }
	lo := at("127.0.0.1", "lo")
	for name, tc := range map[string]struct {
		all    []ifaceAddr
		v6     bool
		routed string
		want   string
	}{
		"public, and a bridge": {[]ifaceAddr{lo, at("203.0.113.2", "eth0"), at("172.17.0.1", "docker0"), at("203.0.113.1", "eth0")}, false, "203.0.113.1", "[203.0.113.1 203.0.113.2]"},
		"behind a NAT":         {[]ifaceAddr{lo, at("172.17.0.1", "docker0"), at("10.0.0.5", "eth0"), at("10.0.0.6", "eth0")}, false, "10.0.0.5", "[10.0.0.5 10.0.0.6]"},
		"a carrier's NAT":      {[]ifaceAddr{at("100.64.0.9", "wwan")}, false, "100.64.0.9", "[100.64.0.9]"},
		"no way out":           {[]ifaceAddr{lo, at("192.168.1.5", "eth1")}, false, "", "[192.168.1.5]"},
		"nothing else":         {[]ifaceAddr{lo}, false, "", "[127.0.0.1]"},
		"the other family":     {[]ifaceAddr{lo, at("2001:db8::2", "eth0"), at("fd00::1", "eth0")}, true, "2001:db8::2", "[2001:db8::2]"},
		"none":                 {[]ifaceAddr{lo}, true, "", "[]"},
		"too many": {
			[]ifaceAddr{at("203.0.113.5", "a"), at("203.0.113.4", "a"), at("203.0.113.3", "a"), at("203.0.113.2", "a"), at("203.0.113.1", "a")},
			false, "203.0.113.1", "[203.0.113.1 203.0.113.2 203.0.113.3 203.0.113.4]",
		},
	} {
		routed, _ := netip.ParseAddr(tc.routed)
		got := announcedAddrs(tc.all, tc.v6, routed)
		text := make([]string, 0, len(got))
		for _, a := range got {
			text = append(text, a.String())
		}
		if s := "[" + strings.Join(text, " ") + "]"; s != tc.want {
			t.Errorf("%s: %s, want %s", name, s, tc.want)
		}
	}
}

func FuzzHasSignature(f *testing.F) {
	key, err := identity.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	raw, _ := SignProbe(key, key.ID(), ChangeIP, time.Now())
	f.Add(raw)
	f.Add(plainBinding(stun.Fingerprint))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := VerifyProbe(b, key.ID(), time.Now())
		if err == nil && p.Signed && attribute(b, attrSignature) == nil {
			t.Errorf("a signature was verified that was not seen in %x", b)
		}
	})
}
