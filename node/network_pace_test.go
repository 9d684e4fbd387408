package node

import (
	"context"
	"runtime"
	"testing"

	"mintai/ice"
)

// A coordinator that keeps saying that this node has moved, or hangs up at once,
// does not make it send to the addresses that it names without end.
func TestMeasurementsArePaced(t *testing.T) {
	t.Parallel()
	socket, err := ice.Listen(ice.SocketConfig{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	measured := 0
	n := newNetwork(networkConfig{key: newKey(t), socket: socket, overTLS: func() bool { measured++; return true }})
	n.servers = addrs("30.0.0.1:3478")
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.Run(ctx)
	}()
	for range 50 {
		wake(n.measureNow)
		for len(n.measureNow) > 0 && ctx.Err() == nil {
			runtime.Gosched()
		}
	}
	cancel()
	<-done
	if measured != measureBurst {
		t.Errorf("measured %d times, want %d", measured, measureBurst)
	}
}
