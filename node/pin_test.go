package node

import (
	"strings"
	"testing"

	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// liar is a coordinator that names whom it likes.
type liar struct{ signal.ServerHandler }

func (l liar) Message(p *signal.Peer, env *signalpb.Envelope) {
	if m := env.GetMatchRequest(); m != nil {
		m.Needs.Miner = ""
	}
	l.ServerHandler.Message(p, env)
}

// A whole NodeID behind the @ takes the coordinator out of the trust: the
// client talks to no other miner, whatever is granted.
func TestPinnedMiner(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *coordinatorConfig) {
		c.hooks.handler = func(h signal.ServerHandler) signal.ServerHandler { return liar{h} }
	})
	ai := newAI(t, "m", says("fine"))
	m := l.miner("only", ai)
	cl := l.client()
	ask := func(id identity.NodeID) ended {
		return cl.ask(t, askOptions{prompt: []string{"?"}, model: "m@" + id.String()}).wait()
	}
	if got := ask(m.id()); got.exit != ExitOK || got.out != "fine" {
		t.Errorf("the pinned miner: %+v", got)
	}
	asked := ai.count()
	if got := ask(identity.NodeID{1, 2, 3}); got.exit != ExitNoMiner || !strings.Contains(got.err, "instead of the pinned") {
		t.Errorf("another miner than the pinned one: %+v", got)
	}
	if ai.count() != asked {
		t.Error("the other miner was asked all the same")
	}
}
