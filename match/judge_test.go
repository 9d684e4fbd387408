package match_test

import (
	"path/filepath"
	"testing"
	"time"

	"mintai/api"
	"mintai/identity"
	"mintai/match"
	"mintai/reputation"
)

var _ match.Judge = (*reputation.Ledger)(nil)

// TestLearns plays requests against a board whose judge is the real ledger:
// the miner that turns out slow, and the one that turns out broken, lose their
// share to the good one, and a listing says why.
func TestLearns(t *testing.T) {
	ledger, err := reputation.Open(filepath.Join(t.TempDir(), "reputation.db"), reputation.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ledger.Close(); err != nil {
			t.Error(err)
		}
	}()
	good, slow, broken, client := identity.NodeID{1}, identity.NodeID{2}, identity.NodeID{3}, identity.NodeID{9}
	board := match.NewBoard(ledger)
	now := time.Now()
	lease := func(miner identity.NodeID) {
		board.Put(match.Lease{
			Miner: miner, Name: miner.Short(), Slots: 4, Expires: now.Add(time.Minute),
			Models: []match.Model{{Name: "m", Calls: []api.Call{api.ChatCompletions}, Backend: "ollama"}},
		})
	}
	served := map[identity.NodeID]int{}
	for i := range 300 {
		now = now.Add(time.Minute)
		lease(good)
		lease(slow)
		lease(broken)
		session := identity.NewSessionID()
		c, err := board.Take(match.Needs{Model: "m", Call: api.ChatCompletions}, session, now.Add(time.Second), now)
		if err != nil {
			t.Fatal(err)
		}
		r := reputation.Receipt{
			Session: session, Request: reputation.RequestID{byte(i >> 8), byte(i)}, Miner: c.Miner, Client: client,
			Model: c.Model.Name, From: reputation.FromClient, Outcome: reputation.OK, Tokens: 100, At: now,
		}
		switch c.Miner {
		case good:
			r.FirstToken, r.Total = 300*time.Millisecond, 1300*time.Millisecond
		case slow:
			r.FirstToken, r.Total = 5*time.Second, 25*time.Second
		case broken:
			r.Outcome, r.Tokens = reputation.Lost, 0
		}
		if err := ledger.Record(r); err != nil {
			t.Fatal(err)
		}
		board.End(session)
		if i >= 50 {
			served[c.Miner]++
		}
	}
	if served[good] < 200 || served[broken] > 10 {
		t.Errorf("of 250: good %d, slow %d, broken %d", served[good], served[slow], served[broken])
	}
	_, err = board.Pick(match.Needs{Model: "m", MinReputation: 0.9, Exclude: []identity.NodeID{good}}, now)
	if err == nil {
		t.Error("a miner without a reputation of 0.9 was chosen")
	}
}
