package main

// RFC 4787 / RFC 5780 style probes against the lab's own hosts.

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

func udpIn(nsn string, laddr netip.AddrPort) (c *net.UDPConn, err error) {
	network := "udp4"
	if laddr.Addr().Is6() {
		network = "udp6"
	}
	err = inNS(nsn, func() (e error) {
		c, e = net.ListenUDP(network, net.UDPAddrFromAddrPort(laddr))
		return
	})
	return
}

var any4 = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
var any6 = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)

// responder answers on two addresses x two ports of pub.
//
//	"Q id from delayMS" -> from socket number `from`: "R id observed"
type responder struct {
	c    [4]*net.UDPConn
	addr [4]netip.AddrPort
}

func newResponder(lab string, v6 bool) (*responder, error) {
	r := &responder{}
	ips := []string{pubIP, pubAlt}
	if v6 {
		ips = []string{pub6, pub6Alt}
	}
	for i := range r.c {
		r.addr[i] = netip.AddrPortFrom(netip.MustParseAddr(ips[i/2]), uint16(17001+i%2))
		c, err := udpIn(nsName(lab, "pub"), r.addr[i])
		if err != nil {
			return nil, err
		}
		r.c[i] = c
		go func() {
			b := make([]byte, 1500)
			for {
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				var id string
				var k, d int
				if x, _ := fmt.Sscanf(string(b[:n]), "Q %s %d %d", &id, &k, &d); x != 3 || k < 0 || k > 3 {
					continue
				}
				m := []byte(fmt.Sprintf("R %s %s", id, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())))
				if d == 0 {
					r.c[k].WriteToUDPAddrPort(m, from)
				} else {
					time.AfterFunc(time.Duration(d)*time.Millisecond, func() { r.c[k].WriteToUDPAddrPort(m, from) })
				}
			}
		}()
	}
	return r, nil
}

func (r *responder) close() {
	for _, c := range r.c {
		if c != nil {
			c.Close()
		}
	}
}

var errNoReply = errors.New("no reply")

// query sends to responder socket `to`, asking an answer from socket `from`.
func (r *responder) query(c *net.UDPConn, to, from, delayMS int, wait time.Duration, tries int) (netip.AddrPort, error) {
	id := fmt.Sprintf("%d", nanotime())
	b := make([]byte, 1500)
	for range tries {
		if _, err := c.WriteToUDPAddrPort([]byte(fmt.Sprintf("Q %s %d %d", id, from, delayMS)), r.addr[to]); err != nil {
			return netip.AddrPort{}, err
		}
		c.SetReadDeadline(time.Now().Add(wait))
		for {
			n, _, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				var ne net.Error
				if errors.As(err, &ne) && ne.Timeout() {
					break
				}
				continue // ICMP error
			}
			var got, obs string
			if x, _ := fmt.Sscanf(string(b[:n]), "R %s %s", &got, &obs); x == 2 && got == id {
				return netip.ParseAddrPort(obs)
			}
		}
	}
	return netip.AddrPort{}, errNoReply
}

type verdict struct {
	UDP, Mapping, Filtering, Alloc, Hairpin, TCP443, TCPOther, Proxy string
	Timeout                                                          string
}

const probeWait = 250 * time.Millisecond

