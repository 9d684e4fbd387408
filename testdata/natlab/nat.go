package main

// A NAT by RFC 4787: mapping, filtering, port allocation, lifetimes.

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	EI  = "ei"  // endpoint-independent
	AD  = "ad"  // address-dependent
	APD = "apd" // address-and-port-dependent
)

type natSpec struct {
	Mapping   string // EI, AD, APD
	Filtering string // EI, AD, APD
	Alloc     string // preserve, random, seq
}

type mapKey struct {
	proto uint8
	ip    uint32
	port  uint16
	rip   uint32
	rport uint16
}
type extKey struct {
	proto uint8
	ip    uint32
	port  uint16
}
type remKey struct {
	ip   uint32
	port uint16
}

type mapping struct {
	key  mapKey
	ext  extKey
	used int64
	rem  map[remKey]int64 // remotes sent to, for filtering
}

type nat struct {
	name      string
	spec      natSpec
	udpTO     int64
	tcpTO     int64
	inRefresh bool
	hairpin   bool
	up        upNode
	below     map[uint32]downNode // carrier NAT: customer address -> customer
	dflt      downNode

	mu     sync.Mutex
	pool   []uint32 // external addresses; pool[cur] is used for new mappings
	cur    int
	out    map[mapKey]*mapping
	in     map[extKey]*mapping
	next   uint16
	noPres bool // after a rebind: do not hand the same port out again
	rng    *rand.Rand

	created, rebinds                           atomic.Uint64
	dropNoMap, dropFilter, dropOther, hairpins atomic.Uint64
}

func newNAT(name string, spec natSpec, pool []uint32, cfg *Config, seed uint64) *nat {
	n := &nat{name: name, spec: spec, pool: pool, inRefresh: !cfg.NoInRefresh, hairpin: !cfg.NoHairpin,
		udpTO: int64(cfg.UDPTimeout), tcpTO: int64(2 * time.Hour),
		out: map[mapKey]*mapping{}, in: map[extKey]*mapping{}, rng: rand.New(rand.NewPCG(seed, 7))}
	n.next = uint16(20000 + n.rng.IntN(20000))
	go func() {
		for range time.Tick(time.Second) {
			n.sweep()
		}
	}()
	return n
}

func (n *nat) life(proto uint8) int64 {
	if proto == protoTCP {
		return n.tcpTO
	}
	return n.udpTO
}

func (n *nat) drop(m *mapping) { delete(n.out, m.key); delete(n.in, m.ext) }

func (n *nat) sweep() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := nanotime()
	for _, m := range n.in {
		lf := n.life(m.key.proto)
		if now-m.used > lf {
			n.drop(m)
			continue
		}
		for r, t := range m.rem {
			if now-t > lf {
				delete(m.rem, r)
			}
		}
	}
}

func (n *nat) mine(ip uint32) bool {
	for _, e := range n.pool {
		if e == ip {
			return true
		}
	}
	return false
}

func (n *nat) free(proto uint8, pt uint16) bool {
	_, busy := n.in[extKey{proto, n.pool[n.cur], pt}]
	return !busy && pt >= 1024
}

func (n *nat) alloc(proto uint8, want uint16) (uint16, bool) {
	how := n.spec.Alloc
	if how == "preserve" {
		if !n.noPres && n.free(proto, want) {
			return want, true
		}
		how = "seq"
		if n.noPres {
			how = "random"
		}
	}
	for i := 0; i < 65536; i++ {
		var pt uint16
		if how == "seq" {
			n.next++
			if n.next < 1024 {
				n.next = 1024
			}
			pt = n.next
		} else {
			pt = uint16(1024 + n.rng.IntN(65536-1024))
		}
		if n.free(proto, pt) {
			return pt, true
		}
	}
	return 0, false
}

func (n *nat) outKey(proto uint8, ip uint32, pt uint16, rip uint32, rpt uint16) mapKey {
	k := mapKey{proto: proto, ip: ip, port: pt}
	if n.spec.Mapping != EI {
		k.rip = rip
		if n.spec.Mapping == APD {
			k.rport = rpt
		}
	}
	return k
}

func (n *nat) remKey(ip uint32, pt uint16) remKey {
	switch n.spec.Filtering {
	case EI:
		return remKey{}
	case AD:
		return remKey{ip: ip}
	}
	return remKey{ip, pt}
}

// translateOut maps an outbound packet; the caller holds no lock.
func (n *nat) translateOut(b []byte, h *l4) bool {
	now := nanotime()
	k := n.outKey(h.proto, h.src, h.sport, h.dst, h.dport)
	n.mu.Lock()
	m := n.out[k]
	if m != nil && now-m.used > n.life(h.proto) {
		n.drop(m)
		m = nil
	}
	if m == nil {
		pt, ok := n.alloc(h.proto, h.sport)
		if !ok {
			n.mu.Unlock()
			return false
		}
		m = &mapping{key: k, ext: extKey{h.proto, n.pool[n.cur], pt}, rem: map[remKey]int64{}}
		n.out[k], n.in[m.ext] = m, m
		n.created.Add(1)
	}
	m.used = now
	m.rem[n.remKey(h.dst, h.dport)] = now
	e := m.ext
	n.mu.Unlock()
	setSrc(b, h, e.ip, e.port)
	return true
}

