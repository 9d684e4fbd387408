package main

import (
	"strings"
	"testing"
	"time"
)

func TestLongest(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms ...int) []time.Time {
		var out []time.Time
		for _, m := range ms {
			out = append(out, start.Add(time.Duration(m)*time.Millisecond))
		}
		return out
	}
	for _, c := range []struct {
		name       string
		at         []int
		from, woke int
		want       time.Duration
	}{
		{"even", []int{0, 33, 66, 99}, 0, -1, 33 * time.Millisecond},
		{"before the event", []int{0, 500, 533, 566}, 510, -1, 33 * time.Millisecond},
		{"across the event", []int{0, 33, 1500, 1533}, 100, -1, 1467 * time.Millisecond},
		{"asleep", []int{0, 33, 20050, 20083}, 50, 20040, 33 * time.Millisecond},
		{"slow to wake", []int{0, 33, 21000, 21033}, 50, 20040, 960 * time.Millisecond},
		{"one piece", []int{0}, 0, -1, 0},
	} {
		var woke time.Time
		if c.woke >= 0 {
			woke = at(c.woke)[0]
		}
		if got := longest(at(c.at...), at(c.from)[0], woke); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestDiffer(t *testing.T) {
	want := "the answer"
	if d := differ([]byte(want), []byte(want)); d != "" {
		t.Error(d)
	}
	for _, got := range []string{"", "the answ", "the answer!", "the aanswer", "the nswer"} {
		if differ([]byte(got), []byte(want)) == "" {
			t.Errorf("%q passes", got)
		}
	}
}

// TestEvents: each has a name of its own, a limit and something that happens.
func TestEvents(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range events {
		if seen[e.name] || e.limit == 0 || e.happen == nil || e.what == "" {
			t.Errorf("event %q", e.name)
		}
		seen[e.name] = true
	}
	if _, err := parseOptions([]string{"-event", "earthquake"}); err == nil || !strings.Contains(err.Error(), "roam-client") {
		t.Errorf("%v", err)
	}
	for _, args := range [][]string{{"-n", "0"}, {"-answer", "1s"}, {"-rtt", "0s"}, {"now"}} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

func TestDocument(t *testing.T) {
	start := time.Unix(1000, 0)
	r := &result{event: events[0], trials: []*trial{
		{pause: time.Second, pathFirst: "srflx", path: "relay-udp", happened: start},
		{pause: 3 * time.Second, pathFirst: "srflx", path: "srflx", faults: []string{"too long"}},
		{pause: 2 * time.Second, pathFirst: "srflx", path: "srflx"},
	}}
	text := document([]*result{r}, options{n: 3, answer: 30 * time.Second, rtt: 50 * time.Millisecond})
	for _, want := range []string{"| 2/3 | 1.000 s | 2.000 s | 3.000 s | 3.0 s | srflx → srflx, srflx → relay-udp |", "3 trials: 2 hold, **1 fail**", "trial 2 fails**: too long"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestPathLine(t *testing.T) {
	for line, want := range map[string]string{
		"path srflx: both NATs were traversed · matched: it · tries 1":        "srflx",
		"path relay-udp → srflx: NATs were traversed · matched: it · tries 1": "srflx",
		"path srflx → relay-udp: it was chosen · matched: it · tries 1":       "relay-udp",
	} {
		if m := pathLine.FindStringSubmatch("box · direct\n" + line + "\n"); m == nil || m[1] != want {
			t.Errorf("%s: %q", line, m)
		}
	}
}
