package ice

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	stunv4 "github.com/pion/stun/v4"

	"mintai/identity"
)

const testPassword = "a password of the session"

// allow admits a session whose miner was seen at peers.
func allow(s *TURNServer, peers ...string) (identity.SessionID, string) {
	id := identity.NewSessionID()
	ts := TURNSession{ID: id, Password: testPassword, Expires: time.Now().Add(time.Minute)}
	for _, p := range peers {
		ts.Peers = append(ts.Peers, netip.MustParseAddr(p))
	}
	return id, s.Allow(ts)
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(testTimeout)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, testTimeout)
		}
	}
}

// sink is a UDP socket that counts what arrives.
type sink struct {
	conn *net.UDPConn
	addr netip.AddrPort
	got  chan string
}

func newSink(t testing.TB) *sink {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{conn: conn, addr: addrPort(conn.LocalAddr()), got: make(chan string, 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			s.got <- string(buf[:n])
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return s
}

func (s *sink) expect(t testing.TB, want string) {
	t.Helper()
	select {
	case got := <-s.got:
		if got != want {
			t.Errorf("the miner got %q, want %q", got, want)
		}
	case <-time.After(testTimeout):
		t.Errorf("the miner did not get %q", want)
	}
}

func TestTURNServesOnlyTheSessionsMiner(t *testing.T) {
	others := []string{
		"203.0.113.9", "198.51.100.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "127.0.0.2",
		"169.254.169.254", "224.0.0.1", "239.255.255.250", "255.255.255.255", "0.0.0.0",
		"::1", "fe80::1", "ff02::1", "fd00::1", "::", "2001:db8::1", "64:ff9b::7f00:1",
	}
	for _, a := range others[:12] {
		others = append(others, "::ffff:"+a)
	}
	for name, tc := range map[string]struct {
		miner  string
		others []string
	}{
		"the miner was seen on loopback": {"127.0.0.1", others},
		"the miner was seen elsewhere":   {"203.0.113.7", append(others, "127.0.0.1", "::ffff:127.0.0.1")},
	} {
		t.Run(name, func(t *testing.T) {
			server := testTURN(t, TURNConfig{})
			_, user := allow(server, tc.miner)
			c := newRawTURN(t, server, user, testPassword)
			c.allocate()
			dst := newSink(t) // listens where "127.0.0.1" would lead
			for i, other := range tc.others {
				peer := netip.AddrPortFrom(netip.MustParseAddr(other), dst.addr.Port())
				if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(peer)); code == 0 {
					t.Errorf("CreatePermission for %s was granted", other)
				}
				if _, code := c.request(stunv4.MethodChannelBind, channel(0x4000+uint16(i)), xorPeer(peer)); code == 0 {
					t.Errorf("ChannelBind to %s was granted", other)
				}
				if _, code := c.request(stunv4.MethodConnect, xorPeer(peer)); code == 0 {
					t.Errorf("Connect to %s was granted", other)
				}
				before := server.Stats().Malformed
				c.indicate(peer, "must not arrive")
				eventually(t, "the Send indication to "+other+" was looked at", func() bool {
					return server.Stats().Malformed > before
				})
			}
			if st := server.Stats(); st.BytesToPeers != 0 || st.RefusedPeer == 0 {
				t.Errorf("stats %+v", st)
			}
			miner := netip.AddrPortFrom(netip.MustParseAddr(tc.miner), dst.addr.Port())
			if _, code := c.request(stunv4.MethodConnect, xorPeer(miner)); code == 0 {
				t.Error("Connect to the miner was granted: TCP is not relayed")
			}
			mapped := netip.AddrPortFrom(netip.AddrFrom16(miner.Addr().As16()), miner.Port())
			for i, peer := range []netip.AddrPort{miner, mapped} {
				if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(peer)); code != 0 {
					t.Errorf("CreatePermission for the miner as %s: error %d", peer.Addr(), code)
				}
				if tc.miner == "127.0.0.1" {
					want := fmt.Sprintf("for the miner %d", i)
					c.indicate(peer, want)
					dst.expect(t, want)
				}
			}
			if _, code := c.request(stunv4.MethodChannelBind, channel(0x4fff), xorPeer(miner)); code != 0 {
				t.Errorf("ChannelBind to the miner: error %d", code)
			}
			if tc.miner == "127.0.0.1" {
				c.send([]byte{0x4f, 0xff, 0, 4, 'c', 'h', 'a', 'n'})
				dst.expect(t, "chan")
			}
		})
	}
}