func probe(lab, host string, v6 bool, wait time.Duration) (v verdict, err error) {
	n := nsName(lab, host)
	r, err := newResponder(lab, v6)
	if err != nil {
		return v, err
	}
	defer r.close()
	anyA := any4
	if v6 {
		anyA = any6
	}
	sock := func() *net.UDPConn {
		c, e := udpIn(n, anyA)
		if e != nil {
			err = e
		}
		return c
	}
	v = verdict{UDP: "no", Mapping: "-", Filtering: "-", Alloc: "-", Hairpin: "-", TCP443: "no", TCPOther: "no"}
	tcp := func(port int) string {
		ip := pubIP
		if v6 {
			ip = pub6
		}
		var ln net.Listener
		if e := inNS(nsName(lab, "pub"), func() (e error) {
			ln, e = net.Listen("tcp", net.JoinHostPort(ip, fmt.Sprint(port)))
			return
		}); e != nil {
			return e.Error()
		}
		defer ln.Close()
		go func() {
			for {
				c, e := ln.Accept()
				if e != nil {
					return
				}
				c.Write([]byte("hi\n"))
				c.Close()
			}
		}()
		res := "no"
		inNS(n, func() error {
			c, e := net.DialTimeout("tcp", ln.Addr().String(), 2*wait+200*time.Millisecond)
			if e != nil {
				return e
			}
			defer c.Close()
			if s, _ := bufio.NewReader(c).ReadString('\n'); s == "hi\n" {
				res = "yes"
			}
			return nil
		})
		return res
	}
	v.TCP443, v.TCPOther = tcp(443), tcp(8080)
	c := sock()
	if err != nil {
		return
	}
	defer c.Close()
	m := [4]netip.AddrPort{}
	if m[0], err = r.query(c, 0, 0, 0, wait, 3); err == errNoReply {
		return v, nil
	} else if err != nil { // no route to this family at all
		v.UDP = "no"
		return v, nil
	}
	v.UDP = "yes"
	for i := 1; i < 4; i++ {
		if m[i], err = r.query(c, i, i, 0, wait, 3); err != nil {
			return
		}
	}
	switch {
	case m[0] == m[1] && m[1] == m[2] && m[2] == m[3]:
		v.Mapping = EI
	case m[0] == m[1] && m[2] == m[3]:
		v.Mapping = AD
	default:
		v.Mapping = APD
	}
	// external ports of fresh sockets, in order of creation
	pres, seq, prev := true, true, m[3].Port()
	for i := range 4 {
		d := sock()
		if err != nil {
			return
		}
		lp := d.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		x, e := r.query(d, 0, 0, 0, wait, 3)
		d.Close()
		if e != nil {
			return v, e
		}
		pres = pres && x.Port() == lp
		if i > 0 || v.Mapping == APD {
			seq = seq && x.Port() == prev+1
		}
		prev = x.Port()
	}
	switch {
	case pres:
		v.Alloc = "preserve"
	case seq:
		v.Alloc = "seq"
	default:
		v.Alloc = "random"
	}
	// is there an address translation at all?
	var la netip.Addr
	inNS(n, func() error {
		u, e := net.Dial("udp", r.addr[0].String())
		if e == nil {
			la = u.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
			u.Close()
		}
		return e
	})
	if la == m[0].Addr() {
		v.Mapping = "none"
	}
	// filtering: ask for the answer from elsewhere; a fresh socket each time
	ask := func(from int) bool {
		d := sock()
		if err != nil {
			return false
		}
		defer d.Close()
		_, e := r.query(d, 0, from, 0, wait, 2)
		return e == nil
	}
	switch {
	case ask(3):
		v.Filtering = EI
	case ask(1):
		v.Filtering = AD
	default:
		v.Filtering = APD
	}
	// hairpin: second socket sends to the first one's external address
	h1, h2 := sock(), sock()
	if err != nil {
		return
	}
	defer h1.Close()
	defer h2.Close()
	e1, e := r.query(h1, 0, 0, 0, wait, 3)
	if e != nil {
		return v, e
	}
	e2, e := r.query(h2, 0, 0, 0, wait, 3)
	if e != nil {
		return v, e
	}
	v.Hairpin = "no"
	b := make([]byte, 100)
	for range 3 {
		h1.WriteToUDPAddrPort([]byte("open"), e2) // opens h1's filter for h2
		h2.WriteToUDPAddrPort([]byte("hair"), e1)
		h1.SetReadDeadline(time.Now().Add(wait))
		if k, from, e := h1.ReadFromUDPAddrPort(b); e == nil && string(b[:k]) == "hair" {
			v.Hairpin = "yes"
			if from.Addr().Unmap() != e2.Addr() {
				v.Hairpin = "yes/int-src"
			}
			break
		}
	}
	return v, nil
}

// timeouts finds between which silences a mapping disappears.
func timeouts(lab, host string, secs []int) string {
	r, err := newResponder(lab, false)
	if err != nil {
		return err.Error()
	}
	defer r.close()
	ok := make([]bool, len(secs))
	var wg sync.WaitGroup
	for i, s := range secs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := udpIn(nsName(lab, host), any4)
			if err != nil {
				return
			}
			defer c.Close()
			_, err = r.query(c, 0, 0, s*1000, time.Duration(s)*time.Second+time.Second, 1)
			ok[i] = err == nil
		}()
	}
	wg.Wait()
	lo, hi := 0, 0
	for i, s := range secs {
		if ok[i] {
			lo = s
		} else if hi == 0 {
			hi = s
		}
	}
	if hi == 0 {
		return fmt.Sprintf(">%ds", lo)
	}
	return fmt.Sprintf("%d-%ds", lo, hi)
}

func proxyProbe(lab, host, lan string) string {
	res := "no"
	var ln net.Listener
	if e := inNS(nsName(lab, "pub"), func() (e error) {
		ln, e = net.Listen("tcp", pubIP+":443")
		return
	}); e != nil {
		return e.Error()
	}
	defer ln.Close()
	go func() {
		for {
			c, e := ln.Accept()
			if e != nil {
				return
			}
			c.Write([]byte("via-proxy\n"))
			c.Close()
		}
	}()
	inNS(nsName(lab, host), func() error {
		c, e := net.DialTimeout("tcp", lan+".1:3128", time.Second)
		if e != nil {
			return e
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintf(c, "CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n\r\n", pubIP, pubIP)
		br := bufio.NewReader(c)
		resp, e := http.ReadResponse(br, &http.Request{Method: "CONNECT"})
		if e != nil || resp.StatusCode != 200 {
			return e
		}
		if s, _ := br.ReadString('\n'); s == "via-proxy\n" {
			res = "yes"
		}
		return nil
	})
	return res
}
