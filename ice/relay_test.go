package ice

import (
	"net/netip"
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

func TestRelayCarriesQUICToAnOrdinarySocket(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	client, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{})
	serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
	id := identity.NewSessionID()
	user := server.Allow(TURNSession{
		ID: id, Password: "a password of the session", Expires: time.Now().Add(time.Minute),
		Peers: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	})
	ctx := testContext(t)
	r, err := OpenRelay(ctx, RelayConfig{
		Server:   "turn:" + server.Addrs()[0].String() + "?transport=udp",
		Username: user, Password: "a password of the session", Realm: server.Realm(),
		Local: client.creds, Remote: miner.creds, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := r.Permit(ctx, loopback(miner.socket).Addr); err != nil {
		t.Fatal(err)
	}
	x := open(t, miner, client, false)
	if err := x.AddRemote(Candidate{Kind: RelayUDP, Addr: r.Addr()}); err != nil {
		t.Fatal(err)
	}
	got := await(t, r.Addrs())
	if got.Addr != loopback(miner.socket).Addr || got.Kind != RelayUDP {
		t.Errorf("reached %s %s", got.Kind, got.Addr)
	}
	echo(t, r.Transport(), got.Addr, client.key, miner.key.ID(), 1<<20)
	if st := server.Stats(); st.BytesToPeers < 1<<20 || st.BytesToClients < 1<<20 || st.Allocations != 1 {
		t.Errorf("stats %+v", st)
	}
}
