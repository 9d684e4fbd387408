package ice

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/identity"
)

var (
	quicInitial = []byte{0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8}
	quicShort   = []byte{0x41, 1, 2, 3, 4}
	quicUnknown = []byte{0xc3, 0xba, 0xba, 0xba, 0xba, 8} // a version that nobody speaks is answered by servers
)

func TestGateLetsIn(t *testing.T) {
	g := newGate()
	now := time.Unix(0, 0)
	addrs := testAddrs(3)
	stranger, friend, dialled := addrs[0], addrs[1], addrs[2]
	one, two := identity.SessionID{1}, identity.SessionID{2}
	lets := func(b []byte, from netip.AddrPort, want bool) {
		t.Helper()
		if got := g.lets(b, from, now); got != want {
			t.Errorf("%x from %s passes: %v", b[:1], from, got)
		}
	}
	for _, b := range [][]byte{quicInitial, quicUnknown} {
		lets(b, stranger, false)
		lets(b, friend, false)
	}
	lets(quicShort, stranger, true)
	lets(nil, stranger, true)
	lets(rfc5769Request, stranger, true)
	if g.dropped.Load() != 4 {
		t.Errorf("%d dropped", g.dropped.Load())
	}
	for _, again := range []netip.Addr{friend.Addr(), friend.Addr(), netip.AddrFrom16(friend.Addr().As16())} {
		if !g.admit(one, again) || !g.admit(two, again) {
			t.Error("no room")
		}
	}
	lets(quicInitial, friend, true)
	lets(quicInitial, netip.AddrPortFrom(friend.Addr(), 9), true)
	lets(quicInitial, stranger, false)
	g.dismiss(one)
	g.dismiss(one)
	lets(quicInitial, friend, true) // the other session is still there
	g.dismiss(two)
	lets(quicInitial, friend, false)

	g.dialing(dialled, now)
	lets(quicInitial, dialled, true)
	lets(quicInitial, netip.AddrPortFrom(dialled.Addr(), 9), false)
	now = now.Add(dialWindow + 1)
	lets(quicInitial, dialled, false)
	if len(g.sessions) != 0 || len(g.admitted) != 0 {
		t.Error("something was kept")
	}
}

// An address that was admitted is not let in any longer because it was answered.
func TestGateDoesNotRememberAnswers(t *testing.T) {
	g := newGate()
	now := time.Unix(0, 0)
	peer := testAddrs(1)[0]
	g.admit(identity.SessionID{1}, peer.Addr())
	g.dialing(peer, now)
	g.dismiss(identity.SessionID{1})
	g.dialing(peer, now.Add(dialWindow/2)) // the last answer leaves late
	if g.lets(quicInitial, peer, now.Add(dialWindow/2)) {
		t.Error("a dismissed peer is let in")
	}
	now = now.Add(dialWindow + 1)
	if g.dialing(peer, now); !g.lets(quicInitial, peer, now) {
		t.Error("an address that called once cannot be dialled")
	}
}

func TestGateIsBounded(t *testing.T) {
	g := newGate()
	now := time.Unix(0, 0)
	addrs := testAddrs(maxAdmitted + 1)
	for i, a := range addrs {
		if got := g.admit(identity.SessionID{1}, a.Addr()); got != (i < maxAdmitted) {
			t.Errorf("address %d: %v", i+1, got)
		}
	}
	for i := range 4 * maxDials {
		now = now.Add(time.Millisecond)
		g.dialing(netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(i+1)), now)
	}
	last := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), 4*maxDials)
	if len(g.dials) != maxDials || !g.lets(quicInitial, last, now) {
		t.Errorf("%d dials", len(g.dials))
	}
	g.dialing(addrs[maxAdmitted], now.Add(2*dialWindow))
	if len(g.dials) != 1 {
		t.Errorf("%d dials, most of them over", len(g.dials))
	}
	for i := range 2 * maxCallers {
		g.dialing(netip.AddrPortFrom(addrs[0].Addr(), uint16(i+1)), now)
	}
	if len(g.callers) != maxCallers {
		t.Errorf("%d callers", len(g.callers))
	}
}

