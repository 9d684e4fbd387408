package ice

import (
	"net"
	"net/netip"
	"sync"
)

// maxFirsts bounds the addresses that a firstWrites remembers.
const maxFirsts = 1024

// firstWrites lets only one goroutine at a time be the first to write to an
// address. The TURN client of pion binds a channel with the first write; two
// first writes at once make it bind two channels to one peer, which the server
// must refuse (RFC 8656 §12.2), and then it closes the whole allocation.
type firstWrites struct {
	net.PacketConn

	mu     sync.Mutex // guards firsts
	firsts map[netip.AddrPort]*firstWrite
}

// firstWrite is where writers to one address wait until one was there.
type firstWrite struct {
	mu   sync.Mutex // held while writing, until done
	done bool       // guarded by mu
}

func newFirstWrites(conn net.PacketConn) *firstWrites {
	return &firstWrites{PacketConn: conn, firsts: make(map[netip.AddrPort]*firstWrite)}
}

// WriteTo sends b.
func (w *firstWrites) WriteTo(b []byte, to net.Addr) (int, error) {
	f := w.of(addrPort(to))
	f.mu.Lock()
	if f.done {
		f.mu.Unlock()
		return w.PacketConn.WriteTo(b, to)
	}
	defer f.mu.Unlock()
	n, err := w.PacketConn.WriteTo(b, to)
	f.done = err == nil
	return n, err
}

func (w *firstWrites) of(addr netip.AddrPort) *firstWrite {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.firsts[addr]
	if f == nil {
		if len(w.firsts) >= maxFirsts {
			clear(w.firsts) // who is written to is first once more, which does no harm
		}
		f = new(firstWrite)
		w.firsts[addr] = f
	}
	return f
}
