package ice

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun"
)

const (
	// unshownRoom is what the relay sends to a client over UDP before the client
	// has shown that it receives: more than a handshake's first flights.
	unshownRoom = 16 << 10
	// askEvery and maxAsked bound the questions to one client.
	askEvery = 50 * time.Millisecond
	maxAsked = 20
)

// turnClients are the clients of allocations over UDP. A session's credentials
// and nonce are known before the first packet, so that who can forge a source
// could allocate in another's name, blindly, and have a relay's whole rate sent
// there by the session's other end. So the server asks each client something
// that only who receives can answer, in the flight of the allocation: a Binding
// Request (RFC 8489), whose transaction ID nobody else knows.
type turnClients struct {
	mu sync.Mutex // guards what follows
	of map[netip.AddrPort]*turnClient
}

type turnClient struct {
	relay    *relayConn
	question transactionID
	shown    bool
	sent     int // bytes, until shown
	asked    int
	last     time.Time
}

// begin notes a new allocation and returns the question for its client.
func (c *turnClients) begin(client netip.AddrPort, relay *relayConn, now time.Time) []byte {
	e := &turnClient{relay: relay, question: stun.NewTransactionID(), asked: 1, last: now}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = make(map[netip.AddrPort]*turnClient)
	}
	c.of[client] = e
	return bindingHeader(stun.BindingRequest, e.question)
}

// end forgets the client of an allocation.
func (c *turnClients) end(relay *relayConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for addr, e := range c.of {
		if e.relay == relay {
			delete(c.of, addr)
		}
	}
}

// shows takes an answer.
func (c *turnClients) shows(from netip.AddrPort, id transactionID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.of[from]; e != nil && e.question == id {
		e.shown = true
	}
}

// mayReceive reports whether n bytes of a peer may go to a client, and returns
// the question if it is time to ask it again.
func (c *turnClients) mayReceive(client netip.AddrPort, n int, now time.Time) (ok bool, question []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.of[client]
	if e == nil || e.shown {
		return true, nil
	}
	if now.Sub(e.last) >= askEvery && e.asked < maxAsked {
		e.asked++
		e.last = now
		question = bindingHeader(stun.BindingRequest, e.question)
	}
	if e.sent+n > unshownRoom {
		return false, question
	}
	e.sent += n
	return true, question
}

// bindingHeader is a Binding message without attributes.
func bindingHeader(t stun.MessageType, id transactionID) []byte {
	b := make([]byte, stunHeader)
	binary.BigEndian.PutUint16(b, t.Value())
	binary.BigEndian.PutUint32(b[4:], stunCookie)
	copy(b[8:], id[:])
	return b
}

// question asks the client of a new allocation.
func (t *TURNServer) question(src, dst net.Addr, username string, relayed netip.AddrPort) {
	l := t.listener(dst)
	if l == nil {
		return // over a stream, whose client receives
	}
	var of *relayConn
	t.mu.Lock()
	if ts := t.sessions[username]; ts != nil {
		for r := range ts.relays {
			if r.announced == relayed {
				of = r
			}
		}
	}
	t.mu.Unlock()
	if of != nil {
		_, _ = l.PacketConn.WriteTo(t.clients.begin(addrPort(src), of, time.Now()), src)
	}
}

// listener returns the one with an address, nil for that of streams.
func (t *TURNServer) listener(addr net.Addr) *turnListener {
	for _, l := range t.listeners {
		if l.LocalAddr() == addr || l.LocalAddr().String() == addr.String() {
			return l
		}
	}
	return nil
}
