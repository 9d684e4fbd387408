package main

// One access network: router, uplink, NAT chain, rules, LAN.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// addSite makes an access network: router namespace "nat"+s with a bridge br0
// for the LAN and a TUN wan0 whose other end is this process.
func (l *lab) addSite(s, kind string) error {
	spec, ok := kinds[kind]
	if !ok {
		return fmt.Errorf("unknown NAT kind %q", kind)
	}
	for _, c := range strings.Split(l.cfg.UDPBlock, ",") {
		if strings.EqualFold(c, s) {
			spec.block = "udp"
		}
	}
	for _, c := range strings.Split(l.cfg.V6, ",") {
		if strings.EqualFold(c, s) {
			spec.v6 = true
		}
	}
	sa := siteAddrs[s]
	if s == "B" && l.cfg.SameSubnet {
		sa.lan = siteAddrs["A"].lan
	}
	r, err := l.addNS("nat" + s)
	if err != nil {
		return err
	}
	st := &labSite{spec: spec, kind: kind, router: r, sa: sa, ext: sa.ext + ".1"}
	ext := []string{sa.ext + ".0/24"}
	st.site = l.core.addSite(s, pfx(ext...), pfx(sa.p6+"::/32"))
	pool := []uint32{}
	for i := 1; i <= 4; i++ {
		pool = append(pool, ip4u(netip.MustParseAddr(fmt.Sprintf("%s.%d", sa.ext, i))))
	}
	cfg := l.cfg
	if spec.timeout > 0 && !l.cfg.timeoutSet() {
		cfg.UDPTimeout = spec.timeout
	}
	var up upNode = st.site
	var top downNode
	if spec.carrier != nil {
		c := l.cgn
		if c == nil || !l.cfg.SameCGN {
			c = newNAT("cgn"+s, *spec.carrier, pool, &cfg, l.cfg.Seed+uint64(s[0])*3)
			c.below = map[uint32]downNode{}
			c.up = st.site
			l.cgn = c
			top = c
		} else { // this site hangs below the other site's carrier NAT
			st.ext = l.sites["A"].ext
		}
		st.nats = append(st.nats, c)
		up = c
		pool = []uint32{ip4u(netip.MustParseAddr(sa.cgn))}
	}
	var home *nat
	if spec.nat != nil && !spec.no4 {
		home = newNAT("home"+s, *spec.nat, pool, &cfg, l.cfg.Seed+uint64(s[0]))
		home.up = up
		up = home
		st.nats = append(st.nats, home)
		if spec.carrier != nil {
			l.cgn.below[pool[0]] = home
			if l.cgn.dflt == nil {
				l.cgn.dflt = home
			}
		} else {
			top = home
		}
	}
	if st.port, err = l.tun(r, "wan0", up); err != nil {
		return err
	}
	if home != nil {
		home.dflt = st.port
	}
	if top == nil {
		top = st.port
	}
	if !(l.cfg.SameCGN && spec.carrier != nil && s == "B") {
		st.site.top = top
	}
	l.sites[s] = st
	go st.port.readLoop()

	b := &strings.Builder{}
	fmt.Fprintf(b, "link add br0 type bridge forward_delay 0\nlink set br0 mtu %d up\n", max(l.cfg.MTU, 1500))
	wan := sa.wan
	st.noNAT4 = spec.nat == nil && spec.kernel == ""
	lanGW := sa.lan + ".1/24"
	if st.noNAT4 {
		wan = sa.ext + ".254"
		lanGW = sa.ext + ".254/24"
	} else if spec.kernel != "" {
		wan = sa.ext + ".1"
	}
	if !spec.no4 {
		if !st.noNAT4 {
			fmt.Fprintf(b, "addr add %s/32 dev wan0\n", wan)
		}
		fmt.Fprintf(b, "addr add %s dev br0\nroute add default dev wan0 src %s\n", lanGW, wan)
	}
	if spec.v6 {
		fmt.Fprintf(b, "addr add %s::fe/128 dev wan0 nodad\naddr add %s:0:1::1/64 dev br0 nodad\nroute add ::/0 dev wan0\n", sa.p6, sa.p6)
	}
	if err := shIn(b.String(), "ip", "-n", r, "-batch", "-"); err != nil {
		return err
	}
	sysctl(r, "ipv4/ip_forward", "1")
	sysctl(r, "ipv6/conf/all/forwarding", "1")
	return l.rules(s, st)
}

func (c *Config) timeoutSet() bool { return c.UDPTimeout != defaultUDPTimeout }

const defaultUDPTimeout = 120 * time.Second

func (l *lab) nft(nsn, rules string) error {
	return shIn(rules, "ip", "netns", "exec", nsn, "nft", "-f", "-")
}