// dialQUIC makes one attempt at a handshake.
func dialQUIC(t *testing.T, from *party, to netip.AddrPort, peer identity.NodeID, timeout time.Duration) error {
	t.Helper()
	tlsConf, err := from.key.ClientTLS(testALPN, peer, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(testContext(t), timeout)
	defer cancel()
	conn, err := from.socket.Transport().Dial(ctx, net.UDPAddrFromAddrPort(to), tlsConf, &quic.Config{InitialPacketSize: 1200})
	if err == nil {
		_ = conn.CloseWithError(0, "")
	}
	return err
}

func TestGatedSocketHearsItsSessionsOnly(t *testing.T) {
	for name, cfg := range map[string]SocketConfig{"loopback": {Loopback: true, Gate: true}, "wildcard": {Gate: true}} {
		t.Run(name, func(t *testing.T) {
			client, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, cfg)
			serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
			to := loopback(miner.socket).Addr
			if err := dialQUIC(t, client, to, miner.key.ID(), 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("a stranger: %v", err)
			}
			if st := miner.socket.Stats(); st.Gated == 0 {
				t.Errorf("stats %+v", st)
			}
			id := identity.SessionID{7}
			miner.socket.Admit(id, loopback(client.socket).Addr.Addr())
			echo(t, client.socket.Transport(), to, client.key, miner.key.ID(), 1<<20)
			miner.socket.Dismiss(id)
			if err := dialQUIC(t, client, to, miner.key.ID(), 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after the session: %v", err)
			}
		})
	}
}

// A gated socket dials like any other: its own connections are answered.
func TestGatedSocketDials(t *testing.T) {
	coordinator, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true, Gate: true})
	serveEcho(t, coordinator.socket.Transport(), coordinator.key, miner.key.ID())
	echo(t, miner.socket.Transport(), loopback(coordinator.socket).Addr, miner.key, coordinator.key.ID(), 1<<20)
}

// A connection that is up does not need its session.
func TestGatedConnectionOutlivesItsSession(t *testing.T) {
	client, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true, Gate: true})
	serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
	id := identity.SessionID{7}
	miner.socket.Admit(id, netip.MustParseAddr("127.0.0.1"))
	tlsConf, err := client.key.ClientTLS(testALPN, miner.key.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	conn, err := client.socket.Transport().Dial(ctx, net.UDPAddrFromAddrPort(loopback(miner.socket).Addr), tlsConf, &quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseWithError(0, "") }()
	str, err := conn.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	for range 2 {
		if _, err := str.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := str.Read(buf); err != nil {
			t.Fatal(err)
		}
		miner.socket.Dismiss(id)
	}
}

// The candidates of a session and the sources of its checks are let in without
// being asked for, and stay until the session is dismissed.
func TestSessionsAreAdmittedByThemselves(t *testing.T) {
	t.Run("candidates", func(t *testing.T) {
		client, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true, Gate: true})
		serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
		open(t, miner, client, false, loopback(client.socket))
		if err := dialQUIC(t, client, loopback(miner.socket).Addr, miner.key.ID(), 5*time.Second); err != nil {
			t.Error(err)
		}
	})
	t.Run("checks", func(t *testing.T) {
		client, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true, Gate: true})
		serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
		m := open(t, miner, client, false)
		open(t, client, miner, true, loopback(miner.socket))
		await(t, m.Addrs())
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := dialQUIC(t, client, loopback(miner.socket).Addr, miner.key.ID(), 5*time.Second); err != nil {
			t.Error(err)
		}
		miner.socket.Dismiss(identity.SessionID{1, 2, 3})
		if err := dialQUIC(t, client, loopback(miner.socket).Addr, miner.key.ID(), 300*time.Millisecond); err == nil {
			t.Error("a dismissed session is let in")
		}
	})
}
