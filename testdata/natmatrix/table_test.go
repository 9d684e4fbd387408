package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantiles(t *testing.T) {
	m := &measurement{}
	if m.median() != 0 || m.p90() != 0 || m.max() != 0 {
		t.Error("nothing has no quantiles")
	}
	m.FirstMS = []float64{40, 10, 30, 20}
	if m.median() != 25 || m.p90() != 40 || m.max() != 40 {
		t.Errorf("of four: %v %v %v", m.median(), m.p90(), m.max())
	}
	m.FirstMS = nil
	for i := range 20 {
		m.FirstMS = append(m.FirstMS, float64(20-i))
	}
	if m.median() != 10.5 || m.p90() != 18 || m.max() != 20 {
		t.Errorf("of twenty: %v %v %v", m.median(), m.p90(), m.max())
	}
}

func TestDocument(t *testing.T) {
	at := func(text, path, code string, ms float64, faults ...string) *measurement {
		c, err := parseCell(text)
		if err != nil {
			t.Fatal(err)
		}
		return &measurement{
			Cell: c, N: 1, RTT: 50, Asked: 1, Kinds: map[string]int{path: 1}, Codes: map[string]int{code: 1},
			FirstMS: []float64{ms}, Round: 1, Faults: faults,
		}
	}
	again := at("a=sym,b=nf", "relay-udp", "client-nat-hard", 510)
	again.Round = 2
	again.Asked = moreAsks
	again.Before = []string{"1× srflx, want relayed"}
	text := document([]*measurement{
		at("a=nf,b=nf", "srflx", "nat-traversed", 240),
		again,
		at("a=nf,b=sym", "srflx", "nat-traversed", 260, "1× srflx, want relayed"),
		at("a=sym,b=sym,same-nat", "host", "same-network", 130),
	}, settings{n: 1, rtt: 50 * time.Millisecond})
	for _, want := range []string{
		"4 cells: 3 direct, 1 relayed; 6 of 6 asks answered; **1 cells fail**. 1 were measured again.",
		"| client \\ miner | sym | nf |",
		"| **sym** |  | R 10.2 |",
		"| **nf** | **D 5.2 !** | D 4.8 |",
		"| `a=sym,b=nf` | 3/3 | relay-udp | client-nat-hard | 510 | 510 | 510 | 10.2 | 11.0 | round 2; round 1: 1× srflx, want relayed |",
		"| `a=sym,b=sym,same-nat` | 1/1 | host | same-network | 130 | 130 | 130 | 2.6 | 5.0 |  |",
		"**1× srflx, want relayed**",
		"| nat-traversed | 2 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the document lacks %q", want)
		}
	}
	if strings.Contains(text, "%!") {
		t.Error("a verb without its value")
	}
}

// The document says with which flags it was made.
func TestDocumentSaysItsFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "natmatrix -o docs"},
		{[]string{"-n", "20", "-later", "3", "-rtt", "50ms", "-logs", "x", "-resume", "y", "-o", "z"}, "natmatrix -o docs"},
		{[]string{"-later", "5", "-rtt", "100ms", "-n", "8"}, "natmatrix -later 5 -n 8 -rtt 100ms -o docs"},
		{[]string{"-settle", "1s", "-subset"}, "natmatrix -settle 1s -subset -o docs"},
		{[]string{"-cell", "a=nf,b=nf", "-cell", "a=sym,b=eim-apdf,same-subnet", "-later", "0"}, "natmatrix -later 0 -cell a=nf,b=nf -cell a=sym,b=eim-apdf,same-subnet -o docs"},
	} {
		o, err := parseOptions(c.args)
		if err != nil {
			t.Fatal(err)
		}
		if text := document(nil, o.settings()); !strings.Contains(text, "go run ./testdata/"+c.want) {
			t.Errorf("%v: no %q in %.1500s", c.args, c.want, text)
		}
	}
	if _, err := parseOptions([]string{"-later", "-1"}); err == nil {
		t.Error("-1 long answers are taken")
	}
}

// TestResume: what holds is not measured again, everything else is.
func TestResume(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.json")
	s := settings{binary: "b1", n: 2, rtt: 50 * time.Millisecond}
	add := func(text, binary string, faults ...string) {
		c, err := parseCell(text)
		if err == nil {
			err = appendResult(file, &measurement{Cell: c, Binary: binary, N: 2, RTT: 50, Faults: faults})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("a=nf,b=nf", "b1")
	add("a=nf,b=sym", "b1", "slow")
	add("a=sym,b=nf", "b0")
	add("a=none,b=none", "b1", "slow")
	add("a=none,b=none", "b1")
	add("a=dual,b=dual,same-nat", "b1")
	add("a=upnp,b=upnp", "b1")
	add("a=upnp,b=upnp", "b1", "slow")
	known, err := readResults(file, s)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"a=nf,b=nf": true, "a=nf,b=sym": false, "a=sym,b=nf": false, "a=none,b=none": true, "a=dual,b=dual,same-nat": true, "a=upnp,b=upnp": false,
	} {
		if (known[text] != nil) != want {
			t.Errorf("%s is known: %v", text, known[text] != nil)
		}
	}
	probed := mustCells("a=sym,b=eim-apdf,same-subnet")[0]
	one := &measurement{Cell: probed, Binary: "b1", N: 2, RTT: 50, Later: make([]laterAsk, 3)}
	if err := appendResult(file, one); err != nil {
		t.Fatal(err)
	}
	for later, want := range map[int]bool{3: true, 0: false, 5: false} {
		s.later = later
		known, err := readResults(file, s)
		if err != nil || (known[probed.String()] != nil) != want || known["a=nf,b=nf"] == nil {
			t.Errorf("with %d long answers: %v, %v", later, known, err)
		}
	}
	s.n = 20
	if known, err := readResults(file, s); err != nil || len(known) != 0 {
		t.Errorf("with another number of clients: %v, %v", known, err)
	}
	if known, err := readResults(file+".none", s); err != nil || len(known) != 0 {
		t.Errorf("without a file: %v, %v", known, err)
	}
}

func TestFooterFault(t *testing.T) {
	const punched = "NAT traversed"
	long := strings.Repeat("long words ", 15)
	for _, c := range []struct {
		kind, reason, footer string
		fault                bool
	}{
		{"srflx", punched, "demo on demo-box · direct 51 ms (NAT traversed) · first token 0.2 s", false},
		{"srflx", punched, "", true},
		{"srflx", "", "demo on demo-box · direct 51 ms (NAT traversed) · first token 0.2 s", true},
		{"srflx", "NAT", "demo on demo-box · direct 51 ms (NAT traversed) · first token 0.2 s", true},
		{"host", "same network", "demo on demo-box · direct 51 ms (NAT traversed) · first token 0.2 s", true},
		{"relay-udp", punched, "demo on demo-box · direct 51 ms (NAT traversed) · first token 0.2 s", true},
		{"relay-udp", long, "demo on demo-box · relay 51 ms (" + long[:118] + "…)", false},
	} {
		r := report{Path: &pathReport{Kind: c.kind, Reason: c.reason}, Footer: c.footer}
		if fault := footerFault(r); (fault != "") != c.fault {
			t.Errorf("%s for %q, %q: %q", c.kind, c.reason, c.footer, fault)
		}
	}
	const footer = "demo on demo-box · direct 51 ms (NAT traversed)"
	if got := footerOf("a notice\n" + footer + "\npath srflx: NAT traversed\n"); got != footer {
		t.Errorf("%q of three lines", got)
	}
}
