package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// Two terminals of one user have one key.
func TestTwoClientsWithOneKey(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", func(c *aiCall) {
		c.piece("to " + c.prompt)
		c.end()
	})
	ai.slots = 8
	l.miner("gpu-box", ai)
	state := t.TempDir() // one key, one ticket file
	ask := func(prompt string) *process {
		return typed(t, nil, "-mode", "client", "-state", state, "-join", l.link(), "ask", prompt)
	}
	if got := ask("make the key").wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	for round := range 5 {
		var both [3]*process
		for i := range both {
			both[i] = ask(fmt.Sprint(round, i))
		}
		for i, p := range both {
			if got := p.wait(); got.exit != ExitOK || got.out != fmt.Sprintf("to %d %d", round, i) || got.err != "" {
				t.Errorf("round %d, terminal %d: %+v", round, i, got)
			}
		}
	}
}

// One terminal's answer goes on while the other asks and ends.
func TestTwoClientsWithOneKeyMidway(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", func(c *aiCall) {
		if c.prompt == "long" {
			waitGate(c)
		}
		c.piece(" end")
		c.end()
	})
	l.miner("gpu-box", ai)
	key := newKey(t)
	sameKey := func(c *clientConfig) { c.Key = key }
	one := l.client(sameKey)
	p := one.ask(t, askOptions{prompt: []string{"long"}})
	p.out.waitFor("first")
	two := l.client(sameKey)
	if got := two.ask(t, askOptions{prompt: []string{"short"}}).wait(); got.exit != ExitOK || got.out != " end" {
		t.Errorf("%+v", got)
	}
	two.part.stop()
	ai.gate()
	if got := p.wait(); got.exit != ExitOK || got.out != "first end" {
		t.Errorf("%+v", got)
	}
	if got := one.ask(t, askOptions{prompt: []string{"short"}}).wait(); got.exit != ExitOK || got.out != " end" {
		t.Errorf("%+v", got)
	}
}

// stages collects what a person would be told while waiting.
type stages struct {
	mu   sync.Mutex
	seen []string
}

func (s *stages) notify(stage string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, stage)
}

func (s *stages) has(stage string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.seen {
		if x == stage {
			return true
		}
	}
	return false
}

// More requests than slots wait for their turn and say so.
func TestQueue(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	one := make(chan struct{}) // closed: the answer to "one" ends
	ai := newAI(t, "m", func(c *aiCall) {
		if c.prompt != "one" {
			waitGate(c)
		} else {
			c.piece("first")
			select {
			case <-one:
			case <-c.r.Context().Done():
			}
		}
		c.end()
	})
	ai.slots = 2
	m := l.miner("gpu-box", ai)
	var running []*process
	for _, prompt := range []string{"one", "?"} {
		p := l.client().ask(t, askOptions{prompt: []string{prompt}})
		p.out.waitFor("first")
		running = append(running, p)
	}
	var waiting [2]stages
	for i := range waiting {
		cl := l.client()
		running = append(running, launch(t, nil, func(ctx context.Context, std IO) int {
			a := newAsker(cl.client, std, askOptions{})
			got := &answered{trace: &trace{notify: waiting[i].notify}}
			return finish(a.ask(ctx, "?", got), std)
		}))
		waitUntil(t, "a longer queue", func() bool { return m.pool.Snapshot().Queued == i+1 })
		waitUntil(t, "the position", func() bool { return waiting[i].has(fmt.Sprintf("queued %d…", i+1)) })
	}
	if !waiting[0].has("matching…") || !waiting[0].has("waiting for the first token…") {
		t.Errorf("stages %q", waiting[0].seen)
	}
	close(one) // the first in the queue begins, and the second is the next
	waitUntil(t, "the second to move up", func() bool { return waiting[1].has("queued 1…") })
	ai.gate()
	for _, p := range running {
		if got := p.wait(); got.exit != ExitOK || got.out != "first" || got.err != "" {
			t.Errorf("%+v", got)
		}
	}
	if ai.most != ai.slots {
		t.Errorf("%d at once at the AI server, which has %d slots", ai.most, ai.slots)
	}
}

// Who waits for a turn is not given up for a late first byte.
func TestQueueOutlastsFirstByte(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", func(c *aiCall) { waitGate(c); c.end() })
	ai.slots = 1
	m := l.miner("gpu-box", ai)
	first := l.client().ask(t, askOptions{prompt: []string{"?"}})
	first.out.waitFor("first")
	const firstByte = 300 * time.Millisecond
	second := l.client(func(c *clientConfig) { c.Deadlines.FirstByte = firstByte }).ask(t, askOptions{prompt: []string{"?"}})
	waitUntil(t, "a queue", func() bool { return m.pool.Snapshot().Queued == 1 })
	queued := time.Now()
	waitUntil(t, "the time of the first byte is over", func() bool { return time.Since(queued) > 2*firstByte })
	ai.gate()
	for _, p := range []*process{first, second} {
		if got := p.wait(); got.exit != ExitOK || got.out != "first" {
			t.Errorf("%+v", got)
		}
	}
}

// The coordinator follows the load: a second miner gets what the first has no
// slot for.
func TestLoadIsShared(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	answer := func(c *aiCall) { waitGate(c); c.end() }
	one, two := newAI(t, "m", answer), newAI(t, "m", answer)
	one.slots, two.slots = 1, 1
	l.miner("one", one)
	l.miner("two", two)
	var running []*process
	for range 2 {
		p := l.client().ask(t, askOptions{prompt: []string{"?"}})
		p.out.waitFor("first")
		running = append(running, p)
	}
	if one.count() != 1 || two.count() != 1 {
		t.Errorf("%d and %d questions", one.count(), two.count())
	}
	one.gate()
	two.gate()
	for _, p := range running {
		if got := p.wait(); got.exit != ExitOK {
			t.Errorf("%+v", got)
		}
	}
}

func TestModels(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.miner("gpu-box", newAI(t, "qwen3:8b", says("ok")))
	list := func(args ...string) ended {
		return typed(t, nil, append([]string{"-mode", "client", "-state", t.TempDir(), "-join", l.link(), "models"}, args...)...).wait()
	}
	got := list()
	if got.exit != ExitOK || got.err != "" || !strings.Contains(got.out, "qwen3:8b  gpu-box") {
		t.Errorf("%+v", got)
	}
	got = list("-json")
	if got.exit != ExitOK || !strings.Contains(got.out, `"model":"qwen3:8b","miner":"gpu-box"`) || strings.Count(got.out, "\n") != 1 {
		t.Errorf("%+v", got)
	}
}
