package main

// The emulated Internet: routing, delay, loss, rate, and the delay line.

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

type linkParams struct {
	Delay   time.Duration // one way
	Jitter  time.Duration // uniform 0..Jitter added
	Loss    float64       // 0..1
	Burst   float64       // mean loss burst in packets; <=1: independent
	Reorder float64       // 0..1: share of packets held back 3 ms more, others overtake
	Block   bool
	MaxLen  int // longer packets are lost; 0: none are
}

type path struct {
	mu        sync.Mutex
	lp        linkParams
	rng       *rand.Rand
	bad       bool
	lastAt    int64
	pkts      atomic.Uint64
	bytes     atomic.Uint64
	lost      atomic.Uint64
	blocked   atomic.Uint64
	queueDrop atomic.Uint64
}

type shaper struct {
	mu    sync.Mutex
	bps   float64 // bytes per ns; 0: no limit
	queue int64   // ns of backlog allowed
	free  int64
}

func (s *shaper) set(mbit float64, q time.Duration) {
	s.mu.Lock()
	s.bps, s.queue = mbit*1e6/8/1e9, int64(q)
	s.mu.Unlock()
}

// depart returns when a packet of n bytes leaves, ok=false when the queue is full.
func (s *shaper) depart(now int64, n int) (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bps == 0 {
		return now, true
	}
	if s.free < now {
		s.free = now
	}
	if s.free-now > s.queue {
		return 0, false
	}
	s.free += int64(float64(n) / s.bps)
	return s.free, true
}

type site struct {
	name     string
	idx      int
	core     *core
	top      downNode
	up, down shaper
	black    atomic.Bool
	sch      *sched
	prefix4  []netip.Prefix
	prefix6  []netip.Prefix
}

const maxSites = 8

type core struct {
	mu       sync.RWMutex
	sites    []*site
	addr4    map[uint32]*site
	net4     map[uint32]*site // by /24
	net6     map[[6]byte]*site
	paths    [maxSites][maxSites]*path
	noRoute  atomic.Uint64
	mtuBlack atomic.Int64 // silently drop longer packets (PMTU black hole)
	seed     uint64
}

func newCore(seed uint64) *core {
	c := &core{addr4: map[uint32]*site{}, net4: map[uint32]*site{}, net6: map[[6]byte]*site{}, seed: seed}
	for i := range c.paths {
		for j := range c.paths[i] {
			c.paths[i][j] = &path{rng: rand.New(rand.NewPCG(seed, uint64(100+i*maxSites+j)))}
		}
	}
	return c
}

func (c *core) addSite(name string, p4, p6 []netip.Prefix) *site {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &site{name: name, idx: len(c.sites), core: c, prefix4: p4, prefix6: p6}
	s.sch = newSched(s)
	c.sites = append(c.sites, s)
	for _, p := range p4 {
		c.net4[ip4u(p.Addr())>>8] = s
	}
	for _, p := range p6 {
		a := p.Addr().As16()
		c.net6[[6]byte(a[:6])] = s
	}
	return s
}

func (c *core) siteByName(n string) *site {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.sites {
		if s.name == n {
			return s
		}
	}
	return nil
}

