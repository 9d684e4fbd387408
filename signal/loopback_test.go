package signal

import (
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
