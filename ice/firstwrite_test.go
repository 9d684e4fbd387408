package ice

import (
	"net"
	"net/netip"
	"sync"
	"testing"
)

// Writers that are the first to an address at the same moment do not cost the
// leg its allocation.
func TestFirstWritesAtOnce(t *testing.T) {
	r := openRelayed(t, TURNConfig{}, "127.0.0.1")
	serveEcho(t, r.miner.socket.Transport(), r.miner.key, r.client.key.ID())
	got := r.connect(t)
	for port := uint16(20000); port < 20400; port++ {
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 16 {
			wg.Go(func() {
				<-start
				if _, err := r.relay.allocated.WriteTo([]byte{0}, to); err != nil {
					t.Errorf("port %d: %v", port, err)
				}
			})
		}
		close(start)
		wg.Wait()
	}
	// What was asked of the server before has been answered when this has come through.
	echo(t, r.relay.Transport(), got.Addr, r.client.key, r.miner.key.ID(), 1<<16)
	if n := r.server.Stats().Allocations; n != 1 {
		t.Errorf("%d allocations, want 1", n)
	}
}
