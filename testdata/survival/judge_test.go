package main

import (
	"os/exec"
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
		if got := longest(at(c.at...), at(c.from)[0], woke).length(); got != c.want {
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

// The document says with which flags it was made.
func TestDocumentSaysItsFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "survival -o docs"},
		{[]string{"-n", "5", "-answer", "30s", "-rtt", "50ms", "-logs", "x", "-o", "z"}, "survival -o docs"},
		{[]string{"-n", "4", "-answer", "12s", "-rtt", "100ms", "-parallel", "2"}, "survival -answer 12s -n 4 -parallel 2 -rtt 100ms -o docs"},
		{[]string{"-event", "sleep", "-event", "upgrade"}, "survival -event sleep -event upgrade -o docs"},
	} {
		o, err := parseOptions(c.args)
		if err != nil {
			t.Fatal(err)
		}
		if text := document(nil, o); !strings.Contains(text, "go run ./testdata/"+c.want) {
			t.Errorf("%v: no %q in %.1500s", c.args, c.want, text)
		}
	}
}

func TestSaysLost(t *testing.T) {
	const lost = "mintai: box was lost in the middle of the answer; what is shown is incomplete; ask again\n"
	for _, c := range []struct {
		code int
		said string
		want bool
	}{
		{6, lost, true},
		{6, `{"level":"debug"}` + "\n" + lost, true},
		{0, lost, false},
		{1, lost, false},
		{5, "mintai: box vanished before it answered; ask again\n", false},
		{6, "mintai: the AI server on box broke off in the middle of the answer; what is shown is incomplete\n", false},
		{6, `{"message":"mintai: box was lost in the middle of the answer"}` + "\n", false},
		{6, "", false},
	} {
		if got := saysLost(c.code, c.said); got != c.want {
			t.Errorf("%d %q: %v", c.code, c.said, got)
		}
	}
}

// A killed miner is told by the error, which comes in time and after a part of the
// answer.
func TestJudgeLost(t *testing.T) {
	const lost = "mintai: box was lost in the middle of the answer; ask again\n"
	e := events[len(events)-1]
	if !e.lost {
		t.Fatalf("event %s", e.name)
	}
	for _, c := range []struct {
		exit  string
		said  string
		got   string
		after time.Duration
		holds bool
	}{
		{"6", lost, "the ans", 2 * time.Second, true},
		{"6", lost, "the ans", 4 * time.Second, false},
		{"6", lost, "the answer", 2 * time.Second, false},
		{"6", lost, "", 2 * time.Second, false},
		{"1", lost, "the ans", 2 * time.Second, false},
		{"0", lost, "the ans", 2 * time.Second, false},
		{"6", "mintai: no path to box\n", "the ans", 2 * time.Second, false},
	} {
		start := time.Unix(1000, 0)
		tr := &trial{happened: start, client: &asked{err: exec.Command("sh", "-c", "exit "+c.exit).Run()}}
		tr.client.problem.WriteString(c.said)
		tr.client.got.text = []byte(c.got)
		tr.judge(e, []byte("the answer"), start.Add(c.after), nil)
		if (len(tr.faults) == 0) != c.holds {
			t.Errorf("%+v: %q", c, tr.faults)
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

func TestLongestStall(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	all := []stall{{at(0), at(90)}, {at(480), at(510)}, {at(900), at(960)}}
	for _, c := range []struct{ from, to, want int }{
		{500, 600, 30}, {600, 700, 30}, {611, 700, 0}, {700, 810, 60}, {100, 200, 90}, {1061, 1100, 0},
	} {
		if got := longestStall(all, pause{at(c.from), at(c.to)}); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("about %d–%d ms: %v, want %d ms", c.from, c.to, got, c.want)
		}
	}
	m := startStallMeter()
	m.stop()
	m.stop() // no harm
}

// TestAgain: only a trial that took too long, and nothing else, is repeated.
func TestAgain(t *testing.T) {
	short, long := event{limit: upgradeLimit}, event{limit: rescueLimit}
	const much = stallLimit + time.Millisecond
	made := func(n int) []*trial { return make([]*trial, n) }
	for _, c := range []struct {
		name   string
		event  event
		trial  trial
		beside bool
		want   bool
	}{
		{"holds", short, trial{stalled: much}, true, false},
		{"stalled", short, trial{over: true, faults: []string{"late"}, stalled: much}, false, true},
		{"stalled a little", short, trial{over: true, faults: []string{"late"}, stalled: stallLimit}, false, false},
		{"stalled and wrong", short, trial{over: true, faults: []string{"late", "lost"}, stalled: much}, false, false},
		{"wrong", short, trial{faults: []string{"lost"}, stalled: much}, false, false},
		{"stalled again", short, trial{over: true, faults: []string{"late"}, stalled: much, before: made(maxVoid - 1)}, false, true},
		{"stalled too often", short, trial{over: true, faults: []string{"late"}, stalled: much, before: made(maxVoid)}, false, false},
		{"beside another", long, trial{over: true, faults: []string{"late"}}, true, true},
		{"beside another and wrong", long, trial{over: true, faults: []string{"late", "lost"}}, true, false},
		{"alone", long, trial{over: true, faults: []string{"late"}, stalled: much}, false, false},
		{"repeated alone", long, trial{over: true, faults: []string{"late"}, before: made(1)}, false, false},
	} {
		if got := c.trial.again(c.event, c.beside); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestRepeats(t *testing.T) {
	r := &result{event: event{name: "upgrade", limit: upgradeLimit}, trials: []*trial{{
		before: []*trial{{pause: 90 * time.Millisecond, stalled: 40 * time.Millisecond}, {pause: 101 * time.Millisecond, stalled: 30 * time.Millisecond}},
	}}}
	const want = "repeated 2 times: the machine stalled (0.090 s with a stall of 0.040 s, 0.101 s with a stall of 0.030 s)"
	if got := r.trials[0].line(r.event); !strings.Contains(got, want) {
		t.Errorf("the line: %s", got)
	}
	if text := document([]*result{r}, options{n: 1}); !strings.Contains(text, "upgrade, trial 1: "+want+".") {
		t.Errorf("the report:\n%s", text)
	}
	late := trial{before: []*trial{{pause: 3100 * time.Millisecond}}}
	if got := late.repeats(event{limit: rescueLimit}); got != "repeated once: another laboratory ran beside it (3.100 s)" {
		t.Error(got)
	}
}
