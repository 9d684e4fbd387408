package ice

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	stunv4 "github.com/pion/stun/v4"

	"mintai/identity"
)

// recorder is a server socket that remembers the types of what clients sent, but
// not of what they sent again because the answer was late.
type recorder struct {
	*net.UDPConn

	mu    sync.Mutex
	types []string
	seen  map[[stunv4.TransactionIDSize]byte]bool
}

func newRecorder(t testing.TB) *recorder {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	return &recorder{UDPConn: conn, seen: map[[stunv4.TransactionIDSize]byte]bool{}}
}

func (r *recorder) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := r.UDPConn.ReadFrom(b)
	if err == nil && n >= stunHeader && b[0]&0xc0 == 0 {
		var typ stunv4.MessageType
		typ.ReadValue(messageType(b[:n]))
		if typ == stunv4.BindingSuccess { // to the server's question, whenever that comes
			return n, from, err
		}
		id := [stunv4.TransactionIDSize]byte(b[8:])
		r.mu.Lock()
		if !r.seen[id] {
			r.seen[id] = true
			r.types = append(r.types, typ.String())
		}
		r.mu.Unlock()
	}
	return n, from, err
}

func (r *recorder) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.types)
}

// legs are the ends of one session, each with credentials for a leg.
type legs struct {
	t             testing.TB
	server        *TURNServer
	id            identity.SessionID
	client, miner *party
	// stream opens a connection to the server's listener for streams.
	stream func(context.Context) (net.Conn, error)
}

func newLegs(t testing.TB, cfg TURNConfig) *legs {
	t.Helper()
	l := &legs{
		t: t, id: identity.NewSessionID(),
		client: newParty(t, SocketConfig{Loopback: true}), miner: newParty(t, SocketConfig{Loopback: true}),
	}
	cfg.Streams, l.stream = tlsListener(t)
	l.server = testTURN(t, cfg)
	return l
}

// tlsListener accepts TLS on loopback, as the WebSocket server does for TURN.
func tlsListener(t testing.TB) (net.Listener, func(context.Context) (net.Conn, error)) {
	t.Helper()
	key := newKey(t)
	serverConf, err := key.ServerTLS("stun.turn", func(identity.NodeID) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	serverConf.ClientAuth, serverConf.VerifyConnection = tls.NoClientCert, nil
	ln, err := tls.Listen("tcp4", "127.0.0.1:0", serverConf)
	if err != nil {
		t.Fatal(err)
	}
	dialer := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"stun.turn"}, MinVersion: tls.VersionTLS13}} //nolint:gosec // a test's own server
	return ln, func(ctx context.Context) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp4", ln.Addr().String())
	}
}

// allow admits one leg.
func (l *legs) allow(s TURNSession) string {
	s.ID, s.Password, s.Expires = l.id, testPassword, time.Now().Add(time.Minute)
	return l.server.Allow(s)
}

// config describes one leg over UDP with the nonce known, as a grant does.
func (l *legs) config(miner bool) RelayConfig {
	c := RelayConfig{
		Server: l.server.Addrs()[0].String(), Username: userName(l.id, miner), Password: testPassword,
		Realm: l.server.Realm(), Nonce: l.server.Nonce(), Miner: miner,
		Local: l.client.creds, Remote: l.miner.creds, Log: testLog(l.t),
	}
	if miner {
		c.Local, c.Remote = c.Remote, c.Local
	}
	return c
}

func (l *legs) open(c RelayConfig) *Relay {
	l.t.Helper()
	r, err := OpenRelay(testContext(l.t), c)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			l.t.Errorf("closing a leg: %v", err)
		}
	})
	return r
}

