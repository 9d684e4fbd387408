package ice

import (
	"net/netip"
	"testing"
	"time"
)

// sessionAt runs one session's checks to addrs for a while, as the agent would,
// and returns how many went out.
func sessionAt(s *spray, start time.Time, addrs ...netip.AddrPort) (sent int) {
	p := newPacer()
	p.spray = s
	for _, a := range addrs {
		p.remote(a)
	}
	for tick := time.Duration(0); tick < 12*time.Second; tick += checkInterval {
		for _, a := range addrs {
			if p.allow(a, start.Add(tick)) {
				sent++
			}
		}
	}
	return sent
}

func TestManySessionsDoNotFloodOneAddress(t *testing.T) {
	s := newSpray()
	start := time.Unix(1000, 0)
	victim := netip.MustParseAddr("192.0.2.7")
	var ports []netip.AddrPort // as a session may be told: the address is proven, the port any
	for i := range uint16(MaxRemote) {
		ports = append(ports, netip.AddrPortFrom(victim, 2000+i))
	}
	var sent int
	for i := range 200 {
		sent += sessionAt(s, start.Add(time.Duration(i)*100*time.Millisecond), ports...)
	}
	if sent != sprayPerHost {
		t.Errorf("200 sessions sent %d checks to one address in a minute, want %d", sent, sprayPerHost)
	}
	if n := sessionAt(s, start.Add(20*time.Second), netip.MustParseAddrPort("198.51.100.9:4000")); n < 40 {
		t.Errorf("a session with somebody else sent %d checks only", n)
	}
	if n := sessionAt(s, start.Add(2*sprayWindow), ports[0]); n < 40 {
		t.Errorf("in the next minute a session sent %d checks only", n)
	}
	if s.total() == 0 {
		t.Error("nothing was counted as withheld")
	}
}

func TestSprayBoundsANetwork(t *testing.T) {
	for _, net := range []string{"192.0.2.0/24", "2001:db8:0:ff00::/56"} {
		s := newSpray()
		now := time.Unix(1000, 0)
		addr := netip.MustParsePrefix(net).Addr()
		sent := 0
		for range 250 {
			addr = addr.Next()
			if addr.Is6() { // another /64 each time
				b := addr.As16()
				b[7]++
				addr = netip.AddrFrom16(b)
			}
			for range 100 {
				if s.allow(addr, false, now) {
					sent++
				}
			}
		}
		if sent != sprayPerNet {
			t.Errorf("%s got %d checks, want %d", net, sent, sprayPerNet)
		}
	}
}

func TestWhoAnswersIsCheckedOn(t *testing.T) {
	s := newSpray()
	now := time.Unix(1000, 0)
	busy := netip.MustParseAddrPort("192.0.2.7:2000") // the one address of many peers
	for i := range 10 * sprayPerHost / 10 {
		p := newPacer()
		p.spray = s
		p.remote(busy)
		for range 10 {
			if !p.allow(busy, now) {
				t.Fatalf("session %d: a check to an address that answers was withheld", i)
			}
		}
		p.answered(busy)
	}
	var none *spray
	if !none.allow(busy.Addr(), false, now) {
		t.Error("no spray withholds a check")
	}
	none.answered(busy.Addr(), 3)
}

func TestSignedChecksAreAnsweredForLonger(t *testing.T) {
	s := newSpray()
	now := time.Unix(1000, 0)
	addr := netip.MustParseAddr("192.0.2.7")
	for range sprayPerHost {
		s.allow(addr, false, now)
	}
	if s.allow(addr, false, now) {
		t.Error("one check too many was sent")
	}
	for i := range sprayPerHost {
		if !s.allow(addr, true, now) {
			t.Fatalf("check %d that was asked for was withheld", i)
		}
	}
	if s.allow(addr, true, now) {
		t.Error("one check too many was asked for")
	}
}
