package signal

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// bench is a coordinator that is reached over UDP by way of a relay, which can
// lose everything, and over TLS.
type bench struct {
	*coordinator
	udp *relay
	tls *tlsServer
}

func newBench(t *testing.T, answer func(*Peer, *signalpb.Envelope), opts ...option) *bench {
	t.Helper()
	s := newTLSServer(t)
	c := startCoordinator(t, newKey(t), 0, answer, append(opts, overStreams(t, s))...)
	return &bench{coordinator: c, udp: newRelay(t, c.addr()), tls: s}
}

// node is for runNode and makeNode: a node that knows both ways.
func (b *bench) node(more ...func(*NodeConfig)) func(*NodeConfig) {
	return func(cfg *NodeConfig) {
		cfg.Addrs, cfg.TLSAddrs, cfg.Fallback = []string{b.udp.addr()}, []string{serverAddr.String()}, b.tls.dial
		cfg.Deadlines.Fallback = 20 * time.Millisecond
		for _, f := range more {
			f(cfg)
		}
	}
}

func retryAt(d time.Duration) func(*NodeConfig) {
	return func(cfg *NodeConfig) { cfg.Deadlines.Retry = d }
}

// TestConnectedOverTLSWhereUDPIsBlocked: a Match is answered, both sides know
// how, and the request was asked once.
func TestConnectedOverTLSWhereUDPIsBlocked(t *testing.T) {
	stun := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("[2001:db8::1]:3479")}
	b := newBench(t, grants, func(cfg *ServerConfig) {
		cfg.Stun = func() []netip.AddrPort { return append(stun, netip.AddrPort{}) } // the last is none
	})
	b.udp.lose(true)
	n, rec, stop := runNode(t, b.coordinator, client, b.node())
	start := time.Now()
	m, err := n.Match(patient(t), &signalpb.MatchRequest{Needs: &signalpb.Needs{Model: "m"}})
	if err != nil || m.Grant.GetModel() != "m" {
		t.Fatalf("%v, %v", m, err)
	}
	t.Logf("matched after %v", time.Since(start))
	rec.next(t, "connected")
	s := n.Status()
	if !s.Connected || !s.OverTLS || s.Addr != serverAddr.String() || s.Remote != serverAddr.at || s.Coordinator != b.key.ID() {
		t.Errorf("status %+v", s)
	}
	if len(s.Stun) != 2 || s.Stun[0] != stun[0] || s.Stun[1] != stun[1] {
		t.Errorf("STUN at %v", s.Stun)
	}
	peer := b.rec.next(t, "joined").peer
	if !peer.OverTLS() || peer.Observed() != s.Observed || peer.Observed().Addr() != netip.MustParseAddr("203.0.113.7") {
		t.Errorf("over TLS %v, observed %v, told %v", peer.OverTLS(), peer.Observed(), s.Observed)
	}
	b.rec.next(t, "message")
	if got := b.Counters(); got["joined_over_tls"] != 1 || got["joined"] != 1 || got["repeated"] != 0 {
		t.Errorf("counters %v", got)
	}
	stop()
	if e := b.rec.next(t, "left"); e.err != nil {
		t.Errorf("left by %v instead of a goodbye", e.err)
	}
	if b.tls.open() != 0 {
		t.Error("the way over TLS was not closed")
	}
}

// TestNothingGoesOverTLSWhereUDPAnswers: no way is opened at all.
func TestNothingGoesOverTLSWhereUDPAnswers(t *testing.T) {
	b := newBench(t, grants)
	n, rec, _ := runNode(t, b.coordinator, client, b.node(func(cfg *NodeConfig) { cfg.Deadlines.Fallback = time.Minute }))
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
	rec.next(t, "connected")
	if s := n.Status(); s.OverTLS || b.tls.opened.Load() != 0 {
		t.Errorf("status %+v, %d ways over TLS", s, b.tls.opened.Load())
	}
	if peer := b.rec.next(t, "joined").peer; peer.OverTLS() {
		t.Error("over TLS at the coordinator")
	}
}

