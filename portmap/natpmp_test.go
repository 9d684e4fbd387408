package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// natpmpLink is a link whose gateway is at an address of the loopback network
// where port 5351, which the library knows only, is free.
func natpmpLink(t *testing.T) link {
	t.Helper()
	l := loopback
	for i := range 200 {
		if runtime.GOOS == "linux" { // the whole of 127/8 is there
			l.gateway = netip.AddrFrom4([4]byte{127, 53, 51, byte(i + 1)})
		}
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.gateway, pcpPort)))
		if err == nil {
			_ = conn.Close()
			return l
		}
	}
	t.Fatal("port 5351 is taken everywhere")
	return l
}

func fakeNATPMP(t *testing.T, reply func(b []byte) []byte) link {
	l := natpmpLink(t)
	fakeUDP(t, netip.AddrPortFrom(l.gateway, pcpPort).String(), func(_ netip.AddrPort, b []byte) [][]byte { return [][]byte{reply(b)} })
	return l
}

// RFC 6886 §3.2 and §3.3.
func natpmpAddress(result uint16, a string) []byte {
	b := []byte{0, 128}
	b = binary.BigEndian.AppendUint16(b, result)
	b = binary.BigEndian.AppendUint32(b, 1000)
	return append(b, netip.MustParseAddr(a).AsSlice()...)
}

func natpmpMapped(q []byte, result, external uint16, lifetime uint32) []byte {
	b := []byte{0, 128 | q[1]}
	b = binary.BigEndian.AppendUint16(b, result)
	b = binary.BigEndian.AppendUint32(b, 1000)
	b = append(b, q[4], q[5])
	b = binary.BigEndian.AppendUint16(b, external)
	return binary.BigEndian.AppendUint32(b, lifetime)
}

func TestNATPMP(t *testing.T) {
	var last atomic.Value
	l := fakeNATPMP(t, func(b []byte) []byte {
		if len(b) == 2 {
			return natpmpAddress(0, "30.0.0.1")
		}
		last.Store([]uint32{uint32(b[1]), uint32(binary.BigEndian.Uint16(b[4:])), uint32(binary.BigEndian.Uint16(b[6:])), binary.BigEndian.Uint32(b[8:])})
		return natpmpMapped(b, 0, 40007, 3600)
	})
	a, err := findNATPMP(t.Context(), l)
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
	good := natpmpAddress(0, "30.0.0.1")
	for name, c := range map[string]struct {
		address []byte
		mapped  func(q []byte) []byte
		want    error
	}{
		"no uplink":   {natpmpAddress(3, "0.0.0.0"), nil, ErrRefused},
		"no address":  {natpmpAddress(0, "0.0.0.0"), nil, ErrNoExternal},
		"PCP":         {[]byte{2, 128, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, nil, ErrRefused},
		"refused":     {good, func(q []byte) []byte { return natpmpMapped(q, 2, 0, 0) }, ErrRefused},
		"no lifetime": {good, func(q []byte) []byte { return natpmpMapped(q, 0, 7, 0) }, ErrMalformed},
		"no port":     {good, func(q []byte) []byte { return natpmpMapped(q, 0, 0, 60) }, ErrMalformed},
		"other port":  {good, func(q []byte) []byte { return natpmpMapped([]byte{0, q[1], 0, 0, 9, 9}, 0, 7, 60) }, ErrMalformed},
		"short":       {good, func(q []byte) []byte { return natpmpMapped(q, 0, 7, 60)[:9] }, ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			l := fakeNATPMP(t, func(b []byte) []byte {
				if len(b) == 2 {
					return c.address
				}
				return c.mapped(b)
			})
			if m, err := (natpmpServer{link: l}).add(t.Context(), udpAsk(1, 1)); !errors.Is(err, c.want) || m != (Mapping{}) {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

func TestNATPMPNobody(t *testing.T) {
	l := natpmpLink(t)
	began := time.Now()
	if _, err := findNATPMP(t.Context(), l); !errors.Is(err, ErrSilent) || time.Since(began) > 3*time.Second {
		t.Errorf("nobody: %v after %v", err, time.Since(began))
	}
	ctx, cancel := context.WithCancel(t.Context())
	l = fakeNATPMP(t, func([]byte) []byte { cancel(); return nil })
	_, err := (natpmpServer{link: l}).add(ctx, udpAsk(1, 1))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if _, err := (natpmpServer{link: l}).external(ctx); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("given up before: %v", err)
	}
}
