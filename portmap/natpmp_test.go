package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func fakeNATPMP(t *testing.T, reply func(b []byte) []byte) natpmpServer {
	t.Helper()
	at := fakeUDP(t, "127.0.0.1:0", func(_ netip.AddrPort, b []byte) [][]byte { return [][]byte{reply(b)} })
	return natpmpServer{link: loopback, port: at.Port()}
}

// RFC 6886 §3.2 and §3.3.
func natpmpAddressReply(result uint16, a string) []byte {
	b := []byte{0, 128}
	b = binary.BigEndian.AppendUint16(b, result)
	b = binary.BigEndian.AppendUint32(b, 1000)
	return append(b, netip.MustParseAddr(a).AsSlice()...)
}

func natpmpMapReply(q []byte, result, external uint16, lifetime uint32) []byte {
	b := []byte{0, 128 | q[1]}
	b = binary.BigEndian.AppendUint16(b, result)
	b = binary.BigEndian.AppendUint32(b, 1000)
	b = append(b, q[4], q[5])
	b = binary.BigEndian.AppendUint16(b, external)
	return binary.BigEndian.AppendUint32(b, lifetime)
}

func TestNATPMP(t *testing.T) {
	var last atomic.Value
	server := fakeNATPMP(t, func(b []byte) []byte {
		if len(b) == 2 {
			return natpmpAddressReply(0, "30.0.0.1")
		}
		last.Store([]uint32{uint32(b[1]), uint32(binary.BigEndian.Uint16(b[4:])), uint32(binary.BigEndian.Uint16(b[6:])), binary.BigEndian.Uint32(b[8:])})
		return natpmpMapReply(b, 0, 40007, 3600)
	})
	a, err := server.find(t.Context(), loopback)
	if err != nil || a.external.String() != "30.0.0.1" {
		t.Fatalf("%+v, %v", a, err)
	}
	tcp := udpAsk(443, 40000)
	tcp.port.TCP = true
	m, err := a.router.add(t.Context(), tcp)
	if err != nil || m.External.String() != "30.0.0.1:40007" || !m.TCP || m.Internal != 443 || m.Protocol != NATPMP || time.Until(m.Expires) > time.Hour {
		t.Errorf("%+v, %v", m, err)
	}
	if got := last.Load().([]uint32); got[0] != 2 || got[1] != 443 || got[2] != 40000 || got[3] != 7200 {
		t.Errorf("asked for %v", got)
	}
	if err := a.router.remove(t.Context(), tcp); err != nil {
		t.Error(err)
	}
	if got := last.Load().([]uint32); got[1] != 443 || got[2] != 0 || got[3] != 0 {
		t.Errorf("deletion asked for %v", got)
	}
}