func (n *nat) translateIn(b []byte, h *l4) bool {
	now := nanotime()
	n.mu.Lock()
	m := n.in[extKey{h.proto, h.dst, h.dport}]
	if m == nil || now-m.used > n.life(h.proto) {
		n.mu.Unlock()
		n.dropNoMap.Add(1)
		return false
	}
	rk := n.remKey(h.src, h.sport)
	t, ok := m.rem[rk]
	if n.spec.Filtering != EI && (!ok || now-t > n.life(h.proto)) {
		n.mu.Unlock()
		n.dropFilter.Add(1)
		return false
	}
	if n.inRefresh {
		m.used = now
		m.rem[rk] = now
	}
	k := m.key
	n.mu.Unlock()
	setDst(b, h, k.ip, k.port)
	return true
}

// icmpErrIn / icmpErrOut translate an ICMP error by the packet it quotes.
func (n *nat) icmpErr(b []byte, h *l4, inbound bool) bool {
	t := b[h.off:]
	if len(t) < 8+28 {
		return false
	}
	q := t[8:]
	qoff := int(q[0]&15) * 4
	if q[0]>>4 != 4 || len(q) < qoff+8 {
		return false
	}
	proto, qs, qd := q[9], be32(q[12:]), be32(q[16:])
	var sp, dp []byte
	switch proto {
	case protoUDP, protoTCP:
		sp, dp = q[qoff:qoff+2], q[qoff+2:qoff+4]
	case protoICMP:
		sp, dp = q[qoff+4:qoff+6], nil
	default:
		return false
	}
	now := nanotime()
	n.mu.Lock()
	defer n.mu.Unlock()
	if inbound {
		m := n.in[extKey{proto, qs, be16(sp)}]
		if m == nil || now-m.used > n.life(proto) {
			return false
		}
		csumFix32(q[10:12], qs, m.key.ip)
		put32(q[12:], m.key.ip)
		put16(sp, m.key.port)
		csumFix32(b[10:12], h.dst, m.key.ip)
		put32(b[16:], m.key.ip)
		h.dst = m.key.ip
	} else {
		if dp == nil {
			return false
		}
		m := n.out[n.outKey(proto, qd, be16(dp), qs, be16(sp))]
		if m == nil {
			return false
		}
		csumFix32(q[10:12], qd, m.ext.ip)
		put32(q[16:], m.ext.ip)
		put16(dp, m.ext.port)
		csumFix32(b[10:12], h.src, m.ext.ip)
		put32(b[12:], m.ext.ip)
	}
	put16(t[2:], 0)
	put16(t[2:], csum(t))
	return true
}

func (n *nat) deliver(p *pkt, dst uint32) {
	if d := n.below[dst]; d != nil {
		d.fromAbove(p)
	} else if n.dflt != nil {
		n.dflt.fromAbove(p)
	} else {
		n.dropOther.Add(1)
		putPkt(p)
	}
}

func (n *nat) fromBelow(p *pkt) {
	if len(p.b) > 0 && p.b[0]>>4 == 6 {
		n.up.fromBelow(p)
		return
	}
	h, ok := parse4(p.b)
	if !ok || !decTTL(p.b) {
		n.dropOther.Add(1)
		putPkt(p)
		return
	}
	if h.icmpErr {
		if n.icmpErr(p.b, &h, false) {
			n.up.fromBelow(p)
			return
		}
		n.dropOther.Add(1)
		putPkt(p)
		return
	}
	toSelf := n.mine(h.dst)
	if toSelf && !n.hairpin {
		n.dropOther.Add(1)
		putPkt(p)
		return
	}
	if !n.translateOut(p.b, &h) {
		n.dropOther.Add(1)
		putPkt(p)
		return
	}
	if !toSelf {
		n.up.fromBelow(p)
		return
	}
	n.hairpins.Add(1) // RFC 4787 REQ-9: external source address and port
	if !n.translateIn(p.b, &h) {
		putPkt(p)
		return
	}
	n.deliver(p, h.dst)
}

func (n *nat) fromAbove(p *pkt) {
	if len(p.b) > 0 && p.b[0]>>4 == 6 {
		n.deliver(p, 0)
		return
	}
	h, ok := parse4(p.b)
	if !ok || !decTTL(p.b) {
		n.dropOther.Add(1)
		putPkt(p)
		return
	}
	if h.icmpErr {
		ok = n.icmpErr(p.b, &h, true)
	} else {
		ok = n.translateIn(p.b, &h)
	}
	if !ok {
		putPkt(p)
		return
	}
	n.deliver(p, h.dst)
}

// rebind forgets every mapping; new ones get other ports, and with newIP the
// next address of the pool.
func (n *nat) rebind(newIP bool) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.out)
	clear(n.in)
	n.noPres = true
	if newIP {
		n.cur = (n.cur + 1) % len(n.pool)
	}
	n.rebinds.Add(1)
	return uip4(n.pool[n.cur])
}
