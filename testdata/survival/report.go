package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// result is an event with its trials.
type result struct {
	event  event
	trials []*trial
}

// pauses are the least, the median and the greatest.
func (r *result) pauses() (least, median, most time.Duration) {
	var all []time.Duration
	for _, t := range r.trials {
		all = append(all, t.pause)
	}
	slices.Sort(all)
	if len(all) == 0 {
		return 0, 0, 0
	}
	return all[0], (all[(len(all)-1)/2] + all[len(all)/2]) / 2, all[len(all)-1]
}

func (r *result) holds() int {
	n := 0
	for _, t := range r.trials {
		if len(t.faults) == 0 {
			n++
		}
	}
	return n
}

// paths are the changes of path that were seen, the commonest first.
func (r *result) paths() string {
	count := map[string]int{}
	var order []string
	for _, t := range r.trials {
		p := t.pathFirst + " → " + t.path
		if r.event.lost {
			p = "–"
		}
		if count[p] == 0 {
			order = append(order, p)
		}
		count[p]++
	}
	slices.SortStableFunc(order, func(a, b string) int { return count[b] - count[a] })
	return strings.Join(order, ", ")
}

// document is docs/survival.md.
func document(results []*result, o options) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# What a running answer survives")
	p("")
	p("Measured by `testdata/survival`, which also wrote this file: for each trial a NAT laboratory of its own (`testdata/natlab`), a coordinator at a public host, a miner with an AI server behind one NAT and `mintai -mode client ask` behind another, both port-restricted, with R = %v between any two of the three sites. The answer has %d tokens, one each %v: %v. The event happens %v after the first token. A trial holds when the client ends with code 0, its answer is byte for byte that of the AI server, the longest pause between two pieces of it is within the limit, and the path is at the end what it must be.", o.rtt, int(o.answer/cadence), cadence, o.answer, eventAt)
	p("")
	p("    go run ./testdata/survival%s -o docs/survival.md            # this report; root on Linux, iproute2, nftables, conntrack, coturn", o.made)
	p("    go run ./testdata/survival -n 1 -answer 12s               # each event once, as CI does")
	p("    go run ./testdata/survival -event roam-client -n %d        # one event", o.n)
	p("")
	p("`-logs DIR` keeps what every process said. A pause holds the %v between two tokens; the limit of the upgrade is %v on top of them.", cadence, upgradeLimit)
	p("")
	p("A trial that only took too long is repeated alone: once where another laboratory ran beside it, and an upgrade up to %d times where this program's own clock was more than %d ms late within %d ms of the pause, since what it measures is then the machine. The last one counts, and each is told below. What came wrong or by the wrong path is never repeated.", maxVoid, stallLimit.Milliseconds(), stallMargin.Milliseconds())
	p("")
	all, holds := 0, 0
	for _, r := range results {
		all += len(r.trials)
		holds += r.holds()
	}
	p("%d events, %d trials: %d hold, **%d fail**.", len(results), all, holds, all-holds)
	p("")
	p("| event | what happens | holds | longest pause: least | median | most | limit | path |")
	p("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
	for _, r := range results {
		least, median, most := r.pauses()
		limit := fmt.Sprintf("%.1f s", r.event.limit.Seconds())
		if r.event.limit == upgradeLimit {
			limit = fmt.Sprintf("%d + %d ms", upgradeLimit.Milliseconds(), cadence.Milliseconds())
		}
		p("| `%s` | %s | %d/%d | %s | %s | %s | %s | %s |", r.event.name, r.event.what, r.holds(), len(r.trials), seconds(least), seconds(median), seconds(most), limit, r.paths())
	}
	for _, r := range results {
		notes(p, r)
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }

// notes adds what the table has no column for.
func notes(p func(string, ...any), r *result) {
	if r.event.name == "upgrade" {
		var free []string
		shorts := 0
		for _, t := range r.trials {
			if !t.released.IsZero() {
				free = append(free, fmt.Sprintf("%.1f s", t.released.Sub(t.happened).Seconds()))
			}
			n := 0
			_, _ = fmt.Sscan(t.shorts, &n)
			shorts += n
		}
		p("")
		p("Upgrade: the relay was free again %s after the direct path had become possible, while the answers still ran; of %d short requests through a second client beside them none failed.", strings.Join(free, ", "), shorts)
	}
	if r.event.lost {
		p("")
		p("`%s`: the pause is the time from the kill to the end of the client with its error.", r.event.name)
	}
	for i, t := range r.trials {
		if s := t.repeats(r.event); s != "" {
			p("")
			p("%s, trial %d: %s.", r.event.name, i+1, s)
		}
		for _, f := range t.faults {
			p("")
			p("**%s, trial %d fails**: %s", r.event.name, i+1, f)
		}
	}
}
