package portmap

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fakeUDP is a server on loopback that answers each datagram with those that
// reply returns. It ends with the test.
func fakeUDP(t *testing.T, at string, reply func(from netip.AddrPort, b []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range reply(from, buf[:n]) {
				if b == nil {
					continue
				}
				_, _ = conn.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// pcpReply is what a server says to a request.
func pcpReply(q []byte, result pcpResult, lifetime uint32, external string) []byte {
	b := bytes.Clone(q)
	b[1] |= pcpIsResponse
	b[3] = byte(result)
	binary.BigEndian.PutUint32(b[4:], lifetime)
	clear(b[8:24])
	binary.BigEndian.PutUint32(b[8:], 4711) // epoch
	if len(b) >= pcpMapLen {
		e := netip.MustParseAddrPort(external)
		binary.BigEndian.PutUint16(b[42:], e.Port())
		a := e.Addr().As16()
		copy(b[44:], a[:])
	}
	return b
}

func pcpAt(a netip.AddrPort) pcpServer { return pcpServer{link: loopback, port: a.Port()} }

// The bytes of RFC 6887 §7.1 and §11.1, written out.
func TestPCPRequestBytes(t *testing.T) {
	q := pcpServer{link: link{local: netip.MustParseAddr("192.168.1.2")}}.request(udpAsk(5000, 0))
	q.suggested, q.lifetime = 40000, 7200
	want := "02010000" + "00001c20" + "00000000000000000000ffffc0a80102" +
		"010203000000000000000000" + "11000000" + "1388" + "9c40" + "00000000000000000000ffff00000000"
	if got := hex.EncodeToString(q.append(nil)); got != want {
		t.Errorf("MAP\n got %s\nwant %s", got, want)
	}
	got := hex.EncodeToString(pcpRequest{opcode: pcpAnnounce, client: netip.MustParseAddr("10.1.2.3")}.append(nil))
	if want := "0200000000000000" + "00000000000000000000ffff0a010203"; got != want {
		t.Errorf("ANNOUNCE\n got %s\nwant %s", got, want)
	}
}

func TestParsePCPRefuses(t *testing.T) {
	good := pcpReply(pcpServer{link: loopback}.request(udpAsk(1, 2)).append(nil), pcpSuccess, 60, "30.0.0.1:2")
	if _, err := parsePCP(good); err != nil {
		t.Fatal(err)
	}
	change := func(i int, v byte) []byte {
		b := bytes.Clone(good)
		b[i] = v
		return b
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "short": good[:20], "MAP cut off": good[:56], "odd length": append(bytes.Clone(good), 1, 2),
		"too long": append(bytes.Clone(good), make([]byte, pcpMaxLen)...),
		"request":  change(1, byte(pcpMap)), "version": change(0, 3), "opcode": change(1, 0x80|9),
	} {
		if r, err := parsePCP(b); !errors.Is(err, ErrMalformed) || r != (pcpResponse{}) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if _, err := parsePCP([]byte{0, 0x80, 0, 1, 0, 0, 0, 9}); !errors.Is(err, errOldVersion) {
		t.Errorf("NAT-PMP's answer: %v", err)
	}
}

func TestPCP(t *testing.T) {
	var deleted atomic.Bool
	server := pcpAt(fakeUDP(t, "127.0.0.1:0", func(_ netip.AddrPort, b []byte) [][]byte {
		if len(b) < pcpMapLen {
			return [][]byte{pcpReply(b, pcpSuccess, 0, "")}
		}
		life := binary.BigEndian.Uint32(b[4:])
		if life == 0 {
			deleted.Store(b[24] == 1 && binary.BigEndian.Uint16(b[42:]) == 0)
		}
		// What does not belong here comes first and is passed over.
		stranger := pcpReply(b, pcpSuccess, 99, "66.6.6.6:666")
		stranger[24] ^= 1
		return [][]byte{{1, 2, 3}, stranger, pcpReply(b[:24], pcpNotAuthorized, 99, ""), pcpReply(b, pcpSuccess, life/2, "30.0.0.1:40001")}
	}))
	a, err := server.find(t.Context(), loopback)
	if err != nil || a.router.protocol() != PCP || a.external.IsValid() {
		t.Fatalf("%+v, %v", a, err)
	}
	began := time.Now()
	m, err := a.router.add(t.Context(), udpAsk(5000, 40000))
	if err != nil {
		t.Fatal(err)
	}
	if m.Internal != 5000 || m.TCP || m.Protocol != PCP || m.External.String() != "30.0.0.1:40001" {
		t.Errorf("%+v", m)
	}
	if life := m.Expires.Sub(began); life < time.Hour || life > time.Hour+testWait {
		t.Errorf("expires after %v", life)
	}
	if err := a.router.remove(t.Context(), udpAsk(5000, 40001)); err != nil || !deleted.Load() {
		t.Errorf("removed: %v, %v", deleted.Load(), err)
	}
}

func TestPCPRepeats(t *testing.T) {
	var n atomic.Int32
	server := pcpAt(fakeUDP(t, "127.0.0.1:0", func(_ netip.AddrPort, b []byte) [][]byte {
		if n.Add(1) < 3 {
			return nil // lost
		}
		return [][]byte{pcpReply(b, pcpSuccess, 60, "30.0.0.1:1")}
	}))
	if _, err := server.add(t.Context(), udpAsk(1, 1)); err != nil || n.Load() != 3 {
		t.Errorf("after %d packets: %v", n.Load(), err)
	}
}

func TestPCPSaysNo(t *testing.T) {
	for name, c := range map[string]struct {
		reply func(b []byte) []byte
		want  error
		says  string
	}{
		"not authorized": {func(b []byte) []byte { return pcpReply(b, pcpNotAuthorized, 60, "0.0.0.0:0") }, ErrRefused, "not authorized"},
		"unheard code":   {func(b []byte) []byte { return pcpReply(b, 77, 60, "0.0.0.0:0") }, ErrRefused, "result 77"},
		"NAT-PMP only":   {func([]byte) []byte { return []byte{0, 0x80, 0, 1, 0, 0, 0, 9} }, ErrRefused, "NAT-PMP"},
		"older version": {func(b []byte) []byte {
			b = pcpReply(b[:24], pcpUnsupportedVersion, 60, "")
			b[0] = 1
			return b
		}, ErrRefused, "older version"},
		"newer version": {func(b []byte) []byte { return pcpReply(b, pcpUnsupportedVersion, 60, "0.0.0.0:0") }, ErrRefused, "unsupported version"},
		"no address":    {func(b []byte) []byte { return pcpReply(b, pcpSuccess, 60, "0.0.0.0:40000") }, ErrNoExternal, ""},
		"IPv6 address":  {func(b []byte) []byte { return pcpReply(b, pcpSuccess, 60, "[2001:db8::1]:40000") }, ErrNoExternal, ""},
		"no port":       {func(b []byte) []byte { return pcpReply(b, pcpSuccess, 60, "30.0.0.1:0") }, ErrMalformed, ""},
		"no lifetime":   {func(b []byte) []byte { return pcpReply(b, pcpSuccess, 0, "30.0.0.1:4") }, ErrMalformed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := pcpAt(fakeUDP(t, "127.0.0.1:0", func(_ netip.AddrPort, b []byte) [][]byte { return [][]byte{c.reply(b)} }))
			m, err := server.add(t.Context(), udpAsk(1, 1))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || m != (Mapping{}) {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

func TestPCPNobody(t *testing.T) {
	// A socket that is closed: the system says that nobody listens.
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	closed := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = conn.Close()
	if _, err := pcpAt(closed).find(t.Context(), loopback); !errors.Is(err, ErrSilent) {
		t.Errorf("nobody listens: %v", err)
	}
	// Somebody who never answers, and a caller who gives up.
	asked := make(chan struct{}, 16)
	ctx, cancel := context.WithCancel(t.Context())
	silent := fakeUDP(t, "127.0.0.1:0", func(netip.AddrPort, []byte) [][]byte {
		asked <- struct{}{}
		cancel()
		return nil
	})
	if _, err := pcpAt(silent).add(ctx, udpAsk(1, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	<-asked
	if _, err := (pcpServer{link: link{gateway: loopback.gateway, local: netip.MustParseAddr("30.1.2.3")}}).add(t.Context(), udpAsk(1, 1)); !errors.Is(err, ErrSilent) {
		t.Errorf("an address that is not ours: %v", err)
	}
}

func FuzzParsePCP(f *testing.F) {
	q := pcpServer{link: loopback}.request(udpAsk(5000, 40000)).append(nil)
	f.Add(pcpReply(q, pcpSuccess, 7200, "30.0.0.1:40000"))
	f.Add(pcpReply(q[:24], pcpUnsupportedOpcode, 7200, ""))
	f.Add([]byte{0, 0x80, 0, 1, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parsePCP(b)
		if err != nil {
			if r != (pcpResponse{}) {
				t.Fatalf("half a value with %v", err)
			}
			return
		}
		// Parse, write, parse: the same.
		w := pcpRequest{opcode: r.opcode, nonce: r.nonce, protocol: r.protocol, internal: r.internal}.appendFor(r)
		if again, err := parsePCP(w); err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

// appendFor writes the response that a server would.
func (q pcpRequest) appendFor(r pcpResponse) []byte {
	q.client = netip.IPv4Unspecified()
	b := q.append(nil)
	b[1] |= pcpIsResponse
	b[3] = byte(r.result)
	binary.BigEndian.PutUint32(b[4:], r.lifetime)
	clear(b[8:24])
	binary.BigEndian.PutUint32(b[8:], r.epoch)
	if r.opcode == pcpMap {
		binary.BigEndian.PutUint16(b[42:], r.external.Port())
		a := r.external.Addr().As16()
		copy(b[44:], a[:])
	}
	return b
}
