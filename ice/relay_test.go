package ice

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mintai/identity"
)

func testTURN(t testing.TB, cfg TURNConfig) *TURNServer {
	t.Helper()
	cfg.Log = testLog(t)
	if len(cfg.Listen)+len(cfg.Conns) == 0 {
		cfg.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	s, err := StartTURN(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the TURN server: %v", err)
		}
	})
	return s
}

// relayed is a session with a relay of its own.
type relayed struct {
	server        *TURNServer
	client, miner *party
	id            identity.SessionID
	relay         *Relay
}

func openRelayed(t testing.TB, cfg TURNConfig, peers ...string) *relayed {
	t.Helper()
	r := &relayed{
		server: testTURN(t, cfg),
		client: newParty(t, SocketConfig{Loopback: true}),
		miner:  newParty(t, SocketConfig{}),
	}
	var user string
	r.id, user = allow(r.server, peers...)
	relay, err := OpenRelay(testContext(t), RelayConfig{
		Server:   "turn:" + r.server.Addrs()[0].String() + "?transport=udp",
		Username: user, Password: testPassword, Realm: r.server.Realm(),
		Local: r.client.creds, Remote: r.miner.creds, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(relay.Close(), relay.Close()); err != nil {
			t.Errorf("closing the relay: %v", err)
		}
	})
	r.relay = relay
	return r
}

// connect makes the miner reach the relay and returns its address there.
func (r *relayed) connect(t testing.TB) Reached {
	t.Helper()
	if err := r.relay.Permit(testContext(t), loopback(r.miner.socket).Addr); err != nil {
		t.Fatal(err)
	}
	x := open(t, r.miner, r.client, false)
	if err := x.AddRemote(Candidate{Kind: RelayUDP, Addr: r.relay.Addr()}); err != nil {
		t.Fatal(err)
	}
	got := await(t, r.relay.Addrs())
	if got.Addr != loopback(r.miner.socket).Addr || got.Kind != RelayUDP {
		t.Errorf("reached %s %s", got.Kind, got.Addr)
	}
	return got
}

func TestRelayCarriesQUICToAnOrdinarySocket(t *testing.T) {
	r := openRelayed(t, TURNConfig{}, "127.0.0.1")
	serveEcho(t, r.miner.socket.Transport(), r.miner.key, r.client.key.ID())
	got := r.connect(t)
	echo(t, r.relay.Transport(), got.Addr, r.client.key, r.miner.key.ID(), 1<<20)
	if st := r.server.Stats(); st.BytesToPeers < 1<<20 || st.BytesToClients < 1<<20 || st.Allocations != 1 {
		t.Errorf("stats %+v", st)
	}
	if err := r.relay.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the allocation was freed", func() bool { return r.server.Stats().Allocations == 0 })
	if err := r.relay.Permit(testContext(t), got.Addr); !errors.Is(err, ErrClosed) {
		t.Errorf("Permit after Close: %v", err)
	}
}

// A miner that was seen over IPv6 gets a relayed address that it can reach.
func TestRelayOverIPv6(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	peer := loopback6(t, miner.socket).Addr
	server := testTURN(t, TURNConfig{Listen: []netip.AddrPort{netip.MustParseAddrPort("[::]:0"), netip.MustParseAddrPort("0.0.0.0:0")}})
	serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
	_, user := allow(server, "::1")
	ctx := testContext(t)
	// The client itself comes over IPv4.
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), server.Addrs()[1].Port())
	relay, err := OpenRelay(ctx, RelayConfig{
		Server: address.String(), Username: user, Password: testPassword,
		Local: client.creds, Remote: miner.creds, Peer: peer.Addr(), Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = relay.Close() }()
	if err := relay.Permit(ctx, peer); err != nil {
		t.Fatal(err)
	}
	open(t, miner, client, false, Candidate{Kind: RelayUDP, Addr: relay.Addr()})
	got := await(t, relay.Addrs())
	if got.Addr != peer {
		t.Errorf("reached %s, want %s", got.Addr, peer)
	}
	echo(t, relay.Transport(), got.Addr, client.key, miner.key.ID(), 1<<16)
}

// The direct path and the relay may work at the same time, over one session.
func TestRelayBesideADirectSession(t *testing.T) {
	r := openRelayed(t, TURNConfig{}, "127.0.0.1")
	serveEcho(t, r.miner.socket.Transport(), r.miner.key, r.client.key.ID())
	c := open(t, r.client, r.miner, true, loopback(r.miner.socket))
	got := r.connect(t)
	direct := await(t, c.Addrs())
	echo(t, r.client.socket.Transport(), direct.Addr, r.client.key, r.miner.key.ID(), 1000)
	echo(t, r.relay.Transport(), got.Addr, r.client.key, r.miner.key.ID(), 1000)
}

func TestRelayPermitsOnlyTheMiner(t *testing.T) {
	r := openRelayed(t, TURNConfig{}, "127.0.0.1")
	ctx := testContext(t)
	for _, peer := range []string{"203.0.113.9:4433", "10.0.0.1:4433"} {
		if err := r.relay.Permit(ctx, netip.MustParseAddrPort(peer)); !errors.Is(err, ErrRelayRefused) {
			t.Errorf("%s: %v", peer, err)
		}
	}
	for _, peer := range []string{"224.0.0.1:4433", "0.0.0.0:1", "127.0.0.1:0"} {
		if err := r.relay.Permit(ctx, netip.MustParseAddrPort(peer)); !errors.Is(err, ErrBadCandidate) {
			t.Errorf("%s: %v", peer, err)
		}
	}
	// What is for somebody without permission is dropped without an error.
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.9:4433"))
	if n, err := r.relay.Transport().WriteTo([]byte{0x40, 1, 2}, to); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n := r.server.Stats().BytesToPeers; n != 0 {
		t.Errorf("%d bytes passed", n)
	}
}

