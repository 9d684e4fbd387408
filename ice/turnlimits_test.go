package ice

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	stunv4 "github.com/pion/stun/v4"

	"mintai/identity"
)

func TestTURNLimitsANode(t *testing.T) {
	server := testTURN(t, TURNConfig{MaxPerNode: 2})
	node, another := newKey(t).ID(), newKey(t).ID()
	admit := func(node identity.NodeID, miner bool) (identity.SessionID, *rawTURN) {
		id := identity.NewSessionID()
		user := server.Allow(TURNSession{ID: id, Node: node, Miner: miner, Password: testPassword, Expires: time.Now().Add(time.Minute)})
		return id, newRawTURN(t, server, user, testPassword)
	}
	first, c := admit(node, false)
	c.allocate()
	_, c = admit(node, true)
	c.allocate()
	_, third := admit(node, false)
	if _, code := third.request(stunv4.MethodAllocate, transportUDP); code != 486 {
		t.Errorf("a third allocation of the node: error %d, want 486", code)
	}
	_, c = admit(another, false)
	c.allocate()
	_, c = admit(identity.NodeID{}, false)
	c.allocate()
	server.Revoke(first)
	eventually(t, "one was freed", func() bool { return server.Stats().Allocations == 3 })
	third.allocate()
}

// age makes the clients of relayed addresses silent for a while longer.
func (t *TURNServer) age(by time.Duration, relayed ...netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.relays {
		if slices.Contains(relayed, r.announced) {
			r.used.Add(-int64(by))
		}
	}
}

// A leg at its limit gets one more allocation in the place of the one whose client
// is silent for longest; none that is in use has to go, and none of another leg.
func TestTURNReplacesTheIdlestAllocation(t *testing.T) {
	server := testTURN(t, TURNConfig{PerSession: 2, MaxPerNode: 2, MaxAllocations: 3})
	dst := newSink(t)
	leg := TURNSession{
		ID: identity.NewSessionID(), Node: newKey(t).ID(), Password: testPassword,
		Known: []netip.AddrPort{dst.addr}, Expires: time.Now().Add(time.Minute),
	}
	user := server.Allow(leg)
	leg.Miner, leg.Node = true, newKey(t).ID()
	other := newRawTURN(t, server, server.Allow(leg), testPassword).allocate()
	first, second, third := newRawTURN(t, server, user, testPassword), newRawTURN(t, server, user, testPassword), newRawTURN(t, server, user, testPassword)
	lost, used := first.allocate(), second.allocate()
	server.age(-time.Minute, lost, used) // whatever this machine does meanwhile
	if _, code := third.request(stunv4.MethodAllocate, transportUDP); code != 486 {
		t.Errorf("a third allocation beside two in use: error %d, want 486", code)
	}
	server.age(3*time.Minute, other)
	server.age(2*time.Minute, used)
	server.age(time.Minute+2*time.Second, lost)
	if _, code := second.request(stunv4.MethodCreatePermission, xorPeer(dst.addr)); code != 0 {
		t.Fatalf("error %d", code)
	}
	second.indicate(dst.addr, "it is in use")
	dst.expect(t, "it is in use")
	third.allocate()
	if n := server.Stats().Allocations; n != 3 {
		t.Errorf("%d allocations, want 3", n)
	}
	second.indicate(dst.addr, "it still is")
	dst.expect(t, "it still is")
	eventually(t, "the port is free", func() bool {
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(lost))
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	server.mu.Lock()
	left := slices.ContainsFunc(slices.Collect(maps.Keys(server.relays)), func(r *relayConn) bool { return r.announced == other })
	server.mu.Unlock()
	if !left {
		t.Error("the allocation of the session's other leg is gone")
	}
	server.age(time.Minute, used)
	eventually(t, "the client may allocate anew from where it was", func() bool {
		_, code := first.request(stunv4.MethodAllocate, transportUDP) // 437: the old one is still there
		return code == 0
	})
}

// A client whose NAT forgets it again and again gets a relay each time, although
// it can free none.
func TestTURNClientIsRebound(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	_, user := allow(server, "127.0.0.1")
	for range 3 * defaultPerSession {
		server.age(time.Minute, newRawTURN(t, server, user, testPassword).allocate())
	}
	if n := server.Stats().Allocations; n != defaultPerSession {
		t.Errorf("%d allocations, want %d", n, defaultPerSession)
	}
}

func TestTURNForgetsNodes(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	id := identity.NewSessionID()
	for _, miner := range []bool{false, true} {
		user := server.Allow(TURNSession{ID: id, Node: newKey(t).ID(), Miner: miner, Password: testPassword, Expires: time.Now().Add(time.Minute)})
		newRawTURN(t, server, user, testPassword).allocate()
	}
	server.Extend(id, time.Now().Add(time.Hour))
	server.Revoke(id)
	eventually(t, "both nodes were forgotten", func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return len(server.nodes) == 0 && len(server.relays) == 0 && len(server.sessions) == 0
	})
}

