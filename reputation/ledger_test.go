package reputation

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mintai/identity"
)

// TestWhatCounts plays both ends' accounts of single requests, in any order,
// and compares the evidence.
func TestWhatCounts(t *testing.T) {
	miner := func(o Outcome) Receipt { return with(receipt(1, o), func(r *Receipt) { r.From = FromMiner }) }
	client := func(o Outcome) Receipt { return receipt(1, o) }
	tests := []struct {
		name      string
		in        []Receipt
		good, bad float64
	}{
		{"nothing", nil, 0, 0},
		{"an answer", []Receipt{client(OK)}, 1, 0},
		{"an answer, both tell", []Receipt{client(OK), miner(OK)}, 1, 0},
		{"an answer, the miner first", []Receipt{miner(OK), client(OK)}, 1, 0},
		{"an answer, told again", []Receipt{client(OK), client(OK)}, 1, 0},
		{"the first account stays", []Receipt{client(OK), client(Lost)}, 1, 0},
		{"praise alone", []Receipt{miner(OK)}, 0, 0},
		{"praise against the client", []Receipt{miner(OK), client(Lost)}, 0, 1},
		{"praise against the client, later", []Receipt{client(Lost), miner(OK)}, 0, 1},
		{"a confession", []Receipt{miner(BackendError)}, 0, 1},
		{"a confession, twice", []Receipt{miner(BackendError), miner(BackendError)}, 0, 1},
		{"a confession, and the client agrees", []Receipt{miner(BackendError), client(BackendError)}, 0, 1},
		{"a confession, but the client is content", []Receipt{miner(BackendError), client(OK)}, 1, 0},
		{"a confession, but the client had cancelled", []Receipt{miner(BackendError), client(Cancelled)}, 0, 0},
		{"the client, then a confession", []Receipt{client(OK), miner(BackendError)}, 1, 0},
		{"the miner accuses nobody", []Receipt{miner(Lost), miner(NoPath), miner(Cancelled)}, 0, 0},
		{"cancelled", []Receipt{client(Cancelled)}, 0, 0},
		{"refused", []Receipt{client(Refused)}, 0, 0},
		{"no path", []Receipt{client(NoPath)}, 0, 0.25},
		{"another session", []Receipt{client(OK), with(client(OK), func(r *Receipt) { r.Session = identity.SessionID{2} })}, 2, 0},
		{"another request", []Receipt{client(OK), receipt(2, Lost)}, 1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := open(t, Options{})
			l.record(t, tt.in...)
			s := l.Score(node(1), t0)
			if !near(s.Alpha-1, tt.good) || !near(s.Beta-1, tt.bad) {
				t.Errorf("evidence %v good, %v bad; want %v, %v", s.Alpha-1, s.Beta-1, tt.good, tt.bad)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	l := open(t, Options{})
	if v, first, rate := l.Judge(node(1), "qwen3:8b", t0); v != Neutral || first != 0 || rate != 0 {
		t.Errorf("unknown: %v %v %v", v, first, rate)
	}
	l.record(t, receipt(1, OK))
	if v, first, rate := l.Judge(node(1), "qwen3:8b", t0); !near(v, 2.0/3) || first != 500*time.Millisecond || !near(rate, 50) {
		t.Errorf("after one answer: %v %v %v", v, first, rate)
	}
	if v, first, rate := l.Judge(node(1), "other", t0); !near(v, 2.0/3) || first != 0 || rate != 0 {
		t.Errorf("another model: %v %v %v", v, first, rate)
	}
	if _, first, rate := l.Judge(node(1), "qwen3:8b", t0.Add(30*24*time.Hour)); first != 0 || rate != 0 {
		t.Errorf("a month later: %v %v", first, rate)
	}
}

// TestAllowance: one principal moves a score only so far, others still count,
// and praise does not use up blame.
func TestAllowance(t *testing.T) {
	l := open(t, Options{Allowance: 10})
	for i := range 100 {
		l.record(t, receipt(i, OK))
	}
	if s := l.Score(node(1), t0); !near(s.Alpha-1, 10) {
		t.Errorf("100 reports of one principal weigh %v", s.Alpha-1)
	}
	l.record(t, receipt(200, Lost))
	if s := l.Score(node(1), t0); !near(s.Beta-1, 1) {
		t.Error("praise used up the allowance of blame")
	}
	// Another key of the same principal shares the allowance.
	l.record(t, with(receipt(300, OK), func(r *Receipt) { r.Client = node(1001) }))
	// Another principal has its own, and so has one known by its key only.
	l.record(t, with(receipt(301, OK), func(r *Receipt) { r.ClientPrincipal = "bob" }))
	l.record(t, with(receipt(302, OK), func(r *Receipt) { r.ClientPrincipal = "" }))
	if s := l.Score(node(1), t0); !near(s.Alpha-1, 12) {
		t.Errorf("with two others: %v", s.Alpha-1)
	}
	// It fills up again with time.
	later := t0.Add(30 * time.Minute)
	for i := range 100 {
		l.record(t, with(receipt(400+i, OK), func(r *Receipt) { r.At = later }))
	}
	aged := 12 * decay(30*time.Minute, LongHalfLife)
	if s := l.Score(node(1), later); !near(s.Alpha-1, aged+5) {
		t.Errorf("half an hour later: %v, want %v", s.Alpha-1, aged+5)
	}

	free := open(t, Options{Allowance: -1})
	for i := range 100 {
		free.record(t, receipt(i, OK))
	}
	if s := free.Score(node(1), t0); !near(s.Alpha-1, 100) {
		t.Errorf("without limit: %v", s.Alpha-1)
	}
}

func TestAllowancesAreBounded(t *testing.T) {
	a := allowances{perHour: 1}
	for i := range maxAllowances + 100 {
		a.take(allowanceKey{miner: node(i)}, t0)
	}
	if len(a.known) > maxAllowances || a.order.len() > maxAllowances {
		t.Errorf("%d are remembered", len(a.known))
	}
}

func TestRequestsAreBounded(t *testing.T) {
	var q requests
	for i := range maxRequests + 1000 {
		k := requestKey{request: RequestID{byte(i >> 16), byte(i >> 8), byte(i)}}
		q.see(k, t0)
		q.put(k, account{client: true}, t0)
	}
	if len(q.known) > maxRequests || q.order.len() > maxRequests {
		t.Errorf("%d are remembered", len(q.known))
	}
	q.see(requestKey{}, t0.Add(requestWindow))
	if len(q.known) != 0 || q.order.len() != 0 {
		t.Errorf("%d are left after the window", len(q.known))
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reputation.db")
	l := openAt(t, path, Options{})
	l.record(t, receipt(1, OK), receipt(2, Lost), receipt(3, Cancelled))
	want := l.Explain(node(1), t0)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := l.Record(receipt(4, OK)); !errors.Is(err, ErrClosed) {
		t.Errorf("Record after Close: %v", err)
	}
	if err := l.Flush(); !errors.Is(err, ErrClosed) {
		t.Errorf("Flush after Close: %v", err)
	}
	if s := l.Score(node(1), t0); s != want.Score {
		t.Errorf("after Close %+v", s)
	}
	if s := l.Score(node(77), t0); s.Value != Neutral {
		t.Errorf("an unknown one after Close %+v", s)
	}
	got := openAt(t, path, Options{}).Explain(node(1), t0)
	if fmt.Sprint(got) != fmt.Sprint(want) || got.Score != want.Score {
		t.Errorf("read again:\n%vwant:\n%v", got, want)
	}
}

// TestFlushesByItself: what was recorded is on disk after FlushEvery, without
// anybody asking.
func TestFlushesByItself(t *testing.T) {
	l := open(t, Options{FlushEvery: time.Millisecond})
	l.record(t, receipt(1, OK))
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		r, err := l.store.read(node(1))
		if err != nil {
			t.Fatal(err)
		}
		if r != nil && r.counts[OK] == 1 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not written within 10 s")
		}
	}
}

// TestBoundedMemory: many more miners than may be held, and all of them are
// still known.
func TestBoundedMemory(t *testing.T) {
	const held, miners = 50, 500
	l := open(t, Options{MaxCached: held, FlushEvery: time.Hour})
	for i := range miners {
		r := with(receipt(i, OK), func(r *Receipt) { r.Miner = node(i + 1); r.Client = node(5000) })
		err := l.Record(r)
		if errors.Is(err, ErrOverloaded) { // the disk is behind: here it is asked to catch up
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
			err = l.Record(r)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(l.cache) > held {
			t.Fatalf("%d miners in memory", len(l.cache))
		}
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range miners {
		if s := l.Score(node(i+1), t0); !near(s.Alpha, 2) {
			t.Fatalf("miner %d: %+v", i, s)
		}
		l.Score(node(100000+i), t0) // strangers push nobody out for good
		if len(l.cache) > held {
			t.Fatalf("%d miners in memory", len(l.cache))
		}
	}
}

// TestOverloaded: when everything in memory waits for the disk, a further
// miner is refused, known ones still count, and strangers are judged neutral.
func TestOverloaded(t *testing.T) {
	l := open(t, Options{MaxCached: 1, FlushEvery: time.Hour})
	l.record(t, receipt(1, OK))
	other := with(receipt(2, OK), func(r *Receipt) { r.Miner = node(2) })
	if err := l.Record(other); !errors.Is(err, ErrOverloaded) {
		t.Errorf("Record = %v, want ErrOverloaded", err)
	}
	l.record(t, receipt(3, OK))
	if s := l.Score(node(2), t0); s.Value != Neutral {
		t.Errorf("%+v", s)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	l.record(t, other)
}

func TestForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reputation.db")
	l := openAt(t, path, Options{})
	old := t0.Add(-100 * 24 * time.Hour)
	for i := range pruneBatch + 10 {
		l.record(t, with(receipt(i, OK), func(r *Receipt) { r.Miner, r.Client, r.At = node(i+2), node(90000), old }))
	}
	l.record(t, receipt(1, OK))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openAt(t, path, Options{})
	if r, err := l.store.read(node(2)); err != nil || r != nil {
		t.Errorf("a miner of long ago is remembered: %+v, %v", r, err)
	}
	if r, err := l.store.read(node(pruneBatch + 5)); err != nil || r != nil {
		t.Errorf("a miner of the second batch is remembered: %+v, %v", r, err)
	}
	if r, err := l.store.read(node(1)); err != nil || r == nil {
		t.Errorf("a miner of today is forgotten: %v", err)
	}
}

func TestConcurrentRecord(t *testing.T) {
	const goroutines, each = 8, 200
	l := open(t, Options{MaxCached: 16, FlushEvery: time.Millisecond, Allowance: -1})
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				r := receipt(g*each+i, OK)
				r.Miner, r.Client = node(1+i%10), node(7000+g)
				if err := l.Record(r); err != nil {
					t.Error(err)
					return
				}
				l.Judge(node(1+i%10), "qwen3:8b", t0)
				l.Judge(node(20000+i), "qwen3:8b", t0)
				if i%50 == 0 {
					_ = l.Explain(node(1), t0).String()
					if err := l.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	total := 0.0
	for i := range 10 {
		total += l.Score(node(1+i), t0).Alpha - 1
	}
	if !near(total, goroutines*each) {
		t.Errorf("%v of %d reports counted", total, goroutines*each)
	}
}

// TestConcurrentClose: Record, Flush and Judge beside Close end without harm.
func TestConcurrentClose(t *testing.T) {
	l := open(t, Options{FlushEvery: time.Millisecond})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				r := receipt(g*1000+i, OK)
				if err := l.Record(r); err != nil && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
				if err := l.Flush(); err != nil && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
				l.Judge(node(i), "m", t0)
			}
		})
	}
	wg.Go(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
}

func TestExplain(t *testing.T) {
	l := open(t, Options{})
	if got, want := l.Explain(node(1), t0).String(), node(1).Short()+": reputation 0.50, because no client has reported about it yet\n"; got != want {
		t.Errorf("unknown: %q, want %q", got, want)
	}
	for i := range 8 {
		l.record(t, receipt(i, OK))
	}
	l.record(t,
		with(receipt(20, Lost), func(r *Receipt) { r.PathKind = "relay-udp" }),
		receipt(21, Cancelled), receipt(22, Refused), receipt(23, NoPath))
	e := l.Explain(node(1), t0.Add(2*time.Hour))
	want := node(1).Short() + `: reputation 0.80, (7.8 good + 1) ÷ (9.1 reports + 2); a report counts half after 3 days
  counted: 8 answered, 1 without a path, 1 lost midway
  not counted, because not its doing: 1 refused by the AI server, 1 cancelled
  last fault: without a path, 2 h ago
  paths: 10 direct, 1 relayed
  qwen3:8b: first token 0.5 s, 50 tok/s, measured 2 h ago
`
	if got := e.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"v":1`, `"miner":"` + node(1).String() + `"`, `"value":0.79`, `"outcome":"lost midway","count":1,"weight":1`, `"first_token_ms":500`, `"relayed":1`} {
		if !strings.Contains(string(b), part) {
			t.Errorf("JSON lacks %s: %s", part, b)
		}
	}
	var broken record
	broken.at, broken.good, broken.recentBad = t0, 98, 8
	broken.counts[OK] = 98
	if got := explain(node(1), &broken, t0).String(); !strings.Contains(got, "lowered because of the last hours (0.99 over the last days)") {
		t.Errorf("falling: %s", got)
	}
}

func TestRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "a moment", 0: "a moment", 90 * time.Second: "1 min", 59 * time.Second: "59 s",
		47 * time.Hour: "47 h", 72 * time.Hour: "3 days",
	} {
		if got := roughly(d); got != want {
			t.Errorf("roughly(%v) = %q, want %q", d, got, want)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	l := open(b, Options{})
	l.record(b, receipt(1, OK))
	b.ReportAllocs()
	for b.Loop() {
		l.Judge(node(1), "qwen3:8b", t0)
	}
}

func BenchmarkRecord(b *testing.B) {
	l := open(b, Options{Allowance: -1})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		l.record(b, receipt(i, OK))
		i++
	}
}
