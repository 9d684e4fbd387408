package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
)

// slowLeg is a relay whose server never answers a request for a permission.
type slowLeg struct {
	simLeg
	closed chan struct{}

	mu    sync.Mutex // guards asked
	asked []netip.AddrPort
}

func newSlowLeg() *slowLeg { return &slowLeg{closed: make(chan struct{})} }

func (l *slowLeg) Permit(ctx context.Context, addr netip.AddrPort) error {
	l.mu.Lock()
	l.asked = append(l.asked, addr)
	l.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-l.closed:
	}
	return ice.ErrNoRelay
}

func (l *slowLeg) Close() error { close(l.closed); return nil }

// A miner's relay lets in the client's relay and whatever the client proves
// late, before and after it opened, and nothing waits for the permissions.
func TestMinerLegLetsLateAddressesIn(t *testing.T) {
	at := func(n byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, 0, 0, n}), 4433) }
	synctest.Test(t, func(t *testing.T) {
		var l minerLeg
		l.learn([]ice.Candidate{{Kind: ice.RelayUDP, Addr: at(1)}, {Kind: ice.Host, Addr: at(9)}}, nil)
		relay := newSlowLeg()
		l.use(relay) // must not wait
		l.learn(nil, []netip.AddrPort{at(2), at(2)})
		synctest.Wait()
		relay.mu.Lock()
		slices.SortFunc(relay.asked, netip.AddrPort.Compare)
		if want := []netip.AddrPort{at(1), at(2)}; !slices.Equal(relay.asked, want) {
			t.Errorf("asked for %v, want %v", relay.asked, want)
		}
		relay.mu.Unlock()
		for n := range byte(100) {
			l.learn(nil, []netip.AddrPort{at(n)})
		}
		synctest.Wait()
		relay.mu.Lock()
		if len(relay.asked) > maxLegPeers {
			t.Errorf("asked for %d", len(relay.asked))
		}
		relay.mu.Unlock()
		l.close(relay)
		l.learn(nil, []netip.AddrPort{at(200)}) // too late, and harmless
	})
}

// The session for which a relay was lent lasts while another one of the client's
// uses the tunnel over it.
func TestRelayLastsWhileItsTunnelIsUsed(t *testing.T) {
	t.Parallel()
	socket, err := ice.Listen(ice.SocketConfig{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	now := time.Now()
	m := &miner{
		socket: socket, sessions: map[identity.SessionID]*minerSession{}, granted: map[identity.NodeID]int{},
		ended: map[identity.SessionID]time.Time{}, offers: make(chan struct{}),
	}
	alice, bob := identity.NodeID{1}, identity.NodeID{2}
	add := func(client identity.NodeID) *minerSession {
		s := &minerSession{id: identity.NewSessionID(), client: client, since: now, expires: now.Add(time.Hour), lent: true, legs: []*minerLeg{{cancel: func(error) {}}}}
		m.sessions[s.id] = s
		m.granted[client]++
		return s
	}
	owner, asked, idle := add(alice), add(alice), add(bob)
	asked.legs = nil // its own carried no tunnel, and is gone
	if _, err := m.sessionFor(alice, asked.id.String()); err != nil {
		t.Fatal(err)
	}
	m.sweep(now.Add(unusedLife + time.Second))
	if m.sessions[owner.id] == nil || m.sessions[asked.id] == nil || m.sessions[idle.id] != nil {
		t.Errorf("%d sessions are left", len(m.sessions))
	}
}

// legAt is a relay at an address.
type legAt struct {
	simLeg
	addr netip.AddrPort
}

func (l *legAt) Addr() netip.AddrPort { return l.addr }

// Where there are too many relays, the oldest of those that carry least gives way,
// and what ran over it is told that another tunnel takes over.
func TestMinerLegThatGivesWay(t *testing.T) {
	at := func(n int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("20.0.0.1"), uint16(49160+n))
	}
	const unopened, idle = -2, -1 // else how many requests run in the tunnel
	for name, tc := range map[string]struct {
		legs [maxLegs]int
		want int
	}{
		"none carries anything":       {[maxLegs]int{idle, idle, idle}, 0},
		"the first carries an answer": {[maxLegs]int{1, idle, idle}, 1},
		"the first carries a tunnel":  {[maxLegs]int{0, idle, unopened}, 1},
		"only the last is idle":       {[maxLegs]int{0, 0, idle}, 2},
		"only the last is not open":   {[maxLegs]int{0, 0, unopened}, 2},
		"one carries no request":      {[maxLegs]int{1, 0, 2}, 1},
		"all carry answers":           {[maxLegs]int{1, 1, 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var s minerSession
			var tunnels []quicstream.TunnelInfo
			var contexts []context.Context
			var legs []*minerLeg
			for i := range maxLegs {
				ctx, cancel := context.WithCancelCause(t.Context())
				leg := &minerLeg{cancel: cancel}
				if tc.legs[i] != unopened {
					leg.relay = &legAt{addr: at(i)}
				}
				if tc.legs[i] >= 0 {
					tunnels = append(tunnels, quicstream.TunnelInfo{Requests: tc.legs[i], Stats: quicstream.Stats{Local: at(i)}})
				}
				s.addLegLocked(leg, nil)
				legs, contexts = append(legs, leg), append(contexts, ctx)
			}
			newest := &minerLeg{cancel: func(error) {}}
			s.addLegLocked(newest, func() []quicstream.TunnelInfo { return tunnels })
			for i, ctx := range contexts {
				var why *quicstream.CloseError
				switch gone := ctx.Err() != nil; {
				case gone != (i == tc.want):
					t.Errorf("leg %d: ended: %v", i, gone)
				case gone && (!errors.As(context.Cause(ctx), &why) || why.Code != quicstream.Replaced):
					t.Errorf("leg %d ended because of %v", i, context.Cause(ctx))
				}
			}
			want := append(slices.Delete(legs, tc.want, tc.want+1), newest)
			if !slices.Equal(s.legs, want) {
				t.Errorf("%d legs are left, or others", len(s.legs))
			}
		})
	}
}

// What serves a path ends some time after the last tunnel over it, and not before.
func TestServeWhileUsed(t *testing.T) {
	for name, tc := range map[string]struct{ from, to, ends time.Duration }{
		"never used":      {0, 0, unusedWay},
		"used late":       {unusedWay - 2*lookAtWay, time.Hour, time.Hour + unusedWay},
		"used for a time": {lookAtWay, 2 * unusedWay, 3 * unusedWay},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				used := func() bool {
					passed := time.Since(began)
					return passed >= tc.from && passed < tc.to
				}
				var cause error
				err := serveWhileUsed(t.Context(), used, func(ctx context.Context) error {
					<-ctx.Done()
					cause = context.Cause(ctx)
					return ctx.Err()
				})
				if took := time.Since(began); took < tc.ends-lookAtWay || took > tc.ends+lookAtWay {
					t.Errorf("it ended after %v, want %v", took, tc.ends)
				}
				var why *quicstream.CloseError
				if !errors.As(cause, &why) || why.Code != quicstream.Replaced || !errors.Is(err, errUnneeded) {
					t.Errorf("it ended with %v, because of %v", err, cause)
				}
			})
		})
	}
	want := errors.New("the socket is gone")
	if err := serveWhileUsed(t.Context(), func() bool { return false }, func(context.Context) error { return want }); !errors.Is(err, want) {
		t.Errorf("error %v", err)
	}
}

