package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFloor compares the rule with what `natlab punch` measured.
func TestFloor(t *testing.T) {
	text, err := os.ReadFile("floor.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	columns := strings.Fields(lines[0])[3:] // a \ b
	if !slices.Equal(columns, kindNames()) || len(lines) != 1+len(kinds) {
		t.Fatalf("floor.txt has %d rows and the columns %v", len(lines)-1, columns)
	}
	for i, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) != 1+len(kinds) || fields[0] != kinds[i].name {
			t.Fatalf("row %d: %q", i, line)
		}
		for j, text := range fields[1:] {
			a, b := kinds[i], kinds[j]
			connects, second := punch(a, b)
			if measured := text != "-"; measured != connects {
				t.Errorf("%s × %s: measured %s, the rule says %v", a.name, b.name, text, connects)
				continue
			}
			if !connects {
				continue
			}
			took, err := time.ParseDuration(text)
			if err != nil {
				t.Fatalf("%s × %s: %v", a.name, b.name, err)
			}
			if twice := took >= 100*time.Millisecond; twice != (a.hard || b.hard) || second && !twice {
				t.Errorf("%s × %s: measured %s, the rule says a second round: %v", a.name, b.name, text, second)
			}
		}
	}
}

// TestExpectNeverBelowTheFloor: what a plain punch connects is never expected
// over the relay, and only a port mapping makes direct what it does not.
func TestExpectNeverBelowTheFloor(t *testing.T) {
	for _, a := range kinds {
		for _, b := range kinds {
			e := expect(cell{Client: a.name, Miner: b.name})
			connects, _ := punch(a, b)
			mapped := (a.mapped || b.mapped) && a.v4 && b.v4 && !a.noUDP && !b.noUDP
			if e.direct != (connects || mapped) {
				t.Errorf("%s × %s: direct %v", a.name, b.name, e.direct)
			}
			if len(e.codes) == 0 {
				t.Errorf("%s × %s: no reason is right", a.name, b.name)
			}
		}
	}
}

func TestExpect(t *testing.T) {
	const r = 50 * time.Millisecond
	for _, c := range []struct {
		cell  string
		codes string
		limit time.Duration
	}{
		{"a=none,b=none", "public-address", 5 * r},
		{"a=none,b=sym", "nat-traversed public-address", 5 * r},
		{"a=sym,b=none", "nat-traversed public-address", 5 * r},
		{"a=none-fw,b=none-fw", "nat-traversed public-address", 5 * r},
		{"a=eim-apdf,b=cgnat", "nat-traversed", 5 * r},
		{"a=sym,b=eim-eif", "nat-traversed", 5 * r},
		{"a=sym,b=eim-adf", "nat-traversed", 6 * r},
		{"a=eim-adf,b=nf-random", "nat-traversed", 6 * r},
		{"a=sym,b=sym-pp", "both-nats-hard", 11 * r},
		{"a=cgnat-sym,b=none-fw", "client-nat-hard", 11 * r},
		{"a=dual,b=adm-apdf", "miner-nat-hard", 11 * r},
		{"a=sym,b=upnp", "port-mapping", 6 * r},
		{"a=upnp,b=eim-adf", "nat-traversed port-mapping", 5 * r},
		{"a=upnp,b=ipv6-only", "no-common-family", 11 * r},
		{"a=ipv6-only,b=sym", "no-common-family", 11 * r},
		{"a=dual,b=ipv6-only", "nat-traversed public-address", 5 * r},
		{"a=upnp,b=udp-blocked", "miner-udp-blocked", 11*r + 300*time.Millisecond},
		{"a=proxy-only,b=ipv6-only", "client-udp-blocked", 11*r + 300*time.Millisecond},
		{"a=proxy-only,b=udp-blocked", "both-udp-blocked", 11*r + 300*time.Millisecond},
		{"a=sym,b=sym,same-nat", "same-network", 5 * r},
		{"a=eim-eif,b=eim-eif,same-nat,lan-isolated", "nat-traversed same-network", 5 * r},
		{"a=sym,b=sym,same-nat,lan-isolated", "same-network-blocked", 11*r + 250*time.Millisecond},
		{"a=cgnat,b=cgnat,same-cgn", "nat-traversed", 5 * r},
		{"a=cgnat,b=cgnat,same-cgn,no-hairpin", "same-network-blocked", 11*r + 250*time.Millisecond},
		{"a=nf,b=nf,same-subnet", "nat-traversed", 5 * r},
	} {
		got, err := parseCell(c.cell)
		if err != nil {
			t.Fatal(err)
		}
		e := expect(got)
		codes := slices.Sorted(slices.Values(e.codes))
		if strings.Join(codes, " ") != c.codes || e.limit(r) != c.limit {
			t.Errorf("%s: %v within %v, want %s within %v", c.cell, codes, e.limit(r), c.codes, c.limit)
		}
	}
}