func (s *site) fromBelow(p *pkt) {
	c := s.core
	if !decTTL(p.b) {
		putPkt(p)
		return
	}
	var d *site
	c.mu.RLock()
	if p.b[0]>>4 == 6 {
		d = c.net6[[6]byte(p.b[24:30])]
	} else {
		d = c.net4[be32(p.b[16:])>>8]
	}
	c.mu.RUnlock()
	if d == nil || d.top == nil {
		c.noRoute.Add(1)
		putPkt(p)
		return
	}
	pa := c.paths[s.idx][d.idx]
	if s.black.Load() || d.black.Load() {
		pa.blocked.Add(1)
		putPkt(p)
		return
	}
	if m := c.mtuBlack.Load(); m > 0 && int64(len(p.b)) > m {
		pa.lost.Add(1)
		putPkt(p)
		return
	}
	now := nanotime()
	at, ok := s.up.depart(now, len(p.b))
	if !ok {
		pa.queueDrop.Add(1)
		putPkt(p)
		return
	}
	pa.mu.Lock()
	lp := &pa.lp
	if lp.Block || lp.MaxLen > 0 && len(p.b) > lp.MaxLen {
		pa.mu.Unlock()
		pa.blocked.Add(1)
		putPkt(p)
		return
	}
	if lp.Loss > 0 {
		lose := false
		if lp.Burst <= 1 {
			lose = pa.rng.Float64() < lp.Loss
		} else { // Gilbert: mean burst lp.Burst, long-run loss lp.Loss
			if pa.bad {
				pa.bad = pa.rng.Float64() >= 1/lp.Burst
			} else {
				pa.bad = pa.rng.Float64() < lp.Loss/(lp.Burst*(1-lp.Loss))
			}
			lose = pa.bad
		}
		if lose {
			pa.mu.Unlock()
			pa.lost.Add(1)
			putPkt(p)
			return
		}
	}
	at += int64(lp.Delay)
	if lp.Jitter > 0 {
		at += int64(pa.rng.Float64() * float64(lp.Jitter))
	}
	if lp.Reorder > 0 && pa.rng.Float64() < lp.Reorder {
		at += int64(3 * time.Millisecond)
	} else if at < pa.lastAt && pa.lastAt-at < int64(lp.Jitter)+int64(time.Millisecond) {
		at = pa.lastAt // jitter alone does not reorder
	} else {
		pa.lastAt = at
	}
	pa.mu.Unlock()
	pa.pkts.Add(1)
	pa.bytes.Add(uint64(len(p.b)))
	if at <= now && d.down.unlimited() {
		d.top.fromAbove(p)
		return
	}
	d.sch.push(p, at, pa)
}

func (s *shaper) unlimited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bps == 0
}

// ---------- delay line: one OS thread per destination site ----------

type ev struct {
	at     int64
	seq    uint64
	p      *pkt
	pa     *path
	shaped bool
}
type evHeap []ev

func (h evHeap) Len() int { return len(h) }
func (h evHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h evHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *evHeap) Push(x any)   { *h = append(*h, x.(ev)) }
func (h *evHeap) Pop() any {
	o := *h
	e := o[len(o)-1]
	*h = o[:len(o)-1]
	return e
}

type sched struct {
	s     *site
	mu    sync.Mutex
	h     evHeap
	seq   uint64
	until int64 // what the thread sleeps until
	efd   int
	late  [8]atomic.Uint64 // lateness histogram: <50us,<100us,<200us,<500us,<1ms,<2ms,<5ms,more
}

func newSched(s *site) *sched {
	r, _, e := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if e != 0 {
		panic(e)
	}
	q := &sched{s: s, efd: int(r)}
	go q.run()
	return q
}

func (q *sched) push(p *pkt, at int64, pa *path) {
	q.mu.Lock()
	q.seq++
	heap.Push(&q.h, ev{at: at, seq: q.seq, p: p, pa: pa})
	wake := at < q.until
	if wake {
		q.until = 0
	}
	q.mu.Unlock()
	if wake {
		one := [8]byte{1}
		syscall.Write(q.efd, one[:])
	}
}

type pollfd struct {
	fd      int32
	ev, rev int16
}

func (q *sched) run() {
	runtime.LockOSThread()
	syscall.RawSyscall(syscall.SYS_PRCTL, 29 /* PR_SET_TIMERSLACK */, 1, 0)
	var drain [8]byte
	for {
		q.mu.Lock()
		now := nanotime()
		for len(q.h) > 0 && q.h[0].at <= now {
			e := heap.Pop(&q.h).(ev)
			if !e.shaped && !q.s.down.unlimited() {
				dep, ok := q.s.down.depart(e.at, len(e.p.b))
				if !ok {
					e.pa.queueDrop.Add(1)
					putPkt(e.p)
					continue
				}
				e.at, e.shaped = dep, true
				if dep > now {
					heap.Push(&q.h, e)
					continue
				}
			}
			q.count(now - e.at)
			q.until = 0
			q.mu.Unlock()
			q.s.top.fromAbove(e.p)
			q.mu.Lock()
			now = nanotime()
		}
		wait := int64(time.Hour)
		if len(q.h) > 0 {
			wait = q.h[0].at - now
		}
		q.until = now + wait
		q.mu.Unlock()
		ts := syscall.NsecToTimespec(wait)
		pf := pollfd{fd: int32(q.efd), ev: 1}
		syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&pf)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		if pf.rev != 0 {
			syscall.Read(q.efd, drain[:])
		}
	}
}

func (q *sched) count(l int64) {
	us := l / 1000
	for i, lim := range [...]int64{50, 100, 200, 500, 1000, 2000, 5000} {
		if us < lim {
			q.late[i].Add(1)
			return
		}
	}
	q.late[7].Add(1)
}
