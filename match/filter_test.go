package match

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"mintai/api"
	"mintai/identity"
)

// TestFilters shows every filter, what it says to people, and the code.
func TestFilters(t *testing.T) {
	qwen := model("qwen3:8b")
	builtin := Model{Name: "builtin", Calls: chats, Backend: "builtin", SameUserOnly: true}
	embed := Model{Name: "nomic", Calls: []api.Call{api.Embeddings}, Backend: "ollama"}
	full := func(l *Lease) { l.InFlight, l.Queued, l.QueueLimit = 1, 2, 2 }
	draining := func(l *Lease) { l.Draining = true }
	local := func(l *Lease) { l.Local = true }
	silent := func(l *Lease) { l.Expires = t0 }

	tests := []struct {
		name   string
		leases []Lease
		needs  Needs
		code   Code
		says   string
	}{
		{"nobody", nil, Needs{Model: "qwen3:8b"}, CodeNoMiner, "no miner is connected; start one with: mintai -mode miner -config miner.toml"},
		{"silent", []Lease{with(lease(1, qwen), silent)}, Needs{}, CodeNoMiner, "no miner is connected"},
		{"silent beside another", []Lease{with(lease(1, qwen), silent), lease(2, qwen)}, Needs{Model: "x"}, CodeFiltered, "1 has not been heard of lately, 1 does not offer x"},
		{"model", []Lease{lease(1, qwen)}, Needs{Model: "llama3"}, CodeFiltered, "no miner can answer: 1 does not offer llama3; offered: qwen3:8b"},
		{"models", []Lease{lease(1, qwen), lease(2, qwen)}, Needs{Model: "llama3"}, CodeFiltered, "2 do not offer llama3"},
		{"miner", []Lease{lease(1, qwen)}, Needs{Miner: "gpu-box"}, CodeFiltered, "1 is not gpu-box"},
		{"miners", []Lease{lease(1, qwen), lease(2, qwen)}, Needs{Miner: "gpu-box"}, CodeFiltered, "2 are not gpu-box"},
		{"call", []Lease{lease(1, embed)}, Needs{Call: api.ChatCompletions}, CodeFiltered, "1 does not answer /v1/chat/completions;"},
		{"call of a model", []Lease{lease(1, embed), lease(2, embed)}, Needs{Model: "nomic", Call: api.ChatCompletions}, CodeFiltered, "2 do not answer /v1/chat/completions with nomic"},
		{"tools", []Lease{lease(1, qwen)}, Needs{Tools: true}, CodeFiltered, "1 cannot call tools"},
		{"vision", []Lease{lease(1, qwen)}, Needs{Vision: true}, CodeFiltered, "1 cannot see images"},
		{"json", []Lease{lease(1, qwen)}, Needs{JSON: true}, CodeFiltered, "1 cannot promise structured output"},
		{"context", []Lease{lease(1, qwen)}, Needs{ContextTokens: 40000}, CodeFiltered, "1 has less than 40000 tokens of context"},
		{"contexts", []Lease{lease(1, qwen), lease(2, qwen)}, Needs{ContextTokens: 40000}, CodeFiltered, "2 have less than 40000 tokens of context"},
		{"reputation", []Lease{lease(1, qwen)}, Needs{MinReputation: 0.8}, CodeFiltered, "1 is below a reputation of 0.80"},
		{"tried", []Lease{lease(1, qwen)}, Needs{Exclude: []identity.NodeID{node(1)}}, CodeBusy, "1 was already tried; try again in 5 s"},
		{"draining", []Lease{with(lease(1, qwen), draining)}, Needs{}, CodeBusy, "1 is shutting down"},
		{"full", []Lease{with(lease(1, qwen), full)}, Needs{}, CodeBusy, "1 is full"},
		{"full and others", []Lease{with(lease(1, qwen), full), with(lease(2, qwen), full), lease(3, embed)}, Needs{Model: "qwen3:8b"}, CodeBusy, "no miner can answer just now: 1 does not offer qwen3:8b, 2 are full; try again in 5 s"},
		{"no server", []Lease{with(lease(1, builtin), func(l *Lease) { l.Name = "gpu-box" })}, Needs{}, CodeNoServer, "gpu-box is connected but runs no AI server"},
		{"no models", []Lease{lease(1)}, Needs{Local: true}, CodeNoServer, "box-1 is connected but runs no AI server"},
		{"no servers", []Lease{lease(1), lease(2)}, Needs{Model: "x"}, CodeNoServer, "box-1, box-2 are connected but run no AI server"},
		{"many no servers", []Lease{lease(1), lease(2), lease(3), lease(4), lease(5), lease(6), lease(7)}, Needs{}, CodeNoServer, "box-5 and 2 more are connected"},
		{"no server, nameless", []Lease{with(lease(1), func(l *Lease) { l.Name = "" })}, Needs{}, CodeNoServer, node(1).Short() + " is connected"},
		{"the named one has no server", []Lease{lease(1), lease(2, qwen)}, Needs{Miner: "box-1"}, CodeNoServer, "box-1 is connected but runs no AI server"},
		{"one without server", []Lease{lease(1), lease(2, embed)}, Needs{Model: "x"}, CodeFiltered, "1 runs no AI server, 1 does not offer x"},
		{"same user, miner elsewhere", []Lease{lease(1, builtin)}, Needs{Local: true}, CodeNoServer, "box-1 is connected but runs no AI server"},
		{"same user, asker elsewhere", []Lease{with(lease(1, builtin), local)}, Needs{}, CodeNoServer, "box-1 is connected but runs no AI server"},
		{"same user, other model", []Lease{with(lease(1, builtin), local)}, Needs{Local: true, Model: "x"}, CodeFiltered, "1 does not offer x; offered: builtin"},
		{"the furthest model counts", []Lease{lease(1, embed, qwen)}, Needs{Call: api.ChatCompletions, Tools: true}, CodeFiltered, "1 cannot call tools"},
		{"bad reputation", []Lease{lease(1, qwen)}, Needs{MinReputation: math.NaN()}, CodeBadRequest, "the least reputation must be between 0 and 1"},
		{"bad context", nil, Needs{ContextTokens: -1}, CodeBadRequest, "the context cannot be -1 tokens"},
		{"long model", nil, Needs{Model: api.Model(strings.Repeat("x", 257))}, CodeBadRequest, "257 characters"},
		{"long miner", nil, Needs{Miner: strings.Repeat("x", 257)}, CodeBadRequest, "257 characters"},
		{"many tried", nil, Needs{Exclude: make([]identity.NodeID, 65)}, CodeBadRequest, "65 miners were tried already"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBoard(judge{})
			for _, l := range tt.leases {
				b.Put(l)
			}
			choice, err := b.Pick(tt.needs, t0)
			var no *NoMatchError
			if !errors.As(err, &no) || !errors.Is(err, ErrNoMatch) {
				t.Fatalf("Pick = %+v, %v; want a NoMatchError", choice, err)
			}
			if no.Code != tt.code {
				t.Errorf("code = %v, want %v", no.Code, tt.code)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error = %q, want it to contain %q", err, tt.says)
			}
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("error has several lines: %q", err)
			}
			if (no.Code == CodeBusy) != (no.RetryAfter > 0) {
				t.Errorf("code %v with RetryAfter %v", no.Code, no.RetryAfter)
			}
			removed := 0
			for _, f := range no.Filters {
				removed += f.Removed
			}
			if no.Code != CodeBadRequest && removed != len(tt.leases) {
				t.Errorf("filters %v account for %d of %d miners", no.Filters, removed, len(tt.leases))
			}
		})
	}
}

