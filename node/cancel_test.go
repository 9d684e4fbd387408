package node

import (
	"bufio"
	"context"
	"strings"
	"testing"
	"time"
)

// soon is how quickly a cancel must be at the AI server, on a busy machine too. It
// must not wait for patientMiner's deadlines, which are much longer.
const soon = 4 * time.Second

func patientMiner(c *minerConfig) {
	c.Deadlines.MaxIdle, c.Deadlines.ResumeWindow = 15*time.Second, 15*time.Second
}

// A question that nobody waits for any more ends at the AI server, whatever it
// is doing and however the client goes away.
func TestCancelReachesTheAIServer(t *testing.T) {
	t.Parallel()
	const maxIdle, resumeWindow = 2 * time.Second, 3 * time.Second
	hasty := func(c *minerConfig) { c.Deadlines.MaxIdle, c.Deadlines.ResumeWindow = maxIdle, resumeWindow }
	for _, at := range []struct {
		name   string
		answer func(*aiCall)
		begun  bool
	}{
		{"before the first token", saysAfter(nil, ""), false},
		{"in the answer", saysAfter(nil, "first"), true},
	} {
		for _, c := range []struct {
			name  string
			end   func(cl *labClient, p *process)
			miner func(*minerConfig)
			most  time.Duration
		}{
			{"Ctrl-C", func(_ *labClient, p *process) { p.cancel() }, patientMiner, soon},
			{"the client stops", func(cl *labClient, _ *process) { cl.part.stop() }, patientMiner, soon},
			// Nobody says anything: the idle timeout, then the resume window.
			{"the client vanishes", func(cl *labClient, _ *process) { cl.kill() }, hasty, maxIdle + resumeWindow + soon},
		} {
			t.Run(at.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				ended := make(chan struct{})
				ai := newAI(t, "m", func(c *aiCall) {
					defer close(ended)
					at.answer(c)
				})
				m := l.miner("gpu-box", ai, c.miner)
				cl := l.client()
				p := cl.ask(t, askOptions{prompt: []string{"?"}})
				receive(t, "the question", ai.began)
				if at.begun {
					p.out.waitFor("first")
				}
				started := time.Now()
				c.end(cl, p)
				select {
				case <-ended:
				case <-time.After(c.most):
					t.Fatalf("the AI server still works after %v", c.most)
				}
				if took := time.Since(started); c.most == soon && took > soon {
					t.Errorf("it took %v", took)
				}
				waitUntil(t, "the slot is free again", func() bool { return m.pool.Snapshot().InFlight == 0 })
			})
		}
	}
}

// The caller of the local endpoint hangs up.
func TestCancelThroughTheEndpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ended := make(chan struct{})
	l.miner("gpu-box", newAI(t, "m", func(c *aiCall) {
		defer close(ended)
		saysAfter(nil, "first")(c)
	}), patientMiner)
	ctx, cancel := context.WithCancel(t.Context())
	resp := post(t, ctx, l.client().endpoint(t), streamBody)
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(line, `"first"`) {
		t.Fatalf("%q, %v", line, err)
	}
	started := time.Now()
	cancel()
	receive(t, "the cancel at the AI server", ended)
	if took := time.Since(started); took > soon {
		t.Errorf("it took %v", took)
	}
}

// A cancelled question leaves the queue without ever reaching the AI server.
func TestCancelInTheQueue(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", func(c *aiCall) { waitGate(c); c.end() })
	ai.slots = 1
	m := l.miner("gpu-box", ai)
	first := l.client().ask(t, askOptions{prompt: []string{"?"}})
	first.out.waitFor("first")
	second := l.client().ask(t, askOptions{prompt: []string{"?"}})
	waitUntil(t, "a queue", func() bool { return m.pool.Snapshot().Queued == 1 })
	second.cancel()
	if got := second.wait(); got.exit != ExitInterrupted || got.err != "" || got.out != "" {
		t.Errorf("%+v", got)
	}
	waitUntil(t, "the queue is empty", func() bool { return m.pool.Snapshot().Queued == 0 })
	ai.gate()
	if got := first.wait(); got.exit != ExitOK {
		t.Errorf("%+v", got)
	}
	if n := ai.count(); n != 1 {
		t.Errorf("%d questions at the AI server", n)
	}
}
