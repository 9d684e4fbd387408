package main

import (
	"math/rand/v2"
	"testing"
	"time"
)

type sink struct{ got []*pkt }

func (s *sink) fromAbove(p *pkt) { s.got = append(s.got, p) }
func (s *sink) fromBelow(p *pkt) { s.got = append(s.got, p) }

func udpPkt(src, dst uint32, sp, dp uint16, n int) *pkt {
	p := getPkt()
	b := p.buf[:28+n]
	clear(b)
	b[0], b[8], b[9] = 0x45, 64, protoUDP
	put16(b[2:], uint16(len(b)))
	put32(b[12:], src)
	put32(b[16:], dst)
	put16(b[10:], csum(b[:20]))
	u := b[20:]
	put16(u, sp)
	put16(u[2:], dp)
	put16(u[4:], uint16(8+n))
	for i := range n {
		u[8+i] = byte(rand.N(256))
	}
	put16(u[6:], udpCsum(b))
	p.b = b
	return p
}

func udpCsum(b []byte) uint16 {
	u := append([]byte{}, b[12:20]...)
	u = append(u, 0, protoUDP)
	u = append(u, b[24], b[25])
	w := append([]byte{}, b[20:]...)
	w[6], w[7] = 0, 0
	return csum(append(u, w...))
}

func valid(t *testing.T, b []byte) {
	t.Helper()
	if csum(b[:20]) != 0 {
		t.Fatal("bad IP checksum")
	}
	if udpCsum(b) != be16(b[26:]) {
		t.Fatal("bad UDP checksum")
	}
}

func TestNAT(t *testing.T) {
	real, now := nanotime, int64(0)
	nanotime = func() int64 { return now }
	defer func() { nanotime = real }()
	for _, m := range []string{EI, AD, APD} {
		for _, f := range []string{EI, AD, APD} {
			up, below := &sink{}, &sink{}
			n := newNAT("t", natSpec{m, f, "random"}, []uint32{0x1e000001}, &Config{UDPTimeout: 50 * time.Millisecond}, 1)
			n.up, n.dflt = up, below
			const h, x, y = 0xc0a80102, 0x14000001, 0x14000002
			for _, d := range []struct {
				ip uint32
				pt uint16
			}{{x, 1}, {x, 2}, {y, 1}} {
				n.fromBelow(udpPkt(h, d.ip, 5000, d.pt, 33))
			}
			ext := func(i int) uint16 { valid(t, up.got[i].b); return be16(up.got[i].b[20:]) }
			a, b, c := ext(0), ext(1), ext(2)
			if (a == b) != (m != APD) || (a == c) != (m == EI) {
				t.Errorf("%s/%s: mapping %d %d %d", m, f, a, b, c)
			}
			in := func(src uint32, sp, ep uint16) bool {
				k := len(below.got)
				n.fromAbove(udpPkt(src, 0x1e000001, sp, ep, 32))
				if len(below.got) == k {
					return false
				}
				valid(t, below.got[k].b)
				return be32(below.got[k].b[16:]) == h && be16(below.got[k].b[22:]) == 5000
			}
			if !in(x, 1, a) || in(x, 9, a) != (f != APD) || in(0x14000009, 1, a) != (f == EI) || in(x, 1, a+1) && a+1 != b && a+1 != c {
				t.Errorf("%s/%s: filtering", m, f)
			}
			now += int64(60 * time.Millisecond)
			if in(x, 1, a) {
				t.Errorf("%s/%s: mapping did not expire", m, f)
			}
		}
	}
}

func BenchmarkNATOut(b *testing.B) {
	n := newNAT("t", natSpec{EI, APD, "preserve"}, []uint32{0x1e000001}, &Config{UDPTimeout: time.Minute}, 1)
	p := udpPkt(0xc0a80102, 0x14000001, 5000, 443, 1200)
	for b.Loop() {
		h, _ := parse4(p.b)
		n.translateOut(p.b, &h)
		setSrc(p.b, &h, 0xc0a80102, 5000)
	}
}

// TestMaxLen: of two sites only what is short passes between them, and everything
// elsewhere.
func TestMaxLen(t *testing.T) {
	c := newCore(1)
	var tops [3]sink
	var sites [3]*site
	for i, name := range []string{"A", "B", "P"} {
		sites[i] = c.addSite(name, pfx([]string{"30.0.0.0/24", "40.0.0.0/24", "20.0.0.0/24"}[i]), nil)
		sites[i].top = &tops[i]
	}
	l := &lab{core: c, sites: map[string]*labSite{"A": {site: sites[0]}, "B": {site: sites[1]}, "P": {site: sites[2]}}, hosts: map[string]*labHost{}}
	a, b, p := uint32(30<<24|1), uint32(40<<24|1), uint32(20<<24|1)
	send := func(from int, src, dst uint32, n int) { sites[from].fromBelow(udpPkt(src, dst, 1, 2, n)) }
	want := func(what string, n ...int) {
		t.Helper()
		for i, top := range tops {
			if len(top.got) != n[i] {
				t.Errorf("%s: %d packets at %s, want %d", what, len(top.got), sites[i].name, n[i])
			}
		}
	}
	if _, err := l.control(ctlReq{Op: "maxlen", Args: []string{"A", "B", "300"}}); err != nil {
		t.Fatal(err)
	}
	send(0, a, b, 272) // 300 bytes with its headers
	send(0, a, b, 273)
	send(1, b, a, 273)
	send(0, a, p, 1400)
	want("with a limit", 0, 1, 1)
	if _, err := l.control(ctlReq{Op: "maxlen", Args: []string{"A", "B", "off"}}); err != nil {
		t.Fatal(err)
	}
	send(1, b, a, 1400)
	want("without", 1, 1, 1)
	if _, err := l.control(ctlReq{Op: "maxlen", Args: []string{"A", "B", "long"}}); err == nil {
		t.Error("a limit that is no number was taken")
	}
}
