package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// expectation is what a cell must show.
type expectation struct {
	direct bool
	codes  []string // the reasons that are true there; the first is the usual one
	second bool     // direct, but a plain punch needs a second round too, or does not connect them
	raced  bool     // relayed, and only known by trying
	noUDP  bool     // one side has to take to TCP first
}

// Limits for the first token, in round trips and on top of them.
const (
	directRounds = 5
	secondRounds = 6
	relayRounds  = 11

	headStart = 250 * time.Millisecond // of the direct path, where the relay raced it
	tcpFirst  = 300 * time.Millisecond // until UDP has been given up
)

// limit is the greatest median that is fine.
func (e expectation) limit(rtt time.Duration) time.Duration {
	switch {
	case e.direct && e.second:
		return secondRounds * rtt
	case e.direct:
		return directRounds * rtt
	}
	limit := relayRounds * rtt
	if e.raced {
		limit += headStart
	}
	if e.noUDP {
		limit += tcpFirst
	}
	return limit
}

func direct(codes ...string) expectation  { return expectation{direct: true, codes: codes} }
func relayed(codes ...string) expectation { return expectation{codes: codes} }

// expect is the rule of the whole matrix: direct wherever a plain hole punch or
// a port mapping can make it so, else relayed and for that reason.
func expect(c cell) expectation {
	a, _ := kindNamed(c.Client)
	b, _ := kindNamed(c.Miner)
	switch {
	case c.has(sameNAT):
		return expectOneNetwork(c, a)
	case c.has(sameCGN):
		return expectOneCarrier(c, a, b)
	}
	return expectApart(a, b)
}

func expectApart(a, b kind) expectation {
	if a.noUDP || b.noUDP {
		e := relayed("client-udp-blocked")
		if a.noUDP && b.noUDP {
			e = relayed("both-udp-blocked")
		} else if b.noUDP {
			e = relayed("miner-udp-blocked")
		}
		e.noUDP = true
		return e
	}
	e := expectation{direct: true}
	if a.v4 && b.v4 && (a.mapped || b.mapped) {
		e.codes = append(e.codes, "port-mapping")
	}
	if punched, second := punch(a, b); punched {
		e.second = second && len(e.codes) == 0 && !(a.v6 && b.v6)
		e.codes = append(e.codes, directCodes(a, b)...)
	} else {
		e.second = len(e.codes) > 0 // only the forwarded port connects them
	}
	switch {
	case len(e.codes) > 0:
		return e
	case !(a.v4 && b.v4):
		return relayed("no-common-family")
	case a.hard && b.hard:
		return relayed("both-nats-hard")
	case a.hard:
		return relayed("client-nat-hard")
	}
	return relayed("miner-nat-hard")
}

// directCodes are the reasons that are true of a direct path between two
// networks apart: an end has a public address of its own, or a NAT or firewall
// was traversed. Where both are true either will do.
func directCodes(a, b kind) []string {
	var codes []string
	if a.public || b.public || a.v6 && b.v6 {
		codes = append(codes, "public-address")
	}
	open := func(k kind) bool { return k.public && k.filter == anyone }
	if !open(a) || !open(b) {
		codes = append(codes, "nat-traversed")
	}
	return codes
}

// expectOneNetwork is for two hosts of one home network.
func expectOneNetwork(c cell, k kind) expectation {
	switch {
	case !c.has(lanIsolated) && (k.public || !k.v4):
		return direct("same-network", "public-address") // both are true of public addresses there
	case !c.has(lanIsolated) && k.v6:
		return direct("same-network", "public-address", "nat-traversed")
	case !c.has(lanIsolated) && k.hairpin && !c.has(noHairpin):
		return direct("same-network", "nat-traversed") // now and then the way over the router is first
	case !c.has(lanIsolated):
		return direct("same-network")
	case k.hairpin && !c.has(noHairpin):
		return direct("nat-traversed", "same-network")
	}
	e := relayed("same-network-blocked")
	e.raced = true
	return e
}

// expectOneCarrier is for two homes behind one carrier's NAT.
func expectOneCarrier(c cell, a, b kind) expectation {
	if a.hairpin && b.hairpin && !c.has(noHairpin) {
		return direct("nat-traversed")
	}
	e := relayed("same-network-blocked")
	if a.hard && b.hard {
		e.codes = append(e.codes, "both-nats-hard")
	}
	e.raced = true
	return e
}

// faults compares what was measured with what must be; none means the cell
// holds.
func (e expectation) faults(m *measurement) []string {
	return append(e.roundFaults(m), m.Disagree...)
}

// roundFaults are those of the last round.
func (e expectation) roundFaults(m *measurement) []string {
	var bad []string
	switch {
	case m.Asked == 0:
		bad = append(bad, "no client was asked")
	case m.Asked < m.wanted():
		bad = append(bad, fmt.Sprintf("%d of %d clients were asked", m.Asked, m.wanted()))
	}
	if m.Failed > 0 {
		bad = append(bad, fmt.Sprintf("%d of %d asks failed: %s", m.Failed, m.Asked, m.Failure))
	}
	for path, n := range m.Kinds {
		if isRelay(path) == e.direct {
			bad = append(bad, fmt.Sprintf("%d× %s, want %s", n, path, e.class()))
		}
	}
	for code, n := range m.Codes {
		if !slices.Contains(e.codes, code) {
			bad = append(bad, fmt.Sprintf("%d× reason %s, want %s", n, code, strings.Join(e.codes, " or ")))
		}
	}
	slices.Sort(bad)
	if m.over(e) {
		bad = append(bad, fmt.Sprintf("median %.0f ms, limit %d ms", m.median(), e.limit(m.rtt()).Milliseconds()))
	}
	return bad
}

func (e expectation) class() string {
	if e.direct {
		return "direct"
	}
	return "relayed"
}

func isRelay(path string) bool { return strings.HasPrefix(path, "relay") }
