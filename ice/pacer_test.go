package ice

import (
	"net/netip"
	"testing"
	"time"
)

// ticker asks a pacer as an agent does, which pairs every address at each tick.
type ticker struct {
	*pacer
	now time.Time
}

func newTicker(addrs ...netip.AddrPort) *ticker {
	t := &ticker{newPacer(), time.Unix(0, 0)}
	for _, a := range addrs {
		t.remote(a)
	}
	return t
}

// run returns how many checks passed within d.
func (t *ticker) run(d time.Duration, addrs ...netip.AddrPort) (n int) {
	for end := t.now.Add(d); t.now.Before(end); t.now = t.now.Add(checkInterval) {
		for _, a := range addrs {
			if t.allow(a, t.now) {
				n++
			}
		}
	}
	return n
}

func testAddrs(n int) (out []netip.AddrPort) {
	for i := range n {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 4433))
	}
	return out
}

func TestPacerSlowsDown(t *testing.T) {
	a := testAddrs(1)[0]
	p := newTicker(a)
	if n := p.run(maxFree*checkInterval, a); n != maxFree {
		t.Errorf("%d of the first %d checks passed", n, maxFree)
	}
	if n := p.run(3*time.Second, a); n < 8 || n > 25 {
		t.Errorf("%d checks in the next three seconds", n)
	}
	if n := p.run(10*time.Second, a); n < 15 || n > 25 {
		t.Errorf("%d checks in the ten seconds after", n)
	}
	p.now = p.now.Add(time.Hour)
	if !p.allow(a, p.now) || p.allow(a, p.now) {
		t.Error("the gap is not kept")
	}
	p.earn(a)
	if !p.allow(a, p.now) || p.allow(a, p.now) {
		t.Error("an inbound check does not earn exactly one")
	}
}

func TestPacerBoundsUnansweredChecks(t *testing.T) {
	for _, count := range []int{1, 3, MaxRemote} {
		addrs := testAddrs(count)
		p := newTicker(addrs...)
		early := p.run(3*time.Second, addrs...)
		if p.run(time.Hour, addrs...); p.total() != maxUnanswered-answersReserved {
			t.Errorf("%d addresses: %d checks went unanswered", count, p.total())
		}
		if count == MaxRemote && early > maxUnanswered-answersReserved-5 {
			t.Errorf("eight addresses used up %d checks in three seconds", early)
		}
		for range 2 * maxUnanswered {
			p.earn(addrs[0])
			p.allow(addrs[0], p.now)
		}
		if p.total() != maxUnanswered {
			t.Errorf("%d addresses: %d checks went unanswered, earned ones included", count, p.total())
		}
		p.answered(addrs[0])
		if !p.allow(addrs[0], p.now) {
			t.Error("a response earns nothing back")
		}
	}
}

func TestPacerBoundsChecks(t *testing.T) {
	a := testAddrs(1)[0]
	p := newTicker(a)
	for range 2 * maxChecks {
		p.answered(a)
		p.allow(a, p.now)
	}
	if p.total() != maxChecks {
		t.Errorf("%d checks in all", p.total())
	}
}

func TestPacerBoundsAddresses(t *testing.T) {
	p := newPacer()
	addrs := testAddrs(20)
	now := time.Unix(0, 0)
	if p.allow(addrs[0], now) || p.knows(addrs[0]) {
		t.Error("a check to an address that nobody named")
	}
	for i, a := range addrs[:maxLearned+2] {
		if got := p.learn(a); got != (i < maxLearned) {
			t.Errorf("peer-reflexive address %d: %v", i+1, got)
		}
	}
	for i, a := range addrs[10:] {
		if got := p.remote(a); got != (i < MaxRemote) {
			t.Errorf("candidate %d: %v", i+1, got)
		}
	}
	if !p.learn(addrs[0]) || !p.remote(addrs[10]) {
		t.Error("a known address needs room")
	}
	// A check that overtook its candidate gives its place back.
	p = newPacer()
	for _, a := range addrs[:maxLearned] {
		p.learn(a)
	}
	if !p.remote(addrs[0]) || !p.learn(addrs[19]) || p.learn(addrs[18]) {
		t.Error("a candidate counts as peer-reflexive")
	}
}
