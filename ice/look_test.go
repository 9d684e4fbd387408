package ice

import (
	"net/netip"
	"testing"
	"time"
)

// What a first look concludes from what has come by now.
func TestLookReport(t *testing.T) {
	t.Parallel()
	socket := testSocket(t, SocketConfig{Loopback: true})
	first, second := netip.MustParseAddrPort("20.0.0.1:3478"), netip.MustParseAddrPort("20.0.0.2:3478")
	elsewhere := netip.MustParseAddrPort("20.0.0.1:3479")
	a, b := netip.MustParseAddrPort("30.0.0.1:1000"), netip.MustParseAddrPort("30.0.0.1:1001")
	const long, short, refused = time.Second, lookSettle / 2, -1
	type came struct {
		to     netip.AddrPort
		change Change
		mapped netip.AddrPort // zero: nothing came
		from   netip.AddrPort
		ago    time.Duration
	}
	silence := came{to: first, change: ChangePort}
	other := came{first, ChangePort, a, elsewhere, long}
	for _, c := range []struct {
		name string
		came []came
		want *Family
	}{
		{"nothing", []came{{to: first}, silence, {to: second}}, nil},
		{
			"a cone",
			[]came{{first, 0, a, first, long}, other, {second, 0, a, second, long}},
			&Family{Mapping: EndpointIndependent, Filtering: AddressDependent, Observed: a},
		},
		{
			"a closed cone",
			[]came{{first, 0, a, first, long}, silence, {second, 0, a, second, long}},
			&Family{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent, Observed: a},
		},
		{
			"too early to tell",
			[]came{{first, 0, a, first, short}, silence, {second, 0, a, second, short}},
			&Family{Mapping: EndpointIndependent, Observed: a},
		},
		{
			"a symmetric NAT",
			[]came{{first, 0, a, first, long}, silence, {second, 0, b, second, long}},
			&Family{Mapping: AddressDependent, Doubtful: true, Filtering: AddressAndPortDependent, Observed: a},
		},
		{"one address", []came{{first, 0, a, first, long}, silence}, &Family{Filtering: AddressAndPortDependent, Observed: a}},
		{
			"a server that refuses",
			[]came{{first, 0, a, first, long}, {to: first, change: ChangePort, ago: refused}, {second, 0, a, second, long}},
			&Family{Mapping: EndpointIndependent, Observed: a},
		},
		{"the first is dead", []came{{to: first}, silence, {second, 0, a, second, long}}, &Family{Observed: a}},
		{
			"no NAT",
			[]came{{first, 0, loopback(socket).Addr, first, long}, other, {second, 0, loopback(socket).Addr, second, long}},
			&Family{Mapping: EndpointIndependent, Filtering: AddressDependent, NoNAT: true, Observed: loopback(socket).Addr},
		},
	} {
		l := &Look{socket: socket}
		now := time.Now()
		for i, x := range c.came {
			q := &looked{id: transactionID{byte(i)}, to: x.to, change: x.change, answers: make(chan probeAnswer, 1)}
			if x.mapped.IsValid() {
				q.answers <- probeAnswer{from: x.from, mapped: x.mapped, at: now.Add(-x.ago)}
			}
			if x.ago == refused {
				q.answers <- probeAnswer{from: x.to, refused: true}
			}
			l.asked = append(l.asked, q)
		}
		got := l.Report()
		if got.V6 != nil || (got.V4 == nil) != (c.want == nil) || got.V4 != nil && *got.V4 != *c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got.V4, c.want)
		}
		l.Close()
	}
}

// A look is forgotten with its end, and asks nobody that cannot be asked.
func TestLookEnds(t *testing.T) {
	t.Parallel()
	socket := testSocket(t, SocketConfig{Loopback: true})
	l := socket.Look(newTestKey(t), testCoordinator, []netip.AddrPort{
		{}, netip.MustParseAddrPort("127.0.0.1:9"), netip.MustParseAddrPort("127.0.0.2:9"), netip.MustParseAddrPort("224.0.0.1:9"),
	})
	socket.demux.mu.Lock()
	n := len(socket.demux.probes)
	socket.demux.mu.Unlock()
	if n != 3 {
		t.Errorf("%d questions, want 3", n)
	}
	l.Close()
	socket.demux.mu.Lock()
	defer socket.demux.mu.Unlock()
	if len(socket.demux.probes) != 0 {
		t.Errorf("%d questions were not forgotten", len(socket.demux.probes))
	}
}
