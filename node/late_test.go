package node

import (
	"testing"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// A miner that did not take an offer in time is asked once more when nobody else
// can answer, and its client begins anew with the new session.
func TestOfferThatWasLostIsRepeated(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	miner := l.attack(signalpb.Role_ROLE_MINER, "gpu-box")
	miner.lease(&signalpb.OfferedModel{Name: "m", Backend: "openai", Calls: []string{"/v1/chat/completions"}})
	cl := l.client()
	p := cl.ask(t, askOptions{prompt: []string{"?"}})
	isOffer := func(e *signalpb.Envelope) bool { return e.GetOffer() != nil }
	first := miner.hear("an offer", isOffer).GetOffer()
	second := miner.hear("the offer again", isOffer).GetOffer()
	if string(first.GetSession()) == string(second.GetSession()) {
		t.Error("both offers are of one session")
	}
	waitUntil(t, "the client connects with the new session", func() bool {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		d := cl.dialing[miner.key.ID()]
		return d != nil && d.owner.id == identity.SessionID(second.GetSession())
	})
	miner.say(&signalpb.Envelope{Message: &signalpb.Envelope_Decline{Decline: &signalpb.Decline{Session: second.GetSession(), Reason: "busy"}}})
	if got := p.wait(); got.exit != ExitNoMiner {
		t.Errorf("%+v", got)
	}
}