// The whole of RFC 8656's set-up, with the nonce known: one round trip, and
// permission and check leave behind it in one flight.
func TestRelayTakesOneRoundTrip(t *testing.T) {
	conn := newRecorder(t)
	l := newLegs(t, TURNConfig{Conns: []net.PacketConn{conn}})
	peer := newSink(t)
	l.allow(TURNSession{Peers: []netip.Addr{peer.addr.Addr()}})
	c := l.config(false)
	c.Permit = []netip.AddrPort{peer.addr}
	r := l.open(c)
	if got := conn.got(); !slices.Equal(got[:1], []string{"Allocate request"}) || slices.Contains(got[1:], "Allocate request") {
		t.Errorf("until the relayed address was known: %v", got)
	}
	<-peer.got
	eventually(t, "the permission was granted", func() bool { return r.leg.permission(peer.addr.Addr()) == granted })
	if got := conn.got(); !slices.Equal(got[:3], []string{"Allocate request", "CreatePermission request", "Send indication"}) {
		t.Errorf("sent %v", got)
	}
}

// heldWire holds back the server's answers to CreatePermission.
type heldWire struct{ *net.UDPConn }

func (h heldWire) WriteTo(b []byte, to net.Addr) (int, error) {
	if messageType(b) == stunv4.NewType(stunv4.MethodCreatePermission, stunv4.ClassSuccessResponse).Value() {
		return len(b), nil
	}
	return h.UDPConn.WriteTo(b, to)
}

// Data follows the request for a permission without waiting for its answer, to
// several peers at a time.
func TestRelaySendsBeforeThePermissionIsAnswered(t *testing.T) {
	l := newLegs(t, TURNConfig{Conns: []net.PacketConn{heldWire{newRecorder(t).UDPConn}}})
	peers := []*sink{newSink(t), newSink(t)}
	other := netip.MustParseAddr("127.0.0.1")
	l.allow(TURNSession{Peers: []netip.Addr{other}})
	c := l.config(false)
	c.Permit = []netip.AddrPort{peers[0].addr}
	r := l.open(c)
	for _, p := range peers {
		eventually(t, "the permission was asked for", func() bool { return r.leg.permission(p.addr.Addr()) == asked })
		if _, err := r.Transport().WriteTo([]byte{0xc3, 1, 2, 3}, net.UDPAddrFromAddrPort(p.addr)); err != nil {
			t.Error(err)
		}
		for got := ""; got != "\xc3\x01\x02\x03"; { // checks come as well
			got = <-p.got
		}
	}
	for _, p := range peers {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := r.Permit(ctx, p.addr); !errors.Is(err, ErrNoRelay) {
			t.Errorf("an unanswered permission: %v", err)
		}
	}
}

func TestRelayFallsBackWhenItsNonceIsStale(t *testing.T) {
	for name, nonce := range map[string]string{"stale": "a nonce of long ago", "of no use": string(bytes.Repeat([]byte{'x'}, 800))} {
		t.Run(name, func(t *testing.T) {
			conn := newRecorder(t)
			l := newLegs(t, TURNConfig{Conns: []net.PacketConn{conn}})
			l.allow(TURNSession{Peers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
			c := l.config(false)
			c.Nonce = nonce
			l.open(c)
			if got := conn.got(); !slices.Equal(got, []string{"Allocate request", "Allocate request"}) {
				t.Errorf("sent %v", got)
			}
		})
	}
}

func TestTURNNonce(t *testing.T) {
	server, other := testTURN(t, TURNConfig{}), testTURN(t, TURNConfig{})
	first := server.Nonce()
	if first == "" || first != server.Nonce() || first == other.Nonce() {
		t.Errorf("%q, then %q; another server %q", first, server.Nonce(), other.Nonce())
	}
	if got := server.nonces.get(time.Now().Add(2 * nonceAge)); got == "" {
		t.Error("no second nonce")
	}
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	c.nonce = first
	c.allocate()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if got := server.Nonce(); got != "" {
		t.Errorf("after Close: %q", got)
	}
}

// A client whose UDP is blocked reaches an ordinary miner.
func TestRelayOverTLS(t *testing.T) {
	type told struct {
		miner bool
		addr  netip.AddrPort
		over  string
	}
	allocated := make(chan told, 4)
	l := newLegs(t, TURNConfig{OnAllocated: func(_ identity.SessionID, miner bool, addr netip.AddrPort, over string) {
		allocated <- told{miner, addr, over}
	}})
	serveEcho(t, l.miner.socket.Transport(), l.miner.key, l.client.key.ID())
	at := loopback(l.miner.socket).Addr
	l.allow(TURNSession{Peers: []netip.Addr{at.Addr()}})
	c := l.config(false)
	c.Dial, c.Server = l.stream, "no name needed"
	r := l.open(c)
	if r.Kind() != RelayTLS {
		t.Errorf("kind %s", r.Kind())
	}
	if got := <-allocated; got != (told{false, r.Addr(), "tls"}) {
		t.Errorf("the coordinator is told %+v", got)
	}
	open(t, l.miner, l.client, false, Candidate{Kind: RelayTLS, Addr: r.Addr()})
	if err := r.Permit(testContext(t), at); err != nil {
		t.Fatal(err)
	}
	if got := await(t, r.Addrs()); got.Addr != at || got.Kind != RelayTLS {
		t.Errorf("reached %s %s", got.Kind, got.Addr)
	}
	echo(t, r.Transport(), at, l.client.key, l.miner.key.ID(), 1<<20)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the allocation and the connection are gone", func() bool {
		l.server.mu.Lock()
		defer l.server.mu.Unlock()
		return len(l.server.relays) == 0 && len(l.server.streams) == 0
	})
}

