package signal

import (
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"mintai/identity"
	"mintai/signal/signalpb"
)

func portOf(c *coordinator) int { return c.tr.Conn.LocalAddr().(*net.UDPAddr).Port }

// keptPort is a free port below those that the system gives out: nobody takes it
// between a stop and the next start.
func keptPort() int {
	for {
		port := 10000 + rand.IntN(20000)
		if conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}); err == nil {
			_ = conn.Close()
			return port
		}
	}
}

func TestReconnectAfterAnOrderlyRestart(t *testing.T) {
	key := newKey(t)
	c := startCoordinator(t, key, keptPort(), grants)
	n, rec, _ := runNode(t, c, miner, nil)
	rec.next(t, "connected")
	port := portOf(c)
	c.stop()
	var refused *RefusedError
	if e := rec.next(t, "disconnected"); !errors.As(e.err, &refused) || refused.Close != CloseShuttingDown {
		t.Errorf("disconnected by %v", e.err)
	}
	if err := n.Send(testLease()); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Send while disconnected: %v", err)
	}
	c = startCoordinator(t, key, port, grants)
	rec.next(t, "connected")
	c.rec.next(t, "joined")
	if err := n.Send(testLease()); err != nil {
		t.Fatal(err)
	}
	if e := c.rec.next(t, "message"); e.env.GetLease() == nil {
		t.Errorf("%v instead of a lease", e.env)
	}
}

// kill ends a coordinator as SIGKILL does: not a packet leaves it any more.
func (c *coordinator) kill() {
	_ = c.tr.Conn.Close()
	c.stop()
}

// TestMatchSurvivesAKilledCoordinator: the node learns of the death by its next
// packet, which the new process answers with a stateless reset.
func TestMatchSurvivesAKilledCoordinator(t *testing.T) {
	key := newKey(t)
	c := startCoordinator(t, key, keptPort(), grants)
	n, rec, _ := runNode(t, c, client, nil)
	rec.next(t, "connected")
	port := portOf(c)
	c.rec.next(t, "joined")
	c.kill()
	startCoordinator(t, key, port, grants)
	start := time.Now()
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("matched %v after the restart", time.Since(start))
	rec.next(t, "disconnected")
	rec.next(t, "connected")
}

// TestMatchOnADeadConnection: no reset comes, as when the coordinator's machine
// was replaced. Silence is enough.
func TestMatchOnADeadConnection(t *testing.T) {
	key := newKey(t)
	c := startCoordinator(t, key, keptPort(), grants)
	n, rec, _ := runNode(t, c, client, func(cfg *NodeConfig) { cfg.Deadlines.Stale = 200 * time.Millisecond })
	rec.next(t, "connected")
	port := portOf(c)
	c.rec.next(t, "joined")
	c.kill()
	other := startCoordinator(t, newKey(t), port, nil) // has another reset key
	matched := make(chan error, 1)
	go func() {
		_, err := n.Match(patient(t), &signalpb.MatchRequest{})
		matched <- err
	}()
	rec.next(t, "disconnected")
	if err := <-matched; !errors.Is(err, identity.ErrPeer) {
		t.Errorf("matched by another coordinator: %v", err)
	}
	if other.Len() != 0 {
		t.Error("a node joined a coordinator that it did not ask for")
	}
}

func TestWrongCoordinatorFailsAtOnce(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	n, _, _ := runNode(t, c, client, func(cfg *NodeConfig) { cfg.Coordinator = newKey(t).ID() })
	start := time.Now()
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); !errors.Is(err, identity.ErrPeer) {
		t.Fatalf("error %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if err := n.WaitConnected(patient(t)); !errors.Is(err, identity.ErrPeer) {
		t.Errorf("WaitConnected: %v", err)
	}
}

