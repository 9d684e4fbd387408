package ice

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

func TestPunchLimit(t *testing.T) {
	a, b := netip.MustParseAddr("20.0.0.1"), netip.MustParseAddr("20.0.0.2")
	t0 := time.Unix(1e9, 0)
	var l punchLimit
	for i, step := range []struct {
		target netip.Addr
		at     time.Duration
		keep   bool // do not end the run
		want   error
	}{
		{target: a},
		{target: a, at: time.Second},
		{target: a, at: 2 * time.Second, keep: true},
		{target: b, at: 3 * time.Second, want: ErrProbing},
		{target: a, at: 4 * time.Second, want: ErrProbedOften},
		{target: b, at: 5 * time.Second},
		{target: a, at: 59 * time.Second, want: ErrProbedOften},
		{target: a, at: 60 * time.Second},
		{target: a, at: 60 * time.Second, want: ErrProbedOften},
	} {
		if i == 4 {
			l.end()
		}
		err := l.begin(step.target, t0.Add(step.at))
		if !errors.Is(err, step.want) {
			t.Fatalf("step %d: %v, want %v", i, err, step.want)
		}
		if err == nil && !step.keep {
			l.end()
		}
	}
	var many punchLimit
	for i := range punchesPerSocket {
		if err := many.begin(netip.AddrFrom4([4]byte{20, 0, 1 + byte(i/punchesPerNet), byte(i)}), t0); err != nil {
			t.Fatal(err)
		}
		many.end()
	}
	if err := many.begin(a, t0); !errors.Is(err, ErrProbedOften) {
		t.Fatalf("a ninth target within a minute: %v", err)
	}
	var near punchLimit
	for i := range punchesPerNet + 1 {
		err := near.begin(netip.AddrFrom4([4]byte{20, 0, 1, byte(i)}), t0)
		if errors.Is(err, ErrProbedOften) != (i == punchesPerNet) {
			t.Fatalf("target %d of one network: %v", i, err)
		}
		near.end()
	}
}

