package quicstream

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"

	"mintai/identity"
)

// A client's handshake may overtake its grant.
func TestTunnelAwaitsItsGrant(t *testing.T) {
	var granted atomic.Bool
	arrived, grant := make(chan struct{}), make(chan struct{})
	r := newRig(t, ServerConfig{
		Authorize: func(identity.NodeID) error {
			if !granted.Load() {
				return errors.New("no grant")
			}
			return nil
		},
		Await: func(ctx context.Context, _ identity.NodeID) {
			close(arrived)
			select {
			case <-grant:
			case <-ctx.Done():
			}
		},
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
	})
	tunnel := r.dial()
	wait(t, "the connection", arrived)
	granted.Store(true)
	close(grant)
	if res := r.do(tunnel, post(t, "/", "{}")); res.StatusCode != http.StatusOK {
		t.Errorf("status %d", res.StatusCode)
	}
}

// One that never gets it does not hold up the server's end.
func TestTunnelThatAwaitsInVain(t *testing.T) {
	arrived := make(chan struct{})
	r := newRig(t, ServerConfig{
		Authorize: func(identity.NodeID) error { return errors.New("no grant") },
		Await: func(ctx context.Context, _ identity.NodeID) {
			close(arrived)
			<-ctx.Done()
		},
		Handler: never,
	})
	tunnel := r.dial()
	wait(t, "the connection", arrived)
	if err := tunnel.Close(Done); err != nil { // the connection's end ends the wait
		t.Error(err)
	}
}