func TestTrustOnFirstUse(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	var asked identity.NodeID
	n, _, stop := runNode(t, c, client, func(cfg *NodeConfig) {
		cfg.Coordinator = identity.NodeID{}
		cfg.TicketFile = filepath.Join(t.TempDir(), "ticket")
		cfg.Trust = func(addr string, id identity.NodeID) error {
			asked = id
			return nil
		}
	})
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a ticket", func() bool { return n.tickets.has(c.key.ID()) })
	stop()
	if asked != c.key.ID() {
		t.Errorf("asked about %v", asked)
	}

	no := errors.New("its key changed")
	n, _, _ = runNode(t, c, client, func(cfg *NodeConfig) {
		cfg.Coordinator = identity.NodeID{}
		cfg.Trust = func(string, identity.NodeID) error { return no }
	})
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); !errors.Is(err, no) || !errors.Is(err, ErrUntrusted) {
		t.Errorf("error %v", err)
	}
}

func TestRefusedNodeKnowsWhy(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants, func(cfg *ServerConfig) {
		cfg.Admit = func(j Joining) (string, string, error) { return "", "", errors.New("this link is not valid here") }
	})
	n, _, _ := runNode(t, c, client, nil)
	_, err := n.Match(patient(t), &signalpb.MatchRequest{})
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Close != CloseNotAdmitted || refused.Message != "this link is not valid here" {
		t.Fatalf("error %v", err)
	}
	if got := c.Counters(); got["not_admitted"] == 0 || got["joined"] != 0 {
		t.Errorf("counters %v", got)
	}
}

func TestUnreachableCoordinatorHasADeadline(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	c.stop()
	n, _, _ := runNode(t, c, client, func(cfg *NodeConfig) {
		cfg.Deadlines = Deadlines{Dial: 100 * time.Millisecond, Match: 300 * time.Millisecond}
	})
	var unreachable *UnreachableError
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); !errors.As(err, &unreachable) || !errors.Is(err, ErrNotConnected) {
		t.Errorf("error %v", err)
	}
}

func TestSecondAddressAnswers(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	dead := newTransport(t, 0, nil) // nobody listens on it
	n, _, _ := runNode(t, c, client, func(cfg *NodeConfig) {
		cfg.Addrs = []string{dead.Conn.LocalAddr().String(), c.addr()}
		cfg.Deadlines.Stagger = 20 * time.Millisecond
	})
	start := time.Now()
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestAMinerIsReplacedByItself(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	key := newKey(t)
	_, first, _ := runNode(t, c, miner, func(cfg *NodeConfig) { cfg.Key = key })
	first.next(t, "connected")
	old := c.rec.next(t, "joined").peer
	_, second, _ := runNode(t, c, miner, func(cfg *NodeConfig) { cfg.Key = key })
	second.next(t, "connected")
	if e := c.rec.next(t, "left"); e.peer != old {
		t.Error("the new one left")
	}
	peer := c.rec.next(t, "joined").peer
	if got, ok := c.Peer(key.ID()); !ok || got != peer || c.Len() != 1 {
		t.Errorf("peer %v of %d", got, c.Len())
	}
	var refused *RefusedError
	if e := first.next(t, "disconnected"); !errors.As(e.err, &refused) || refused.Close != CloseReplaced {
		t.Errorf("disconnected by %v", e.err)
	}
}

func TestClientsOfOneKeyLiveSideBySide(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants, func(cfg *ServerConfig) { cfg.Limits.MaxPerClient = 2 })
	key := newKey(t)
	var recs []*recorder
	for range 3 {
		n, rec, _ := runNode(t, c, client, func(cfg *NodeConfig) { cfg.Key = key })
		if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
			t.Fatal(err)
		}
		recs = append(recs, rec)
		rec.next(t, "connected")
	}
	recs[0].next(t, "disconnected") // the third was one too many
	eventually(t, "two connections", func() bool { return c.Len() == 2 })
}

