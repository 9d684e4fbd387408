package ice

import (
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"mintai/identity"
)

// A dropped datagram leaves its place in the batch, and the others theirs.
func TestGatedBatch(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	peer, err := net.DialUDP("udp4", nil, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	g := newGate()
	c := newGatedConn(conn, g)
	sent := [][]byte{quicShort, quicInitial, rfc5769Request, quicInitial, quicShort}
	receive := func() (lengths []int) {
		t.Helper()
		for _, b := range sent {
			if _, err := peer.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
			t.Fatal(err)
		}
		for len(lengths) < len(sent) {
			ms := make([]ipv4.Message, 8)
			for i := range ms {
				ms[i].Buffers = [][]byte{make([]byte, 1500)}
			}
			n, err := c.ReadBatch(ms, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range ms[:n] {
				if m.N > 0 && string(m.Buffers[0][:m.N]) != string(sent[len(lengths)]) {
					t.Errorf("datagram %d was changed", len(lengths))
				}
				lengths = append(lengths, m.N)
			}
		}
		return lengths
	}
	for i, n := range receive() {
		if want := len(sent[i]); (i == 1 || i == 3) && n != 0 || i != 1 && i != 3 && n != want {
			t.Errorf("datagram %d has %d bytes", i, n)
		}
	}
	g.admit(identity.SessionID{1}, addrPort(peer.LocalAddr()).Addr())
	for i, n := range receive() {
		if n != len(sent[i]) {
			t.Errorf("admitted: datagram %d has %d bytes", i, n)
		}
	}
}

// The ways in which quic-go reads and writes where there are no batches.
func TestGatedPlainPaths(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	g := newGate()
	c := newGatedConn(conn, g)
	if err := conn.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	reads := map[string]func() (int, error){
		"ReadFrom":   func() (int, error) { n, _, err := c.ReadFrom(buf); return n, err },
		"ReadMsgUDP": func() (int, error) { n, _, _, _, err := c.ReadMsgUDP(buf, nil); return n, err },
	}
	check := func(b []byte, want int) {
		t.Helper()
		for name, read := range reads {
			if _, err := peer.WriteTo(b, conn.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			if n, err := read(); err != nil || n != want {
				t.Errorf("%s: %d bytes, %v", name, n, err)
			}
		}
	}
	check(quicInitial, 0)
	check(quicShort, len(quicShort))
	// A short packet that leaves opens nothing, a handshake packet does.
	if _, err := c.WriteTo(quicShort, peer.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	check(quicInitial, 0)
	if _, err := c.WriteTo(quicInitial, peer.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	check(quicInitial, len(quicInitial))
	clear(g.dials)
	check(quicInitial, 0)
	if _, _, err := c.WriteMsgUDP(quicInitial, nil, peer.LocalAddr().(*net.UDPAddr)); err != nil && runtime.GOOS != "windows" {
		t.Fatal(err)
	}
	check(quicInitial, len(quicInitial))
}
