package ice

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/identity"
)

// BenchmarkGate sends 256 MiB over one QUIC stream from a gated socket to a
// gated socket, and the same between plain ones, in turns. It reports both
// throughputs and the median of what the gate leaves of it.
func BenchmarkGate(b *testing.B) {
	const size = 256 << 20
	var gated, plain, ratio []float64
	for i := 0; b.Loop(); i++ {
		var g, p float64
		if i%2 == 0 { // neither is always the first
			g = measureGate(b, true, size)
		}
		p = measureGate(b, false, size)
		if i%2 == 1 {
			g = measureGate(b, true, size)
		}
		gated, plain, ratio = append(gated, g), append(plain, p), append(ratio, g/p)
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(median(gated), "gated-MB/s")
	b.ReportMetric(median(plain), "plain-MB/s")
	b.ReportMetric(median(ratio), "x-plain")
}

// measureGate returns MB/s.
func measureGate(b *testing.B, gate bool, size int64) float64 {
	b.Helper()
	client, miner := newParty(b, SocketConfig{Gate: gate}), newParty(b, SocketConfig{Gate: gate})
	defer func() { _, _ = client.socket.Close(), miner.socket.Close() }()
	miner.socket.Admit(identity.SessionID{1}, loopback(client.socket).Addr.Addr())
	serverTLS, err := miner.key.ServerTLS(testALPN, nil)
	if err != nil {
		b.Fatal(err)
	}
	clientTLS, err := client.key.ClientTLS(testALPN, miner.key.ID(), nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	ln, err := miner.socket.Transport().Listen(serverTLS, &quic.Config{InitialPacketSize: 1200})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	sent := make(chan error, 1)
	go func() {
		conn, err := ln.Accept(ctx)
		if err != nil {
			sent <- err
			return
		}
		str, err := conn.OpenUniStreamSync(ctx)
		if err == nil {
			_, err = io.Copy(str, io.LimitReader(zeroes{}, size))
			err = errors.Join(err, str.Close())
		}
		sent <- err
	}()
	conn, err := client.socket.Transport().Dial(ctx, net.UDPAddrFromAddrPort(loopback(miner.socket).Addr), clientTLS, &quic.Config{
		InitialPacketSize: 1200, InitialStreamReceiveWindow: 6 << 20, InitialConnectionReceiveWindow: 15 << 20,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.CloseWithError(0, "") }()
	start := time.Now()
	str, err := conn.AcceptUniStream(ctx)
	if err != nil {
		b.Fatal(err)
	}
	n, err := io.Copy(io.Discard, str)
	took := time.Since(start)
	if err = errors.Join(err, <-sent); err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d came", n, size)
	}
	if err != nil {
		b.Fatal(err)
	}
	return float64(size) / 1e6 / took.Seconds()
}

// zeroes is an endless reader that costs nothing.
type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { return len(b), nil }
