package node

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"

	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// wiretap keeps everything that reaches a coordinator.
type wiretap struct {
	mu                           sync.Mutex
	datagrams, messages, relayed bytes.Buffer
	relayedCount                 int
}

func (w *wiretap) hooks() coordinatorHooks {
	return coordinatorHooks{
		conn:    func(c net.PacketConn) net.PacketConn { return &tappedConn{c, w} },
		handler: func(h signal.ServerHandler) signal.ServerHandler { return &tappedHandler{h, w} },
		relay: func(b []byte) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.relayed.Write(b)
			w.relayedCount++
		},
	}
}

// tappedConn is a socket that is read twice.
type tappedConn struct {
	net.PacketConn
	tap *wiretap
}

func (c *tappedConn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(p)
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	c.tap.datagrams.Write(p[:max(0, n)])
	return n, from, err
}

// tappedHandler sees what the coordinator is told, decrypted.
type tappedHandler struct {
	signal.ServerHandler
	tap *wiretap
}

func (h *tappedHandler) Joined(p *signal.Peer) {
	h.keep(p.Hello())
	h.ServerHandler.Joined(p)
}

func (h *tappedHandler) Message(p *signal.Peer, env *signalpb.Envelope) {
	h.keep(env)
	h.ServerHandler.Message(p, env)
}

func (h *tappedHandler) keep(m proto.Message) {
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	h.tap.mu.Lock()
	defer h.tap.mu.Unlock()
	h.tap.messages.Write(raw)
}

// spellings are the ways in which a secret might be written down.
func spellings(secret string) []string {
	return []string{
		secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))[:len(secret)],
	}
}

// mustNotHold fails when the secret stands in the text.
func mustNotHold(t *testing.T, place, text, name, secret string) {
	t.Helper()
	if len(secret) < 12 {
		t.Fatalf("%s %q is too short to be looked for", name, secret)
	}
	for _, s := range spellings(secret) {
		if i := strings.Index(text, s); i >= 0 {
			t.Errorf("%s holds the %s: …%q…", place, name, text[max(0, i-80):min(len(text), i+len(s)+20)])
			return
		}
	}
}

const (
	promptCanary  = "canary-prompt-5ee1b9d2"
	answerCanary  = "canary-answer-0c77aa31"
	keyCanary     = "canary-key-9b1f46ce"
	refusalCanary = "canary-refusal-77d0"
)

// The coordinator never holds a prompt or an answer, not even where it lends
// the relay: there it passes on what only the two ends can read.
func TestCoordinatorSeesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		relayed bool
	}{{"direct", false}, {"relayed", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tap := &wiretap{}
			l := newLab(t, func(coordinator *coordinatorConfig) {
				coordinator.hooks = tap.hooks()
				if !c.relayed { // the relay waits for a path that is there, however late
					coordinator.Deadlines.HeadStart = time.Minute
				}
			})
			answer := strings.Repeat(answerCanary+" ", 4000)
			ai := newAI(t, "m", says(answer))
			var cl *labClient
			if c.relayed {
				l.unreachable("gpu-box", ai)
				cl = l.hidden()
			} else {
				l.miner("gpu-box", ai)
				cl = l.client()
			}
			prompt := strings.Repeat(promptCanary+" ", 2000)
			got := cl.ask(t, askOptions{prompt: []string{prompt}, verbose: true}).wait()
			if got.exit != ExitOK || got.out != answer {
				t.Fatalf("exit %d, %d bytes, stderr %q", got.exit, len(got.out), got.err)
			}
			if (<-ai.began).prompt != prompt {
				t.Error("the AI server was asked something else")
			}
			cl.part.stop() // so that also the last receipt has been sent
			waitUntil(t, "the client has left", func() bool { return !l.isConnected(cl.key.ID()) })
			tap.mu.Lock()
			defer tap.mu.Unlock()
			for name, place := range map[string]*bytes.Buffer{"the signaling socket": &tap.datagrams, "signaling": &tap.messages, "the relay": &tap.relayed} {
				mustNotHold(t, name, place.String(), "prompt", promptCanary)
				mustNotHold(t, name, place.String(), "answer", answerCanary)
			}
			// The taps work: they saw what they should.
			for _, visible := range []string{"gpu-box", "laptop", "/v1/chat/completions"} {
				if !strings.Contains(tap.messages.String(), visible) {
					t.Errorf("signaling does not hold %q", visible)
				}
			}
			if tap.datagrams.Len() < tap.messages.Len() {
				t.Errorf("%d bytes on the signaling socket, %d of messages", tap.datagrams.Len(), tap.messages.Len())
			}
			if c.relayed {
				if tap.relayed.Len() < len(prompt)+len(answer) || !strings.Contains(got.err, "path relay-udp: no direct packet from gpu-box came through") || !strings.Contains(got.err, "· relay ") {
					t.Errorf("%d bytes at the relay, stderr %q", tap.relayed.Len(), got.err)
				}
			} else if tap.relayedCount != 0 || !strings.Contains(got.err, "· direct ") {
				t.Errorf("%d datagrams at the relay, stderr %q", tap.relayedCount, got.err)
			}
		})
	}
}

func (l *lab) isConnected(id identity.NodeID) bool {
	_, ok := l.co.server.Peer(id)
	return ok
}