// TestPasses shows requests that a miner serves although it looks otherwise.
func TestPasses(t *testing.T) {
	able := with(model("big"), func(m *Model) { m.Tools, m.Vision, m.JSON = true, true, true })
	unknownContext := with(model("open"), func(m *Model) { m.ContextTokens = 0 })
	latest := model("llama3:latest")
	builtin := Model{Name: "builtin", Calls: chats, Backend: "builtin", SameUserOnly: true}
	demo := Model{Name: "demo", Calls: chats, Backend: "demo"}
	local := func(l *Lease) { l.Local = true }

	tests := []struct {
		name  string
		lease Lease
		needs Needs
		model api.Model
	}{
		{"everything it can", lease(1, able), Needs{Model: "big", Call: api.ChatCompletions, Tools: true, Vision: true, JSON: true, ContextTokens: 32768}, "big"},
		{"unknown context", lease(1, unknownContext), Needs{ContextTokens: 1 << 20}, "open"},
		{"latest left out", lease(1, latest), Needs{Model: "llama3"}, "llama3:latest"},
		{"latest written", lease(1, model("llama3")), Needs{Model: "llama3:latest"}, "llama3"},
		{"exact before latest", lease(1, latest, model("llama3")), Needs{Model: "llama3"}, "llama3"},
		{"busy but with a queue", with(lease(1, able), func(l *Lease) { l.InFlight, l.QueueLimit = 1, 1 }), Needs{}, "big"},
		{"by name in any case", with(lease(1, able), func(l *Lease) { l.Name = "GPU-box" }), Needs{Miner: "gpu-BOX"}, "big"},
		{"by NodeID", lease(1, able), Needs{Miner: node(1).String()}, "big"},
		{"by NodeID prefix", lease(1, able), Needs{Miner: node(1).Short()}, "big"},
		{"same user", with(lease(1, builtin), local), Needs{Local: true}, "builtin"},
		{"a server before builtin and demo", with(lease(1, demo, builtin, able), local), Needs{Local: true}, "big"},
		{"builtin before demo", with(lease(1, demo, builtin), local), Needs{Local: true}, "builtin"},
		{"demo by name", with(lease(1, able, demo), local), Needs{Model: "demo"}, "demo"},
		{"the miner's own order", lease(1, model("b"), model("a")), Needs{}, "b"},
		{"the model that answers the call", lease(1, Model{Name: "nomic", Calls: []api.Call{api.Embeddings}}, able), Needs{Call: api.ChatCompletions}, "big"},
		{"no slots said", with(lease(1, able), func(l *Lease) { l.Slots = 0 }), Needs{}, "big"},
		{"negative counts", with(lease(1, able), func(l *Lease) { l.InFlight, l.Queued, l.QueueLimit = -5, math.MinInt, -1 }), Needs{}, "big"},
		{"the last moment", with(lease(1, able), func(l *Lease) { l.Expires = t0.Add(1) }), Needs{}, "big"},
		{"reputation just reached", lease(1, able), Needs{MinReputation: 0.5}, "big"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBoard(judge{})
			b.Put(tt.lease)
			got, err := b.Pick(tt.needs, t0)
			if err != nil {
				t.Fatal(err)
			}
			if got.Miner != node(1) || got.Model.Name != tt.model || got.Why == "" {
				t.Errorf("Pick = %+v, want %s", got, tt.model)
			}
		})
	}
}