// TestSlowUDPWins: when UDP answers late, with the way over TLS still opening,
// the latter is given up.
func TestSlowUDPWins(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	opening := make(chan struct{})
	cancelled := make(chan struct{})
	n, rec, _ := runNode(t, b.coordinator, client, b.node(func(cfg *NodeConfig) {
		cfg.Fallback = func(ctx context.Context, _ string) (FallbackConn, error) {
			close(opening)
			<-ctx.Done()
			close(cancelled)
			return nil, context.Cause(ctx)
		}
	}))
	<-opening
	b.udp.lose(false)
	rec.next(t, "connected") // with QUIC's next retransmission
	<-cancelled
	if s := n.Status(); s.OverTLS {
		t.Errorf("status %+v", s)
	}
}

// TestReconnectOverTLSWithoutAHeadStart: a node that was there over TLS expects
// nothing of UDP.
func TestReconnectOverTLSWithoutAHeadStart(t *testing.T) {
	const headStart = 2 * time.Second
	b := newBench(t, grants)
	b.udp.lose(true)
	n, rec, _ := runNode(t, b.coordinator, client, b.node(func(cfg *NodeConfig) {
		cfg.Deadlines.Fallback = headStart
		cfg.Deadlines.Dial = 5 * time.Second // UDP does not fail before that is over
	}))
	rec.next(t, "connected")
	peer := b.rec.next(t, "joined").peer
	start := time.Now()
	peer.Close(CloseSlow, "for the test")
	rec.next(t, "disconnected")
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
	rec.next(t, "connected")
	if d := time.Since(start); d >= headStart {
		t.Errorf("connected again after %v", d)
	}
	if s := n.Status(); !s.OverTLS {
		t.Errorf("status %+v", s)
	}
}

