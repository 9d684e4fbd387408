package signal

import (
	"context"
	"errors"
	"net"
	"testing"

	"mintai/signal/signalpb"
)

// TestSlowReaderIsDropped: a node that reads nothing fills its queue, and only
// its own.
func TestSlowReaderIsDropped(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	s := dialStranger(t, c, newKey(t)) // never reads its stream
	s.write(t, frame(t, hello(client)))
	peer := c.rec.next(t, "joined").peer
	big := &signalpb.Envelope{Message: &signalpb.Envelope_Goodbye{Goodbye: &signalpb.Goodbye{Reason: string(make([]byte, MaxMessage/2))}}}
	var err error
	for range 10_000 {
		if err = peer.Send(big); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrQueueFull) {
		t.Fatalf("Send: %v", err)
	}
	if e := c.rec.next(t, "left"); e.peer != peer {
		t.Error("another peer left")
	}
	if code := s.closedWith(t); code != CloseSlow {
		t.Errorf("closed with %v", code)
	}
	if err := peer.Send(big); !errors.Is(err, ErrClosed) {
		t.Errorf("Send to a peer that left: %v", err)
	}
}

func TestCloseTellsTheReason(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, func(p *Peer, env *signalpb.Envelope) {
		p.Close(CloseTooMany, "enough") // from within the handler
	})
	n, rec, _ := runNode(t, c, miner, nil)
	rec.next(t, "connected")
	if err := n.Send(testLease()); err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if e := rec.next(t, "disconnected"); !errors.As(e.err, &refused) || refused.Message != "enough" || refused.RetryAfter == 0 {
		t.Errorf("disconnected by %v", e.err)
	}
}

func TestFullCoordinatorRefuses(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil, func(cfg *ServerConfig) { cfg.Limits.MaxNodes = 1 })
	n, _, _ := runNode(t, c, miner, nil)
	if err := n.WaitConnected(patient(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first has joined", func() bool { return c.Len() == 1 })
	s := dialStranger(t, c, newKey(t))
	s.write(t, frame(t, hello(miner)))
	if code := s.closedWith(t); code != CloseTooMany {
		t.Errorf("closed with %v", code)
	}
}

func TestAMinersGoodbyeArrives(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	n, _, stop := runNode(t, c, miner, nil)
	if err := n.WaitConnected(patient(t)); err != nil {
		t.Fatal(err)
	}
	c.rec.next(t, "joined")
	stop()
	if e := c.rec.next(t, "left"); e.err != nil {
		t.Errorf("left with %v", e.err)
	}
	if got := c.server().waiting.Load(); got != 0 {
		t.Errorf("%d connections are thought to wait", got)
	}
}

func (c *coordinator) server() *Server { return c.Server }

// TestObservedFollowsTheNode: a NAT that rebinds gives the node a new address,
// and the coordinator must hand out the new one.
func TestObservedFollowsTheNode(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	r := newRelay(t, c.addr())
	n, rec, _ := runNode(t, c, miner, func(cfg *NodeConfig) { cfg.Addrs = []string{r.addr()} })
	rec.next(t, "connected")
	peer := c.rec.next(t, "joined").peer
	before := peer.Observed()
	if n.Status().Observed != before {
		t.Errorf("the node was told %v instead of %v", n.Status().Observed, before)
	}
	r.rebind(t)
	eventually(t, "the new address is seen", func() bool {
		if err := n.Send(testLease()); err != nil && !errors.Is(err, ErrQueueFull) {
			t.Fatal(err)
		}
		return peer.Observed() != before
	})
}

// rebind gives the node another address at the coordinator.
func (r *relay) rebind(t *testing.T) {
	t.Helper()
	back, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	old := r.back
	r.back = back
	r.mu.Unlock()
	_ = old.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pump(back, r.fromCoordinator)
	}()
	t.Cleanup(func() {
		_ = back.Close()
		<-done
	})
}

func TestServerNeedsItsParts(t *testing.T) {
	if _, err := NewServer(ServerConfig{}); err == nil {
		t.Error("a server without a key")
	}
	if _, err := NewNode(NodeConfig{}); err == nil {
		t.Error("a node without a key")
	}
	s, err := NewServer(ServerConfig{
		Key: newKey(t), Conn: newTransport(t, 0, nil), Handler: newRecorder(),
		Admit: func(Joining) (string, string, error) { return "", "", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background()); err == nil {
		t.Error("a closed server serves")
	}
}