func TestTURNKeepsWellKnownPortsOut(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	c.allocate()
	dns := netip.MustParseAddrPort("127.0.0.1:53")
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(dns)); code != 0 {
		t.Fatalf("error %d", code) // permissions are for addresses, not for ports
	}
	c.indicate(dns, "a question")
	eventually(t, "the datagram was dropped", func() bool { return server.Stats().DroppedPeer == 1 })
	if n := server.Stats().BytesToPeers; n != 0 {
		t.Errorf("%d bytes were relayed", n)
	}
}

func TestTURNRefusesStrangersAndUnusedFeatures(t *testing.T) {
	server := testTURN(t, TURNConfig{PerSession: 1, MaxAllocations: 2})
	_, user := allow(server, "127.0.0.1")
	for name, tc := range map[string]struct {
		user, password string
		attrs          []stunv4.Setter
		want           stunv4.ErrorCode
	}{
		"an unknown user":  {"nobody", testPassword, []stunv4.Setter{transportUDP}, 401},
		"a wrong password": {user, "another", []stunv4.Setter{transportUDP}, 401},
		"a TCP allocation": {user, testPassword, []stunv4.Setter{transportTCP}, 508},
		"an even port":     {user, testPassword, []stunv4.Setter{transportUDP, attr{stunv4.AttrEvenPort, []byte{0x80}}}, 508},
		"no transport":     {user, testPassword, nil, 400},
	} {
		t.Run(name, func(t *testing.T) {
			c := newRawTURN(t, server, tc.user, tc.password)
			if _, code := c.request(stunv4.MethodAllocate, tc.attrs...); code != tc.want {
				t.Errorf("error %d, want %d", code, tc.want)
			}
		})
	}
	if st := server.Stats(); st.Allocations != 0 || st.RefusedAuth != 2 || st.RefusedOther == 0 {
		t.Errorf("stats %+v", st)
	}
	server.age(-time.Minute, newRawTURN(t, server, user, testPassword).allocate()) // in use
	if _, code := newRawTURN(t, server, user, testPassword).request(stunv4.MethodAllocate, transportUDP); code != 486 {
		t.Errorf("a second allocation of the session: error %d, want 486", code)
	}
	_, second := allow(server, "127.0.0.1")
	newRawTURN(t, server, second, testPassword).allocate()
	_, third := allow(server, "127.0.0.1")
	if _, code := newRawTURN(t, server, third, testPassword).request(stunv4.MethodAllocate, transportUDP); code != 486 {
		t.Errorf("an allocation over the limit of all: error %d, want 486", code)
	}
}

func TestTURNSessionsEnd(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	id, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	c.allocate()
	dst := newSink(t)
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(dst.addr)); code != 0 {
		t.Fatalf("error %d", code)
	}
	c.indicate(dst.addr, "in time")
	dst.expect(t, "in time")

	ended := TURNSession{ID: id, Password: testPassword, Peers: []netip.Addr{dst.addr.Addr()}, Expires: time.Now().Add(-time.Second)}
	server.Allow(ended)
	dropped := server.Stats().DroppedPeer
	c.indicate(dst.addr, "too late")
	eventually(t, "the datagram was dropped", func() bool { return server.Stats().DroppedPeer > dropped })
	if _, code := c.request(stunv4.MethodRefresh); code != 401 {
		t.Errorf("Refresh after the end: error %d, want 401", code)
	}

	ended.Expires = time.Now().Add(time.Minute) // renewed
	server.Allow(ended)
	c.indicate(dst.addr, "renewed")
	dst.expect(t, "renewed")
	if _, code := c.request(stunv4.MethodRefresh); code != 0 {
		t.Errorf("Refresh after the renewal: error %d", code)
	}

	server.Revoke(id)
	eventually(t, "the allocation was freed", func() bool { return server.Stats().Allocations == 0 })
	if _, code := c.request(stunv4.MethodRefresh); code != 401 {
		t.Errorf("Refresh after the revocation: error %d, want 401", code)
	}
	if n := len(dst.got); n != 0 {
		t.Errorf("%d datagrams too many arrived", n)
	}
}

