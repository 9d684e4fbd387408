package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"mintai/testdata/labkit"
)

// pause is a time in which nothing came.
type pause struct{ from, to time.Time }

func (p pause) length() time.Duration { return p.to.Sub(p.from) }

// longest is the longest pause that ended after from. What lies before the later
// of from and woke, when the reader slept, does not count.
func longest(at []time.Time, from, woke time.Time) pause {
	var most pause
	for i := 1; i < len(at); i++ {
		begin, end := at[i-1], at[i]
		if !end.After(from) {
			continue
		}
		if begin.Before(woke) {
			begin = woke
		}
		if p := (pause{begin, end}); p.length() > most.length() {
			most = p
		}
	}
	return most
}

// differ says where two answers part; empty: they are the same.
func differ(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	return fmt.Sprintf("%d bytes instead of %d, and another answer from byte %d on", len(got), len(want), n)
}

// pathLine is how `ask -v` names the path at its end, behind that of the beginning
// if it is another.
var pathLine = regexp.MustCompile(`(?m)^path (?:[a-z-]+ → )?([a-z-]+): (.*?) · `)

// changedLine is how the client logs that it left one path for another.
var changedLine = regexp.MustCompile(`"from":"([a-z-]+)","path":"([a-z-]+)"`)

// word is a path in one word.
func word(kind string) string {
	if strings.HasPrefix(kind, "relay") {
		return "relay"
	}
	return "direct"
}

// exitLost is the exit code for an answer that ends before its end.
const exitLost = 6

// lostLine is what a client says of a miner that is gone: neither that the AI server
// failed, nor that there was no path.
var lostLine = regexp.MustCompile(`(?m)^mintai: box was lost in the middle of the answer`)

// saysLost reports whether a client ended as one whose miner was lost.
func saysLost(code int, said string) bool { return code == exitLost && lostLine.MatchString(said) }

// judge compares what came with what must.
func (t *trial) judge(e event, want []byte, ended time.Time, stalls []stall) {
	fault := func(format string, args ...any) { t.faults = append(t.faults, fmt.Sprintf(format, args...)) }
	got := t.client.arrived()
	t.bytes = len(got.text)
	said := t.client.problem.String()
	code := 0
	var exit *exec.ExitError
	if errors.As(t.client.err, &exit) {
		code = exit.ExitCode()
	}
	if m := changedLine.FindStringSubmatch(said); m != nil {
		t.pathFirst = m[1]
	}
	if m := pathLine.FindStringSubmatch(said); m != nil {
		t.path = m[1]
		if t.pathFirst == "" {
			t.pathFirst = m[1]
		}
	}
	if e.lost {
		p := pause{t.happened, ended}
		t.pause, t.stalled = p.length(), longestStall(stalls, p)
		switch {
		case !saysLost(code, said):
			fault("exit code %d, and not that the miner was lost: %s", code, labkit.LastLine(said))
		case !bytes.HasPrefix(want, got.text) || len(got.text) == 0 || len(got.text) == len(want):
			fault("what came is not a beginning of the answer: %s", differ(got.text, want))
		case t.pause > e.limit:
			t.over = true
			fault("the error came after %.2f s, limit %.2f s", t.pause.Seconds(), e.limit.Seconds())
		}
		return
	}
	p := longest(got.at, t.happened, t.woke)
	t.pause, t.stalled = p.length(), longestStall(stalls, p)
	limit := e.limit
	if limit == upgradeLimit {
		limit += cadence
	}
	if code != 0 {
		fault("exit code %d: %s", code, labkit.LastLine(said))
	}
	if d := differ(got.text, want); d != "" {
		fault("%s", d)
	}
	if t.pause > limit {
		t.over = true
		fault("a pause of %.3f s, limit %.3f s", t.pause.Seconds(), limit.Seconds())
	}
	if e.path != "" && word(t.path) != e.path {
		fault("the path is %s at the end, want %s", t.path, e.path)
	}
	if e.name == "upgrade" {
		t.judgeShorts(fault)
	}
}

var shortsLine = regexp.MustCompile(`(\d+) requests, (\d+) failed`)

// judgeShorts looks at the short requests that ran beside the answer.
func (t *trial) judgeShorts(fault func(string, ...any)) {
	select {
	case <-t.proxy.Done():
	case <-time.After(restTime):
		fault("the short requests do not end")
		return
	}
	text, _ := t.proxy.Text()
	m := shortsLine.FindStringSubmatch(text)
	switch {
	case m == nil:
		fault("the short requests: %s", labkit.LastLine(text))
	case m[1] == "0" || m[2] != "0":
		fault("of the short requests beside it: %s", m[0])
	default:
		t.shorts = m[1]
	}
}

// maxVoid is how often a trial is repeated in which the machine stalled.
const maxVoid = 3

// again reports whether a trial is made once more, alone: its only fault is that it
// took too long, and the machine may be the cause. Where the limit is short that is
// a stall that was seen; where it is long, another laboratory beside the trial.
func (t *trial) again(e event, beside bool) bool {
	switch {
	case !t.over || len(t.faults) != 1:
		return false
	case e.limit == upgradeLimit:
		return t.stalled > stallLimit && len(t.before) < maxVoid
	}
	return beside && len(t.before) == 0
}

// repeats says how often a trial was repeated and why; empty: it was not.
func (t *trial) repeats(e event) string {
	if len(t.before) == 0 {
		return ""
	}
	var was []string
	for _, b := range t.before {
		s := fmt.Sprintf("%.3f s", b.pause.Seconds())
		if b.stalled > 0 {
			s += fmt.Sprintf(" with a stall of %.3f s", b.stalled.Seconds())
		}
		was = append(was, s)
	}
	why := "another laboratory ran beside it"
	if e.limit == upgradeLimit {
		why = "the machine stalled"
	}
	times := "once"
	if n := len(t.before); n > 1 {
		times = fmt.Sprintf("%d times", n)
	}
	return fmt.Sprintf("repeated %s: %s (%s)", times, why, strings.Join(was, ", "))
}

// line is a trial in one line.
func (t *trial) line(e event) string {
	s := fmt.Sprintf("%-32s pause %6.3f s  %s → %s", e.name, t.pause.Seconds(), t.pathFirst, t.path)
	if e.lost {
		s = fmt.Sprintf("%-32s error after %6.3f s", e.name, t.pause.Seconds())
	}
	if !t.released.IsZero() {
		s += fmt.Sprintf("  relay free after %.1f s", t.released.Sub(t.happened).Seconds())
	}
	if t.shorts != "" {
		s += "  " + t.shorts + " short requests, none failed"
	}
	if r := t.repeats(e); r != "" {
		s += "  " + r
	}
	for _, f := range t.faults {
		s += "\n    FAILS: " + f
	}
	return s
}
