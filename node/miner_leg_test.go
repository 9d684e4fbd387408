package node

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mintai/ice"
	"mintai/identity"
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
		s := &minerSession{id: identity.NewSessionID(), client: client, since: now, expires: now.Add(time.Hour), legs: []*minerLeg{{cancel: func() {}}}}
		m.sessions[s.id] = s
		m.granted[client]++
		return s
	}
	owner, asked, idle := add(alice), add(alice), add(bob)
	if _, err := m.sessionFor(alice, asked.id.String()); err != nil {
		t.Fatal(err)
	}
	m.sweep(now.Add(unusedLife + time.Second))
	if m.sessions[owner.id] == nil || m.sessions[asked.id] == nil || m.sessions[idle.id] != nil {
		t.Errorf("%d sessions are left", len(m.sessions))
	}
}
