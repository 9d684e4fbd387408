package node

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// `pad_answers` of the miner's configuration reaches the wire: after one long piece
// each short one takes as many bytes as the long one, or its own.
func TestPadAnswers(t *testing.T) {
	t.Parallel()
	const pieces, padded = 100, 1024 // padded: bytes of a short piece behind a long one
	for name, config := range map[string]string{"default": "", "on": "pad_answers = true", "off": "pad_answers = false"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			step := make(chan string)
			end := sync.OnceFunc(func() { close(step) })
			ai := newAI(t, "m", func(c *aiCall) {
				for text := range step {
					c.piece(text)
				}
				c.end()
			})
			t.Cleanup(end) // before that of the AI server, which waits for its handlers
			file := filepath.Join(t.TempDir(), "miner.toml")
			text := "[miner]\nport_mapping = false\nmetrics = \"\"\n" + config + "\n[[miner.backend]]\ntype = \"openai\"\nurl = " + strconv.Quote(ai.URL) + "\n"
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			typed(t, nil, "-mode", "miner", "-state", t.TempDir(), "-config", file, "-join", l.link())
			waitUntil(t, "the miner is offered", func() bool { return len(l.co.board.Offers(true, time.Now())) > 0 })

			cl := l.client()
			asked := cl.ask(t, askOptions{prompt: []string{"?"}})
			long := strings.Repeat("x", 800)
			give := func(text string, whole int) {
				t.Helper()
				select {
				case step <- text:
				case <-asked.done:
					t.Fatalf("%+v", asked.wait())
				}
				waitUntil(t, "the next piece", func() bool { return len(asked.out.String()) == whole })
			}
			give(long, len(long))
			before := cl.received(t)
			for i := range pieces {
				give("x", len(long)+i+1)
			}
			each := int(cl.received(t)-before) / pieces
			end()
			if got := asked.wait(); got.exit != ExitOK {
				t.Fatalf("%+v", got)
			}
			t.Logf("%d bytes a piece", each)
			if want := name != "off"; (each >= padded) != want {
				t.Errorf("%d bytes a piece, padded: %v", each, want)
			}
		})
	}
}

// received is how many bytes came through the client's one tunnel.
func (c *labClient) received(t testing.TB) uint64 {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		return l.Stats().BytesReceived
	}
	t.Fatal("there is no tunnel")
	return 0
}
