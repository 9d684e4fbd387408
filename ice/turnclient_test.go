package ice

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"
	stunv4 "github.com/pion/stun/v4"
)

// blindly sends n bytes through a fresh allocation to its client, which does
// nothing that takes receiving, and returns how many bytes came.
func blindly(t *testing.T, n int, shows bool) (came int) {
	server := testTURN(t, TURNConfig{BytesPerSecond: -1, NodeBytesPerSecond: -1})
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	c.nonce = server.Nonce() // as of a grant: nothing has to be received for it
	relayed := c.allocate()
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	at := addrPort(peer.LocalAddr())
	if _, code := c.request(stunv4.MethodChannelBind, channel(0x4000), xorPeer(at)); code != 0 {
		t.Fatalf("binding a channel: %d", code)
	}
	buf := make([]byte, 2048)
	data := make([]byte, 1000)
	for sent := 0; sent < n; sent += len(data) {
		if _, err := peer.WriteToUDPAddrPort(data, relayed); err != nil {
			t.Fatal(err)
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		for {
			k, err := c.conn.Read(buf)
			if err != nil {
				break
			}
			if kind, id := classify(buf[:k]); kind == bindingRequest {
				if shows {
					c.send(bindingHeader(stun.BindingSuccess, id))
				}
				continue
			}
			came += k
			break
		}
	}
	return came
}

// Somebody who forges a client's source, and so receives nothing, gets next to
// nothing sent there.
func TestRelayWaitsForItsClient(t *testing.T) {
	const n = 100_000
	if came := blindly(t, n, false); came > unshownRoom+1000 {
		t.Errorf("%d bytes of %d went to who shows nothing, want %d", came, n, unshownRoom)
	}
}

func TestRelayServesWhoReceives(t *testing.T) {
	const n = 100_000 // the first question is lost
	if came := blindly(t, n, true); came < n-2*unshownRoom {
		t.Errorf("%d bytes of %d came", came, n)
	}
}

func TestTurnClients(t *testing.T) {
	var c turnClients
	now := time.Unix(100, 0)
	client, other := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1")
	relay := &relayConn{}
	_, id := classify(c.begin(client, relay, now))
	if ok, _ := c.mayReceive(other, 1<<20, now); !ok {
		t.Error("an address without allocation is bounded")
	}
	questions := 0
	for i := range 1000 {
		ok, q := c.mayReceive(client, 1000, now.Add(time.Duration(i)*time.Millisecond*10))
		if want := i < unshownRoom/1000; ok != want {
			t.Fatalf("datagram %d: %v", i, ok)
		}
		if q != nil {
			questions++
		}
	}
	if questions != maxAsked-1 {
		t.Errorf("asked %d times again", questions)
	}
	c.shows(other, id)
	c.shows(client, transactionID{1})
	if ok, _ := c.mayReceive(client, 1000, now); ok {
		t.Error("a wrong answer counts")
	}
	c.shows(client, id)
	if ok, _ := c.mayReceive(client, 1<<20, now); !ok {
		t.Error("the right answer does not count")
	}
	c.end(&relayConn{})
	c.end(relay)
	if len(c.of) != 0 {
		t.Error("the client is not forgotten")
	}
}
