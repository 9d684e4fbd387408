package ice

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"mintai/identity"
)

// Where a relayed address is told to lead depends on where the other end is, and
// the ports that a router forwards are for those who need them.
func TestTURNOutside(t *testing.T) {
	lo := uint16(0)
	for port := uint16(21000); lo == 0; port += 16 { // below the ports that the system gives out
		if free(t, port, 4) {
			lo = port
		}
	}
	router := netip.MustParseAddr("203.0.113.7")
	forwarded := map[uint16]netip.AddrPort{lo: netip.AddrPortFrom(router, 5000)}
	var known atomic.Bool
	known.Store(true)
	server := testTURN(t, TURNConfig{PortMin: lo, PortMax: lo + 3, Outside: func() Outside {
		if !known.Load() {
			return Outside{}
		}
		return Outside{IP: router, Ports: forwarded}
	}})
	relayed := func(peers ...string) netip.AddrPort {
		t.Helper()
		id, user := allow(server, peers...)
		at := newRawTURN(t, server, user, testPassword).allocate()
		server.Revoke(id)
		eventually(t, "it was freed", func() bool { return server.Stats().Allocations == 0 })
		return at
	}
	for range 8 {
		if at := relayed("198.51.100.9"); at != forwarded[lo] {
			t.Errorf("for a peer outside: %v", at)
		}
		if at := relayed("127.0.0.1", "198.51.100.9"); at.Addr() == router || at.Port() == lo {
			t.Errorf("for a peer that is here: %v", at)
		}
		if at := relayed(); at.Addr() != router || at.Port() == 5000 {
			t.Errorf("for a peer over TLS: %v", at)
		}
	}
	_, first := allow(server, "198.51.100.9")
	newRawTURN(t, server, first, testPassword).allocate()
	if at := relayedOf(t, server, "198.51.100.10"); at.Addr() != router || at.Port() <= lo || at.Port() > lo+3 {
		t.Errorf("with no forwarded port left: %v", at)
	}
	known.Store(false)
	if at := relayedOf(t, server, "198.51.100.11"); at.Addr() == router {
		t.Errorf("without a router: %v", at)
	}
}

func relayedOf(t *testing.T, server *TURNServer, peer string) netip.AddrPort {
	t.Helper()
	_, user := allow(server, peer)
	return newRawTURN(t, server, user, testPassword).allocate()
}

// free reports whether n ports can be opened.
func free(t *testing.T, port uint16, n int) bool {
	t.Helper()
	for i := range n {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(port) + i})
		if err != nil {
			return false
		}
		_ = c.Close()
	}
	return true
}

// An address that is told for outside is one of the session's other leg all the
// same: what goes there stays inside the process.
func TestTURNPairsOutside(t *testing.T) {
	router := netip.MustParseAddr("203.0.113.7")
	server := testTURN(t, TURNConfig{Outside: func() Outside { return Outside{IP: router} }})
	id := identity.NewSessionID()
	var legs [2]*rawTURN
	var at [2]netip.AddrPort
	for i, miner := range []bool{false, true} {
		user := server.Allow(TURNSession{ID: id, Miner: miner, Password: testPassword, Expires: time.Now().Add(time.Minute)})
		legs[i] = newRawTURN(t, server, user, testPassword)
		at[i] = legs[i].allocate()
		if at[i].Addr() != router {
			t.Fatalf("relayed at %v", at[i])
		}
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	for _, leg := range server.sessions {
		for r := range leg.relays {
			if r.pair(at[0]) == nil && r.pair(at[1]) == nil {
				t.Error("a leg does not know the other")
			}
		}
	}
}

// Only addresses that lead nowhere in the Internet are on this side.
func TestBeyond(t *testing.T) {
	for _, c := range []struct {
		peers       []string
		beyond, udp bool
	}{
		{nil, true, false},
		{[]string{"198.51.100.9"}, true, true},
		{[]string{"2001:db8::9"}, true, false},
		{[]string{"2001:db8::9", "198.51.100.9"}, true, true},
		{[]string{"198.51.100.9", "192.168.1.50"}, false, false},
		{[]string{"127.0.0.1"}, false, false},
		{[]string{"100.64.0.9"}, false, false},
		{[]string{"fd00::9"}, false, false},
		{[]string{"fe80::9"}, false, false},
	} {
		r := &rights{peers: map[netip.Addr]bool{}}
		for _, p := range c.peers {
			r.peers[netip.MustParseAddr(p)] = true
		}
		if beyond, udp := r.beyond(); beyond != c.beyond || beyond && udp != c.udp {
			t.Errorf("%v: beyond %v, by UDP %v", c.peers, beyond, udp)
		}
	}
}
