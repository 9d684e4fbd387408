package main

import (
	"strings"
	"testing"
)

func TestLaterFaults(t *testing.T) {
	asks := func(inTime, late, relayed, failed int) []laterAsk {
		var out []laterAsk
		for range inTime {
			out = append(out, laterAsk{First: "relay-udp", Last: "prflx", Code: "ports-probed", DirectMS: 900})
		}
		for range late {
			out = append(out, laterAsk{First: "relay-udp", Last: "prflx", Code: "ports-probed", DirectMS: 5001})
		}
		for range relayed {
			out = append(out, laterAsk{First: "relay-udp", Last: "relay-udp", Code: "client-nat-hard"})
		}
		for range failed {
			out = append(out, laterAsk{Failure: "exit code 6"})
		}
		return out
	}
	for _, c := range []struct {
		asks  []laterAsk
		holds bool
	}{
		{nil, true},
		{asks(3, 0, 0, 0), true},
		{asks(2, 1, 0, 0), true},
		{asks(1, 1, 1, 0), false},
		{asks(1, 0, 0, 0), true},
		{asks(0, 1, 0, 0), false},
		{asks(57, 2, 1, 0), true},
		{asks(56, 2, 2, 0), false},
		{asks(59, 0, 0, 1), false},
	} {
		m := &measurement{Later: c.asks}
		if bad := m.laterFaults(); (len(bad) == 0) != c.holds {
			t.Errorf("%d of %d in time: %v", m.directInTime(), len(c.asks), bad)
		}
	}
}

// What one long answer must show beside its time.
func TestLongAnswer(t *testing.T) {
	for _, c := range []struct {
		first, last, code string
		match, since      float64
		ok, inTime        bool
	}{
		{"relay-udp", "prflx", "ports-probed", 200, 1100, true, true},
		{"relay-udp", "prflx", "ports-probed", 200, 5201, true, false},
		{"relay-udp", "srflx", "nat-traversed", 200, 1100, true, true},
		{"relay-udp", "relay-udp", "client-nat-hard", 200, 100, true, false},
		{"relay-udp", "prflx", "ports-probed", 200, 0, false, false},   // no since_ms
		{"relay-udp", "prflx", "ports-probed", 0, 1100, false, false},  // no match_ms
		{"relay-udp", "prflx", "ports-probed", 200, 200, false, false}, // before it could be
		{"srflx", "srflx", "nat-traversed", 200, 410, true, true},
		{"prflx", "prflx", "nat-traversed", 200, 410, true, true},
		{"prflx", "prflx", "ports-probed", 200, 1100, false, true},
		{"", "prflx", "ports-probed", 200, 1100, false, true},
		{"relay-udp", "prflx", "nat-traversed", 200, 1100, false, true},
		{"relay-udp", "prflx", "", 200, 1100, false, true},
		{"relay-udp", "relay-udp", "ports-probed", 200, 100, false, false},
	} {
		a, err := longAnswer(report{MatchMS: c.match, PathFirst: &pathReport{Kind: c.first}, Path: &pathReport{Kind: c.last, Code: c.code, Since: c.since}})
		if err != nil {
			a.Failure = err.Error()
		}
		m := &measurement{Later: []laterAsk{a, {First: "relay-udp", Last: "prflx", Code: "ports-probed", DirectMS: 1}}}
		if fault := a.fault(); (fault == "") != c.ok || a.inTime() != c.inTime || (len(m.laterFaults()) == 0) != c.ok {
			t.Errorf("%+v: fault %q, in time: %v, of the cell %q", c, fault, a.inTime(), m.laterFaults())
		}
	}
	if (laterAsk{First: "relay-udp", Last: "prflx", Code: "ports-probed", DirectMS: -200}).inTime() {
		t.Error("a negative time is in time")
	}
}

// TestTurnsDirect: probing is expected where one side is hard and the other
// filters by port, and nowhere else.
func TestTurnsDirect(t *testing.T) {
	for text, want := range map[string]bool{
		"a=sym,b=eim-apdf": true, "a=nf,b=nf-random": true, "a=sym,b=sym": false, "a=none,b=sym": false,
		"a=udp-blocked,b=sym": false, "a=eim-apdf,b=eim-apdf": false, "a=sym,b=eim-apdf,same-subnet": true,
	} {
		c, err := parseCell(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := expect(c).turnsDirect(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	if n := (settings{later: 3}).laterFor(wellMeasured[0]); n != 60 {
		t.Errorf("%d long answers", n)
	}
}

func TestLaterRows(t *testing.T) {
	m := &measurement{Cell: wellMeasured[0], Later: []laterAsk{
		{First: "relay-udp", Last: "prflx", Code: "ports-probed", DirectMS: 1000},
		{First: "relay-udp", Last: "prflx", Code: "ports-probed", DirectMS: 2000},
		{First: "relay-udp", Last: "relay-udp", Code: "client-nat-hard"},
	}}
	var b strings.Builder
	laterRows(&b, []*measurement{m, {}})
	for _, want := range []string{"2 of 3 were direct", "| `a=sym,b=eim-apdf` | 2/3 | 2.00 | 2.00 | 2.00 | relay-udp → prflx | ports-probed |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in %s", want, b.String())
		}
	}
}