// TestServerBeforeBuiltin: a request without a model goes to an AI server,
// even when it has to wait there and the built-in engine is idle.
func TestServerBeforeBuiltin(t *testing.T) {
	b := NewBoard(judge{node(1): {score: 0.99, first: time.Millisecond, rate: 1e5}})
	b.Put(with(lease(1, Model{Name: "builtin", Calls: chats, Backend: "builtin"}), func(l *Lease) { l.Slots = 8 }))
	b.Put(with(lease(2, model("qwen3:8b")), func(l *Lease) { l.InFlight, l.QueueLimit = 1, 4 }))
	if c, err := b.Pick(Needs{}, t0); err != nil || c.Miner != node(2) {
		t.Errorf("Pick = %+v, %v; want the AI server", c, err)
	}
}

// TestNoImpersonation: a miner that calls itself like another's NodeID is not
// taken for it.
func TestNoImpersonation(t *testing.T) {
	victim, thief := node(1), node(2)
	for _, text := range []string{victim.String(), victim.Short()} {
		b := NewBoard(nil)
		b.Put(with(lease(2, model("m")), func(l *Lease) { l.Name = text }))
		b.Put(lease(1, model("m")))
		for range 4 {
			if c, err := b.Pick(Needs{Miner: text}, t0); err != nil || c.Miner != victim {
				t.Errorf("Pick(%s) = %v, %v; want the victim itself", text, c.Miner.Short(), err)
			}
		}
		b.Remove(victim)
		c, err := b.Pick(Needs{Miner: victim.String()}, t0)
		if err == nil {
			t.Errorf("the victim's whole NodeID found %v (thief %v)", c.Miner.Short(), thief.Short())
		}
	}
}

// TestReasons: every filter has its own words, for one miner and for many.
func TestReasons(t *testing.T) {
	n := Needs{Model: "m", Miner: "box", Call: api.ChatCompletions, ContextTokens: 1, MinReputation: 0.5}
	var said []string
	for s := stepSilent; s < steps; s++ {
		one, many := s.reason(&n, 1), s.reason(&n, 2)
		if one == "" || many == "" || one == stepKept.reason(&n, 1) {
			t.Errorf("step %d has no words of its own: %q, %q", s, one, many)
		}
		if slices.Contains(said, one) {
			t.Errorf("two filters say %q", one)
		}
		said = append(said, one)
	}
	for c := CodeNoMiner; c <= CodeBadRequest; c++ {
		if strings.HasPrefix(c.String(), "Code(") {
			t.Errorf("code %d has no name", c)
		}
	}
	if Code(99).String() != "Code(99)" {
		t.Error("an unknown code is not written as a number")
	}
}

func TestOfferedIsBounded(t *testing.T) {
	b := NewBoard(nil)
	for i := range 50 {
		b.Put(lease(i, model(api.Model("m"+string(rune('A'+i))))))
		b.Put(lease(100 + i))
	}
	_, err := b.Pick(Needs{Model: "none"}, t0)
	var no *NoMatchError
	if !errors.As(err, &no) {
		t.Fatal(err)
	}
	if len(no.Offered) != maxOffered || !slices.IsSorted(no.Offered) || len(no.NoServer) != maxNoServer {
		t.Errorf("%d offered, %d without server", len(no.Offered), len(no.NoServer))
	}
}
