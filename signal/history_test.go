package signal

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"mintai/signal/signalpb"
)

// TestRepeatedGrantIsDropped: on the same connection it could be a coordinator
// that errs; the client must not take it for another miner.
func TestRepeatedGrantIsDropped(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, func(p *Peer, env *signalpb.Envelope) {
		if m := env.GetMatchRequest(); m != nil {
			grant := testGrant(m.GetNonce(), 1)
			for range 3 {
				_ = p.Send(proto.CloneOf(grant))
			}
			_ = p.Send(testGrant(m.GetNonce(), 2))
		}
	})
	n, rec, _ := runNode(t, c, client, nil)
	m, err := n.Match(patient(t), &signalpb.MatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if u := <-m.Updates(); u.Grant.GetAttempt() != 2 {
		t.Errorf("update %+v", u)
	}
	nonce := m.Grant.GetNonce()
	m.Close()
	peer := c.rec.next(t, "joined").peer
	for attempt := range uint32(4) { // 0 is from nowhere, 1 and 2 came before
		if err := peer.Send(testGrant(nonce, attempt)); err != nil {
			t.Fatal(err)
		}
	}
	rec.next(t, "connected")
	for _, want := range []uint32{0, 3} {
		if e := rec.next(t, "message"); e.env.GetGrant().GetAttempt() != want {
			t.Errorf("the handler saw attempt %d", e.env.GetGrant().GetAttempt())
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	var h history
	nonceOf := func(i int) [nonceSize]byte { return [nonceSize]byte{byte(i), byte(i >> 8)} }
	for i := range 3 * historyLimit {
		h.note(nonceOf(i), 2)
	}
	if len(h.attempts) != historyLimit || len(h.order) != historyLimit {
		t.Errorf("%d of %d remembered", len(h.attempts), len(h.order))
	}
	last := nonceOf(3*historyLimit - 1)
	if !h.has(last, 1) || !h.has(last, 2) || h.has(last, 3) || h.has(nonceOf(0), 1) {
		t.Error("not what was noted")
	}
}