// Nothing that is secret is written down anywhere: not in a log at trace level,
// not in a metric, not in the state folder, not in an error's text.
func TestNothingSecretIsWrittenDown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gate := make(chan struct{})
	answers := func(c *aiCall) {
		switch {
		case strings.Contains(c.prompt, "refuse"):
			c.refuse(http.StatusBadRequest, refusalCanary+" key "+keyCanary)
		case strings.Contains(c.prompt, "nonsense"):
			c.piece(answerCanary)
			_, _ = c.w.Write([]byte("data: <b>" + answerCanary + "</b>\n\n"))
		case strings.Contains(c.prompt, "die"):
			c.piece(answerCanary)
			c.die()
		case strings.Contains(c.prompt, "wait"):
			saysAfter(gate, answerCanary)(c)
		default:
			says(answerCanary)(c)
		}
	}
	open, shy := newAI(t, "m", answers), newAI(t, "m", answers)
	open.key, shy.key = keyCanary, keyCanary
	l.miner("open-box", open)
	l.unreachable("shy-box", shy)
	lost := newAI(t, "m", answers)
	l.miner("lost-box", lost).kill()

	secrets := map[string]string{
		"prompt": promptCanary, "answer": answerCanary, "API key": keyCanary,
		"join secret": l.join.Reveal(), "local secret": l.local.Reveal(),
	}
	var errorTexts strings.Builder
	credentials := func(cl *labClient) int {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		for id, s := range cl.sessions {
			secrets["client's ICE password of "+id.Short()] = s.localICE.Pwd
			secrets["miner's ICE password of "+id.Short()] = s.remoteICE.Pwd
			for _, lent := range s.relays {
				secrets["TURN password of "+id.Short()] = lent.config.Password
			}
		}
		return len(cl.sessions)
	}
	clients := map[string]*labClient{"@open-box": l.client(), "@shy-box": l.hidden()}
	for target, cl := range clients {
		for question, exit := range map[string]Exit{"": ExitOK, "refuse": ExitRefused, "nonsense": ExitLost, "die": ExitLost} {
			got := cl.ask(t, askOptions{prompt: []string{promptCanary, question}, model: target, verbose: true}).wait()
			if got.exit != exit {
				t.Errorf("%s %s: exit %d: %s", target, question, got.exit, got.err)
			}
			errorTexts.WriteString(got.err)
		}
		p := cl.ask(t, askOptions{prompt: []string{promptCanary, "wait"}, model: target})
		p.out.waitFor(answerCanary)
		p.cancel()
		errorTexts.WriteString(p.wait().err)
		if credentials(cl) == 0 {
			t.Error("no session to look into")
		}
		// The local endpoint, with what an error of it shows.
		for _, question := range []string{"ok", "refuse", "die"} {
			body := strings.Replace(streamBody, "?", promptCanary+question, 1)
			resp := post(t, t.Context(), cl.endpoint(t), strings.Replace(body, `"m"`, `"m`+target+`"`, 1))
			var text bytes.Buffer
			_, err := text.ReadFrom(resp.Body)
			if (question == "die") != (err != nil) {
				t.Errorf("%s %s: %v", target, question, err)
			}
			errorTexts.WriteString(strings.ReplaceAll(text.String(), answerCanary, ""))
		}
	}
	// No path: the credentials of a session that comes to nothing.
	away := l.client(func(c *clientConfig) { c.Deadlines.Direct = 300 * time.Millisecond })
	p := away.ask(t, askOptions{prompt: []string{promptCanary}, model: "@lost-box"})
	waitUntil(t, "a session with the lost miner", func() bool { return credentials(away) > 0 })
	got := p.wait()
	if got.exit == ExitOK {
		t.Errorf("%+v", got)
	}
	errorTexts.WriteString(got.err)
	// Somebody with another secret.
	stranger := identity.Secret("canary0wrong0secret0f00d")
	secrets["stranger's secret"] = stranger.Reveal()
	got = l.client(func(c *clientConfig) { c.Membership.join = stranger }).ask(t, askOptions{prompt: []string{promptCanary}}).wait()
	if got.exit != ExitNotAdmitted {
		t.Errorf("%+v", got)
	}
	errorTexts.WriteString(got.err)
	for _, text := range []string{"mintai://127.0.0.1:4433/x/" + stranger.Reveal(), "mintai://127.0.0.1:4433/" + stranger.Reveal() + "/%"} {
		_, err := linkMembership(text, originFlag)
		if err == nil {
			t.Errorf("the link %q is accepted", text)
			continue
		}
		for ; err != nil; err = errors.Unwrap(err) {
			errorTexts.WriteString(err.Error())
		}
	}

	for _, cl := range clients {
		cl.part.stop()
	}
	l.part.stop() // writes what is to be kept
	places := map[string]string{"the log": l.log.String(), "an error": errorTexts.String(), "a metric": l.metrics(t)}
	if err := filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		places["the file "+d.Name()] = string(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for place, text := range places {
		for name, secret := range secrets {
			mustNotHold(t, place, text, name, secret)
		}
	}
	mustNotHold(t, "the log", places["the log"], "AI server's own words", refusalCanary)
	// All of it was looked at.
	for place, marker := range map[string]string{
		"the log": `"level":"debug"`, "an error": refusalCanary, "a metric": "mintai_client_requests_total", "the file reputation.db": "",
		"the file client-tickets": "",
	} {
		if text, ok := places[place]; !ok || !strings.Contains(text, marker) {
			t.Errorf("%s does not hold %q", place, marker)
		}
	}
	if len(secrets) < 15 {
		t.Errorf("only %d secrets", len(secrets))
	}
}

// metrics is what /metrics would show of all roles.
func (l *lab) metrics(t *testing.T) string {
	t.Helper()
	families, err := l.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}