// A miner whose UDP is blocked listens on its leg; an ordinary client dials it.
func TestMinersLegListens(t *testing.T) {
	l := newLegs(t, TURNConfig{PeersSpeakFirst: true})
	at := loopback(l.client.socket).Addr
	l.allow(TURNSession{Miner: true, Known: []netip.AddrPort{at}})
	c := l.config(true)
	c.Dial, c.Permit = l.stream, []netip.AddrPort{at}
	r := l.open(c)
	serveEcho(t, r.Transport(), l.miner.key, l.client.key.ID())
	x := open(t, l.client, l.miner, true, Candidate{Kind: RelayTLS, Addr: r.Addr()})
	if got := await(t, x.Addrs()); got.Addr != r.Addr() {
		t.Errorf("reached %s, the leg is %s", got.Addr, r.Addr())
	}
	echo(t, l.client.socket.Transport(), r.Addr(), l.client.key, l.miner.key.ID(), 1<<20)
	// Two of them at once.
	echo(t, l.client.socket.Transport(), r.Addr(), l.client.key, l.miner.key.ID(), 1000)
}

// Both sides have only a relay, over the same server, whose relayed address is
// one that its machine does not have.
func TestRelayToRelay(t *testing.T) {
	for name, ip := range map[string]netip.Addr{"its own address": {}, "behind a one-to-one NAT": netip.MustParseAddr("192.0.2.1")} {
		t.Run(name, func(t *testing.T) {
			l := newLegs(t, TURNConfig{PeersSpeakFirst: true, RelayIP: ip})
			l.allow(TURNSession{})
			l.allow(TURNSession{Miner: true})
			mc, cc := l.config(true), l.config(false)
			mc.Dial, mc.PeerRelayed = l.stream, true
			cc.PeerRelayed = true // over UDP: a hard NAT
			miner := l.open(mc)
			client := l.open(cc)
			if name != "its own address" && (miner.Addr().Addr() != ip || client.Addr().Addr() != ip) {
				t.Errorf("relayed addresses %s and %s", miner.Addr(), client.Addr())
			}
			serveEcho(t, miner.Transport(), l.miner.key, l.client.key.ID())
			// The coordinator tells the client only; its check makes it known.
			if err := client.Permit(testContext(t), miner.Addr()); err != nil {
				t.Fatal(err)
			}
			if got := await(t, client.Addrs()); got.Addr != miner.Addr() {
				t.Errorf("the client reached %s, not %s", got.Addr, miner.Addr())
			}
			if got := await(t, miner.Addrs()); got.Addr != client.Addr() || got.Kind != RelayTLS {
				t.Errorf("the miner reached %s %s, not %s", got.Kind, got.Addr, client.Addr())
			}
			echo(t, client.Transport(), miner.Addr(), l.client.key, l.miner.key.ID(), 1<<20)
			if st := l.server.Stats(); st.DroppedPeer != 0 || st.Allocations != 2 {
				t.Errorf("stats %+v", st)
			}
			l.server.Revoke(l.id)
			eventually(t, "both were freed", func() bool { return l.server.Stats().Allocations == 0 })
		})
	}
}

