package signal

import (
	"sync"
	"testing"
	"time"

	"mintai/signal/signalpb"
)

// Many requests that wait for the connection all leave with it.
func TestManyRequestsWaitForTheConnection(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	n, _, run := makeNode(t, c, signalpb.Role_ROLE_CLIENT, nil)
	var wg sync.WaitGroup
	errs := make(chan error, 300)
	for range cap(errs) {
		wg.Go(func() {
			m, err := n.Match(t.Context(), &signalpb.MatchRequest{Needs: &signalpb.Needs{}})
			if err == nil {
				m.Close()
			}
			errs <- err
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for waiting := 0; waiting < cap(errs); <-tick.C {
		n.mu.Lock()
		waiting = len(n.requests)
		n.mu.Unlock()
	}
	run()
	wg.Wait()
	failed := 0
	for range cap(errs) {
		if err := <-errs; err != nil {
			failed++
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d failed", failed, cap(errs))
	}
}
