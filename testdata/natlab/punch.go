package main

// Reference hole punching, and a round-trip meter.

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

type punchRes struct {
	ok   bool
	took time.Duration
	err  error
}

// punchLab punches over IPv6 when the two have no other family in common; two
// without any, or one without UDP, do not connect.
func punchLab(lab, ka, kb string, d time.Duration) (res punchRes) {
	v6 := kinds[ka].no4 || kinds[kb].no4
	if v6 && !(kinds[ka].v6 && kinds[kb].v6) {
		return punchRes{}
	}
	wild := any4
	if v6 {
		wild = any6
	}
	r, err := newResponder(lab, v6)
	if err != nil {
		return punchRes{err: err}
	}
	defer r.close()
	var s [2]*net.UDPConn
	var x [2]netip.AddrPort
	for i, h := range []string{"a", "b"} {
		if s[i], err = udpIn(nsName(lab, h), wild); err != nil {
			return punchRes{err: err}
		}
		defer s[i].Close()
		if x[i], err = r.query(s[i], 0, 0, 0, time.Second, 3); errors.Is(err, errNoReply) {
			return punchRes{}
		} else if err != nil {
			return punchRes{err: err}
		}
	}
	t0 := time.Now()
	var done [2]time.Duration
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, to := s[i], x[1-i]
			b := make([]byte, 100)
			var mu sync.Mutex
			stop := make(chan struct{})
			go func() {
				for {
					mu.Lock()
					c.WriteToUDPAddrPort([]byte("P"), to)
					mu.Unlock()
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
					}
				}
			}()
			defer close(stop)
			c.SetReadDeadline(t0.Add(d))
			for {
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					if ne, ok := err.(net.Error); ok && ne.Timeout() {
						return
					}
					continue
				}
				switch string(b[:n]) {
				case "P":
					mu.Lock()
					to = from // peer-reflexive address
					mu.Unlock()
					c.WriteToUDPAddrPort([]byte("A"), from)
				case "A":
					if done[i] == 0 {
						done[i] = time.Since(t0)
						c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // still answer the peer
					}
				}
			}
		}()
	}
	wg.Wait()
	return punchRes{ok: done[0] > 0 && done[1] > 0, took: max(done[0], done[1])}
}

func punchCmd(fs *flag.FlagSet, args []string) error {
	c := upFlags(fs)
	kk := fs.String("kinds", "none,eim-eif,eim-adf,eim-apdf,adm-apdf,sym,sym-seq,cgnat,cgnat-sym,nf,nf-open,nf-random", "kinds to pair")
	fs.Parse(args)
	list := strings.Split(*kk, ",")
	var ids sync.Map
	sigDown(&ids)
	fmt.Printf("%-10s", "a \\ b")
	for _, k := range list {
		fmt.Printf(" %-10s", k)
	}
	fmt.Println()
	for i, a := range list {
		out := make([]string, len(list))
		var wg sync.WaitGroup
		sem := make(chan struct{}, 3)
		for j, b := range list {
			wg.Add(1)
			go func() {
				defer wg.Done()
				sem <- struct{}{}
				defer func() { <-sem }()
				cc := *c
				cc.Lab, cc.A, cc.B, cc.BindPID = fmt.Sprintf("pun%d_%d_%d", os.Getpid(), i, j), a, b, os.Getpid()
				cc.Seed = uint64(1 + i*100 + j)
				ids.Store(cc.Lab, true)
				if err := up(cc); err != nil {
					out[j] = "ERR"
					fmt.Fprintln(os.Stderr, a, b, err)
				} else {
					r := punchLab(cc.Lab, a, b, 2*time.Second+ms(4*cc.RTT))
					switch {
					case r.err != nil:
						out[j] = "ERR"
						fmt.Fprintln(os.Stderr, a, b, r.err)
					case r.ok:
						out[j] = fmt.Sprintf("%dms", r.took.Milliseconds())
					default:
						out[j] = "-"
					}
				}
				down(cc.Lab)
				ids.Delete(cc.Lab)
			}()
		}
		wg.Wait()
		fmt.Printf("%-10s", a)
		for _, o := range out {
			fmt.Printf(" %-10s", o)
		}
		fmt.Println()
	}
	return nil
}

func rttCmd(fs *flag.FlagSet, args []string) error {
	c := labFlags(fs)
	n := fs.Int("n", 1000, "probes")
	gap := fs.Duration("gap", 2*time.Millisecond, "between probes")
	host := "a"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		host, args = args[0], args[1:]
	}
	fs.Parse(args)
	r, err := newResponder(c.Lab, false)
	if err != nil {
		return err
	}
	defer r.close()
	u, err := udpIn(nsName(c.Lab, host), any4)
	if err != nil {
		return err
	}
	defer u.Close()
	var got []time.Duration
	lost := 0
	for range *n {
		t := time.Now()
		if _, err := r.query(u, 0, 0, 0, 2*time.Second, 1); err != nil {
			lost++
			continue
		}
		got = append(got, time.Since(t))
		time.Sleep(*gap)
	}
	if len(got) == 0 {
		return errNoReply
	}
	slices.Sort(got)
	q := func(p float64) time.Duration { return got[min(len(got)-1, int(p*float64(len(got))))] }
	fmt.Printf("n=%d lost=%d min=%v p50=%v p90=%v p99=%v max=%v\n", len(got), lost, got[0], q(.5), q(.9), q(.99), got[len(got)-1])
	return nil
}
