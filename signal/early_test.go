package signal

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// ticketFor connects a node once, so that it has a ticket in file.
func ticketFor(t *testing.T, c *coordinator, key *identity.Key, file string) {
	t.Helper()
	n, _, stop := runNode(t, c, client, func(cfg *NodeConfig) { cfg.TicketFile, cfg.Key = file, key })
	if err := n.WaitConnected(patient(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a ticket", func() bool { return n.tickets.has(c.key.ID()) })
	stop()
	c.rec.next(t, "joined")
	c.rec.next(t, "left")
}

func TestStoredTicketGives0RTT(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	file, key := filepath.Join(t.TempDir(), "state", "ticket"), newKey(t)
	ticketFor(t, c, key, file)
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		t.Errorf("ticket file has mode %#o", info.Mode().Perm())
	}
	for range 2 { // the ticket is not used up
		n, _, run := makeNode(t, c, client, func(cfg *NodeConfig) { cfg.TicketFile, cfg.Key = file, key })
		stop := run()
		if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
			t.Fatal(err)
		}
		if !n.Status().Used0RTT {
			t.Error("0-RTT was not used")
		}
		stop()
	}
}

// TestEarlyRequestIsAnsweredBeforeTheHandshakeEnds: the request must reach the
// handler before a single packet of the coordinator reaches the node, and the
// grant must reach the node while the handshake is still open at the
// coordinator. The peer joins only after it. Then the flight is replayed.
func TestEarlyRequestIsAnsweredBeforeTheHandshakeEnds(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	r := newRelay(t, c.addr())
	file, key := filepath.Join(t.TempDir(), "ticket"), newKey(t)
	ticketFor(t, c, key, file)

	r.oneFlight()
	n, rec, run := makeNode(t, c, client, func(cfg *NodeConfig) {
		cfg.TicketFile, cfg.Key, cfg.Addrs = file, key, []string{r.addr()}
	})
	stop := run()
	type result struct {
		m   *Matching
		err error
	}
	matched := make(chan result, 1)
	go func() {
		m, err := n.Match(patient(t), &signalpb.MatchRequest{Needs: &signalpb.Needs{Model: "m"}})
		matched <- result{m, err}
	}()
	asked := c.rec.next(t, "message") // not "joined"
	if !asked.peer.Early() || asked.env.GetMatchRequest() == nil {
		t.Errorf("early %v, %v", asked.peer.Early(), asked.env)
	}
	r.answer()
	got := <-matched
	if got.err != nil {
		t.Fatal(got.err)
	}
	if got.m.Grant.GetModel() != "m" {
		t.Errorf("grant %v", got.m.Grant)
	}
	if _, ok := c.Peer(key.ID()); ok || !asked.peer.Early() {
		t.Error("the peer joined before its handshake ended")
	}
	r.release()
	rec.next(t, "connected")
	if joined := c.rec.next(t, "joined"); joined.peer != asked.peer {
		t.Error("another peer joined")
	}
	stop()
	c.rec.next(t, "left")

	// The replay is a connection of its own once the first one is forgotten.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); c.Counters()["replayed"] == 0; {
		r.replay(t)
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the replay never arrived: %v", c.Counters())
		}
	}
	select {
	case e := <-c.rec.events:
		t.Errorf("the replay caused %q", e.kind)
	default:
	}
	if got := c.Counters()["early_requests"]; got != 1 {
		t.Errorf("%d early requests", got)
	}
}

func Test0RTTIsRejectedAfterARestart(t *testing.T) {
	key, node := newKey(t), newKey(t)
	file := filepath.Join(t.TempDir(), "ticket")
	c := startCoordinator(t, key, 0, grants)
	ticketFor(t, c, node, file)
	c.stop()

	c = startCoordinator(t, key, 0, grants) // ticket keys live in memory only
	n, rec, run := makeNode(t, c, client, func(cfg *NodeConfig) { cfg.TicketFile, cfg.Key = file, node })
	if !n.tickets.has(key.ID()) {
		t.Fatal("no ticket in the file")
	}
	run()
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
	if n.Status().Used0RTT {
		t.Error("0-RTT with a ticket of the old process")
	}
	rec.next(t, "connected")
	c.rec.next(t, "joined")
	c.rec.next(t, "message")
}

func TestEarlyWindowForgetsWithItsTicketKeys(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	w := newEarlyWindow(&tls.Config{}, now)
	k := nonceKey{nonce: [16]byte{1}}
	if !w.first(k, now) || w.first(k, now) {
		t.Fatal("a nonce must be new once")
	}
	keys := w.keys
	now = now.Add(ticketWindow)
	w.tick(now)
	if w.keys[1] != keys[0] || w.first(k, now) {
		t.Error("after one window the key and the nonce must both live")
	}
	now = now.Add(ticketWindow)
	w.tick(now)
	if w.keys[1] == keys[0] || !w.first(k, now) {
		t.Error("after two windows the key and the nonce must both be gone")
	}
	keys = w.keys
	w.tick(now.Add(2 * ticketWindow))
	for _, old := range keys {
		if w.keys[0] == old || w.keys[1] == old {
			t.Error("a key survived a long silence")
		}
	}
}

func TestEarlyWindowIsBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	w := newEarlyWindow(&tls.Config{}, now)
	for i := range 3 * earlyLimit {
		k := nonceKey{nonce: [16]byte{byte(i), byte(i >> 8), byte(i >> 16)}}
		if !w.first(k, now) {
			t.Fatalf("nonce %d is not new", i)
		}
	}
	if nonces, rotations := w.size(); nonces > 2*earlyLimit || rotations != 2 {
		t.Errorf("%d nonces after %d rotations", nonces, rotations)
	}
}

// TestTicketsAreHandedOutAsCopies: a connection without 0-RTT changes the state
// that it was given.
func TestTicketsAreHandedOutAsCopies(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	n, _, _ := runNode(t, c, client, nil)
	eventually(t, "a ticket", func() bool { return n.tickets.has(c.key.ID()) })
	for range 2 {
		state, ok := n.tickets.of(c.key.ID()).Get("mintai")
		if !ok {
			t.Fatal("no ticket")
		}
		_, session, err := state.ResumptionState()
		if err != nil {
			t.Fatal(err)
		}
		if !session.EarlyData {
			t.Error("the ticket no longer permits 0-RTT")
		}
		session.EarlyData = false
	}
}

func TestTicketOfAnotherKeyIsNotUsed(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	file := filepath.Join(t.TempDir(), "ticket")
	ticketFor(t, c, newKey(t), file)
	n, _, _ := makeNode(t, c, client, func(cfg *NodeConfig) { cfg.TicketFile = file })
	if n.tickets.has(c.key.ID()) {
		t.Error("a node uses the ticket of another key")
	}
	other, _, _ := makeNode(t, c, client, func(cfg *NodeConfig) { cfg.TicketFile, cfg.Coordinator = file, newKey(t).ID() })
	if _, ok := other.tickets.of(other.cfg.Coordinator).Get("mintai"); ok {
		t.Error("a node shows a coordinator the ticket of another")
	}
}