func TestTURNAddPeer(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	id, user := allow(server, "203.0.113.7")
	c := newRawTURN(t, server, user, testPassword)
	c.allocate()
	dst := newSink(t)
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(dst.addr)); code != 403 {
		t.Errorf("before: error %d, want 403", code)
	}
	server.AddPeer(id, netip.MustParseAddr("::ffff:127.0.0.1"))
	server.AddPeer(id, netip.MustParseAddr("224.0.0.1"))
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(dst.addr)); code != 0 {
		t.Errorf("after: error %d", code)
	}
	c.indicate(dst.addr, "hello")
	dst.expect(t, "hello")
	multicast := netip.MustParseAddrPort("224.0.0.1:5353")
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(multicast)); code != 403 {
		t.Errorf("multicast: error %d, want 403", code)
	}
}

func TestTURNLimitsTheRate(t *testing.T) {
	server := testTURN(t, TURNConfig{BytesPerSecond: 1000}) // a burst of 64 KiB
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	c.allocate()
	dst := newSink(t)
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(dst.addr)); code != 0 {
		t.Fatalf("error %d", code)
	}
	data := strings.Repeat("x", 1200)
	for server.Stats().DroppedRate == 0 {
		before := server.Stats().BytesToPeers
		c.indicate(dst.addr, data)
		eventually(t, "the datagram was handled", func() bool {
			st := server.Stats()
			return st.BytesToPeers > before || st.DroppedRate > 0
		})
		if before > 0 && len(dst.got) > 0 {
			<-dst.got
		}
		if before > 80<<10 {
			t.Fatalf("%d bytes passed", before)
		}
	}
}

func TestTURNPortsAndTap(t *testing.T) {
	// A free port that others are unlikely to take meanwhile.
	probe, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	port := addrPort(probe.LocalAddr()).Port()
	_ = probe.Close()
	var tapped atomic.Int64
	server := testTURN(t, TURNConfig{
		PortMin: port, PortMax: port, RelayIP: netip.MustParseAddr("192.0.2.1"),
		Tap: func(b []byte) { tapped.Add(int64(len(b))) },
	})
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	if got, want := c.allocate(), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port); got != want {
		t.Errorf("relayed address %s, want %s", got, want)
	}
	if _, code := newRawTURN(t, server, user, testPassword).request(stunv4.MethodAllocate, transportUDP); code != 508 {
		t.Errorf("no port left: error %d, want 508", code)
	}
	if tapped.Load() == 0 {
		t.Error("the tap saw nothing")
	}
}

func TestTURNAnswersSTUN(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	c := newRawTURN(t, server, "", "")
	req := stunv4.MustBuild(stunv4.TransactionID, stunv4.BindingRequest, stunv4.Fingerprint)
	c.send(req.Raw)
	var mapped stunv4.XORMappedAddress
	if err := mapped.GetFrom(c.response(req.TransactionID)); err != nil {
		t.Fatal(err)
	}
	if want := addrPort(c.conn.LocalAddr()).Port(); mapped.Port != int(want) {
		t.Errorf("mapped port %d, want %d", mapped.Port, want)
	}
}

func TestTURNSurvivesGarbage(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	valid := stunv4.MustBuild(stunv4.TransactionID, stunv4.NewType(stunv4.MethodAllocate, stunv4.ClassRequest), transportUDP)
	for _, b := range [][]byte{
		nil,
		{0},
		{0x40, 0, 0xff, 0xff},
		make([]byte, 1590), valid.Raw[:19], valid.Raw[:len(valid.Raw)-1],
		append([]byte{0x00, 0x01, 0xff, 0xff}, valid.Raw[4:]...),
	} {
		c.send(b)
	}
	c.allocate()
	if server.Stats().Malformed == 0 {
		t.Error("nothing was counted")
	}
}