func TestTURNLimitsTheRateOfANode(t *testing.T) {
	server := testTURN(t, TURNConfig{NodeBytesPerSecond: 1000}) // a burst of 64 KiB
	node, dst := newKey(t).ID(), newSink(t)
	var clients []*rawTURN
	for range 2 {
		user := server.Allow(TURNSession{
			ID: identity.NewSessionID(), Node: node, Password: testPassword,
			Known: []netip.AddrPort{dst.addr}, Expires: time.Now().Add(time.Minute),
		})
		c := newRawTURN(t, server, user, testPassword)
		c.allocate()
		if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(dst.addr)); code != 0 {
			t.Fatalf("error %d", code)
		}
		clients = append(clients, c)
	}
	data := strings.Repeat("x", 1200)
	for i := 0; server.Stats().DroppedRate == 0; i++ {
		before := server.Stats()
		clients[i%2].indicate(dst.addr, data)
		eventually(t, "the datagram was handled", func() bool { return server.Stats() != before })
		for len(dst.got) > 0 {
			<-dst.got
		}
		if before.BytesToPeers > 80<<10 {
			t.Fatalf("%d bytes passed", before.BytesToPeers)
		}
	}
}

// An address that the coordinator observed needs not speak first.
func TestTURNKnownPeers(t *testing.T) {
	server := testTURN(t, TURNConfig{PeersSpeakFirst: true})
	known, later, service := newSink(t), newSink(t), newSink(t)
	id := identity.NewSessionID()
	user := server.Allow(TURNSession{ID: id, Password: testPassword, Known: []netip.AddrPort{known.addr}, Expires: time.Now().Add(time.Minute)})
	c := newRawTURN(t, server, user, testPassword)
	c.allocate()
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(known.addr)); code != 0 {
		t.Fatalf("error %d", code)
	}
	c.indicate(known.addr, "at once")
	known.expect(t, "at once")
	c.indicate(later.addr, "too early")
	c.indicate(service.addr, "never")
	eventually(t, "both were dropped", func() bool { return server.Stats().DroppedPeer == 2 })
	server.AddKnown(id, true, service.addr) // of the other leg, which is not known
	server.AddKnown(id, false, later.addr)
	server.AddKnown(id, false, netip.MustParseAddrPort("224.0.0.1:5353"))
	c.indicate(later.addr, "now")
	later.expect(t, "now")
	for i := range 2 * maxKnown {
		server.AddKnown(id, false, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(2000+i)))
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if r := server.sessions[user].rights; len(r.known) != maxKnown || r.peers[netip.MustParseAddr("224.0.0.1")] {
		t.Errorf("%d addresses, multicast %v", len(r.known), r.peers)
	}
}

