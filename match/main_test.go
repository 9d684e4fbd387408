package match

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mintai/api"
	"mintai/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// t0 is when all tests begin.
var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// node makes the NodeID of test miner i; nobody has its key.
func node(i int) identity.NodeID {
	return identity.NodeID{byte(i >> 16), byte(i >> 8), byte(i), 7}
}

// chats is what a chat model answers.
var chats = []api.Call{api.ChatCompletions, api.Completions}

// model makes a chat model of an AI server.
func model(name api.Model) Model {
	return Model{Name: name, Calls: chats, ContextTokens: 32768, Backend: "ollama"}
}

// lease makes a lease of miner i with a slot, valid for a minute.
func lease(i int, models ...Model) Lease {
	return Lease{
		Miner: node(i), Name: fmt.Sprintf("box-%d", i), Principal: "member",
		Models: models, Slots: 1, Expires: t0.Add(time.Minute),
	}
}

// with changes a copy of a lease or a model.
func with[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

// verdict is what a fake judge says of one miner.
type verdict struct {
	score float64
	first time.Duration
	rate  float64
}

// judge is a Judge over a table; a miner outside it is a newcomer.
type judge map[identity.NodeID]verdict

func (j judge) Judge(miner identity.NodeID, _ api.Model, _ time.Time) (float64, time.Duration, float64) {
	v, have := j[miner]
	if !have {
		return 0.5, 0, 0
	}
	return v.score, v.first, v.rate
}

// session makes SessionID i.
func session(i int) identity.SessionID {
	return identity.SessionID{byte(i >> 8), byte(i), 1}
}
