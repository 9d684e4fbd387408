package signal

import (
	"path/filepath"
	"testing"

	"mintai/signal/signalpb"
)

func TestMatchOverLoopback(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	n, rec, stop := runNode(t, c, client, nil)
	m, err := n.Match(patient(t), &signalpb.MatchRequest{Needs: &signalpb.Needs{Model: "m"}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Grant.GetModel() != "m" {
		t.Errorf("grant %v", m.Grant)
	}
	rec.next(t, "connected")
	if s := n.Status(); !s.Connected || s.AdmittedAs != "member" || s.Used0RTT || s.Coordinator != c.key.ID() || s.Observed.Port() == 0 {
		t.Errorf("status %+v", s)
	}
	peer := c.rec.next(t, "joined").peer
	c.rec.next(t, "message")
	stop()
	if e := c.rec.next(t, "left"); e.peer != peer {
		t.Errorf("%v left", e.peer)
	}
	rec.next(t, "disconnected")
}

func TestZeroRTT(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	file := filepath.Join(t.TempDir(), "ticket")
	key := newKey(t)
	for i := range 2 {
		n, _, run := makeNode(t, c, client, func(cfg *NodeConfig) { cfg.TicketFile, cfg.Key = file, key })
		stop := run()
		if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
			t.Fatal(err)
		}
		if err := n.WaitConnected(patient(t)); err != nil {
			t.Fatal(err)
		}
		if got := n.Status().Used0RTT; got != (i == 1) {
			t.Errorf("run %d: used 0-RTT: %v", i, got)
		}
		eventually(t, "a ticket", func() bool { return n.tickets.has(c.key.ID()) })
		stop()
	}
	if got := c.Counters()["early_requests"]; got != 1 {
		t.Errorf("%d early requests", got)
	}
}