// A leg whose allocation was taken away, or whose server is gone, stays silent:
// an error would end the connection that has moved to another path.
func TestRelayStaysSilentWhenItsServerIsGone(t *testing.T) {
	r := openRelayed(t, TURNConfig{}, "127.0.0.1")
	serveEcho(t, r.miner.socket.Transport(), r.miner.key, r.client.key.ID())
	got := r.connect(t)
	echo(t, r.relay.Transport(), got.Addr, r.client.key, r.miner.key.ID(), 1000)
	r.server.Revoke(r.id)
	eventually(t, "the allocation was freed", func() bool { return r.server.Stats().Allocations == 0 })
	to := net.UDPAddrFromAddrPort(got.Addr)
	if _, err := r.relay.Transport().WriteTo([]byte{0x40, 1, 2}, to); err != nil {
		t.Errorf("after the revocation: %v", err)
	}
	if err := r.server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.relay.Transport().WriteTo([]byte{0x40, 1, 2}, to); err != nil {
		t.Errorf("after the end of the server: %v", err)
	}
}

func TestRelayIgnoresStrangers(t *testing.T) {
	r := openRelayed(t, TURNConfig{}, "127.0.0.1")
	serveEcho(t, r.miner.socket.Transport(), r.miner.key, r.client.key.ID())
	got := r.connect(t)
	// To the client's own TURN socket, where pion's reader would give up, and to
	// the relayed address.
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), addrPort(r.relay.wire.LocalAddr()).Port()),
		r.relay.Addr(),
	} {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{rfc5769Request, rfc5769Request[:24], {0x40, 0, 0, 9}, {0}, make([]byte, 1400)} {
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		_ = conn.Close()
	}
	echo(t, r.relay.Transport(), got.Addr, r.client.key, r.miner.key.ID(), 1<<16)
	select {
	case other := <-r.relay.Addrs():
		t.Errorf("a stranger was taken for the miner: %v", other)
	default:
	}
}

func TestOpenRelayFails(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	_, user := allow(server, "127.0.0.1")
	silent, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	live := "turn:" + server.Addrs()[0].String()
	for name, tc := range map[string]struct {
		server, user, password string
		want                   error
	}{
		"no port":          {"relay.example", user, testPassword, ErrRelayURL},
		"TLS":              {"turns:127.0.0.1:5349", user, testPassword, ErrRelayURL},
		"TCP":              {live + "?transport=tcp", user, testPassword, ErrRelayURL},
		"a wrong password": {live, user, "another", ErrRelayRefused},
		"an unknown user":  {live, "nobody", testPassword, ErrRelayRefused},
		"silence":          {"turn:" + silent.LocalAddr().String(), user, testPassword, ErrNoRelay},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			r, err := OpenRelay(ctx, RelayConfig{
				Server: tc.server, Username: tc.user, Password: tc.password,
				Local: NewCredentials(), Remote: NewCredentials(), Log: testLog(t),
			})
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, %v", r, err)
			}
			if err != nil && (strings.Contains(err.Error(), testPassword) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("the error shows the password or has several lines: %v", err)
			}
		})
	}
	if _, err := OpenRelay(context.Background(), RelayConfig{Server: live}); !errors.Is(err, ErrBadCredentials) {
		t.Errorf("no credentials: %v", err)
	}
}

func TestParseRelayURL(t *testing.T) {
	for in, want := range map[string]string{
		"turn:203.0.113.1:3478":            "203.0.113.1 3478",
		"turn:203.0.113.1":                 "203.0.113.1 3478",
		"turn:relay.example?transport=udp": "relay.example 3478",
		"turn:[2001:db8::1]:5000":          "2001:db8::1 5000",
		"turn:[2001:db8::1]":               "2001:db8::1 3478",
		"203.0.113.1:3478":                 "203.0.113.1 3478",
		"203.0.113.1":                      "",
		"turn:":                            "",
		"turn::3478":                       "",
		"turn:a:0":                         "",
		"turn:a:65536":                     "",
		"turn:a:b":                         "",
		"turn:a?transport=tcp":             "",
		"stun:a:3478":                      "",
	} {
		host, port, err := parseRelayURL(in)
		if got := host + " " + port; want != "" && (err != nil || got != want) || want == "" && !errors.Is(err, ErrRelayURL) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// Nothing is sent to a server at an address where none may be, whoever names it.
func TestRelayServersThatMayNotBe(t *testing.T) {
	victim, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = victim.Close() }()
	cfg := RelayConfig{Local: NewCredentials(), Remote: NewCredentials(), Within: func(a netip.Addr) bool { return !a.IsLoopback() }}
	for _, server := range []string{"turn:" + victim.LocalAddr().String(), "turn:224.0.0.251:5353", "turn:0.0.0.0:3478", "turn:255.255.255.255:9"} {
		cfg.Server = server
		if _, err := OpenRelay(testContext(t), cfg); !errors.Is(err, ErrNoRelay) {
			t.Errorf("%s: %v", server, err)
		}
	}
	_ = victim.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := victim.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes came", n)
	}
}
