package ice

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// RFC 9000 §8.1: "an endpoint MUST limit the amount of data it sends to the
// unvalidated address to three times the amount of data received from that
// address". Neither a coordinator nor a miner sends more, however often QUIC
// repeats itself.
func TestUnvalidatedAddressesGetLittle(t *testing.T) {
	t.Run("coordinator", func(t *testing.T) {
		t.Parallel()
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		tr := &quic.Transport{Conn: Frugal(conn)}
		t.Cleanup(func() { _ = tr.Close(); _ = conn.Close() })
		forge(t, tr, addrPort(conn.LocalAddr()))
	})
	t.Run("miner", func(t *testing.T) {
		t.Parallel()
		miner := newParty(t, SocketConfig{Loopback: true, Gate: true})
		miner.socket.Admit([16]byte{7}, netip.MustParseAddr("127.0.0.1"))
		forge(t, miner.socket.Transport(), loopback(miner.socket).Addr)
	})
}

// forge begins a handshake in another's name, which never goes on, and counts
// what the victim gets.
func forge(t *testing.T, tr *quic.Transport, at netip.AddrPort) {
	t.Helper()
	server, client := newTestKey(t), newParty(t, SocketConfig{Loopback: true})
	serveEcho(t, tr, server, client.key.ID())
	victim, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = victim.Close() }()
	liar, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = liar.Close() }()
	tlsConf, err := client.key.ClientTLS(testALPN, server.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dialed := make(chan struct{})
	go func() {
		defer close(dialed)
		_, _ = client.socket.Transport().Dial(ctx, liar.LocalAddr(), tlsConf, &quic.Config{InitialPacketSize: 1200})
	}()
	defer func() { cancel(); <-dialed }()
	sent, got := 0, 0
	buf := make([]byte, 2048)
	_ = liar.SetReadDeadline(time.Now().Add(testTimeout))
	for range 2 { // the first flight: a ClientHello with a post-quantum key
		n, _, err := liar.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := victim.WriteToUDPAddrPort(buf[:n], at); err != nil {
			t.Fatal(err)
		}
		sent += n
	}
	_ = victim.SetReadDeadline(time.Now().Add(2 * time.Second)) // the server repeats what is not acknowledged
	for {
		n, _, err := victim.ReadFrom(buf)
		if err != nil {
			break
		}
		got += n
	}
	if got < sent || got > 3*sent {
		t.Errorf("%d bytes for %d", got, sent)
	}
}

func TestAllowance(t *testing.T) {
	t.Parallel()
	a, now := newAllowance(), time.Now()
	stranger, ours := netip.MustParseAddrPort("30.0.0.1:4000"), netip.MustParseAddrPort("20.0.0.1:4433")
	a.received(stranger, 1200, now)
	for i, n := range []int{1200, 1200, 1200} {
		if !a.send(stranger, n, now) {
			t.Errorf("packet %d is held back", i)
		}
	}
	if a.send(stranger, 1, now.Add(allowanceFor)) {
		t.Error("more than three times as much leaves")
	}
	a.received(stranger, 10, now)
	if !a.send(stranger, 30, now) || a.send(stranger, 1, now) {
		t.Error("what came later does not count as it should")
	}
	for range 100 { // whoever is dialled gets what QUIC thinks right
		if !a.send(ours, 1200, now) {
			t.Fatal("a handshake of ours is held back")
		}
	}
	a.received(ours, 10, now)
	if !a.send(ours, 1200, now) {
		t.Error("a handshake of ours is held back once it was answered")
	}
	late := now.Add(2 * allowanceFor) // and may come back as a stranger
	a.received(ours, 1200, late)
	if !a.send(ours, 3600, late) || a.send(ours, 1, late) {
		t.Error("an address that was dialled once is not limited for ever after")
	}
}

func TestAllowanceIsBounded(t *testing.T) {
	t.Parallel()
	a, now := newAllowance(), time.Now()
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, byte(i >> 16), byte(i >> 8), byte(i)}), 4000)
	}
	for i := range maxAllowances + 100 {
		a.received(addr(i), 1200, now)
	}
	if n := len(a.addrs); n != maxAllowances {
		t.Errorf("%d addresses are known", n)
	}
	late := now.Add(2 * allowanceFor)
	a.received(addr(maxAllowances+100), 1200, late)
	if n := len(a.addrs); n != 1 {
		t.Errorf("%d addresses are known after a while", n)
	}
}