// Whatever is asked without credentials, and in whatever family, the answer has
// at most three times the bytes of the question.
func TestAnswersAreNotMuchLongerThanQuestions(t *testing.T) {
	probes, err := StartProbes(ProbeServerConfig{
		Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Shared: true, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = probes.Close() })
	longRealm := strings.Repeat("r", maxRealm)
	for _, server := range []*TURNServer{
		testTURN(t, TURNConfig{}),
		testTURN(t, TURNConfig{Realm: longRealm}),
		testTURN(t, TURNConfig{Listen: []netip.AddrPort{netip.MustParseAddrPort("[::1]:0")}}),
		testTURN(t, TURNConfig{Conns: probes.Conns()}),
	} {
		amplification(t, server)
	}
	if _, err := StartTURN(TURNConfig{Realm: longRealm + "r", Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}}); err == nil {
		t.Error("a realm that makes every client's first request unanswerable was taken")
	}
}

func amplification(t *testing.T, server *TURNServer) {
	at := server.Addrs()[0]
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, user := allow(server, "127.0.0.1")
	key := stunv4.NewLongTermIntegrity("nobody", server.Realm(), "guessed")
	withKey := stunv4.NewLongTermIntegrity(user, server.Realm(), testPassword)
	unknown := attr{0x7abc, nil}
	answered := 0
	for _, method := range []stunv4.Method{
		stunv4.MethodBinding, stunv4.MethodAllocate, stunv4.MethodRefresh, stunv4.MethodCreatePermission,
		stunv4.MethodChannelBind, stunv4.MethodConnect, stunv4.MethodConnectionBind, stunv4.MethodSend, 0xabc,
	} {
		for name, attrs := range map[string][]stunv4.Setter{
			"bare":              nil,
			"transport":         {transportUDP},
			"fingerprint":       {transportUDP, stunv4.Fingerprint},
			"unknown attribute": {unknown},
			"many unknown":      {unknown, attr{0x7abd, nil}, attr{0x7abe, nil}, attr{0x7abf, nil}},
			"change request":    {attr{stunv4.AttrChangeRequest, []byte{0, 0, 0, 6}}},
			"400":               {key},
			"400, more":         {stunv4.NewNonce(server.Nonce()), key},
			"401":               {stunv4.NewUsername("n"), stunv4.NewRealm("r"), stunv4.NewNonce(server.Nonce()), key},
			"438":               {stunv4.NewUsername("n"), stunv4.NewRealm("r"), stunv4.NewNonce("stale"), key},
			"420 signed":        {unknown, stunv4.NewUsername(user), stunv4.NewRealm(server.Realm()), stunv4.NewNonce(server.Nonce()), withKey},
			"signed":            {stunv4.NewUsername(user), stunv4.NewRealm(server.Realm()), stunv4.NewNonce(server.Nonce()), withKey},
			"allocated":         {transportUDP, stunv4.NewUsername(user), stunv4.NewRealm(server.Realm()), stunv4.NewNonce(server.Nonce()), withKey},
		} {
			req := stunv4.MustBuild(append([]stunv4.Setter{stunv4.TransactionID, stunv4.NewType(method, stunv4.ClassRequest)}, attrs...)...)
			after := stunv4.MustBuild(stunv4.TransactionID, stunv4.BindingRequest)
			server.requests.forget()
			for _, b := range [][]byte{req.Raw, after.Raw} { // the second is always answered, so nothing is waited for
				if _, err := conn.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			what := fmt.Sprintf("%s at %s, %s", method, at, name)
			if n := answerTo(t, conn, req.TransactionID, after.TransactionID); n > 0 {
				answered++
				if n > maxAmplification*len(req.Raw) {
					t.Errorf("%s: %d bytes in answer to %d", what, n, len(req.Raw))
				}
			}
		}
	}
	if answered < 40 {
		t.Errorf("only %d requests were answered at %s", answered, at)
	}
}

// answerTo returns how long the answer to one request is, until that to another
// one arrives.
func answerTo(t *testing.T, conn *net.UDPConn, id, end [stunv4.TransactionIDSize]byte) int {
	t.Helper()
	buf, answer := make([]byte, 2048), 0
	_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		m := &stunv4.Message{Raw: append([]byte(nil), buf[:n]...)}
		switch {
		case m.Decode() != nil:
			t.Fatalf("a malformed answer: %x", buf[:n])
		case m.Contains(stunv4.AttrSoftware):
			t.Error("the answer names the software")
		case m.TransactionID == end:
			return answer
		}
		if m.TransactionID == id {
			answer = n
		}
	}
}