func TestPunchTarget(t *testing.T) {
	for addr, ok := range map[string]bool{
		"20.0.0.1": true, "::ffff:20.0.0.1": true, "10.0.0.1": false, "192.168.1.1": false, "100.64.0.1": false,
		"127.0.0.1": false, "169.254.1.1": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false,
		"0.0.0.0": false, "0.1.2.3": false, "2001:db8::1": false, "::1": false,
	} {
		if err := punchTarget(netip.MustParseAddr(addr), false); (err == nil) != ok || err != nil && !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := punchTarget(netip.MustParseAddr("127.0.0.1"), true); err != nil {
		t.Error(err)
	}
	if err := punchTarget(netip.Addr{}, true); !errors.Is(err, ErrForbidden) {
		t.Error(err)
	}
}

func TestForetellPorts(t *testing.T) {
	locals := []uint16{5000, 5001, 6000}
	for name, c := range map[string]struct {
		measured []mappedPort
		want     []uint16
	}{
		"preserved":    {[]mappedPort{{1, 1}, {2, 2}, {9, 9}}, locals},
		"in turn":      {[]mappedPort{{1, 2000}, {2, 2001}, {9, 2002}}, []uint16{2003, 2004, 2005}},
		"by two, down": {[]mappedPort{{1, 2004}, {2, 2002}, {9, 2000}}, []uint16{1998, 1996, 1994}},
		"by 17":        {[]mappedPort{{1, 2000}, {2, 2017}, {9, 2034}}, nil},
		"one port":     {[]mappedPort{{1, 2000}, {2, 2000}, {9, 2000}}, nil},
		"random":       {[]mappedPort{{1, 2000}, {2, 2001}, {9, 2003}}, nil},
		"top":          {[]mappedPort{{1, 65532}, {2, 65533}, {9, 65534}}, []uint16{65535}},
		"bottom":       {[]mappedPort{{1, 1026}, {2, 1025}, {9, 1024}}, nil},
		"two only":     {[]mappedPort{{1, 1}, {2, 2}}, nil},
		"nothing":      {nil, nil},
	} {
		if got := foretellPorts(c.measured, locals); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestPortOrder(t *testing.T) {
	o := newPortOrder(nil)
	first, _ := o.next()
	o.foretell([]uint16{5, 4000, 4000, first, 4001})
	seen := map[uint16]bool{first: true}
	var got []uint16
	for {
		port, ok := o.next()
		if !ok {
			break
		}
		if port < leastPort || seen[port] {
			t.Fatalf("port %d, seen %t", port, seen[port])
		}
		seen[port] = true
		got = append(got, port)
	}
	if len(got) != maxPortProbes-1 || got[0] != 4000 && first != 4000 {
		t.Fatalf("%d ports, first %d", len(got), got[0])
	}
	o = newPortOrder(nil)
	o.foretell([]uint16{3000, 3001})
	o.foretell([]uint16{4000})
	for _, want := range []uint16{4000, 3000, 3001} {
		if port, _ := o.next(); port != want {
			t.Fatalf("%d, want %d", port, want)
		}
	}
}

func TestProbePace(t *testing.T) {
	var p probePace
	t0 := time.Unix(1e9, 0)
	for i, c := range []struct {
		at   time.Duration
		want int
	}{
		{0, 1},
		{time.Millisecond, 0},
		{2 * time.Millisecond, 1},
		{7 * time.Millisecond, 2},
		{8 * time.Millisecond, 1},
		{2 * time.Second, probeCatchUp},
		{2*time.Second + time.Millisecond, 0},
		{2*time.Second + 2*time.Millisecond, 1},
	} {
		if got := p.due(t0.Add(c.at)); got != c.want {
			t.Errorf("step %d: %d, want %d", i, got, c.want)
		}
	}
}

// TestBirthday draws what both sides draw: 256 mappings, 1,000 and 2,500 probes.
func TestBirthday(t *testing.T) {
	const runs = 1000
	by1000, all := 0, 0
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var mapped [1 << 16]bool
		for n := 0; n < fanSockets; {
			if p := leastPort + rng.IntN(1<<16-leastPort); !mapped[p] {
				mapped[p] = true
				n++
			}
		}
		o := newPortOrder(rng.IntN)
		for n := 1; ; n++ {
			port, ok := o.next()
			if !ok {
				break
			}
			if mapped[port] {
				all++
				if n <= 1000 {
					by1000++
				}
				break
			}
		}
	}
	t.Logf("met by 1,000 probes in %d of %d runs, by %d in %d", by1000, runs, maxPortProbes, all)
	if by1000 < runs*98/100 || all < runs*999/1000 {
		t.Errorf("met by 1,000 probes in %d of %d runs, by all in %d", by1000, runs, all)
	}
}

// countingPort is a network in which a port may answer.
type countingPort struct {
	signed  bool       // the peer answers; else a STUN server does
	peer    *responder // nil: not signed
	answers chan<- probeAnswer
	at      []time.Time
	to      []netip.AddrPort
	hit     uint16
	held    map[transactionID]bool
}

func (p *countingPort) expect(id transactionID, answers chan<- probeAnswer) {
	p.answers, p.held[id] = answers, true
}
func (p *countingPort) forget(id transactionID) { delete(p.held, id) }
func (p *countingPort) send(b []byte, to netip.AddrPort) error {
	p.at, p.to = append(p.at, time.Now()), append(p.to, to)
	if to.Port() != p.hit {
		return nil
	}
	_, id := classify(b)
	raw, err := unsignedAnswer(id, to)
	if p.peer != nil {
		raw, err = p.peer.answer(b, to)
	}
	if err != nil {
		return err
	}
	if a, ok := readAnswer(raw, to); ok {
		p.answers <- a
	}
	return nil
}

// unsignedAnswer is what any STUN server says.
func unsignedAnswer(id transactionID, seen netip.AddrPort) ([]byte, error) {
	m, err := stun.Build(stun.NewTransactionIDSetter(id), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: seen.Addr().AsSlice(), Port: int(seen.Port())})
	if err != nil {
		return nil, err
	}
	return m.Raw, nil
}

func testProber(port *countingPort, predicted <-chan []uint16) *portProber {
	local, remote := NewCredentials(), NewCredentials()
	if port.signed {
		port.peer = newLegResponder(remote, local, false, Prflx)
	}
	return newPortProber(ProbePortsConfig{
		Local: local, Remote: remote, Target: netip.MustParseAddr("20.0.0.1"), Predicted: predicted,
	}, port)
}

func TestProbePortsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := &countingPort{held: make(map[transactionID]bool)}
		predicted := make(chan []uint16, 1)
		time.AfterFunc(time.Second, func() { predicted <- []uint16{7000, 7001}; close(predicted) })
		p := testProber(port, predicted)
		start := time.Now()
		if err := p.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); len(port.at) != maxPortProbes || took > punchRun || took < maxPortProbes*probeGap {
			t.Fatalf("%d probes in %s", len(port.at), took)
		}
		for i := probeCatchUp; i < len(port.at); i++ {
			if port.at[i].Sub(port.at[i-probeCatchUp]) < probeGap {
				t.Fatalf("more than %d probes within %s", probeCatchUp, probeGap)
			}
		}
		i := slices.IndexFunc(port.to, func(a netip.AddrPort) bool { return a.Port() == 7000 })
		if i < 0 || port.at[i].Sub(start) > time.Second+2*probeGap && port.at[i].Sub(start) > time.Second {
			t.Errorf("what was foretold came as number %d, after %s", i, port.at[i].Sub(start))
		}
		if len(port.held) != 0 {
			t.Errorf("%d transactions are still expected", len(port.held))
		}
	})
}

func TestProbePortsAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := &countingPort{hit: 7000, signed: true, held: make(map[transactionID]bool)}
		predicted := make(chan []uint16, 1)
		predicted <- []uint16{7000}
		p := testProber(port, predicted)
		ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
		defer cancel()
		if err := p.run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		n := 0
		for _, to := range port.to {
			if to.Port() == 7000 {
				n++
			}
		}
		if n != 4 || p.stats.Answered != 4 || len(port.to) > 6 {
			t.Errorf("the port that answered was asked %d times of %d, answered %d", n, len(port.to), p.stats.Answered)
		}
	})
}

// A STUN server at the target's address answers too, unsigned: it holds nothing up.
func TestProbePortsPassesStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := &countingPort{hit: 7000, held: make(map[transactionID]bool)}
		predicted := make(chan []uint16, 1)
		predicted <- []uint16{7000}
		p := testProber(port, predicted)
		start := time.Now()
		if err := p.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := probeLinger + maxPortProbes*probeGap
		if took := time.Since(start); p.stats.Answered != 0 || len(port.to) != maxPortProbes || took > want+10*probeGap {
			t.Errorf("%d probes in %s, want %d in %s; %d count as answered", len(port.to), took, maxPortProbes, want, p.stats.Answered)
		}
	})
}

// A peer that says that it has no sockets open ends the run.
func TestProbePortsEndsWithThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := &countingPort{held: make(map[transactionID]bool)}
		predicted := make(chan []uint16, 1)
		time.AfterFunc(100*time.Millisecond, func() { predicted <- nil })
		if err := testProber(port, predicted).run(t.Context()); !errors.Is(err, ErrNotPunched) {
			t.Error(err)
		}
		if n := len(port.to); n == 0 || n > 60 {
			t.Errorf("%d probes in 100 ms", n)
		}
	})
}

func fanConfig(p, peer *party, controlling bool) FanConfig {
	return FanConfig{
		ID: identity.SessionID{1, 2, 3}, Peer: peer.key.ID(), Controlling: controlling,
		Local: p.creds, Remote: peer.creds,
		Target: loopback(peer.socket).Addr, ProvenUntil: time.Now().Add(30 * time.Second),
		Log: p.socket.log,
	}
}

func probeConfig(p, peer *party, controlling bool) ProbePortsConfig {
	return ProbePortsConfig{
		ID: identity.SessionID{1, 2, 3}, Peer: peer.key.ID(), Controlling: controlling,
		Local: p.creds, Remote: peer.creds,
		Target: netip.MustParseAddr("127.0.0.1"), ProvenUntil: time.Now().Add(30 * time.Second),
		Log: p.socket.log,
	}
}

// TestFanMeetsProbes: loopback has no NAT, so the openers would arrive by
// themselves. The easy side's session opens only when the openers are gone.
func TestFanMeetsProbes(t *testing.T) {
	for name, hardDials := range map[string]bool{"client": true, "miner": false} {
		t.Run(name, func(t *testing.T) {
			hard, easy := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true, Gate: true})
			stunServer := testStun(t)
			predicted := make(chan []uint16, 1)
			cfg := fanConfig(hard, easy, hardDials)
			cfg.Stun = []netip.AddrPort{stunServer}
			cfg.Predicted = func(ports []uint16) { predicted <- ports }
			type result struct {
				p   *Punched
				err error
			}
			fanned := make(chan result, 1)
			go func() {
				p, err := hard.socket.OpenFan(testContext(t), cfg)
				fanned <- result{p, err}
			}()
			ports := <-predicted
			x := open(t, easy, hard, !hardDials)
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			probed := make(chan error, 1)
			again := make(chan []uint16, 1)
			again <- ports
			pc := probeConfig(easy, hard, !hardDials)
			pc.Predicted = again
			go func() {
				_, err := easy.socket.ProbePorts(ctx, pc)
				probed <- err
			}()
			r := await(t, x.Addrs())
			cancel()
			if err := <-probed; !errors.Is(err, context.Canceled) {
				t.Errorf("probing ended with %v", err)
			}
			got := <-fanned
			if got.err != nil {
				t.Fatal(got.err)
			}
			defer func() { _ = got.p.Close() }()
			own := addrPort(got.p.conn.LocalAddr())
			for r.Addr.Port() != own.Port() { // an opener of another socket was first, for want of a NAT
				r = await(t, x.Addrs())
			}
			if r.Kind != Prflx || r.Addr.Port() != own.Port() || got.p.Peer() != loopback(easy.socket).Addr || got.p.Kind() != Prflx {
				t.Fatalf("reached %s %s, punched %s to %s", r.Kind, r.Addr, own, got.p.Peer())
			}
			if hardDials {
				serveEcho(t, easy.socket.Transport(), easy.key, hard.key.ID())
				echo(t, got.p.Transport(), got.p.Peer(), hard.key, easy.key.ID(), 100_000)
			} else {
				serveEcho(t, got.p.Transport(), hard.key, easy.key.ID())
				echo(t, easy.socket.Transport(), r.Addr, easy.key, hard.key.ID(), 100_000)
			}
		})
	}
}

