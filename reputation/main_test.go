package reputation

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mintai/identity"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		childMain(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// t0 is when all tests begin. It is near the real time, because Open forgets
// what is old.
var t0 = time.Now().Truncate(time.Millisecond)

// node makes a NodeID; nobody has its key.
func node(i int) identity.NodeID {
	return identity.NodeID{byte(i >> 16), byte(i >> 8), byte(i), 9}
}

// receipt makes request i's account by client 1000 about miner 1, after a
// second of answering at 50 tokens a second.
func receipt(i int, o Outcome) Receipt {
	r := Receipt{
		Session: identity.SessionID{1}, Request: RequestID{byte(i >> 16), byte(i >> 8), byte(i), 1},
		Miner: node(1), Client: node(1000), ClientPrincipal: "alice", Model: "qwen3:8b",
		From: FromClient, Outcome: o, PathKind: "srflx", At: t0,
	}
	if o == OK {
		r.FirstToken, r.Total, r.Tokens = 500*time.Millisecond, 1500*time.Millisecond, 50
	}
	return r
}

// with changes a copy.
func with[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

// open makes a ledger in a fresh folder that the test closes.
func open(t testing.TB, opts Options) *Ledger {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "state", "reputation.db"), opts)
}

func openAt(t testing.TB, path string, opts Options) *Ledger {
	t.Helper()
	l, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// record is Record where no error is expected.
func (l *Ledger) record(t testing.TB, rs ...Receipt) {
	t.Helper()
	for _, r := range rs {
		if err := l.Record(r); err != nil {
			t.Fatal(err)
		}
	}
}
