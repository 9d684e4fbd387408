package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mintai/identity"
)

// ready is a lab with one miner that answers so.
func ready(t testing.TB, answer func(*aiCall)) (*lab, *labMiner, *aiServer) {
	t.Helper()
	l := newLab(t)
	ai := newAI(t, "m", answer)
	return l, l.miner("gpu-box", ai), ai
}

// withConfig writes a configuration and returns its path.
func withConfig(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "client.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each exit code has a cause that happens, and one line that says so.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	broken := func(c *aiCall) { c.piece("first"); c.die() }
	for _, c := range []struct {
		name string
		run  func(t *testing.T) ended
		exit Exit
		says []string // in the line
	}{
		{"answered", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			return l.ask("?").wait()
		}, ExitOK, nil},
		{"the output is gone", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			cl := l.client()
			return launch(t, nil, func(ctx context.Context, std IO) int {
				r, w, err := os.Pipe()
				if err != nil {
					t.Error(err)
				}
				_ = r.Close()
				defer func() { _ = w.Close() }()
				std.Stdout = w
				return finish(newAsker(cl.client, std, askOptions{prompt: []string{"?"}}).run(ctx), std)
			}).wait()
		}, ExitInternal, []string{"writing the answer"}},
		{"unknown flag", func(t *testing.T) ended {
			return typed(t, nil, "-mode", "client", "-modell", "x", "ask", "?").wait()
		}, ExitUsage, []string{"unknown flag -modell", "did you mean -model?"}},
		{"bad link", func(t *testing.T) ended {
			return typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-join", "http://x", "ask", "?").wait()
		}, ExitUsage, []string{"the join link of -join", "copy it whole"}},
		{"no configuration", func(t *testing.T) ended {
			return typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-config", "/nowhere/miner.toml", "ask", "?").wait()
		}, ExitUsage, []string{"no configuration file /nowhere/miner.toml", "cp config.example.toml"}},
		{"wrong secret", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			l.join = identity.NewSecret()
			return l.ask("?").wait()
		}, ExitNotAdmitted, []string{"the coordinator refuses this node", "join link"}},
		{"no secret", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			l.join = ""
			return l.ask("?").wait()
		}, ExitNotAdmitted, []string{"holders of its join link"}},
		{"no miner", func(t *testing.T) ended { return newLab(t).ask("?").wait() }, ExitNoMiner, []string{"no miner is connected", "mintai -mode miner"}},
		{"unknown model", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			return l.ask("-m", "nope", "?").wait()
		}, ExitNoMiner, []string{"1 does not offer nope", "offered: m"}},
		{"unknown miner", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			return l.ask("-m", "@other", "?").wait()
		}, ExitNoMiner, []string{"other"}},
		{"no coordinator is known", func(t *testing.T) ended {
			return typed(t, nil, "-mode", "client", "-state", t.TempDir(), "ask", "?").wait()
		}, ExitNoPath, []string{"no coordinator is known", "mintai -mode coordinator"}},
		{"no coordinator answers", func(t *testing.T) ended {
			conn, err := net.ListenPacket("udp4", "127.0.0.1:0") // it is there and silent
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			link := fmt.Sprintf("mintai://%s/%s", conn.LocalAddr(), newKey(t).ID())
			return typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-join", link,
				"-config", withConfig(t, "[client.deadlines]\nmatch = \"300ms\"\n"), "ask", "?").wait()
		}, ExitNoPath, []string{"no coordinator answers at 127.0.0.1"}},
		{"another coordinator answers", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			link := identity.Link{Addrs: []string{l.addr}, ID: newKey(t).ID(), Secret: l.join}
			return typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-join", link.String(),
				"-config", withConfig(t, "[client.deadlines]\nmatch = \"2s\"\n"), "ask", "?").wait()
		}, ExitNoPath, []string{"not the coordinator that is named by -join", "answered as", "current join link"}},
		{"the coordinator's key has changed", func(t *testing.T) ended {
			l, _, _ := ready(t, says("ok"))
			state := t.TempDir()
			link := identity.Link{Addrs: []string{l.addr}, Secret: l.join}.String() // names no key
			if got := typed(t, nil, "-mode", "client", "-state", state, "-join", link, "ask", "?").wait(); got.exit != ExitOK ||
				!strings.Contains(got.err, "trusting the coordinator at "+l.addr+" as "+l.key.ID().String()) {
				t.Errorf("on first use: %+v", got)
			}
			l.part.stop()
			l.config.Key = newKey(t)
			l.startCoordinator()
			return typed(t, nil, "-mode", "client", "-state", state, "-join", link, "ask", "?").wait()
		}, ExitNoPath, []string{"now answers as", "ask its operator"}},
		{"no path", func(t *testing.T) ended {
			l := newLab(t, func(c *coordinatorConfig) { c.TURN.Enabled = false })
			l.unreachable("gpu-box", newAI(t, "m", says("ok")))
			cl := l.hidden(func(c *clientConfig) { c.Deadlines.Direct = 500 * time.Millisecond })
			return cl.ask(t, askOptions{prompt: []string{"?"}}).wait()
		}, ExitNoPath, []string{"no path to gpu-box: no direct packet came through, and no relay may be used", "netcheck"}},
		{"lost midway", func(t *testing.T) ended {
			l, _, _ := ready(t, broken)
			return l.ask("?").wait()
		}, ExitLost, []string{"broke off in the middle of the answer", "incomplete"}},
		{"deadline", func(t *testing.T) ended {
			l, _, _ := ready(t, waitGate)
			return l.ask("-timeout", "400ms", "?").wait()
		}, ExitDeadline, []string{"the deadline passed before the answer was complete", "-timeout"}},
		{"deadline before the first token", func(t *testing.T) ended {
			l, _, _ := ready(t, saysAfter(nil, ""))
			return l.ask("-timeout", "400ms", "?").wait()
		}, ExitDeadline, []string{"the deadline passed"}},
		{"no first byte", func(t *testing.T) ended {
			l, _, _ := ready(t, saysAfter(nil, ""))
			return l.ask("-config", withConfig(t, "[client.deadlines]\nfirst_byte = \"300ms\"\n"), "?").wait()
		}, ExitDeadline, []string{"gpu-box: no answer began in time", "first_byte"}},
		{"refused by the AI server", func(t *testing.T) ended {
			l, _, _ := ready(t, func(c *aiCall) {
				c.refuse(http.StatusBadRequest, "the prompt is too long by 12 tokens")
			})
			return l.ask("?").wait()
		}, ExitRefused, []string{"the AI server on gpu-box answered 400: the prompt is too long by 12 tokens"}},
		{"interrupted", func(t *testing.T) ended {
			l, _, ai := ready(t, waitGate)
			p := l.ask("?")
			receive(t, "the question", ai.began)
			p.cancel()
			return p.wait()
		}, ExitInterrupted, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			started := time.Now()
			got := c.run(t)
			if got.exit != c.exit {
				t.Errorf("exit %d, want %d: %q", got.exit, c.exit, got.err)
			}
			lines := 1
			if len(c.says) == 0 {
				lines = 0
			}
			if strings.Count(got.err, "\n") != lines || lines == 1 && !strings.HasPrefix(got.err, "mintai: ") {
				t.Errorf("stderr %q, want %d lines", got.err, lines)
			}
			for _, want := range c.says {
				if !strings.Contains(got.err, want) {
					t.Errorf("stderr %q lacks %q", got.err, want)
				}
			}
			if took := time.Since(started); took > 12*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// Everything that is wrong in a configuration is said, a line each.
func TestBadConfigurationSaysAll(t *testing.T) {
	t.Parallel()
	path := withConfig(t, "[client]\nlisten = 5\n[miner]\nslotz = 2\n")
	got := typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-config", path, "ask", "?").wait()
	if got.exit != ExitUsage || strings.Count(got.err, "\n") < 2 || !strings.Contains(got.err, ":2: ") || !strings.Contains(got.err, ":4: ") {
		t.Errorf("%+v", got)
	}
}