// TestRepeatedRequest: a request that is sent again, on the same or another
// connection, reaches the handler once and gets the newest answer.
func TestRepeatedRequest(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	key := newKey(t)
	nonce := []byte("0123456789abcdef")
	first := dialStranger(t, c, key)
	first.write(t, frame(t, hello(client), matchRequest(nonce)))
	c.rec.next(t, "joined")
	asked := c.rec.next(t, "message").peer
	_ = first.conn.CloseWithError(0, "")
	c.rec.next(t, "left")

	second := dialStranger(t, c, key)
	second.write(t, frame(t, hello(client), matchRequest(nonce)))
	c.rec.next(t, "joined")
	eventually(t, "the repeat is seen", func() bool { return c.Counters()["repeated"] == 1 })
	if err := asked.Send(testGrant(nonce, 1)); err != nil { // to the connection that is gone
		t.Fatal(err)
	}
	grant := readGrant(t, second)
	second.write(t, frame(t, matchRequest(nonce)))
	if again := readGrant(t, second); !proto.Equal(again, grant) {
		t.Errorf("%v, then %v", grant, again)
	}
	select {
	case e := <-c.rec.events:
		t.Errorf("the handler saw %v again", e.env)
	default:
	}
	_ = second.conn.CloseWithError(0, "")
}

func readGrant(t *testing.T, s *stranger) *signalpb.Grant {
	t.Helper()
	for {
		env, err := ReadMessage(s.stream)
		if err != nil {
			t.Fatal(err)
		}
		if g := env.GetGrant(); g != nil {
			return g
		}
	}
}

func TestLaterAnswersArrive(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, func(p *Peer, env *signalpb.Envelope) {
		if m := env.GetMatchRequest(); m != nil {
			_ = p.Send(testGrant(m.GetNonce(), 1))
			_ = p.Send(testGrant(m.GetNonce(), 2))
			_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_NoMatch{NoMatch: &signalpb.NoMatch{Nonce: m.GetNonce(), Message: "all declined"}}})
		}
	})
	n, _, _ := runNode(t, c, client, nil)
	m, err := n.Match(patient(t), &signalpb.MatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Grant.GetAttempt() != 1 {
		t.Errorf("attempt %d first", m.Grant.GetAttempt())
	}
	if u := <-m.Updates(); u.Grant.GetAttempt() != 2 {
		t.Errorf("update %+v", u)
	}
	var none *NoMatchError
	if u := <-m.Updates(); !errors.As(u.Err, &none) || none.Error() != "all declined" {
		t.Errorf("update %+v", u)
	}
	m.Close()
}

func TestModels(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, func(p *Peer, env *signalpb.Envelope) {
		if m := env.GetModelsRequest(); m != nil {
			_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Models{Models: &signalpb.Models{Nonce: m.GetNonce(), EmptyMiners: []string{"box"}}}})
		}
	})
	n, _, _ := runNode(t, c, client, nil)
	models, err := n.Models(patient(t))
	if err != nil || len(models.GetEmptyMiners()) != 1 {
		t.Errorf("%v, %v", models, err)
	}
}

func TestBackoff(t *testing.T) {
	d := Deadlines{}.withDefaults()
	for failures, want := range []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second} {
		if lo, hi := backoff(d, failures, nil, 0), backoff(d, failures, nil, 0.999); lo != want/2 || hi > want || hi < want*9/10 {
			t.Errorf("after %d failures %v to %v", failures, lo, hi)
		}
	}
	if got := backoff(d, 1000, nil, 0); got != 15*time.Second {
		t.Errorf("after many failures %v", got)
	}
	if got := backoff(d, 0, &RefusedError{Close: CloseTooMany, RetryAfter: 5 * time.Second}, 0); got != 5*time.Second {
		t.Errorf("with advice %v", got)
	}
	if got := backoff(d, 0, &RefusedError{Close: CloseNotAdmitted}, 0); got != 15*time.Second {
		t.Errorf("not admitted: %v", got)
	}
}