func TestFaults(t *testing.T) {
	good := func() *measurement {
		return &measurement{RTT: 50, N: 3, Asked: 3, Kinds: map[string]int{"srflx": 3}, Codes: map[string]int{"nat-traversed": 3}, FirstMS: []float64{200, 240, 900}}
	}
	e := expect(cell{Client: "nf", Miner: "nf"})
	if bad := e.faults(good()); len(bad) > 0 {
		t.Errorf("a good cell fails: %v", bad)
	}
	for want, spoil := range map[string]func(m *measurement){
		"1 of 3 asks failed: boom":              func(m *measurement) { m.Failed, m.Failure = 1, "boom" },
		"1× relay-udp, want direct":             func(m *measurement) { m.Kinds["relay-udp"] = 1 },
		"2× reason -, want nat-traversed":       func(m *measurement) { m.Codes["-"] = 2 },
		"median 251 ms, limit 250 ms":           func(m *measurement) { m.FirstMS[1] = 251 },
		"the metrics do not count 1× srflx one": func(m *measurement) { m.Disagree = []string{"the metrics do not count 1× srflx one"} },
		"no client was asked":                   func(m *measurement) { *m = measurement{RTT: 50, N: 3} },
		"2 of 3 clients were asked":             func(m *measurement) { m.Asked = 2 },
	} {
		m := good()
		spoil(m)
		if bad := e.faults(m); !slices.Equal(bad, []string{want}) {
			t.Errorf("got %q, want %q", bad, want)
		}
	}
}

// TestRounds: a cell with a fault is measured again with more asks, and what
// footer and metrics say is never measured anew.
func TestRounds(t *testing.T) {
	e := expect(cell{Client: "nf", Miner: "nf"})
	good := func(m *measurement) {
		n := m.wanted()
		m.Asked, m.Kinds, m.Codes = n, map[string]int{"srflx": n}, map[string]int{"nat-traversed": n}
		m.FirstMS = slices.Repeat([]float64{200}, n)
	}
	slow := func(m *measurement) { good(m); m.FirstMS = []float64{900} }
	failed := func(m *measurement) { good(m); m.Failed, m.Failure = 1, "boom" }
	relayed := func(m *measurement) { good(m); m.Kinds["relay-udp"] = 1 }
	few := func(m *measurement) { good(m); m.Asked = m.N }
	lies := func(m *measurement) { relayed(m); m.Disagree = []string{"no footer"} }
	for _, c := range []struct {
		name   string
		rounds []func(*measurement)
		faults int
	}{
		{"at once", []func(*measurement){good}, 0},
		{"slow once", []func(*measurement){slow, good}, 0},
		{"failed once", []func(*measurement){failed, good}, 0},
		{"each once", []func(*measurement){relayed, failed, good}, 0},
		{"too few in a further round", []func(*measurement){slow, few, few}, 1},
		{"relayed thrice", []func(*measurement){relayed, relayed, relayed}, 1},
		{"disagrees", []func(*measurement){lies}, 2},
		{"disagrees later", []func(*measurement){slow, lies}, 2},
	} {
		m := &measurement{RTT: 50, N: 2, Round: 1}
		made := 0
		for {
			c.rounds[made](m)
			made++
			if !m.again(e) || made == len(c.rounds) {
				break
			}
			m.next(e)
		}
		if made != len(c.rounds) || m.again(e) || m.Round != made || len(m.Before) != made-1 {
			t.Errorf("%s: %d rounds of %d, %q before", c.name, made, len(c.rounds), m.Before)
		}
		if bad := e.faults(m); len(bad) != c.faults {
			t.Errorf("%s: %q", c.name, bad)
		}
	}
}
