package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"mintai/ice"
)

// narrow is a STUN server behind a path that swallows what is larger than limit.
func narrow(t *testing.T, limit int) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if n <= limit {
				answer := append([]byte{0x01, 0x01, 0, 0}, buf[4:stunHeader]...)
				_, _ = conn.WriteToUDPAddrPort([]byte("not STUN at all, but longer than a header"), from)
				_, _ = conn.WriteToUDPAddrPort(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestMeasureMTU(t *testing.T) {
	t.Parallel()
	key, coordinator := newKey(t), newKey(t).ID()
	request := func() []byte {
		raw, _ := ice.SignProbe(key, coordinator, 0, time.Now())
		return raw
	}
	for _, c := range []struct {
		limit int
		want  *netMTU
	}{
		{1 << 16, &netMTU{Path: 1500, Payload: 1472, AtLeast: true}},
		{1424, &netMTU{Path: 1452, Payload: 1424}},
		{1300, &netMTU{Path: 1320, Payload: 1292}},
		{1200, &netMTU{Path: 1228, Payload: 1200}},
		{1199, &netMTU{Path: 1200, Payload: 1172}},
		{600, &netMTU{Path: 576, Payload: 548}},
		{100, nil},
	} {
		got, err := measureMTU(t.Context(), narrow(t, c.limit), 50*time.Millisecond, request)
		switch {
		case c.want == nil:
			if err == nil || !strings.Contains(err.Error(), "no packet of any size") {
				t.Errorf("limit %d: %+v, %v", c.limit, got, err)
			}
		case err != nil || *got != *c.want:
			t.Errorf("limit %d: %+v, %v, want %+v", c.limit, got, err, c.want)
		}
	}
}

func TestMeasureMTUEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := measureMTU(ctx, narrow(t, 0), time.Hour, func() []byte { return make([]byte, stunHeader) })
		ended <- err
	}()
	cancel()
	if err := receive(t, "the measurement ends", ended); err == nil {
		t.Error("no error")
	}
}

func TestMTUSizes(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"20.0.0.1", "::ffff:20.0.0.1", "2a00:20::1"} {
		at := netip.MustParseAddr(addr)
		sizes := mtuSizes(at)
		for i, size := range sizes {
			if size%4 != 0 || i > 0 && size <= sizes[i-1] {
				t.Errorf("%s: %v", addr, sizes)
			}
		}
		if !slices.Contains(sizes, quicPayload) || sizes[0]+udpHeaders(at) != 576 || sizes[len(sizes)-1]+udpHeaders(at) != 1500 {
			t.Errorf("%s: %v", addr, sizes)
		}
	}
}

// A padded probe is as good as another one.
func TestPadSTUN(t *testing.T) {
	t.Parallel()
	key, coordinator := newKey(t), newKey(t).ID()
	now := time.Now()
	raw, id := ice.SignProbe(key, coordinator, 0, now)
	for _, size := range mtuSizes(netip.MustParseAddr("20.0.0.1")) {
		padded := padSTUN(raw, size)
		got, err := ice.VerifyProbe(padded, coordinator, now)
		if len(padded) != size || err != nil || !got.Signed || !got.Fresh || got.Node != key.ID() || got.Transaction != id {
			t.Errorf("%d bytes: %d, %+v, %v", size, len(padded), got, err)
		}
	}
	for _, size := range []int{0, len(raw), len(raw) + 3, len(raw) + 5} {
		if got := padSTUN(raw, size); !bytes.Equal(got, raw) {
			t.Errorf("%d bytes: changed", size)
		}
	}
}

func FuzzSTUNAnswer(f *testing.F) {
	f.Add([]byte{})
	f.Add(append([]byte{1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, "transaction!"...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		id, ok := stunAnswer(raw)
		if ok != (len(raw) >= stunHeader && binary.BigEndian.Uint16(raw) == 0x0101) {
			t.Fatal(ok)
		}
		if ok && !bytes.Equal(id[:], raw[8:stunHeader]) {
			t.Fatal(id)
		}
	})
}
