package reputation

import (
	"math"
	"testing"
	"time"
)

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6 }

func TestWeight(t *testing.T) {
	tests := []struct {
		outcome   Outcome
		good, bad float64
	}{
		{OK, 1, 0},
		{Lost, 0, 1},
		{BackendError, 0, 1},
		{Timeout, 0, 0.75},
		{NoPath, 0, 0.25},
		{Busy, 0, 0.1},
		{Refused, 0, 0},
		{Cancelled, 0, 0},
		{0, 0, 0},
		{outcomes, 0, 0},
	}
	for _, tt := range tests {
		if good, bad := weight(tt.outcome); good != tt.good || bad != tt.bad {
			t.Errorf("weight(%v) = %v, %v; want %v, %v", tt.outcome, good, bad, tt.good, tt.bad)
		}
	}
	_, noPath := weight(NoPath)
	if _, lost := weight(Lost); noPath >= lost {
		t.Error("a path that was never found counts as much as a lost answer")
	}
}

func TestDecay(t *testing.T) {
	tests := []struct {
		age  time.Duration
		want float64
	}{
		{0, 1},
		{-time.Hour, 1},
		{LongHalfLife, 0.5},
		{2 * LongHalfLife, 0.25},
		{10 * LongHalfLife, 1.0 / 1024},
		{math.MaxInt64, 0},
	}
	for _, tt := range tests {
		if got := decay(tt.age, LongHalfLife); !near(got, tt.want) {
			t.Errorf("decay(%v) = %v, want %v", tt.age, got, tt.want)
		}
	}
}

func TestScore(t *testing.T) {
	at := func(good, bad float64) record { return record{at: t0, good: good, bad: bad} }
	tests := []struct {
		name string
		r    record
		now  time.Time
		want Score
	}{
		{"unknown", record{}, t0, Score{Value: 0.5, Alpha: 1, Beta: 1, Recent: 0.5}},
		{"one good", at(1, 0), t0, Score{Value: 2.0 / 3, Alpha: 2, Beta: 1, Recent: 2.0 / 3}},
		{"one bad", at(0, 1), t0, Score{Value: 1.0 / 3, Alpha: 1, Beta: 2, Recent: 1.0 / 3}},
		{"98 of 98", at(98, 0), t0, Score{Value: 0.99, Alpha: 99, Beta: 1, Recent: 0.99}},
		{"half forgotten", at(98, 0), t0.Add(LongHalfLife), Score{Value: 50.0 / 51, Alpha: 50, Beta: 1, Recent: 50.0 / 51}},
		{"quite forgotten", at(98, 0), t0.Add(100 * LongHalfLife), Score{Value: 0.5, Alpha: 1, Beta: 1, Recent: 0.5}},
		{"a clock that stepped back", at(98, 0), t0.Add(-time.Hour), Score{Value: 0.99, Alpha: 99, Beta: 1, Recent: 0.99}},
		{"falling", record{at: t0, good: 98, recentBad: 8}, t0, Score{Value: 0.495, Alpha: 99, Beta: 1, Recent: 0.495, Falling: true}},
		{"a little worse lately", record{at: t0, good: 98, recentGood: 32, recentBad: 1}, t0, Score{Value: 0.99, Alpha: 99, Beta: 1, Recent: (32 + 8*.99) / 41}},
		{"better lately does not raise it", record{at: t0, good: 48, bad: 50, recentGood: 100}, t0, Score{Value: 0.49, Alpha: 49, Beta: 51, Recent: (100 + 8*.49) / 108}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := score(&tt.r, tt.now)
			if !near(got.Value, tt.want.Value) || !near(got.Alpha, tt.want.Alpha) || !near(got.Beta, tt.want.Beta) ||
				!near(got.Recent, tt.want.Recent) || got.Falling != tt.want.Falling {
				t.Errorf("score = %+v\nwant    %+v", got, tt.want)
			}
		})
	}
}

