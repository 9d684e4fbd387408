package main

// Commands to a running lab, and the daemon that owns it.

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type ctlReq struct {
	Op   string
	Args []string
	Cfg  *Config
}
type ctlResp struct {
	Err string `json:",omitempty"`
	Out string `json:",omitempty"`
}

func (l *lab) control(r ctlReq) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	arg := func(i int) string {
		if i < len(r.Args) {
			return r.Args[i]
		}
		return ""
	}
	siteOf := func(n string) (*labSite, error) {
		switch {
		case n == "pub":
			n = "P"
		case n == "pub2":
			n = "Q"
		case l.hosts[n] != nil:
			return l.hosts[n].site, nil
		}
		n = strings.ToUpper(strings.TrimPrefix(n, "nat"))
		if s := l.sites[n]; s != nil {
			return s, nil
		}
		return nil, fmt.Errorf("no such host or site")
	}
	switch r.Op {
	case "quit":
		l.once.Do(func() { close(l.done) })
		return "", nil
	case "status":
		return l.status(), nil
	case "rebind": // rebind natA [ip]
		st, err := siteOf(arg(0))
		if err != nil {
			return "", err
		}
		return l.rebind(st, arg(1) == "ip")
	case "blackhole": // blackhole pub on|off
		st, err := siteOf(arg(0))
		if err != nil {
			return "", err
		}
		st.black.Store(arg(1) != "off")
		return "", nil
	case "block", "maxlen": // block a b on|off, maxlen a b BYTES|off
		s, err := siteOf(arg(0))
		if err != nil {
			return "", err
		}
		d, err := siteOf(arg(1))
		if err != nil {
			return "", err
		}
		longest := 0
		if r.Op == "maxlen" && arg(2) != "off" {
			if longest, err = strconv.Atoi(arg(2)); err != nil || longest < 1 {
				return "", errors.New("maxlen X Y BYTES|off")
			}
		}
		for _, p := range []*path{l.core.paths[s.idx][d.idx], l.core.paths[d.idx][s.idx]} {
			p.mu.Lock()
			if r.Op == "maxlen" {
				p.lp.MaxLen = longest
			} else {
				p.lp.Block = arg(2) != "off"
			}
			p.mu.Unlock()
		}
		return "", nil
	case "roam": // roam a KIND|home|addr
		return l.roam(arg(0), arg(1))
	case "set":
		c := r.Cfg
		o := &l.cfg
		o.RTT, o.RTTAB, o.RTTA, o.RTTB, o.Jitter = c.RTT, c.RTTAB, c.RTTA, c.RTTB, c.Jitter
		o.Loss, o.Burst, o.Reorder = c.Loss, c.Burst, c.Reorder
		o.Rate, o.RateA, o.RateB, o.RatePub, o.QueueMS, o.MTUBlack = c.Rate, c.RateA, c.RateB, c.RatePub, c.QueueMS, c.MTUBlack
		return "", l.links()
	case "config":
		b, _ := json.Marshal(l.cfg)
		return string(b), nil
	}
	return "", fmt.Errorf("unknown operation %q", r.Op)
}

func (l *lab) rebind(st *labSite, newIP bool) (string, error) {
	if len(st.nats) > 0 {
		a := st.nats[0].rebind(newIP) // the outermost NAT owns the public address
		for _, n := range st.nats[1:] {
			n.rebind(false)
		}
		return a.String(), nil
	}
	if st.spec.kernel == "" {
		return "", errors.New("this site has no NAT")
	}
	st.rebinds++
	ip := st.ext
	if newIP {
		ip = fmt.Sprintf("%s.%d", st.sa.ext, 1+st.rebinds%4)
		if err := shIn(fmt.Sprintf("addr add %s/32 dev wan0\naddr del %s/32 dev wan0\nroute replace default dev wan0 src %s\n", ip, st.ext, ip), "ip", "-n", st.router, "-batch", "-"); err != nil {
			return "", err
		}
		st.ext = ip
	}
	lo := 20000 + 1000*(st.rebinds%40)
	tbl, rule := "ip nat post", fmt.Sprintf("oifname \"wan0\" meta l4proto { tcp, udp } masquerade to :%d-%d", lo, lo+999)
	if st.spec.kernel == "nf-random" {
		rule += " random,fully-random"
	}
	if st.spec.kernel == "upnp" {
		tbl = "inet filter postrouting"
		rule = "jump postrouting_miniupnpd\nadd rule " + tbl + " ip saddr 192.168.0.0/16 " + rule
	}
	if err := l.nft(st.router, fmt.Sprintf("flush chain %s\nadd rule %s %s\n", tbl, tbl, rule)); err != nil {
		return "", err
	}
	return ip, sh("ip", "netns", "exec", st.router, "conntrack", "-F")
}

