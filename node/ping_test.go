package node

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"mintai/identity"
	"mintai/signal/signalpb"
)

func TestPing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", whole)
	m := l.miner("gpu-box", ai)
	got := typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-join", l.link(), "ping", "@gpu-box", "-c", "1").wait()
	if got.exit != ExitOK || got.err != "" || !strings.HasPrefix(got.out, "gpu-box: direct (same-machine, same machine) ") || strings.Count(got.out, "\n") != 1 {
		t.Errorf("%+v", got)
	}
	got = typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-join", l.link(), "ping", m.id().String()[:8], "-json", "-c", "2").wait()
	var r pingReport
	if err := json.Unmarshal([]byte(got.out), &r); err != nil || got.exit != ExitOK {
		t.Fatalf("%v: %+v", err, got)
	}
	if r.V != 1 || r.Miner != "gpu-box" || r.MinerID != m.id().String() || r.Sent != 2 || r.Answered != 2 || len(r.Pings) != 2 ||
		r.Path == nil || r.Path.Code != "same-machine" || r.Pings[0].RTT <= 0 {
		t.Errorf("%s", got.out)
	}
	if n := ai.count(); n != 0 {
		t.Errorf("the AI server was asked %d times", n)
	}
	waitUntil(t, "no session is left", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.sessions) == 0
	})
}

func TestPingOverTheRelay(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.unreachable("gpu-box", newAI(t, "m", whole))
	cl := l.hidden()
	got := launch(t, nil, func(ctx context.Context, std IO) int {
		return finish((&command{args: []string{"gpu-box"}, count: 1}).runPing(ctx, std, cl.client), std)
	}).wait()
	if got.exit != ExitOK || !strings.HasPrefix(got.out, "gpu-box: relayed (nothing-came, no direct packet from gpu-box") {
		t.Errorf("%+v", got)
	}
}

// Of a ping there is one way to fail.
func TestPingNobody(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	got := typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-join", l.link(), "ping", "gpu-box").wait()
	if got.exit != ExitNoPath || got.out != "" || !strings.Contains(got.err, "no miner is connected") {
		t.Errorf("%+v", got)
	}
	member := l.member()
	member.addrs = []string{silentUDP(t)}
	cl := l.client(func(c *clientConfig) { c.Membership, c.Deadlines.Match = member, 200*time.Millisecond })
	got = launch(t, nil, func(ctx context.Context, std IO) int {
		return finish((&command{args: []string{"gpu-box"}, json: true}).runPing(ctx, std, cl.client), std)
	}).wait()
	var r pingReport
	if err := json.Unmarshal([]byte(got.out), &r); err != nil || got.exit != ExitNoPath || r.Error == nil || r.Error.Code != "no_coordinator" || r.Sent != 0 {
		t.Errorf("%v: %+v", err, got)
	}
}

func TestPingNeeds(t *testing.T) {
	t.Parallel()
	var ids [3]identity.NodeID
	for i := range ids {
		ids[i] = newKey(t).ID()
	}
	offer := func(i int, name, model string, calls ...string) *signalpb.ModelOffer {
		return &signalpb.ModelOffer{Miner: ids[i][:], MinerName: name, Model: &signalpb.OfferedModel{Name: model, Calls: calls}}
	}
	models := &signalpb.Models{
		Offers: []*signalpb.ModelOffer{
			offer(0, "gpu-box", "mute"), // answers no call: it cannot be matched
			offer(0, "gpu-box", "m1", "/v1/chat/completions", "/v1/embeddings"),
			offer(0, "gpu-box", "m2", "/v1/embeddings"),
			offer(1, "twin", "m1", "/v1/chat/completions"),
			offer(2, "Twin", "m1", "/v1/chat/completions"),
			{Miner: []byte("short"), MinerName: "broken", Model: &signalpb.OfferedModel{Calls: []string{"x"}}},
		},
		EmptyMiners: []string{"bare-box"},
	}
	for _, c := range []struct {
		miner string
		id    int
		says  string
		exit  Exit
	}{
		{miner: "gpu-box"},
		{miner: "GPU-Box"},
		{miner: ids[0].String()},
		{miner: ids[0].String()[:pingPrefix]},
		{miner: strings.ToUpper(ids[1].String()), id: 1},
		{miner: "twin", says: `2 miners answer to "twin"`, exit: ExitUsage},
		{miner: "bare-box", says: "runs no AI server", exit: ExitNoPath},
		{miner: "gpubox", says: "did you mean gpu-box?", exit: ExitNoPath},
		{miner: "broken", says: `no miner "broken" is connected`, exit: ExitNoPath},
		{miner: ids[0].String()[:2], says: "is connected", exit: ExitNoPath},
	} {
		n, err := pingNeeds(models, c.miner)
		if c.says != "" {
			var e *Error
			if !errors.As(err, &e) || e.Exit != c.exit || !strings.Contains(e.line(), c.says) {
				t.Errorf("%s: %v, want %q", c.miner, err, c.says)
			}
			continue
		}
		if err != nil || n.miner != ids[c.id].String() || n.call != "/v1/chat/completions" || n.model != "m1" {
			t.Errorf("%s: %+v, %v", c.miner, n, err)
		}
	}
	if _, err := pingNeeds(&signalpb.Models{}, "gpu-box"); err == nil || !strings.Contains(err.Error(), "no miner is connected") {
		t.Error(err)
	}
}