func TestStartTURNChecksItsConfig(t *testing.T) {
	addr := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	for name, cfg := range map[string]TURNConfig{
		"nowhere to listen": {},
		"ports upside down": {Listen: addr, PortMin: 2, PortMax: 1},
		"port zero":         {Listen: addr, PortMax: 1},
	} {
		if s, err := StartTURN(cfg); err == nil {
			t.Errorf("%s: no error", name)
			_ = s.Close()
		}
	}
}

func TestRequestLimit(t *testing.T) {
	var l requestLimit
	a, now := netip.MustParseAddr("192.0.2.1"), time.Unix(100, 0)
	for i := range requestsPerSource + 10 {
		if got, want := l.allow(a, now), i < requestsPerSource; got != want {
			t.Fatalf("request %d: %v", i, got)
		}
	}
	other := netip.MustParseAddr("192.0.2.2")
	if !l.allow(other, now) || !l.allow(a, now.Add(requestWindow)) {
		t.Error("another source, or the next window, is refused")
	}
	for i := range 100_000 { // a flood that forges its sources shuts nobody out
		forged := netip.AddrFrom4([4]byte{byte(i), byte(i >> 8), byte(i >> 16), 1})
		if !l.allow(forged, now.Add(2*requestWindow)) {
			t.Fatalf("after %d requests from as many sources another one is refused", i)
		}
	}
	request := stunv4.MustBuild(stunv4.TransactionID, stunv4.BindingRequest).Raw
	signed, _ := SignProbe(newKey(t), newKey(t).ID(), 0, now)
	var flooded requestLimit
	unsigned := 0
	for i := range 20_000 {
		forged := netip.AddrFrom4([4]byte{byte(i), byte(i >> 8), byte(i >> 16), 1})
		if flooded.answers(request, forged, now) {
			unsigned++
		}
	}
	if unsigned != maxUnsigned || !flooded.answers(signed, a, now) {
		t.Errorf("%d requests without a signature are answered in a second, want %d; and signed ones", unsigned, maxUnsigned)
	}
	send := stunv4.MustBuild(stunv4.TransactionID, stunv4.NewType(stunv4.MethodSend, stunv4.ClassIndication)).Raw
	if !answered(request) || answered(send) || answered([]byte{0x40, 0, 0, 0}) || answered(nil) {
		t.Error("requests are not told from what is never answered")
	}
}

func TestTURNDropsAFlood(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	c := newRawTURN(t, server, "", "")
	request := stunv4.MustBuild(stunv4.TransactionID, stunv4.BindingRequest).Raw
	for server.Stats().DroppedFlood == 0 {
		for range 50 {
			c.send(request)
		}
	}
}

// With PeersSpeakFirst other services at the miner's address are out of reach.
func TestTURNPeersSpeakFirst(t *testing.T) {
	server := testTURN(t, TURNConfig{PeersSpeakFirst: true})
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	relayed := c.allocate()
	miner, service := newSink(t), newSink(t)
	for _, dst := range []*sink{miner, service} {
		if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(dst.addr)); code != 0 {
			t.Fatalf("error %d", code)
		}
	}
	dropped := server.Stats().DroppedPeer
	c.indicate(miner.addr, "too early")
	c.indicate(service.addr, "never")
	eventually(t, "both were dropped", func() bool { return server.Stats().DroppedPeer == dropped+2 })
	if _, err := miner.conn.WriteTo([]byte("here I am"), net.UDPAddrFromAddrPort(relayed)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the miner was heard", func() bool { return server.Stats().BytesToClients > 0 })
	c.indicate(service.addr, "still never")
	c.indicate(miner.addr, "an answer")
	miner.expect(t, "an answer")
	eventually(t, "the service stays out of reach", func() bool { return server.Stats().DroppedPeer == dropped+3 })
	if n := len(service.got); n != 0 {
		t.Errorf("%d datagrams reached the service", n)
	}
}

func TestHeardPeersAreBounded(t *testing.T) {
	var h heardPeers
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(2000+i))
	}
	for i := range 10 * maxHeard {
		h.add(at(i))
		if !h.has(at(i)) || len(*h.now.Load()) > maxHeard {
			t.Fatalf("after %d: %d are kept", i, len(*h.now.Load()))
		}
	}
	if h.has(at(0)) {
		t.Error("the first of many is still kept")
	}
}