// The legs of two sessions are strangers.
func TestRelayToRelayOfAnotherSession(t *testing.T) {
	server := testTURN(t, TURNConfig{})
	id, user := allow(server, "203.0.113.7")
	server.Allow(TURNSession{ID: id, Miner: true, Password: testPassword, Expires: time.Now().Add(time.Minute)})
	other, otherUser := allow(server, "203.0.113.7")
	server.Allow(TURNSession{ID: other, Miner: true, Password: testPassword, Expires: time.Now().Add(time.Minute)})
	a, b := newRawTURN(t, server, user, testPassword), newRawTURN(t, server, otherUser, testPassword)
	a.allocate()
	stranger := b.allocate()
	for _, c := range []*rawTURN{a, b} { // permissions have no port, so the server's own IP is open
		if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(stranger)); code != 0 {
			t.Fatalf("error %d", code)
		}
	}
	dropped := server.Stats().DroppedPeer
	a.indicate(stranger, "let me in")
	eventually(t, "it was dropped", func() bool { return server.Stats().DroppedPeer == dropped+1 })
	if n := server.Stats().BytesToPeers; n != 0 {
		t.Errorf("%d bytes passed", n)
	}
	// Without a second leg the server's own address is nobody's.
	_, alone := allow(server, "203.0.113.7")
	c := newRawTURN(t, server, alone, testPassword)
	own := c.allocate()
	if _, code := c.request(stunv4.MethodCreatePermission, xorPeer(own)); code != 403 {
		t.Errorf("a permission for the server itself: error %d, want 403", code)
	}
}

func TestLegDropsStrangers(t *testing.T) {
	l := newLegs(t, TURNConfig{})
	l.allow(TURNSession{Peers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	r := l.open(l.config(false))
	r.leg.permit(netip.MustParseAddr("198.51.100.2"), asked)
	check, err := newLegResponder(l.miner.creds, l.client.creds, true, RelayUDP).check()
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"198.51.100.1:4433", "198.51.100.2:4433"} { // even if the server let both pass
		data := stunv4.MustBuild(stunv4.TransactionID, stunv4.NewType(stunv4.MethodData, stunv4.ClassIndication),
			peerAddress(netip.MustParseAddrPort(from)), dataAttr(check))
		r.wire.inbound(data.Raw)
	}
	if got := await(t, r.Addrs()); got.Addr.String() != "198.51.100.2:4433" {
		t.Errorf("reached %s", got.Addr)
	}
}

// A server that stops reading does not hold up the leg.
func TestStreamLegNeverBlocks(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	s := newPacketStream(near)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run()
	}()
	for range 3 * streamQueue {
		if _, err := s.write(make([]byte, 1200)); err != nil {
			t.Fatal(err)
		}
	}
	if s.dropped.Load() == 0 {
		t.Error("nothing was dropped")
	}
	s.stop()
	_ = near.Close()
	<-done
	if _, err := s.write([]byte{1}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func FuzzTURNWire(f *testing.F) {
	req := stunv4.MustBuild(stunv4.TransactionID, stunv4.NewType(stunv4.MethodAllocate, stunv4.ClassRequest))
	f.Add(req.Raw)
	f.Add(stunv4.MustBuild(stunv4.TransactionID, stunv4.NewType(stunv4.MethodAllocate, stunv4.ClassErrorResponse),
		&stunv4.ErrorCodeAttribute{Code: stunv4.CodeStaleNonce}, stunv4.NewNonce("n")).Raw)
	f.Add(stunv4.MustBuild(stunv4.TransactionID, stunv4.NewType(stunv4.MethodCreatePermission, stunv4.ClassRequest),
		peerAddress(netip.MustParseAddrPort("192.0.2.1:1"))).Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &turnWire{realm: "mintai", nonce: "n"}
		w.onAsked(func(a netip.Addr) {
			if !a.IsValid() {
				t.Error("no address")
			}
		})
		w.learn(b)
		w.left(b)
		if answer := w.foretell(b); answer != nil && !isResponse(answer) {
			t.Errorf("%x", answer)
		}
	})
}