// TestForgettingIsTheSameAtEachStep: ageing a record in many steps or in one
// gives the same, so it does not matter how often a miner is reported about.
func TestForgettingIsTheSameAtEachStep(t *testing.T) {
	one, many := record{at: t0, good: 40, bad: 3, recentGood: 5}, record{at: t0, good: 40, bad: 3, recentGood: 5}
	for i := range 100 {
		many.moveTo(t0.Add(time.Duration(i+1) * time.Hour))
	}
	one.moveTo(t0.Add(100 * time.Hour))
	a, b := score(&one, t0.Add(200*time.Hour)), score(&many, t0.Add(200*time.Hour))
	if !near(a.Value, b.Value) || !near(a.Alpha, b.Alpha) || !near(one.recentGood, many.recentGood) {
		t.Errorf("in one step %+v, in many %+v", a, b)
	}
}

// TestLateReport: a report that arrives after newer ones weighs what it would
// have weighed in time, and time does not run backwards.
func TestLateReport(t *testing.T) {
	later := t0.Add(clockSlack / 2)
	var inTime, late record
	inTime.count(Lost, t0)
	inTime.count(OK, later)
	late.count(OK, later)
	late.count(Lost, t0)
	if !near(inTime.good, late.good) || !near(inTime.bad, late.bad) || !late.at.Equal(later) {
		t.Errorf("in time %+v, late %+v", inTime, late)
	}
}

// TestClockSetRight: what was recorded while the clock was years ahead ages
// like the rest once the clock is right.
func TestClockSetRight(t *testing.T) {
	future := t0.AddDate(70, 0, 0)
	var r record
	c := receipt(1, OK)
	c.At = future
	r.count(OK, future)
	r.measure(&c)
	c.At = t0
	r.count(OK, t0)
	r.measure(&c)
	if !r.at.Equal(t0) || !r.speeds[c.Model].at.Equal(t0) || !near(score(&r, t0.Add(LongHalfLife)).Alpha, 2) {
		t.Errorf("record %+v", r)
	}
	a := allowances{perHour: 1}
	k := allowanceKey{miner: node(1)}
	a.take(k, future)
	a.take(k, t0)
	if !a.take(k, t0.Add(time.Hour)) {
		t.Error("an allowance of the future never fills up")
	}
}

func TestUncount(t *testing.T) {
	var r record
	r.count(OK, t0)
	r.count(BackendError, t0.Add(time.Minute))
	r.moveTo(t0.Add(time.Hour))
	r.uncount(BackendError, t0.Add(time.Minute))
	if !near(r.bad, 0) || !near(r.recentBad, 0) || r.counts[BackendError] != 0 || r.lastFault != 0 || r.good == 0 {
		t.Errorf("after taking it back: %+v", r)
	}
	r.uncount(BackendError, t0) // never below zero
	if r.bad < 0 || r.counts[BackendError] != 0 {
		t.Errorf("below zero: %+v", r)
	}
}

// TestCourse follows a score through a miner's life: good, broken, mended.
func TestCourse(t *testing.T) {
	var r record
	now := t0
	for range 200 {
		now = now.Add(5 * time.Minute)
		r.count(OK, now)
	}
	good := score(&r, now)
	if good.Value < 0.98 || good.Falling {
		t.Fatalf("after 200 answers: %+v", good)
	}
	for range 10 {
		now = now.Add(time.Minute)
		r.count(Lost, now)
	}
	broken := score(&r, now)
	if broken.Value > 0.75 || !broken.Falling {
		t.Errorf("ten failures in ten minutes after 200 answers: %+v", broken)
	}
	for range 100 {
		now = now.Add(5 * time.Minute)
		r.count(OK, now)
	}
	if mended := score(&r, now); mended.Value < 0.9 || mended.Falling {
		t.Errorf("100 answers later: %+v", mended)
	}
}