// Test0RTTOverTLS: nodes of today do not use it, the way permits it.
func Test0RTTOverTLS(t *testing.T) {
	b := newBench(t, grants)
	file, key := filepath.Join(t.TempDir(), "ticket"), newKey(t)
	ticketFor(t, b.coordinator, key, file)
	n, _, _ := makeNode(t, b.coordinator, client, func(cfg *NodeConfig) { cfg.TicketFile, cfg.Key = file, key })
	conn, err := b.tls.dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := newCarrier(conn)
	l, err := n.handshake(patient(t), way{remote: conn.Remote(), transport: c.transport, carrier: c}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer n.dials.Wait()
	defer n.discard(l, CloseDone)
	w, err := l.readWelcome(patience)
	if err != nil || !w.GetOverTls() {
		t.Errorf("%v, %v", w, err)
	}
	if peer := b.rec.next(t, "joined").peer; !peer.OverTLS() || !l.conn.ConnectionState().Used0RTT {
		t.Error("0-RTT was not used")
	}
}

// TestTicketsServeBothWays: one that came over TLS opens UDP in 0-RTT.
func TestTicketsServeBothWays(t *testing.T) {
	b := newBench(t, grants)
	file, key := filepath.Join(t.TempDir(), "ticket"), newKey(t)
	b.udp.lose(true)
	own := func(cfg *NodeConfig) { cfg.TicketFile, cfg.Key = file, key }
	n, rec, stop := runNode(t, b.coordinator, client, b.node(own))
	rec.next(t, "connected")
	eventually(t, "a ticket", func() bool { return n.tickets.has(b.key.ID()) })
	stop()
	b.udp.lose(false)
	n, _, run := makeNode(t, b.coordinator, client, b.node(own, func(cfg *NodeConfig) { cfg.Deadlines.Fallback = time.Minute }))
	run()
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := n.Status(); s.OverTLS || !s.Used0RTT {
		t.Errorf("status %+v", s)
	}
}

// TestBothWaysFail: one error names both, as soon as both have failed and also
// when a request gives up before.
func TestBothWaysFail(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	closed := func(cfg *NodeConfig) {
		cfg.Deadlines.Dial = 200 * time.Millisecond
		cfg.Fallback = func(context.Context, string) (FallbackConn, error) {
			return nil, errors.New("the proxy 192.0.2.9:3128 asks for credentials (407)")
		}
	}
	n, _, _ := runNode(t, b.coordinator, client, b.node(closed))
	eventually(t, "the failure is known", func() bool { return n.Status().Err != nil })
	for _, want := range []string{b.udp.addr() + ": no answer in time", serverAddr.String() + " over TLS: the proxy 192.0.2.9:3128 asks"} {
		if got := n.Status().Err.Error(); !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}

	n, _, _ = runNode(t, b.coordinator, client, b.node(closed, func(cfg *NodeConfig) {
		cfg.Deadlines.Dial, cfg.Deadlines.Match = 10*time.Second, 200*time.Millisecond
	}))
	_, err := n.Match(patient(t), &signalpb.MatchRequest{})
	var unreachable *UnreachableError
	if !errors.As(err, &unreachable) {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"at " + b.udp.addr() + " over UDP", serverAddr.String() + " over TLS", "407"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

// TestAWayThatIsRefusedLateSaysWhy: it opened, and ended with the first packets.
func TestAWayThatIsRefusedLateSaysWhy(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	n, _, _ := runNode(t, b.coordinator, client, b.node(func(cfg *NodeConfig) {
		cfg.Deadlines.Dial = 200 * time.Millisecond
		cfg.Fallback = func(ctx context.Context, addr string) (FallbackConn, error) {
			conn, err := b.tls.dial(ctx, addr)
			if err == nil {
				conn.(*tlsConn).fail(errors.New("the proxy answers 403 Forbidden"))
			}
			return conn, err
		}
	}))
	eventually(t, "the failure is known", func() bool { return n.Status().Err != nil })
	if got := n.Status().Err.Error(); !strings.HasSuffix(got, "over TLS: the proxy answers 403 Forbidden") {
		t.Errorf("error %s", got)
	}
	eventually(t, "every way is closed", func() bool { return b.tls.open() == 0 })
}

// TestSlowlyClosedWayHoldsNothingUp: saying goodbye to a proxy may take long.
func TestSlowlyClosedWayHoldsNothingUp(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	release := make(chan struct{})
	_, rec, _ := runNode(t, b.coordinator, client, b.node(func(cfg *NodeConfig) {
		cfg.Fallback = func(ctx context.Context, addr string) (FallbackConn, error) {
			conn, err := b.tls.dial(ctx, addr)
			return slowClose{conn, release}, err
		}
	}))
	rec.next(t, "connected")
	b.udp.lose(false)
	rec.next(t, "disconnected")
	rec.next(t, "connected")
	close(release)
}

type slowClose struct {
	FallbackConn
	release <-chan struct{}
}

func (c slowClose) Close() error {
	<-c.release
	return c.FallbackConn.Close()
}

// TestWrongCoordinatorOverTLS: whoever ends the outer TLS, only the key decides.
// Not a byte of the request reaches the other coordinator.
func TestWrongCoordinatorOverTLS(t *testing.T) {
	b, forger := newBench(t, grants), newBench(t, grants)
	b.udp.lose(true)
	n, _, _ := runNode(t, b.coordinator, client, b.node(func(cfg *NodeConfig) {
		cfg.Fallback, cfg.Deadlines.Dial = forger.tls.dial, 500*time.Millisecond
	}))
	start := time.Now()
	_, err := n.Match(patient(t), &signalpb.MatchRequest{})
	if !errors.Is(err, identity.ErrPeer) {
		t.Errorf("error %v", err)
	}
	if s := n.Status(); s.Connected {
		t.Errorf("status %+v after %v", s, time.Since(start))
	}
	if forger.Len() != 0 || len(forger.rec.events) != 0 {
		t.Error("the node joined a coordinator that it did not ask for")
	}
	eventually(t, "every way to it is closed", func() bool { return forger.tls.open() == 0 })
}

// TestTrustOverTLSIsThatOfTheHost: the way over TLS gives no second chance of
// being trusted on first use.
func TestTrustOverTLSIsThatOfTheHost(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	asked := make(chan string, 8)
	runNode(t, b.coordinator, client, b.node(func(cfg *NodeConfig) {
		cfg.Coordinator = identity.NodeID{}
		cfg.Trust = func(addr string, _ identity.NodeID) error {
			asked <- addr
			return nil
		}
	}))
	if got := <-asked; got != b.udp.addr() {
		t.Errorf("asked about %s", got)
	}
	n := &Node{cfg: NodeConfig{Addrs: []string{"a.test:4433", "b.test:4433", "[2001:db8::1]:4433"}}}
	for addr, want := range map[string]string{
		"b.test:443": "b.test:4433", "[2001:db8::1]:443": "[2001:db8::1]:4433", "c.test:443": "a.test:4433", "nonsense": "a.test:4433",
	} {
		if got := n.trustedAs(addr); got != want {
			t.Errorf("%s is trusted as %s", addr, got)
		}
	}
}

// TestALostWayEndsTheConnection: the node notices at once and opens another.
func TestALostWayEndsTheConnection(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	_, rec, _ := runNode(t, b.coordinator, client, b.node())
	rec.next(t, "connected")
	b.tls.mu.Lock()
	for _, c := range b.tls.conns {
		c.fail(errors.New("the other end went away"))
	}
	b.tls.mu.Unlock()
	if e := rec.next(t, "disconnected"); !strings.Contains(e.err.Error(), "went away") {
		t.Errorf("disconnected by %v", e.err)
	}
	rec.next(t, "connected")
	if got := b.tls.opened.Load(); got != 2 {
		t.Errorf("%d ways", got)
	}
}

// TestLimitsOverTLS: the address is that of TCP and cannot be forged, so a
// handshake too many is refused at once, and none gets a Retry.
func TestLimitsOverTLS(t *testing.T) {
	b := newBench(t, grants, func(cfg *ServerConfig) {
		cfg.Limits = Limits{HandshakesPerSecond: 0.001, PerIPPerSecond: 0.001, PerIPBurst: 2}
	})
	tlsConf, err := newKey(t).ClientTLS(ALPN, b.key.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		conn, err := strangerOverTLS(t, b.tls).Dial(patient(t), serverAddr, tlsConf, &quic.Config{})
		if refused := err != nil; refused != (i == 2) {
			t.Fatalf("handshake %d: %v", i, err)
		}
		if err == nil {
			_ = conn.CloseWithError(0, "")
		}
	}
	if got := b.Counters(); got["rate_limited"] == 0 || got["handshakes"] != 2 {
		t.Errorf("counters %v", got)
	}
}

// TestOneClosedStreamsTransportEndsAlone: UDP is served further.
func TestOneClosedStreamsTransportEndsAlone(t *testing.T) {
	b := newBench(t, grants)
	_ = b.tls.Close()
	n, _, _ := runNode(t, b.coordinator, client, nil)
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Error(err)
	}
}

// TestManyNodesOverTLS: the connections of one net.PacketConn do not mix.
func TestManyNodesOverTLS(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	matched := make(chan error, 16)
	for range cap(matched) {
		n, _, _ := runNode(t, b.coordinator, client, b.node())
		go func() {
			_, err := n.Match(patient(t), &signalpb.MatchRequest{})
			matched <- err
		}()
	}
	for range cap(matched) {
		if err := <-matched; err != nil {
			t.Error(err)
		}
	}
	if b.Len() != cap(matched) {
		t.Errorf("%d nodes", b.Len())
	}
}

// TestOnlyTheCoordinatorTellsWhatIsProven: from a node it is a breach.
func TestOnlyTheCoordinatorTellsWhatIsProven(t *testing.T) {
	b := newBench(t, nil)
	s := dialStranger(t, b.coordinator, newKey(t))
	s.write(t, frame(t, hello(client), &signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{
		Session: make([]byte, 16), Proven: []*signalpb.Address{Address(serverAddr.at)},
	}}}))
	if code := s.closedWith(t); code != CloseBadMessage {
		t.Errorf("closed with %v", code)
	}
}
