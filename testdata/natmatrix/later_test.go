package main

import (
	"strings"
	"testing"
)

func TestLaterFaults(t *testing.T) {
	asks := func(inTime, late, relayed, failed int) []laterAsk {
		var out []laterAsk
		for range inTime {
			out = append(out, laterAsk{First: "relay-udp", Last: "prflx", DirectMS: 900})
		}
		for range late {
			out = append(out, laterAsk{First: "relay-udp", Last: "prflx", DirectMS: 5001})
		}
		for range relayed {
			out = append(out, laterAsk{First: "relay-udp", Last: "relay-udp"})
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