func (l *lab) rules(s string, st *labSite) error {
	r, spec := st.router, st.spec
	var b strings.Builder
	input := ""
	if spec.kernel != "nf-open" {
		input = `chain input { type filter hook input priority 0; policy accept;
   iifname "wan0" ct state established,related accept
   iifname "wan0" ip protocol icmp accept
   iifname "wan0" drop
 }`
	}
	fwd := `ct state established,related accept
   iifname "br0" accept
   meta l4proto ipv6-icmp accept
   ct status dnat accept`
	switch {
	case spec.kernel == "upnp":
		fmt.Fprintf(&b, `table inet filter {
 %s
 chain forward { type filter hook forward priority 0; policy drop;
   %s
   jump miniupnpd
 }
 chain miniupnpd { }
 chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd
 }
 chain postrouting { type nat hook postrouting priority 100; policy accept; jump postrouting_miniupnpd; oifname "wan0" ip saddr 192.168.0.0/16 masquerade
 }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
}
`, input, fwd)
	case spec.kernel != "":
		opt := ""
		if spec.kernel == "nf-random" {
			opt = "random,fully-random"
		}
		fmt.Fprintf(&b, `table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade %s
 }
}
table inet filter {
 %s
 chain forward { type filter hook forward priority 0; policy drop;
   %s
 }
}
`, opt, input, fwd)
	case spec.fw:
		fmt.Fprintf(&b, "table inet filter { chain forward { type filter hook forward priority 0; policy drop;\n %s\n }\n}\n", fwd)
	case spec.v6:
		fmt.Fprintf(&b, "table ip6 filter { chain forward { type filter hook forward priority 0; policy drop;\n %s\n }\n}\n",
			strings.Replace(fwd, "ct status dnat accept", "", 1))
	}
	switch spec.block {
	case "udp":
		b.WriteString("table inet blk { chain lanout { type filter hook forward priority -5; policy accept; iifname \"br0\" oifname \"wan0\" tcp dport != 443 drop; iifname \"br0\" oifname \"wan0\" meta l4proto != tcp drop\n }\n}\n")
	case "proxy":
		b.WriteString("table inet blk { chain lanout { type filter hook forward priority -5; policy accept; iifname \"br0\" oifname \"wan0\" drop\n }\n}\n")
	}
	if spec.kernel != "" && l.cfg.timeoutOr(0) > 0 {
		v := strconv.Itoa(int(l.cfg.UDPTimeout / time.Second))
		sysctl(r, "netfilter/nf_conntrack_udp_timeout", v)
		sysctl(r, "netfilter/nf_conntrack_udp_timeout_stream", v)
	}
	if b.Len() > 0 {
		if err := l.nft(r, b.String()); err != nil {
			return err
		}
	}
	if spec.block == "proxy" {
		if err := l.proxy(st); err != nil {
			return err
		}
	}
	if spec.kernel == "upnp" {
		return l.upnp(st)
	}
	return nil
}

func (c *Config) timeoutOr(d time.Duration) time.Duration {
	if c.timeoutSet() {
		return c.UDPTimeout
	}
	return d
}

func (l *lab) upnp(st *labSite) error {
	dir := stateDir(l.cfg.Lab)
	f := filepath.Join(dir, "miniupnpd-"+st.name+".conf")
	conf := fmt.Sprintf(`ext_ifname=wan0
listening_ip=br0
http_port=5000
enable_natpmp=yes
enable_upnp=yes
min_lifetime=120
max_lifetime=86400
secure_mode=yes
system_uptime=yes
notify_interval=30
uuid=00000000-0000-4000-8000-00000000000%d
serial=natlab
model_number=1
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
lease_file=%s/upnp-%s.leases
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`, st.idx, dir, st.name)
	if err := os.WriteFile(f, []byte(conf), 0o644); err != nil {
		return err
	}
	lg, _ := os.Create(filepath.Join(dir, "miniupnpd-"+st.name+".log"))
	c := exec.Command("ip", "netns", "exec", st.router, "miniupnpd", "-d", "-f", f, "-P", filepath.Join(dir, "miniupnpd-"+st.name+".pid"))
	c.Stdout, c.Stderr = lg, lg
	if err := c.Start(); err != nil {
		return err
	}
	l.kids = append(l.kids, c)
	return nil
}

// attach plugs a host into a site's LAN.
func (l *lab) attach(h *labHost, st *labSite, last int) error {
	h.site = st
	lan := st.sa.lan
	if st.noNAT4 {
		lan = st.sa.ext
	}
	gw := lan + ".1"
	if st.noNAT4 {
		gw = lan + ".254"
	}
	port := "lan-" + h.name
	b := &strings.Builder{}
	fmt.Fprintf(b, "link set eth0 up mtu %d\n", 1500)
	if !st.spec.no4 {
		h.addr = fmt.Sprintf("%s.%d", lan, last)
		fmt.Fprintf(b, "addr add %s/24 dev eth0\nroute add default via %s\n", h.addr, gw)
	}
	if st.spec.v6 {
		fmt.Fprintf(b, "addr add %s:0:1::%x/64 dev eth0 nodad\nroute add ::/0 via %s:0:1::1\n", st.sa.p6, last+0x10, st.sa.p6)
		if st.spec.no4 {
			h.addr = fmt.Sprintf("%s:0:1::%x", st.sa.p6, last+0x10)
		}
	}
	rb := fmt.Sprintf("link set %s master br0 up\n", port)
	if l.cfg.LANIsolated {
		rb += fmt.Sprintf("link set %s type bridge_slave isolated on\n", port)
	}
	if err := sh("ip", "link", "add", "eth0", "netns", h.ns, "type", "veth", "peer", "name", port, "netns", st.router); err != nil {
		return err
	}
	if err := shIn(rb, "ip", "-n", st.router, "-batch", "-"); err != nil {
		return err
	}
	if err := shIn(b.String(), "ip", "-n", h.ns, "-batch", "-"); err != nil {
		return err
	}
	var gws []string
	if !st.spec.no4 {
		gws = append(gws, gw+":9")
	}
	if st.spec.v6 {
		gws = append(gws, fmt.Sprintf("[%s:0:1::1]:9", st.sa.p6))
	}
	return waitLAN(h.ns, gws)
}

// waitLAN returns when the host really reaches its gateway (a refused TCP
// connection proves it): bridge ports start forwarding a little late.
func waitLAN(nsn string, gws []string) error {
	for _, g := range gws {
		end := time.Now().Add(5 * time.Second)
		for {
			err := inNS(nsn, func() error {
				c, err := net.DialTimeout("tcp", g, 100*time.Millisecond)
				if err == nil {
					c.Close()
				}
				return err
			})
			if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("%s cannot reach its gateway: %w", nsn, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}