func (l *lab) roam(host, to string) (string, error) {
	h := l.hosts[host]
	if h == nil || (host != "a" && host != "b") {
		return "", errors.New("only a or b roams")
	}
	last := 2
	if host == "b" {
		last = 3
	}
	if to == "addr" { // same LAN, new lease
		last = 70 + int(nanotime()%100)
		st := h.site
		if st.noNAT4 || st.spec.no4 {
			return "", errors.New("roam addr needs a NATed IPv4 LAN")
		}
		old := h.addr
		h.addr = fmt.Sprintf("%s.%d", st.sa.lan, last)
		return h.addr, shIn(fmt.Sprintf("addr del %s/24 dev eth0\naddr add %s/24 dev eth0\nroute replace default via %s.1\n", old, h.addr, st.sa.lan), "ip", "-n", h.ns, "-batch", "-")
	}
	var st *labSite
	if to == "home" {
		st = l.sites[strings.ToUpper(host)]
		if host == "b" && l.cfg.SameNAT {
			st = l.sites["A"]
		} else {
			last = 2
		}
		if st.noNAT4 {
			last--
		}
	} else {
		if to == "" {
			to = "eim-apdf"
		}
		if l.sites["R"] == nil {
			if err := l.addSite("R", to); err != nil {
				return "", err
			}
			l.links()
		}
		st = l.sites["R"]
		if st.kind != to {
			return "", fmt.Errorf("the roaming site already exists with kind %s", st.kind)
		}
	}
	if err := sh("ip", "-n", h.ns, "link", "del", "eth0"); err != nil {
		return "", err
	}
	if err := l.attach(h, st, last); err != nil {
		return "", err
	}
	return h.addr, nil
}

func (l *lab) status() string {
	type pairStat struct{ Pkts, Bytes, Lost, QueueDrop, Blocked uint64 }
	type natStat struct {
		Mappings                               int
		Created, Rebinds                       uint64
		DropNoMapping, DropFiltered, DropOther uint64
		Hairpins                               uint64
		External                               string
	}
	out := struct {
		Lab     string
		PID     int
		A, B    string
		Hosts   map[string]string
		Pairs   map[string]pairStat
		NATs    map[string]natStat
		NoRoute uint64
		Ports   map[string][3]uint64
		Late    map[string][8]uint64
	}{Lab: l.cfg.Lab, PID: os.Getpid(), A: l.cfg.A, B: l.cfg.B, Hosts: map[string]string{}, Pairs: map[string]pairStat{}, NATs: map[string]natStat{},
		Ports: map[string][3]uint64{}, Late: map[string][8]uint64{}, NoRoute: l.core.noRoute.Load()}
	for n, h := range l.hosts {
		out.Hosts[n] = h.addr
	}
	disp := map[string]string{"P": "pub", "Q": "pub2", "A": "a", "B": "b", "R": "roam"}
	for _, s := range l.core.sites {
		for _, d := range l.core.sites {
			p := l.core.paths[s.idx][d.idx]
			ps := pairStat{p.pkts.Load(), p.bytes.Load(), p.lost.Load(), p.queueDrop.Load(), p.blocked.Load()}
			if ps != (pairStat{}) {
				out.Pairs[disp[s.name]+">"+disp[d.name]] = ps
			}
		}
		var lt [8]uint64
		for i := range lt {
			lt[i] = s.sch.late[i].Load()
		}
		if lt != [8]uint64{} {
			out.Late[disp[s.name]] = lt
		}
	}
	for _, st := range l.sites {
		if st.port != nil {
			out.Ports[st.name] = [3]uint64{st.port.rx.Load(), st.port.tx.Load(), st.port.txErr.Load()}
		}
		for _, n := range st.nats {
			n.mu.Lock()
			out.NATs[n.name] = natStat{len(n.in), n.created.Load(), n.rebinds.Load(), n.dropNoMap.Load(), n.dropFilter.Load(), n.dropOther.Load(), n.hairpins.Load(), uip4(n.pool[n.cur]).String()}
			n.mu.Unlock()
		}
	}
	b, _ := json.MarshalIndent(out, "", " ")
	return string(b)
}

// daemon owns a lab from build to teardown. It reports on ready, one line.
func daemon(cfg Config, ready *os.File) {
	l := &lab{cfg: cfg, core: newCore(cfg.Seed), sites: map[string]*labSite{}, hosts: map[string]*labHost{}, done: make(chan struct{})}
	sig := make(chan os.Signal, 4)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	fail := func(err error) {
		fmt.Fprintf(ready, "error: %v\n", err)
		l.teardown()
		os.Exit(1)
	}
	if err := l.build(); err != nil {
		fail(err)
	}
	ln, err := net.Listen("unix", filepath.Join(stateDir(cfg.Lab), "ctl.sock"))
	if err != nil {
		fail(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var r ctlReq
				if json.NewDecoder(c).Decode(&r) != nil {
					return
				}
				out, err := l.control(r)
				resp := ctlResp{Out: out}
				if err != nil {
					resp.Err = err.Error()
				}
				json.NewEncoder(c).Encode(resp)
			}()
		}
	}()
	fmt.Fprintln(ready, "ready")
	ready.Close()
	var ttl <-chan time.Time
	if cfg.TTL > 0 {
		ttl = time.After(cfg.TTL)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	for {
		select {
		case <-sig:
		case <-ttl:
		case <-l.done:
		case <-tick.C:
			if cfg.BindPID > 0 && syscall.Kill(cfg.BindPID, 0) == syscall.ESRCH {
				break
			}
			continue
		}
		break
	}
	l.once.Do(func() { close(l.done) })
	ln.Close()
	l.teardown()
}
