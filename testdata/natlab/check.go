package main

// Self-test: every kind behaves as labelled.

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// want is what a kind must measure as.
func want(kind string) (v4, v6 verdict) {
	k := kinds[kind]
	no := verdict{UDP: "no", Mapping: "-", Filtering: "-", Alloc: "-", Hairpin: "-", TCP443: "no", TCPOther: "no"}
	v4, v6 = verdict{UDP: "yes", TCP443: "yes", TCPOther: "yes"}, no
	switch {
	case k.no4:
		v4 = no
	case k.block == "udp":
		v4 = no
		v4.TCP443 = "yes"
	case k.block == "proxy":
		v4 = no
	case k.kernel == "nf-random":
		v4.Mapping, v4.Filtering, v4.Alloc, v4.Hairpin = APD, APD, "random", "no"
	case k.kernel != "":
		v4.Mapping, v4.Filtering, v4.Alloc, v4.Hairpin = EI, APD, "preserve", "no"
	case k.nat == nil:
		v4.Mapping, v4.Filtering, v4.Alloc, v4.Hairpin = "none", EI, "preserve", "yes"
		if k.fw {
			v4.Filtering = APD
		}
	default:
		m, f, a := k.nat.Mapping, k.nat.Filtering, k.nat.Alloc
		if k.carrier != nil {
			order := []string{EI, AD, APD}
			m = order[max(slices.Index(order, m), slices.Index(order, k.carrier.Mapping))]
			f = order[max(slices.Index(order, f), slices.Index(order, k.carrier.Filtering))]
			a = k.carrier.Alloc
		}
		v4.Mapping, v4.Filtering, v4.Alloc, v4.Hairpin = m, f, a, "yes"
		if m != EI { // the mapping seen by a third party admits nobody else
			v4.Hairpin = "no"
		}
	}
	if k.v6 {
		v6 = verdict{UDP: "yes", Mapping: "none", Filtering: APD, Alloc: "preserve", Hairpin: "yes", TCP443: "yes", TCPOther: "yes"}
	}
	return
}

func sigDown(ids *sync.Map) {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-sig
		ids.Range(func(k, _ any) bool { down(k.(string)); return true })
		os.Exit(130)
	}()
}

func checkCmd(fs *flag.FlagSet, args []string) error {
	c := upFlags(fs)
	kk := fs.String("kinds", "", "comma-separated (default: all)")
	to := fs.Bool("timeouts", false, "also measure UDP mapping lifetimes (about 130 s)")
	fs.Parse(args)
	list := kindOrder
	if *kk != "" {
		list = strings.Split(*kk, ",")
	}
	var ids sync.Map
	sigDown(&ids)
	type row struct {
		kind   string
		v4, v6 verdict
		to     string
		err    error
		bad    []string
	}
	rows := make([]row, len(list))
	var wg sync.WaitGroup
	sem := make(chan struct{}, 2)
	for i, k := range list {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rw := &rows[i]
			rw.kind = k
			cc := *c
			cc.Lab, cc.A, cc.B = fmt.Sprintf("chk%d_%d", os.Getpid(), i), k, k
			cc.BindPID = os.Getpid()
			sem <- struct{}{}
			ids.Store(cc.Lab, true)
			rw.err = up(cc)
			wait := probeWait + ms(cc.RTT+2*cc.Jitter)
			if rw.err == nil {
				rw.v4, rw.err = probe(cc.Lab, "a", false, wait)
				if rw.err == nil {
					rw.v6, rw.err = probe(cc.Lab, "a", true, wait)
				}
				if rw.err == nil && kinds[k].block == "proxy" {
					rw.v4.Proxy = proxyProbe(cc.Lab, "a", siteAddrs["A"].lan)
				}
			}
			<-sem
			if rw.err == nil && *to && rw.v4.UDP == "yes" {
				rw.to = timeouts(cc.Lab, "a", []int{5, 10, 15, 18, 22, 28, 32, 45, 60, 90, 115, 125})
			}
			down(cc.Lab)
			ids.Delete(cc.Lab)
			if rw.err != nil {
				return
			}
			w4, w6 := want(k)
			if kinds[k].block == "proxy" {
				w4.Proxy = "yes"
			}
			if c.NoHairpin && kinds[k].nat != nil && w4.Hairpin == "yes" {
				w4.Hairpin = "no"
			}
			if rw.v4 != w4 {
				rw.bad = append(rw.bad, fmt.Sprintf("v4: want %+v", w4))
			}
			if rw.v6 != w6 {
				rw.bad = append(rw.bad, fmt.Sprintf("v6: want %+v", w6))
			}
			wt := map[bool]string{true: "115-125s", false: "n/a"}[kinds[k].nat != nil]
			if kinds[k].timeout == 20*time.Second {
				wt = "18-22s"
			} else if kinds[k].kernel != "" || kinds[k].fw {
				wt = "28-32s" // netfilter's unreplied UDP timeout is 30 s
			} else if kinds[k].nat == nil {
				wt = ">125s"
			}
			if rw.to != "" && !c.timeoutSet() && rw.to != wt {
				rw.bad = append(rw.bad, "timeout: want "+wt)
			}
		}()
	}
	wg.Wait()
	fmt.Printf("%-12s | %-4s %-7s %-9s %-8s %-7s %-9s | %-6s %-5s %-5s | %-4s %-7s %-9s | %s\n", "kind", "udp", "mapping", "filtering", "ports", "hairpin", "lifetime", "tcp443", "other", "proxy", "v6", "mapping", "filtering", "as labelled")
	fails := 0
	for _, r := range rows {
		if r.err != nil {
			fmt.Printf("%-12s | ERROR %v\n", r.kind, r.err)
			fails++
			continue
		}
		v := "yes"
		if len(r.bad) > 0 {
			v = "NO " + strings.Join(r.bad, "; ")
			fails++
		}
		fmt.Printf("%-12s | %-4s %-7s %-9s %-8s %-7s %-9s | %-6s %-5s %-5s | %-4s %-7s %-9s | %s\n", r.kind, r.v4.UDP, r.v4.Mapping, r.v4.Filtering, r.v4.Alloc, r.v4.Hairpin, r.to,
			r.v4.TCP443, r.v4.TCPOther, r.v4.Proxy, r.v6.UDP, r.v6.Mapping, r.v6.Filtering, v)
	}
	if fails > 0 {
		return fmt.Errorf("%d of %d kinds do not behave as labelled", fails, len(rows))
	}
	fmt.Printf("all %d kinds behave as labelled\n", len(rows))
	return nil
}
