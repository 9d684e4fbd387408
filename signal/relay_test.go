package signal

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// relay is a UDP hop in front of a coordinator. It can hold the coordinator's
// packets, and then the node's, so that a test sees what one flight achieves.
type relay struct {
	front *net.UDPConn // towards the node
	back  *net.UDPConn // towards the coordinator
	to    netip.AddrPort

	mu          sync.Mutex // guards all below
	node        netip.AddrPort
	holdAnswers bool     // towards the node
	holdNode    bool     // towards the coordinator
	answers     [][]byte // held
	held        [][]byte // of the node
	flight      [][]byte // what the node sent before any answer reached it
	black       bool     // everything is lost, in both directions
	lost        int      // packets of the node
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	r := &relay{to: netip.MustParseAddrPort(to)}
	for _, c := range []**net.UDPConn{&r.front, &r.back} {
		var err error
		if *c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { pump(r.front, r.fromNode) })
	wg.Go(func() { pump(r.back, r.fromCoordinator) })
	t.Cleanup(func() {
		_ = r.front.Close()
		_ = r.back.Close()
		wg.Wait()
	})
	return r
}

func pump(c *net.UDPConn, f func([]byte, netip.AddrPort)) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		f(bytes.Clone(buf[:n]), from)
	}
}

func (r *relay) fromNode(b []byte, from netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.black {
		r.lost++
		return
	}
	r.node = from
	if r.holdNode {
		r.held = append(r.held, b)
		return
	}
	if r.holdAnswers {
		r.flight = append(r.flight, b)
	}
	_, _ = r.back.WriteToUDPAddrPort(b, r.to)
}

func (r *relay) fromCoordinator(b []byte, _ netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.black {
		return
	}
	if r.holdAnswers {
		r.answers = append(r.answers, b)
		return
	}
	_, _ = r.front.WriteToUDPAddrPort(b, r.node)
}

// lose makes it a black hole, or ends that.
func (r *relay) lose(black bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.black = black
}

// dropped is how many packets of the node were lost so far.
func (r *relay) dropped() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// oneFlight holds the coordinator's answers from now on.
func (r *relay) oneFlight() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdAnswers = true
}

// answer lets the coordinator's packets through, and holds the node's.
func (r *relay) answer() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdAnswers, r.holdNode = false, true
	for _, b := range r.answers {
		_, _ = r.front.WriteToUDPAddrPort(b, r.node)
	}
	r.answers = nil
}

// release lets everything through again.
func (r *relay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdNode = false
	for _, b := range r.held {
		_, _ = r.back.WriteToUDPAddrPort(b, r.to)
	}
	r.held = nil
}

// replay sends the node's first flight again, from another address.
func (r *relay) replay(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.to))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range r.flight {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
}

func (r *relay) addr() string { return r.front.LocalAddr().String() }
