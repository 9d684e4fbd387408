package node

import (
	"context"
	"sync"
	"time"

	"mintai/ice"
	"mintai/identity"
)

// Path is the route of a tunnel's packets and why it is that one.
type Path struct {
	Kind   string        `json:"kind"`   // host srflx prflx mapped relay-udp relay-tls
	Code   string        `json:"code"`   // the reason as programs tell it, see ice.Reason
	Reason string        `json:"reason"` // in people's words
	RTT    time.Duration `json:"-"`      // smoothed; 0: not measured yet
	Since  time.Time     `json:"-"`      // when it came into use

	reason ice.Reason
}

// Relayed reports whether the packets pass a relay.
func (p Path) Relayed() bool { return p.Kind == "relay-udp" || p.Kind == "relay-tls" }

// word is the path in the fewest words: "direct" or "relay".
func (p Path) word() string {
	if p.Relayed() {
		return "relay"
	}
	return "direct"
}

// trace follows one request for the person who waits for it. The transport
// writes it, the command reads it; the zero value works. Its methods accept a
// nil receiver, for requests that nobody follows.
type trace struct {
	notify func(stage string) // called outside mu with a line to show; may be nil

	mu        sync.Mutex
	miner     identity.NodeID
	minerName string
	model     string
	why       string
	tries     int
	matched   time.Time // of the last try
	connected time.Time
	path      func() Path // of the tunnel in use; nil before there is one
}

type traceKey struct{}

func withTrace(ctx context.Context, t *trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

func traceFrom(ctx context.Context) *trace {
	t, _ := ctx.Value(traceKey{}).(*trace)
	return t
}

// stage says what the request waits for now.
func (t *trace) stage(text string) {
	if t != nil && t.notify != nil {
		t.notify(text)
	}
}

// try counts one more attempt.
func (t *trace) try() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tries++
}

// match records the coordinator's choice.
func (t *trace) match(s *session) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.miner, t.minerName, t.model, t.why = s.miner, s.minerName, string(s.model), s.why
	t.matched = time.Now()
	t.path = nil
}

// connect records that the tunnel is up.
func (t *trace) connect(path func() Path) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connected = time.Now()
	t.path = path
}

// traceView is a copy of a trace at one moment.
type traceView struct {
	miner              identity.NodeID
	minerName          string
	model, why         string
	tries              int
	matched, connected time.Time
	path               Path
}

func (t *trace) view() traceView {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := traceView{
		miner: t.miner, minerName: t.minerName, model: t.model, why: t.why,
		tries: t.tries, matched: t.matched, connected: t.connected,
	}
	if t.path != nil {
		v.path = t.path()
	}
	return v
}
