package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseCell(t *testing.T) {
	c, err := parseCell("b=cgnat,no-hairpin,a=cgnat,same-cgn,same-cgn")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.String(), "a=cgnat,b=cgnat,same-cgn,no-hairpin"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := strings.Join(c.labArgs(), " "), "--a cgnat --b cgnat --same-cgn --no-hairpin"; got != want {
		t.Errorf("natlab up %s, want %s", got, want)
	}
	for _, s := range []string{"", "a=none", "a=none,b=nothing", "a=none,b=none,fast", "a=none;b=none", "a=sym,b=nf,same-nat", "a=short,b=none", "none,none"} {
		if c, err := parseCell(s); err == nil {
			t.Errorf("%q was taken as %v", s, c)
		}
	}
	if _, err := parseCell("x"); !errors.Is(err, errCell) {
		t.Errorf("x: %v", err)
	}
}

// TestCellsReproduce: what the table prints is what -cell takes, and no cell is
// measured twice.
func TestCellsReproduce(t *testing.T) {
	for name, cells := range map[string][]cell{"everything": everything(), "subset": subset()} {
		seen := map[string]bool{}
		for _, c := range cells {
			back, err := parseCell(c.String())
			if err != nil || back.String() != c.String() {
				t.Errorf("%s: %s comes back as %s, %v", name, c, back, err)
			}
			if seen[c.String()] {
				t.Errorf("%s: %s twice", name, c)
			}
			seen[c.String()] = true
		}
	}
	if n := len(square(kindNames())); n != 18*18 {
		t.Errorf("%d pairs", n)
	}
}

// TestSubsetRepresents: every kind on both sides, every option, and every reason
// that the whole matrix has.
func TestSubsetRepresents(t *testing.T) {
	whole, part := map[string]bool{}, map[string]bool{}
	note := func(into map[string]bool, cells []cell) {
		for _, c := range cells {
			into["a="+c.Client], into["b="+c.Miner] = true, true
			for _, o := range c.Options {
				into[o] = true
			}
			e := expect(c)
			into[e.class()+" "+e.codes[0]] = true
			if e.second {
				into["second round"] = true
			}
			if e.raced {
				into["raced"] = true
			}
		}
	}
	note(whole, everything())
	note(part, subset())
	for what := range whole {
		if !part[what] {
			t.Errorf("the subset has no cell with %s", what)
		}
	}
	all := everything()
	for _, c := range subset() {
		if !slices.ContainsFunc(all, func(o cell) bool { return o.String() == c.String() }) {
			t.Errorf("%s is not part of the whole", c)
		}
	}
}
