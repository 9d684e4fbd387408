package main

// Building a lab: namespaces, public hosts, links, and taking it all down.

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

type labSite struct {
	*site
	spec    kindSpec
	kind    string
	nats    []*nat
	port    *port
	router  string // namespace
	sa      siteAddr
	noNAT4  bool
	rebinds int
	ext     string
}

type labHost struct {
	name, ns string
	site     *labSite
	addr     string
}

type lab struct {
	cfg   Config
	core  *core
	mu    sync.Mutex
	nss   []string
	sites map[string]*labSite
	hosts map[string]*labHost
	kids  []*exec.Cmd
	cgn   *nat
	done  chan struct{}
	once  sync.Once
}

func (l *lab) addNS(host string) (string, error) {
	n := nsName(l.cfg.Lab, host)
	l.nss = append(l.nss, n)
	if err := l.saveState(); err != nil {
		return "", err
	}
	if err := sh("ip", "netns", "add", n); err != nil {
		return "", err
	}
	return n, inNS(n, func() error {
		for k, v := range map[string]string{
			"ipv4/ip_forward": "0", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
			"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0",
			"ipv6/conf/all/accept_ra": "0", "ipv6/conf/default/accept_ra": "0",
			"ipv4/conf/all/send_redirects": "0", "ipv4/conf/default/send_redirects": "0",
		} {
			os.WriteFile("/proc/sys/net/"+k, []byte(v), 0)
		}
		return sh("ip", "link", "set", "lo", "up")
	})
}

func sysctl(nsn, k, v string) error {
	return inNS(nsn, func() error { return os.WriteFile("/proc/sys/net/"+k, []byte(v), 0) })
}

func (l *lab) saveState() error {
	b, _ := json.Marshal(map[string]any{"pid": os.Getpid(), "ns": l.nss, "cfg": l.cfg})
	return os.WriteFile(filepath.Join(stateDir(l.cfg.Lab), "state.json"), b, 0o600)
}

func pfx(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return
}

func (l *lab) tun(nsn, dev string, up upNode) (*port, error) {
	f, err := openTUN(nsn, dev)
	if err != nil {
		return nil, err
	}
	p := &port{name: nsn, f: f, up: up}
	mtu := l.cfg.MTU
	return p, shIn(fmt.Sprintf("link set %s mtu %d txqueuelen 4000 up\n", dev, mtu), "ip", "-n", nsn, "-batch", "-")
}

func (l *lab) addPub(host, s, ip, alt, ip6, alt6 string) error {
	n, err := l.addNS(host)
	if err != nil {
		return err
	}
	st := &labSite{kind: "public", router: n}
	st.site = l.core.addSite(s, pfx(ip+"/24"), pfx(ip6+"/32"))
	if st.port, err = l.tun(n, "eth0", st.site); err != nil {
		return err
	}
	st.site.top = st.port
	l.sites[s] = st
	l.hosts[host] = &labHost{name: host, ns: n, site: st, addr: ip}
	go st.port.readLoop()
	return shIn(fmt.Sprintf("addr add %s/32 dev eth0\naddr add %s/32 dev eth0\naddr add %s/128 dev eth0 nodad\naddr add %s/128 dev eth0 nodad\nroute add default dev eth0 src %s\nroute add ::/0 dev eth0 src %s\n",
		ip, alt, ip6, alt6, ip, ip6), "ip", "-n", n, "-batch", "-")
}

func (l *lab) build() error {
	c := &l.cfg
	if err := l.addPub("pub", "P", pubIP, pubAlt, pub6, pub6Alt); err != nil {
		return err
	}
	if c.Pub2 {
		if err := l.addPub("pub2", "Q", pub2IP, pub2Alt, pub26, pub26Alt); err != nil {
			return err
		}
	}
	if err := l.addSite("A", c.A); err != nil {
		return err
	}
	if !c.SameNAT {
		if err := l.addSite("B", c.B); err != nil {
			return err
		}
	}
	for _, h := range []string{"a", "b"} {
		n, err := l.addNS(h)
		if err != nil {
			return err
		}
		hh := &labHost{name: h, ns: n}
		l.hosts[h] = hh
		st, last := l.sites[strings.ToUpper(h)], 2
		if h == "b" && c.SameNAT {
			st, last = l.sites["A"], 3
		}
		if st.noNAT4 {
			last-- // public address .1
		}
		if err := l.attach(hh, st, last); err != nil {
			return err
		}
	}
	return l.links()
}

func ms(f float64) time.Duration { return time.Duration(f * float64(time.Millisecond)) }

func rates(s string) (up, down float64) {
	if s == "" {
		return
	}
	u, d, ok := strings.Cut(s, "/")
	up, _ = strconv.ParseFloat(u, 64)
	down = up
	if ok {
		down, _ = strconv.ParseFloat(d, 64)
	}
	return
}

// links applies the configured delay, loss and rate to every pair of sites.
func (l *lab) links() error {
	c := &l.cfg
	for _, s := range l.core.sites {
		for _, d := range l.core.sites {
			rtt := c.RTT
			k := s.name + d.name
			has := func(x string) bool { return strings.Contains(k, x) }
			switch {
			case has("A") && has("B") && c.RTTAB >= 0:
				rtt = c.RTTAB
			case has("P") && has("A") && c.RTTA >= 0:
				rtt = c.RTTA
			case has("P") && has("B") && c.RTTB >= 0:
				rtt = c.RTTB
			case s == d:
				rtt = 0
			}
			p := l.core.paths[s.idx][d.idx]
			p.mu.Lock()
			blk, longest := p.lp.Block, p.lp.MaxLen
			p.lp = linkParams{Delay: ms(rtt / 2), Jitter: ms(c.Jitter), Loss: c.Loss / 100, Burst: c.Burst, Reorder: c.Reorder / 100, Block: blk, MaxLen: longest}
			p.mu.Unlock()
		}
		r := c.Rate
		switch s.name {
		case "A":
			if c.RateA != "" {
				r = c.RateA
			}
		case "B":
			if c.RateB != "" {
				r = c.RateB
			}
		case "P", "Q":
			r = c.RatePub
		}
		up, down := rates(r)
		s.up.set(up, ms(c.QueueMS))
		s.down.set(down, ms(c.QueueMS))
	}
	l.core.mtuBlack.Store(int64(c.MTUBlack))
	return nil
}

func (l *lab) teardown() {
	for _, k := range l.kids {
		k.Process.Kill()
		k.Wait()
	}
	for _, st := range l.sites {
		if st.port != nil && st.port.f != nil {
			st.port.f.Close()
		}
	}
	removeNS(l.nss)
	os.RemoveAll(stateDir(l.cfg.Lab))
}

// removeNS ends what still runs inside the lab's own namespaces and deletes them.
func removeNS(nss []string) {
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		n := 0
		for _, x := range nss {
			if _, err := os.Stat("/run/netns/" + x); err != nil {
				continue
			}
			out, _ := exec.Command("ip", "netns", "pids", x).Output()
			for _, f := range strings.Fields(string(out)) {
				if p, _ := strconv.Atoi(f); p > 1 && p != os.Getpid() && p != os.Getppid() {
					syscall.Kill(p, sig)
					n++
				}
			}
		}
		if n == 0 {
			break
		}
		time.Sleep(time.Duration(150*(i+1)) * time.Millisecond)
	}
	for _, x := range nss {
		if _, err := os.Stat("/run/netns/" + x); err == nil {
			exec.Command("ip", "netns", "del", x).Run()
		}
	}
}
