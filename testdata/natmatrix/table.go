package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// oneLine is a cell's result for who watches a run.
func oneLine(m *measurement) string {
	path := commonest(m.Kinds)
	code := commonest(m.Codes)
	line := fmt.Sprintf("%-40s %-9s %-20s %7.1f ms %5.2f R  %4.1f s", m.Cell, dash(path), dash(code), m.median(), m.median()/m.RTT, m.Took)
	if len(m.Later) > 0 {
		line += "  " + m.laterWords()
	}
	if m.Round > 1 {
		line += "  " + m.roundWords()
	}
	if len(m.Faults) > 0 {
		line += "  FAILS: " + strings.Join(m.Faults, "; ")
	}
	return line
}

// roundWords says which round it shows, and what the former ones did.
func (m *measurement) roundWords() string {
	words := fmt.Sprintf("round %d", m.Round)
	for i, faults := range m.Before {
		words += fmt.Sprintf("; round %d: %s", i+1, faults)
	}
	return words
}

// document is docs/nat-matrix.md.
func document(results []*measurement, s settings) string {
	var b strings.Builder
	rtt := ""
	if s.rtt != defaultRTT {
		rtt = fmt.Sprintf(" -rtt %v", s.rtt)
	}
	fmt.Fprintf(&b, header, s.rtt.Milliseconds(), s.n, s.made, rtt, rtt, rtt, directRounds, secondRounds, relayRounds, headStart.Milliseconds(), tcpFirst.Milliseconds(), maxRounds, moreAsks)
	totals(&b, results)
	pairs, shared := map[[2]string]*measurement{}, []*measurement(nil)
	for _, m := range results {
		if len(m.Cell.Options) > 0 {
			shared = append(shared, m)
		} else {
			pairs[[2]string{m.Cell.Client, m.Cell.Miner}] = m
		}
	}
	grid(&b, pairs)
	laterRows(&b, results)
	if len(shared) > 0 {
		b.WriteString("\n## Networks that share something\n\n")
		rows(&b, shared)
	}
	if len(pairs) > 0 {
		b.WriteString("\n## Every pair\n\n")
		var all []*measurement
		for _, m := range results {
			if len(m.Cell.Options) == 0 {
				all = append(all, m)
			}
		}
		rows(&b, all)
	}
	return b.String()
}

const header = `# Every network with every network

Measured by ` + "`testdata/natmatrix`" + `, which also wrote this file: for each cell a NAT laboratory of its own (` + "`testdata/natlab`" + `: real network namespaces, kinds of NAT and firewall that its own ` + "`check`" + ` verifies), a coordinator on a public machine, a miner behind one network, and fresh clients with an empty HOME behind the other, one after the other. The model needs no time to think. R, the round trip between any two of the three sites, is %d ms; %d clients a cell.

    go run ./testdata/natmatrix%s -o docs/nat-matrix.md             # this report; root on Linux, iproute2, nftables, miniupnpd
    go run ./testdata/natmatrix%s -subset -n 3                      # a representative part
    go run ./testdata/natmatrix%s -cell a=sym,b=eim-apdf -n 20      # one cell: a is the client's side, b the miner's
    go run ./testdata/natmatrix%s -cell a=sym,b=eim-apdf -later 60  # with 60 answers that last

` + "`-resume FILE`" + ` lets an interrupted run go on, ` + "`-logs DIR`" + ` keeps what every process said.

A cell holds when every client got its answer; the path is direct wherever a plain hole punch (` + "`natlab punch`" + `), IPv6 or a port mapping can make it so, and relayed elsewhere; the reason is the true one in the report of ` + "`-json`" + `, and footer and the coordinator's metrics agree with it; and the median of the first token, from the start of the client's process, is within its limit: %d R where the path is direct, %d R where a plain punch too needs a second round (a NAT that maps per destination, towards a filter that looks at addresses) or only a forwarded port connects the two, %d R over the relay, + %d ms where only trying could tell (the head start of the direct path), + %d ms where UDP is blocked. A cell that does not hold in its first round is measured again, up to %d rounds, the further ones with no other cell beside it and with %d times as many clients, for all of whom everything must hold: a busy machine is late, and what is late can change a path. Only the last round counts, so a fault as rare as one ask in a hundred can be missed; the tables say which round they show and what the former ones did. Where footer or metrics disagree with a report the cell fails in whatever round. What the machine itself needs, to start the program above all, counts too and does not grow with R: a slow machine is measured with a longer one (` + "`-rtt`" + `).
`