// testStun answers unsigned binding requests, and nothing else.
func testStun(t *testing.T) netip.AddrPort {
	t.Helper()
	conn := testUDP(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxSTUN)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, id := classify(buf[:n])
			if raw, err := unsignedAnswer(id, canonical(from)); err == nil {
				_, _ = conn.WriteToUDPAddrPort(raw, from)
			}
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return addrPort(conn.LocalAddr())
}

// testUDP is a plain socket on loopback.
func testUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestPunchRefusals(t *testing.T) {
	hard, easy := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true})
	outside := newParty(t, SocketConfig{})
	for name, c := range map[string]struct {
		of     *party
		target string
		until  time.Duration
		want   error
	}{
		"expired":          {hard, "127.0.0.1:9", -time.Second, ErrUnproven},
		"proven too long":  {hard, "127.0.0.1:9", time.Hour, ErrUnproven},
		"private":          {hard, "10.0.0.1:9", time.Second, ErrForbidden},
		"IPv6":             {hard, "[2001:db8::1]:9", time.Second, ErrForbidden},
		"loopback outside": {outside, "127.0.0.1:9", time.Second, ErrForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			fc, pc := fanConfig(c.of, easy, true), probeConfig(c.of, easy, true)
			fc.Target = netip.MustParseAddrPort(c.target)
			pc.Target = fc.Target.Addr()
			fc.ProvenUntil = time.Now().Add(c.until)
			pc.ProvenUntil = fc.ProvenUntil
			if _, err := c.of.socket.OpenFan(testContext(t), fc); !errors.Is(err, c.want) {
				t.Errorf("fan: %v", err)
			}
			if _, err := c.of.socket.ProbePorts(testContext(t), pc); !errors.Is(err, c.want) {
				t.Errorf("probing: %v", err)
			}
		})
	}
	t.Run("credentials", func(t *testing.T) {
		fc := fanConfig(hard, easy, true)
		fc.Remote = Credentials{}
		if _, err := hard.socket.OpenFan(testContext(t), fc); !errors.Is(err, ErrBadCredentials) {
			t.Error(err)
		}
	})
	t.Run("often", func(t *testing.T) {
		ctx, cancel := context.WithCancel(testContext(t))
		cancel()
		for range punchesPerTarget {
			if _, err := hard.socket.OpenFan(ctx, fanConfig(hard, easy, true)); !errors.Is(err, context.Canceled) {
				t.Errorf("a fan that was cancelled: %v", err)
			}
		}
		if _, err := hard.socket.ProbePorts(ctx, probeConfig(hard, easy, true)); !errors.Is(err, ErrProbedOften) {
			t.Error(err)
		}
	})
	t.Run("one at a time, and closed", func(t *testing.T) {
		socket := testSocket(t, SocketConfig{Loopback: true})
		silent := addrPort(testUDP(t).LocalAddr())
		fc := fanConfig(hard, easy, true)
		fc.Target = silent
		ended := make(chan error, 1)
		go func() {
			_, err := socket.OpenFan(testContext(t), fc)
			ended <- err
		}()
		for {
			socket.punches.mu.Lock()
			running := socket.punches.running
			socket.punches.mu.Unlock()
			if running {
				break
			}
		}
		if _, err := socket.ProbePorts(testContext(t), probeConfig(hard, easy, true)); !errors.Is(err, ErrProbing) {
			t.Error(err)
		}
		_ = socket.Close()
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, err := socket.OpenFan(testContext(t), fc); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}
