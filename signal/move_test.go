package signal

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"mintai/signal/signalpb"
)

// moves checks that a node that is connected over TLS moves over to UDP once,
// with everything that belongs to it.
func moves(t *testing.T, b *bench, n *Node, rec *recorder, role signalpb.Role) {
	t.Helper()
	if e := rec.next(t, "disconnected"); !errors.Is(e.err, ErrMoved) {
		t.Errorf("left TLS by %v", e.err)
	}
	if s := n.Status(); !s.Connected || s.OverTLS || s.Remote.String() != b.udp.addr() {
		t.Errorf("status %+v", s)
	}
	rec.next(t, "connected")
	if err := n.Send(&signalpb.Envelope{Message: &signalpb.Envelope_PeerSeen{PeerSeen: &signalpb.PeerSeen{
		Session: make([]byte, 16), Address: Address(serverAddr.at),
	}}}); err != nil {
		t.Errorf("sending after the move: %v", err)
	}
	for joined, left := false, false; !joined || !left; {
		switch e := <-b.rec.events; e.kind {
		case "joined":
			joined = true
			if e.peer.OverTLS() || e.peer.Role() != role {
				t.Errorf("joined over TLS %v", e.peer.OverTLS())
			}
		case "left":
			left = true
			if e.err == nil {
				t.Error("the node said goodbye when it moved")
			}
		case "message":
			if e.env.GetPeerSeen() == nil {
				t.Errorf("unexpected %v", e.env)
			}
		}
	}
	eventually(t, "the way over TLS is closed", func() bool { return b.tls.open() == 0 })
	eventually(t, "one connection is left", func() bool { return b.Len() == 1 })
}

// TestLatePacketsMoveTheNodeToUDP: the first packets were lost, TLS was faster,
// and the handshake that still runs over UDP ends well within its time.
func TestLatePacketsMoveTheNodeToUDP(t *testing.T) {
	for _, role := range []signalpb.Role{client, miner} {
		t.Run(role.String(), func(t *testing.T) {
			b := newBench(t, grants)
			b.udp.lose(true)
			n, rec, _ := runNode(t, b.coordinator, role, b.node())
			rec.next(t, "connected")
			if e := b.rec.next(t, "joined"); !e.peer.OverTLS() {
				t.Fatal("not over TLS")
			}
			start := time.Now()
			b.udp.lose(false)
			moves(t, b, n, rec, role)
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("moved after %v", d)
			}
		})
	}
}

// TestEarlyFlightThatIsLateMovesTheNode: as before, with a ticket, so that the
// Hello and the request of the first flight arrive when TLS has served them.
func TestEarlyFlightThatIsLateMovesTheNode(t *testing.T) {
	for _, role := range []signalpb.Role{client, miner} {
		t.Run(role.String(), func(t *testing.T) {
			b := newBench(t, grants)
			file, key := filepath.Join(t.TempDir(), "ticket"), newKey(t)
			ticketFor(t, b.coordinator, key, file)
			b.udp.lose(true)
			n, rec, run := makeNode(t, b.coordinator, role, b.node(func(cfg *NodeConfig) { cfg.TicketFile, cfg.Key = file, key }))
			run()
			var matching *Matching
			if role == client {
				var err error
				if matching, err = n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
					t.Fatal(err)
				}
			}
			rec.next(t, "connected")
			b.rec.next(t, "joined")
			if role == client {
				b.rec.next(t, "message")
				matching.Close()
			}
			b.udp.lose(false)
			moves(t, b, n, rec, role)
			select {
			case e := <-rec.events: // the same grant, for instance
				t.Errorf("the handler saw %q %v", e.kind, e.env)
			default:
			}
		})
	}
}

// TestUDPIsTriedAgain: UDP comes back long after the first race.
func TestUDPIsTriedAgain(t *testing.T) {
	b := newBench(t, grants)
	b.udp.lose(true)
	n, rec, _ := runNode(t, b.coordinator, miner, b.node(retryAt(50*time.Millisecond), func(cfg *NodeConfig) {
		cfg.Deadlines.Dial = 300 * time.Millisecond
	}))
	rec.next(t, "connected")
	b.rec.next(t, "joined")
	eventually(t, "a second race over UDP", func() bool { return b.udp.dropped() > 4 })
	b.udp.lose(false)
	moves(t, b, n, rec, miner)
}

// TestLaterAnswersFollowTheMove: the coordinator answers again after the client
// moved, where it asked over TLS.
func TestLaterAnswersFollowTheMove(t *testing.T) {
	asked := make(chan *Peer, 8)
	b := newBench(t, func(p *Peer, env *signalpb.Envelope) {
		if m := env.GetMatchRequest(); m != nil {
			_ = p.Send(testGrant(m.GetNonce(), 1))
			asked <- p
		}
	})
	b.udp.lose(true)
	n, rec, _ := runNode(t, b.coordinator, client, b.node())
	m, err := n.Match(patient(t), &signalpb.MatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	rec.next(t, "connected")
	first := <-asked
	b.udp.lose(false)
	rec.next(t, "disconnected")
	rec.next(t, "connected")
	<-first.Done()
	eventually(t, "the repeat is seen", func() bool { return b.Counters()["repeated"] == 1 })
	if err := first.Send(testGrant(m.Grant.GetNonce(), 2)); err != nil {
		t.Fatal(err)
	}
	select {
	case u := <-m.Updates():
		if u.Grant.GetAttempt() != 2 {
			t.Errorf("attempt %d, which was answered before", u.Grant.GetAttempt())
		}
	case <-patient(t).Done():
		t.Error("the later answer was lost")
	}
	if len(asked) != 0 {
		t.Error("the request reached the handler twice")
	}
}

// TestWaitingRequestFollowsTheMove: it has no answer yet when the node moves.
func TestWaitingRequestFollowsTheMove(t *testing.T) {
	b := newBench(t, nil)
	b.udp.lose(true)
	n, rec, _ := runNode(t, b.coordinator, client, b.node())
	rec.next(t, "connected")
	type result struct {
		m   *Matching
		err error
	}
	matched := make(chan result, 1)
	go func() {
		m, err := n.Match(patient(t), &signalpb.MatchRequest{})
		matched <- result{m, err}
	}()
	b.rec.next(t, "joined")
	asked := b.rec.next(t, "message")
	b.udp.lose(false)
	rec.next(t, "disconnected")
	rec.next(t, "connected")
	if err := asked.peer.Send(testGrant(asked.env.GetMatchRequest().GetNonce(), 1)); err != nil && !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if got := <-matched; got.err != nil || got.m.Grant.GetAttempt() != 1 {
		t.Errorf("%v, %v", got.m, got.err)
	}
}

// TestTheMoveWaitsForAWelcome: a coordinator that takes the handshake over UDP
// and then refuses leaves the node where it is.
func TestTheMoveWaitsForAWelcome(t *testing.T) {
	refused := make(chan struct{}, 8)
	b := newBench(t, grants, func(cfg *ServerConfig) {
		cfg.Admit = func(j Joining) (string, string, error) {
			if !j.OverTLS {
				refused <- struct{}{}
				return "", "", errors.New("not over UDP")
			}
			return "member", "somebody", nil
		}
	})
	b.udp.lose(true)
	n, rec, _ := runNode(t, b.coordinator, client, b.node())
	rec.next(t, "connected")
	b.udp.lose(false)
	<-refused
	eventually(t, "UDP is given up", func() bool { return b.Counters()["not_admitted"] == 1 && b.Len() == 1 })
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Error(err)
	}
	if s := n.Status(); !s.Connected || !s.OverTLS {
		t.Errorf("status %+v", s)
	}
}
