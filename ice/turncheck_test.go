package ice

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A TURN server is told from one that answers STUN only, and from silence.
func TestCheckTURN(t *testing.T) {
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	probes, err := StartProbes(ProbeServerConfig{Addrs: loopback, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = probes.Close() })
	shared, err := StartProbes(ProbeServerConfig{Addrs: loopback, Shared: true, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shared.Close() })
	silent, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback[0], 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	for _, c := range []struct {
		name string
		at   netip.AddrPort
		turn bool
	}{
		{"relay", testTURN(t, TURNConfig{}).Addrs()[0], true},
		{"a long realm", testTURN(t, TURNConfig{Realm: strings.Repeat("r", maxRealm)}).Addrs()[0], true},
		{"on the probes' port", testTURN(t, TURNConfig{Conns: shared.Conns()}).Addrs()[0], true},
		{"probes only", probes.Addrs()[0], false},
		{"nobody answers", silent.LocalAddr().(*net.UDPAddr).AddrPort(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.at))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			rto := testTimeout
			if !c.turn {
				rto = 20 * time.Millisecond
			}
			if err := CheckTURN(t.Context(), conn, rto); (err == nil) != c.turn || err != nil && !errors.Is(err, ErrNoTURN) {
				t.Error(err)
			}
		})
	}
}

func TestCheckTURNOverStreams(t *testing.T) {
	streams, dial := tlsListener(t)
	testTURN(t, TURNConfig{Streams: streams})
	conn, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckTURN(t.Context(), conn, 0); err != nil {
		t.Error(err)
	}
	_ = conn.Close()
	for name, says := range map[string]string{
		"hangs up": "", "a web server": "HTTP/1.1 400 Bad Request\r\n\r\n", "cut": "\x01\x13\x00\x04\x21\x12\xa4\x42123456789012",
		"long": "\x01\x13\xff\xfc\x21\x12\xa4\x42123456789012", "another's": "\x01\x13\x00\x00\x21\x12\xa4\x42123456789012",
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = there.Read(make([]byte, 512))
				_, _ = there.Write([]byte(says))
				_ = there.Close()
			}()
			if err := CheckTURN(t.Context(), here, 0); !errors.Is(err, ErrNoTURN) {
				t.Error(err)
			}
			_ = here.Close()
			<-done
		})
	}
}

func TestCheckTURNEndsWithItsContext(t *testing.T) {
	here, there := net.Pipe()
	defer func() { _, _ = here.Close(), there.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = there.Read(make([]byte, 512))
		cancel()
	}()
	if err := CheckTURN(ctx, here, 0); !errors.Is(err, ErrNoTURN) {
		t.Error(err)
	}
}
