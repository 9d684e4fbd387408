package ice

import (
	"net"
	"net/netip"
	"testing"
	"time"

	stunv4 "github.com/pion/stun/v4"
)

// Every address of 127.0.0.0/8 is the machine's own, which makes it one with
// several addresses.
func TestTURNAnswersFromTheAddressThatWasAsked(t *testing.T) {
	server := testTURN(t, TURNConfig{Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:0")}})
	_, user := allow(server, "127.0.0.3")
	c := newRawTURN(t, server, user, testPassword)
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), server.Addrs()[0].Port())
	// A connected socket gets datagrams from there only.
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(asked))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	req := stunv4.MustBuild(stunv4.TransactionID, stunv4.BindingRequest)
	if _, err := conn.Write(req.Raw); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
	if _, err := conn.Read(make([]byte, 1500)); err != nil {
		t.Errorf("no answer from %s: %v", asked, err)
	}
	// The relayed address is one from which the miner can be reached.
	c.server = asked
	if got := c.allocate(); !got.Addr().IsLoopback() {
		t.Errorf("relayed address %s for a miner on loopback", got)
	}
}
