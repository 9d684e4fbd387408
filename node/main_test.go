package node

import (
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// A tapped socket is none whose buffers quic-go can set: it need not say so.
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	goleak.VerifyTestMain(m)
}

// testWait bounds everything that a test waits for.
const testWait = 30 * time.Second

// waitUntil looks again and again until it is so.
func waitUntil(t testing.TB, what string, isSo func() bool) {
	t.Helper()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(testWait)
	defer limit.Stop()
	for !isSo() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// receive takes one value from c, in time.
func receive[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	limit := time.NewTimer(testWait)
	defer limit.Stop()
	select {
	case v := <-c:
		return v
	case <-limit.C:
		t.Fatalf("waited in vain: %s", what)
		panic("not reached")
	}
}