// forget lets a test ask more than anybody may.
func (l *requestLimit) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.window = time.Time{}
}

func TestRequestLimitOfAPrefix(t *testing.T) {
	now := time.Unix(100, 0)
	for prefix, other := range map[string]string{"192.0.2.0": "192.0.3.0", "2001:db8:0:100::": "2001:db8:0:200::"} {
		var l requestLimit
		addr, allowed := netip.MustParseAddr(prefix), 0
		for i := range 2 * requestsPerPrefix {
			if addr.Is4() {
				b := addr.As4()
				b[3] = byte(i)
				addr = netip.AddrFrom4(b)
			} else {
				b := addr.As16()
				b[7], b[15] = byte(i), byte(i>>8)
				addr = netip.AddrFrom16(b)
			}
			if l.allow(addr, now) {
				allowed++
			}
		}
		if allowed != requestsPerPrefix {
			t.Errorf("%s: %d requests of one prefix, want %d", prefix, allowed, requestsPerPrefix)
		}
		if !l.allow(netip.MustParseAddr(other), now) {
			t.Errorf("%s is refused with it", other)
		}
	}
	var l requestLimit // the addresses of one host of IPv6 are one source
	host, allowed := netip.MustParseAddr("2001:db8::1"), 0
	for range 2 * requestsPerSource {
		if host = host.Next(); l.allow(host, now) {
			allowed++
		}
	}
	if allowed != requestsPerSource {
		t.Errorf("%d requests of one /64, want %d", allowed, requestsPerSource)
	}
}

func TestTURNLimitsStreams(t *testing.T) {
	l := newLegs(t, TURNConfig{MaxStreams: 1})
	first, err := l.stream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	eventually(t, "the first is there", func() bool {
		l.server.mu.Lock()
		defer l.server.mu.Unlock()
		return len(l.server.streams) == 1
	})
	if second, err := l.stream(context.Background()); err == nil { // the other end may close before or after the handshake
		_ = second.SetReadDeadline(time.Now().Add(testTimeout))
		if _, err := second.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("a second connection is served: %v", err)
		}
		_ = second.Close()
	}
	// When it has signed nothing for a while, it makes room.
	l.server.makeRoom(time.Now().Add(2 * streamLeast))
	eventually(t, "there is room", func() bool {
		l.server.mu.Lock()
		defer l.server.mu.Unlock()
		return len(l.server.streams) == 0
	})
	third, err := l.stream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = third.Close() }()
	_ = first.SetReadDeadline(time.Now().Add(testTimeout))
	if _, err := first.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a silent connection keeps its place: %v", err)
	}
	first = third
	// What is no TURN ends the connection.
	if _, err := first.Write(bytes.Repeat([]byte{0xff}, stunHeader)); err != nil {
		t.Fatal(err)
	}
	_ = first.SetReadDeadline(time.Now().Add(testTimeout))
	if _, err := first.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("it is served: %v", err)
	}
	eventually(t, "the connection is forgotten", func() bool {
		l.server.mu.Lock()
		defer l.server.mu.Unlock()
		return len(l.server.streams) == 0
	})
}

// A connection that never signs anything is cut off; the test moves its start.
func TestTURNStreamMustSign(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	client, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := server.newStream(conn)
	s.opened = s.opened.Add(-streamAuth)
	if _, err := s.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("reading goes on: %v", err)
	}
	if _, err := s.Write([]byte{1}); err == nil {
		t.Error("the connection is still open")
	}
}