func TestSpeeds(t *testing.T) {
	ok := func(first time.Duration, rate float64, at time.Time) *Receipt {
		r := receipt(0, OK)
		r.FirstToken, r.Total, r.TokensPerSecond, r.At = first, first+time.Second, rate, at
		return &r
	}
	var r record
	r.measure(ok(time.Second, 40, t0))
	r.measure(ok(3*time.Second, 60, t0))
	s := r.speeds["qwen3:8b"]
	if s.firstToken != 2*time.Second || !near(s.tokensPerSecond, 50) {
		t.Errorf("the first two are averaged: %+v", s)
	}
	for range 40 {
		r.measure(ok(500*time.Millisecond, 100, t0))
	}
	s = r.speeds["qwen3:8b"]
	if s.firstToken > 510*time.Millisecond || s.tokensPerSecond < 99 {
		t.Errorf("later ones move it: %+v", s)
	}
	r.measure(ok(60*time.Second, 1, t0))
	if s = r.speeds["qwen3:8b"]; s.firstToken > 13*time.Second || s.firstToken < 12*time.Second {
		t.Errorf("one cold start weighs a fifth: %+v", s)
	}
	if !s.known(t0.Add(speedHalfLife)) || s.known(t0.Add(10*speedHalfLife)) {
		t.Error("a speed is remembered for days, not for ever")
	}

	// A failure to begin looks slow, never fast.
	before := r.speeds["qwen3:8b"]
	late := receipt(0, Timeout)
	late.Total = time.Millisecond
	r.measure(&late)
	if after := r.speeds["qwen3:8b"]; after.firstToken <= before.firstToken || after.tokensPerSecond != before.tokensPerSecond {
		t.Errorf("a timeout moved %+v to %+v", before, after)
	}

	// What says nothing about speed changes nothing.
	before = r.speeds["qwen3:8b"]
	for _, o := range []Outcome{NoPath, Lost, BackendError, Refused, Cancelled, Busy} {
		c := receipt(0, o)
		c.FirstToken, c.Total, c.Tokens = time.Second, 2*time.Second, 5
		r.measure(&c)
	}
	r.measure(ok(0, 50, t0))
	r.measure(with(ok(time.Second, 50, t0), func(r **Receipt) { (*r).Model = "" }))
	if r.speeds["qwen3:8b"] != before || len(r.speeds) != 1 {
		t.Errorf("speeds changed: %+v", r.speeds)
	}
}

func TestReceiptSpeed(t *testing.T) {
	tests := []struct {
		name string
		r    Receipt
		want float64
	}{
		{"as counted", Receipt{Tokens: 10, TokensPerSecond: 33}, 33},
		{"worked out", Receipt{Tokens: 100, FirstToken: time.Second, Total: 3 * time.Second}, 50},
		{"too short", Receipt{Tokens: 3, TokensPerSecond: 1e5}, 0},
		{"no time", Receipt{Tokens: 100, FirstToken: time.Second, Total: time.Second}, 0},
		{"no first token", Receipt{Tokens: 100, Total: time.Second}, 0},
		{"absurd", Receipt{Tokens: 1 << 60, FirstToken: 1, Total: 2}, maxTokensPerSecond},
	}
	for _, tt := range tests {
		if got := tt.r.speed(); !near(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestModelsAreBounded(t *testing.T) {
	var r record
	for i := range 3 * maxModels {
		c := receipt(i, OK)
		c.Model, c.At = model(i), t0.Add(time.Duration(i)*time.Second)
		r.measure(&c)
	}
	if len(r.speeds) != maxModels {
		t.Fatalf("%d models are remembered", len(r.speeds))
	}
	if _, have := r.speeds[model(3*maxModels-1)]; !have {
		t.Error("the newest was forgotten")
	}
	if _, have := r.speeds[model(0)]; have {
		t.Error("the oldest was kept")
	}
}
