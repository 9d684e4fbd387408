package node

import (
	"strings"
	"testing"
	"time"
)

// On a direct path a running answer needs no coordinator: not for its end, and
// not for further questions.
func TestCoordinatorKilledMidway(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gate := make(chan struct{})
	rest := make([]string, 200)
	for i := range rest {
		rest[i] = strings.Repeat("é\x1b", i) + "\n"
	}
	whole := "first " + strings.Join(rest, "")
	ai := newAI(t, "m", saysAfter(gate, "first ", rest...))
	m := l.miner("gpu-box", ai)
	cl := l.client()
	p := cl.ask(t, askOptions{prompt: []string{"?"}})
	p.out.waitFor("first")

	l.killCoordinator()
	close(gate)
	if got := p.wait(); got.exit != ExitOK || got.out != whole || got.err != "" {
		t.Errorf("exit %d, stderr %q, the answer is whole: %v", got.exit, got.err, got.out == whole)
	}
	for range 3 { // further requests on the warm tunnel
		started := time.Now()
		if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK || got.out != whole {
			t.Errorf("exit %d, stderr %q", got.exit, got.err)
		}
		if took := time.Since(started); took > time.Second {
			t.Errorf("a warm request took %v", took)
		}
	}

	// Restarted on the same port, both come back by themselves.
	l.startCoordinator()
	l.waitOffered(m)
	if got := l.ask("?").wait(); got.exit != ExitOK || got.out != whole {
		t.Errorf("a new client after the restart: exit %d, stderr %q", got.exit, got.err)
	}
	// This one needs the coordinator: nothing warm was granted for it.
	if got := cl.ask(t, askOptions{prompt: []string{"?"}, model: "m@gpu-box"}).wait(); got.exit != ExitOK || got.out != whole {
		t.Errorf("the old client after the restart: exit %d, stderr %q", got.exit, got.err)
	}
}

// A coordinator that is stopped in order does not disturb answers either.
func TestCoordinatorStoppedMidway(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gate := make(chan struct{})
	m := l.miner("gpu-box", newAI(t, "m", saysAfter(gate, "first", " rest")))
	cl := l.client()
	p := cl.ask(t, askOptions{prompt: []string{"?"}})
	p.out.waitFor("first")
	l.part.stop()
	close(gate)
	if got := p.wait(); got.exit != ExitOK || got.out != "first rest" || got.err != "" {
		t.Errorf("%+v", got)
	}
	l.startCoordinator()
	l.waitOffered(m)
	if got := cl.ask(t, askOptions{prompt: []string{"?"}, model: "m@gpu-box"}).wait(); got.exit != ExitOK || got.out != "first rest" {
		t.Errorf("%+v", got)
	}
}