func totals(b *strings.Builder, results []*measurement) {
	asks, failed, directs, relays, bad, again := 0, 0, 0, 0, 0, 0
	codes := map[string]int{}
	for _, m := range results {
		asks, failed = asks+m.Asked, failed+m.Failed
		if path := commonest(m.Kinds); isRelay(path) {
			relays++
		} else if path != "" {
			directs++
		}
		if len(m.Faults) > 0 {
			bad++
		}
		if m.Round > 1 {
			again++
		}
		if code := commonest(m.Codes); code != "" {
			codes[code]++
		}
	}
	fmt.Fprintf(b, "\n%d cells: %d direct, %d relayed; %d of %d asks answered; **%d cells fail**. %d were measured again.\n", len(results), directs, relays, asks-failed, asks, bad, again)
	if len(codes) == 0 {
		return
	}
	b.WriteString("\n| reason | cells |\n| --- | ---: |\n")
	names := make([]string, 0, len(codes))
	for code := range codes {
		names = append(names, code)
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(cmp.Compare(codes[y], codes[x]), cmp.Compare(x, y))
	})
	for _, code := range names {
		fmt.Fprintf(b, "| %s | %d |\n", code, codes[code])
	}
}

// grid is the overview: a row for each kind of the client, a column for each of
// the miner.
func grid(b *strings.Builder, pairs map[[2]string]*measurement) {
	if len(pairs) == 0 {
		return
	}
	var clients, miners []string
	for _, name := range kindNames() {
		for pair := range pairs {
			if pair[0] == name && !slices.Contains(clients, name) {
				clients = append(clients, name)
			}
			if pair[1] == name && !slices.Contains(miners, name) {
				miners = append(miners, name)
			}
		}
	}
	b.WriteString("\n## Overview\n\nRows: the client's network; columns: the miner's. D direct, R relayed, and the median of the first token in R; → D: an answer that lasts goes on directly, found by hard-NAT probing while the relay carries it. A cell that fails is **bold** with an exclamation mark.\n\n| client \\ miner |")
	for _, name := range miners {
		fmt.Fprintf(b, " %s |", name)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(miners)) + "\n")
	for _, client := range clients {
		fmt.Fprintf(b, "| **%s** |", client)
		for _, miner := range miners {
			fmt.Fprintf(b, " %s |", square1(pairs[[2]string{client, miner}]))
		}
		b.WriteByte('\n')
	}
}

// square1 is one square of the overview.
func square1(m *measurement) string {
	if m == nil {
		return ""
	}
	text := "–"
	if path := commonest(m.Kinds); path != "" {
		letter := "D"
		if isRelay(path) {
			letter = "R"
		}
		text = fmt.Sprintf("%s %.1f", letter, m.median()/m.RTT)
		if len(m.Later) > 0 && len(m.laterFaults()) == 0 {
			text += " → D"
		}
	}
	if len(m.Faults) > 0 {
		text = "**" + text + " !**"
	}
	return text
}

// rows is the list with all figures.
func rows(b *strings.Builder, results []*measurement) {
	b.WriteString("| cell | answered | path | reason | median ms | p90 | max | median R | limit R | |\n| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |\n")
	for _, m := range results {
		var notes []string
		if m.Round > 1 {
			notes = append(notes, escape(m.roundWords()))
		}
		for _, fault := range m.Faults {
			notes = append(notes, "**"+escape(fault)+"**")
		}
		fmt.Fprintf(b, "| `%s` | %d/%d | %s | %s | %.0f | %.0f | %.0f | %.1f | %.1f | %s |\n", m.Cell, m.Asked-m.Failed, m.wanted(),
			escape(counted(m.Kinds)), escape(counted(m.Codes)), m.median(), m.p90(), m.max(), m.median()/m.RTT,
			float64(expect(m.Cell).limit(m.rtt()))/float64(m.rtt()), strings.Join(notes, "; "))
	}
}

// counted lists what was seen, the commonest first, with counts where there is
// more than one.
func counted(counts map[string]int) string {
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(cmp.Compare(counts[y], counts[x]), cmp.Compare(x, y))
	})
	for i, name := range names {
		if len(names) > 1 {
			names[i] = fmt.Sprintf("%s (%d)", name, counts[name])
		}
	}
	return strings.Join(names, ", ")
}

// escape keeps words from breaking a Markdown table.
func escape(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "*", `\*`).Replace(s)
}