func TestNATPMPSaysNo(t *testing.T) {
	good := natpmpAddressReply(0, "30.0.0.1")
	for name, c := range map[string]struct {
		address []byte
		mapped  func(q []byte) []byte
		want    error
	}{
		"no uplink":   {natpmpAddressReply(3, "0.0.0.0"), nil, ErrRefused},
		"no address":  {natpmpAddressReply(0, "0.0.0.0"), nil, ErrNoExternal},
		"PCP":         {[]byte{2, 128, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, nil, ErrRefused},
		"refused":     {good, func(q []byte) []byte { return natpmpMapReply(q, 2, 0, 0) }, ErrRefused},
		"no lifetime": {good, func(q []byte) []byte { return natpmpMapReply(q, 0, 7, 0) }, ErrMalformed},
		"no port":     {good, func(q []byte) []byte { return natpmpMapReply(q, 0, 0, 60) }, ErrMalformed},
		"other port":  {good, func(q []byte) []byte { return natpmpMapReply([]byte{0, q[1], 0, 0, 9, 9}, 0, 7, 60) }, ErrSilent},
		"short":       {good, func(q []byte) []byte { return natpmpMapReply(q, 0, 7, 60)[:9] }, ErrSilent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := fakeNATPMP(t, func(b []byte) []byte {
				if len(b) == 2 {
					return c.address
				}
				return c.mapped(b)
			})
			if m, err := server.add(t.Context(), udpAsk(1, 1)); !errors.Is(err, c.want) || m != (Mapping{}) {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

// The first answer is lost.
func TestNATPMPAsksAgain(t *testing.T) {
	var n atomic.Int64
	server := fakeNATPMP(t, func([]byte) []byte {
		if n.Add(1) == 1 {
			return nil
		}
		return natpmpAddressReply(0, "30.0.0.1")
	})
	if external, err := server.external(t.Context()); err != nil || external.String() != "30.0.0.1" || n.Load() != 2 {
		t.Errorf("%v, %v after %d packets", external, err, n.Load())
	}
}

func TestNATPMPNobody(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	closed := natpmpServer{link: loopback, port: conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	_ = conn.Close()
	began := time.Now()
	if _, err := closed.find(t.Context(), loopback); !errors.Is(err, ErrSilent) || time.Since(began) > 3*time.Second {
		t.Errorf("nobody: %v after %v", err, time.Since(began))
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan time.Time, 8)
	server := fakeNATPMP(t, func([]byte) []byte { asked <- time.Now(); cancel(); return nil })
	_, err = server.mapPort(ctx, udpAsk(1, 1), 1, 60, []time.Duration{time.Minute})
	if took := time.Since(<-asked); !errors.Is(err, context.Canceled) || took > testWait {
		t.Errorf("given up: %v after %v", err, took)
	}
	if _, err := server.add(ctx, udpAsk(1, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("not begun: %v", err)
	}
	if _, err := server.external(ctx); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("given up before: %v", err)
	}
}

// What is taken back is taken back at once, heard or not.
func TestRemovingWaitsForNobody(t *testing.T) {
	var n atomic.Int64
	silence := func(b []byte) []byte { n.Add(1); return nil }
	pmp := fakeNATPMP(t, silence)
	for _, r := range []router{pmp, pcpServer(pmp)} {
		n.Store(0)
		began := time.Now()
		if err := r.remove(t.Context(), udpAsk(1, 1)); !errors.Is(err, ErrSilent) {
			t.Errorf("%s: %v", r.protocol(), err)
		}
		if took := time.Since(began); took > 2*removeFor || n.Load() != 2 {
			t.Errorf("%s: %d packets, %v", r.protocol(), n.Load(), took)
		}
	}
}

// Run ends while a gateway that never answers is asked by all protocols. It waits
// neither for an answer nor for the end of the search.
func TestRunEndsAtOnceWithASilentGateway(t *testing.T) {
	long := []time.Duration{time.Minute}
	defer func(natpmp, pcp []time.Duration) { natpmpTimes, pcpTimes = natpmp, pcp }(natpmpTimes, pcpTimes)
	natpmpTimes, pcpTimes = long, long
	asked := make(chan struct{}, 64)
	server := fakeNATPMP(t, func([]byte) []byte { asked <- struct{}{}; return nil })
	m := New(Config{Ports: []Port{{Number: 5000}}, net: network{
		route: func(netip.Addr) (link, error) { return loopback, nil },
		finders: map[Protocol]finder{
			PCP: pcpServer(server).find, NATPMP: server.find,
			UPnP: ssdpSearch{to: []netip.AddrPort{netip.AddrPortFrom(loopback.gateway, server.port)}, times: long}.find,
		},
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	for range 2 + len(ssdpTargets) { // all three
		select {
		case <-asked:
		case <-time.After(testWait):
			t.Fatal("not asked")
		}
	}
	began := time.Now()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || time.Since(began) > lookFor/2 {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func FuzzParseNATPMP(f *testing.F) {
	f.Add(natpmpAddressReply(0, "30.0.0.1"))
	f.Add(natpmpAddressReply(3, "0.0.0.0"))
	f.Add(natpmpMapReply([]byte{0, 1, 0, 0, 9, 9}, 0, 7, 60))
	f.Add([]byte{2, 128, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseNATPMP(b)
		if err != nil && r != (natpmpResponse{}) {
			t.Fatalf("half a value with %v", err)
		}
		if err == nil && r.result == 0 && (r.opcode == natpmpAddress) != r.address.Is4() {
			t.Fatalf("%+v", r)
		}
	})
}