// The miner knows the tunnel that runs over its relay, spares it, and forgets the
// relay when it has ended.
func TestMinerLegCarriesItsTunnel(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	cl := l.client()
	server, err := ice.StartTURN(ice.TURNConfig{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, PortMin: 1024, PortMax: 65535})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), cl.socket.LocalAddr().Port())
	s := &minerSession{id: identity.NewSessionID(), client: cl.key.ID(), since: time.Now(), expires: time.Now().Add(time.Hour)}
	password := ice.NewCredentials().Pwd
	user := server.Allow(ice.TURNSession{ID: s.id, Miner: true, Password: password, Known: []netip.AddrPort{at}, Expires: s.expires})
	lent := &lentRelay{
		config: ice.RelayConfig{Username: user, Password: password, Local: ice.NewCredentials(), Remote: ice.NewCredentials()},
		port:   server.Addrs()[0].Port(),
	}
	m.mu.Lock()
	m.sessions[s.id] = s
	m.granted[s.client]++
	leg := m.openLeg(s.id, lent, []ice.Candidate{{Kind: ice.Host, Addr: at}}, nil)
	s.addLegLocked(leg, m.server.Tunnels)
	m.mu.Unlock()
	var relayed netip.AddrPort
	waitUntil(t, "the relay is open", func() bool {
		leg.mu.Lock()
		defer leg.mu.Unlock()
		if leg.relay == nil {
			return false
		}
		relayed = leg.relay.Addr()
		return true
	})
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	tunnel, err := quicstream.Dial(ctx, quicstream.DialConfig{
		Transport: cl.socket.Transport(), Addr: net.UDPAddrFromAddrPort(relayed), Key: cl.key, Peer: m.id(), Relayed: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tunnel.Close(quicstream.Done) }()
	waitUntil(t, "the miner knows of the tunnel", func() bool { return leg.carries(m.server.Tunnels()) == aTunnel })
	m.mu.Lock()
	for range maxLegs {
		s.addLegLocked(&minerLeg{cancel: func(error) {}}, m.server.Tunnels)
	}
	kept := slices.Contains(s.legs, leg)
	m.mu.Unlock()
	if !kept || tunnel.Err() != nil {
		t.Errorf("the relay in use is kept: %v; the tunnel: %v", kept, tunnel.Err())
	}
	leg.giveWay()
	receive(t, "the end of the tunnel", tunnel.Done())
	var why *quicstream.CloseError
	if !errors.As(tunnel.Err(), &why) || !why.Remote || why.Code != quicstream.Replaced {
		t.Errorf("the tunnel ended with %v", tunnel.Err())
	}
	waitUntil(t, "the relay is forgotten", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return !slices.Contains(s.legs, leg)
	})
}
