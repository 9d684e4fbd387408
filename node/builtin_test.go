package node

import (
	"strings"
	"testing"
	"time"

	"mintai/backend"
	"mintai/backend/builtin"
	"mintai/identity"
	"mintai/signal/signalpb"
)

// The built-in engine answers only this user's own clients, unless the
// configuration names it.
func TestBuiltinIsForTheSameUser(t *testing.T) {
	t.Parallel()
	engine, err := builtin.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, backend string
		localMiner    bool
		localClient   bool
		exit          Exit
		says          string
	}{
		{"same user", backend.TypeAuto, true, true, ExitOK, "not a language model"},
		{"the client by link", backend.TypeAuto, true, false, ExitNoMiner, "gpu-box is connected but runs no AI server"},
		{"the miner by link", backend.TypeAuto, false, true, ExitNoMiner, "gpu-box is connected but runs no AI server"},
		{"both by link", backend.TypeAuto, false, false, ExitNoMiner, "gpu-box is connected but runs no AI server"},
		{"both by link, in the configuration", backend.TypeBuiltin, false, false, ExitOK, "not a language model"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			member := func(local bool) membership {
				if local {
					return l.sameUser()
				}
				return l.member()
			}
			pool := l.pool(backend.Options{Builtin: engine}, backend.Config{Type: c.backend})
			m := l.newMiner("gpu-box", pool, func(cfg *minerConfig) { cfg.Membership = member(c.localMiner) })
			m.part = start(t, "gpu-box", m.Run)
			waitUntil(t, "the lease", func() bool {
				_, miners := l.co.counts()
				return miners == 1 && len(pool.Snapshot().Models) == 1
			})
			if c.localMiner || c.backend == backend.TypeBuiltin {
				l.waitOffered(m)
			}
			cl := l.client(func(cfg *clientConfig) { cfg.Membership = member(c.localClient) })
			got := cl.ask(t, askOptions{prompt: []string{"what is 12 * 7"}}).wait()
			if got.exit != c.exit || !strings.Contains(got.err, c.says) || strings.Count(got.err, "\n") != 1 {
				t.Errorf("exit %d, %q", got.exit, got.err)
			}
			if want := c.exit == ExitOK; strings.Contains(got.out, "84") != want {
				t.Errorf("answer %q", got.out)
			}
		})
	}
}

// A miner takes no offer of the built-in engine for somebody else, whatever the
// coordinator says.
func TestMinerKeepsTheBuiltinToItself(t *testing.T) {
	t.Parallel()
	engine, err := builtin.New()
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	pool := l.pool(backend.Options{Builtin: engine}, backend.Config{Type: backend.TypeAuto})
	m := l.newMiner("gpu-box", pool, func(cfg *minerConfig) { cfg.Membership = l.sameUser() })
	m.part = start(t, "gpu-box", m.Run)
	l.waitOffered(m)
	for _, sameUser := range []bool{false, true} {
		_, forMiner := mintICE()
		id, client := identity.NewSessionID(), newKey(t).ID()
		refusal := m.takeOffer(id, client, &signalpb.Offer{
			Model: string(builtin.Model), SameUser: sameUser, Ice: forMiner, ExpiresUnixMs: time.Now().Add(time.Minute).UnixMilli(),
		})
		if (refusal == "") != sameUser {
			t.Errorf("same user %v: %q", sameUser, refusal)
		}
	}
}
