package main

// The data plane: every site's uplink is a TUN device whose other end is this
// process. Packets pass   port(TUN) -> [NAT] -> [carrier NAT] -> core -> ... -> port.

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const bufSize = 2048

type pkt struct {
	b   []byte
	buf [bufSize]byte
}

var pktPool = sync.Pool{New: func() any { return new(pkt) }}

func getPkt() *pkt  { return pktPool.Get().(*pkt) }
func putPkt(p *pkt) { p.b = nil; pktPool.Put(p) }

var epoch = time.Now()

// nanotime is the clock of the data plane; tests move it by hand.
var nanotime = func() int64 { return int64(time.Since(epoch)) }

type downNode interface{ fromAbove(p *pkt) }
type upNode interface{ fromBelow(p *pkt) }

// ---------- port ----------

type port struct {
	name   string
	f      *os.File
	up     upNode
	rx, tx atomic.Uint64
	txErr  atomic.Uint64
}

func (t *port) readLoop() {
	for {
		p := getPkt()
		n, err := t.f.Read(p.buf[:])
		if err != nil {
			return
		}
		p.b = p.buf[:n]
		t.rx.Add(1)
		t.up.fromBelow(p)
	}
}

func (t *port) fromAbove(p *pkt) {
	if _, err := t.f.Write(p.b); err != nil {
		t.txErr.Add(1)
	} else {
		t.tx.Add(1)
	}
	putPkt(p)
}

// ---------- header helpers ----------

func be16(b []byte) uint16     { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32     { return binary.BigEndian.Uint32(b) }
func put16(b []byte, v uint16) { binary.BigEndian.PutUint16(b, v) }
func put32(b []byte, v uint32) { binary.BigEndian.PutUint32(b, v) }
func ip4u(a netip.Addr) uint32 { x := a.As4(); return be32(x[:]) }
func uip4(v uint32) (a netip.Addr) {
	var x [4]byte
	put32(x[:], v)
	return netip.AddrFrom4(x)
}

// csumFix updates an Internet checksum field for a 16-bit word change (RFC 1624).
func csumFix16(field []byte, old, new uint16) {
	s := uint32(^be16(field)) + uint32(^old) + uint32(new)
	s = (s & 0xffff) + (s >> 16)
	s = (s & 0xffff) + (s >> 16)
	put16(field, ^uint16(s))
}

func csumFix32(field []byte, old, new uint32) {
	csumFix16(field, uint16(old>>16), uint16(new>>16))
	csumFix16(field, uint16(old), uint16(new))
}

func csum(b []byte) uint16 {
	var s uint32
	for len(b) > 1 {
		s += uint32(be16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s>>16 != 0 {
		s = (s & 0xffff) + (s >> 16)
	}
	return ^uint16(s)
}

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

type l4 struct {
	proto        uint8
	src, dst     uint32
	sport, dport uint16
	off          int  // L4 offset
	icmpErr      bool // an ICMP error: translate by the packet it quotes
}

// parse4 reads an IPv4 header; ok is false for what the lab does not carry
// through a NAT (fragments, other protocols, runts).
func parse4(b []byte) (h l4, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return
	}
	h.off = int(b[0]&15) * 4
	if h.off < 20 || len(b) < h.off+8 {
		return
	}
	if be16(b[6:])&0x3fff != 0 { // MF or offset
		return
	}
	h.proto, h.src, h.dst = b[9], be32(b[12:]), be32(b[16:])
	t := b[h.off:]
	switch h.proto {
	case protoUDP:
		h.sport, h.dport = be16(t), be16(t[2:])
	case protoTCP:
		if len(t) < 20 {
			return
		}
		h.sport, h.dport = be16(t), be16(t[2:])
	case protoICMP:
		switch t[0] {
		case 8:
			h.sport = be16(t[4:])
		case 0:
			h.dport = be16(t[4:])
		case 3, 11, 12:
			h.icmpErr = true
		default:
			return
		}
	default:
		return
	}
	return h, true
}

func setSrc(b []byte, h *l4, ip uint32, pt uint16) {
	csumFix32(b[10:12], h.src, ip)
	put32(b[12:], ip)
	t := b[h.off:]
	switch h.proto {
	case protoUDP:
		if be16(t[6:]) != 0 {
			csumFix32(t[6:8], h.src, ip)
			csumFix16(t[6:8], h.sport, pt)
			if be16(t[6:]) == 0 {
				put16(t[6:], 0xffff)
			}
		}
		put16(t, pt)
	case protoTCP:
		csumFix32(t[16:18], h.src, ip)
		csumFix16(t[16:18], h.sport, pt)
		put16(t, pt)
	case protoICMP:
		csumFix16(t[2:4], h.sport, pt)
		put16(t[4:], pt)
	}
	h.src, h.sport = ip, pt
}

func setDst(b []byte, h *l4, ip uint32, pt uint16) {
	csumFix32(b[10:12], h.dst, ip)
	put32(b[16:], ip)
	t := b[h.off:]
	switch h.proto {
	case protoUDP:
		if be16(t[6:]) != 0 {
			csumFix32(t[6:8], h.dst, ip)
			csumFix16(t[6:8], h.dport, pt)
			if be16(t[6:]) == 0 {
				put16(t[6:], 0xffff)
			}
		}
		put16(t[2:], pt)
	case protoTCP:
		csumFix32(t[16:18], h.dst, ip)
		csumFix16(t[16:18], h.dport, pt)
		put16(t[2:], pt)
	case protoICMP:
		csumFix16(t[2:4], h.dport, pt)
		put16(t[4:], pt)
	}
	h.dst, h.dport = ip, pt
}

func decTTL(b []byte) bool {
	if len(b) < 20 {
		return false
	}
	if b[0]>>4 == 6 {
		if len(b) < 40 || b[7] <= 1 {
			return false
		}
		b[7]--
		return true
	}
	if b[8] <= 1 {
		return false
	}
	old := be16(b[8:])
	b[8]--
	csumFix16(b[10:12], old, be16(b[8:]))
	return true
}
