package backend

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mintai/api"
)

// trace1xx calls f for each informational response.
func trace1xx(ctx context.Context, f func(status int, queue string)) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			f(code, h.Get(api.HeaderQueue))
			return nil
		},
	})
}

func TestWaitingRequestsGetTheirTurn(t *testing.T) {
	f := newFake(t, TypeOpenAI, fakeModel{name: "m"})
	arrived, goOn := make(chan string), make(chan struct{})
	f.answer = func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		last := f.seen[len(f.seen)-1].body
		f.mu.Unlock()
		arrived <- last
		<-goOn
		writeJSON(w, 200, `{}`)
	}
	p := newPool(t, Options{QueueLimit: 8}, Config{Type: TypeOpenAI, URL: f.URL, Slots: 1})
	miner := newMiner(t, p, "m")
	<-p.Changed()

	const n = 9 // one runs, eight wait
	var (
		mu       sync.Mutex
		position = make([][]string, n)
		wg       sync.WaitGroup
	)
	for i := range n {
		told := make(chan struct{}, 8)
		ctx := trace1xx(t.Context(), func(code int, queue string) {
			if code != 102 {
				t.Errorf("informational %d", code)
			}
			mu.Lock()
			position[i] = append(position[i], queue)
			mu.Unlock()
			told <- struct{}{}
		})
		wg.Go(func() {
			body := strings.Replace(ask, "hi", strings.Repeat("i", i+1), 1)
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, miner.URL+"/v1/chat/completions", strings.NewReader(body))
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != 200 || resp.Header.Get(api.HeaderQueue) != "" {
				t.Errorf("%d %v", resp.StatusCode, resp.Header)
			}
		})
		if i == 0 { // one after the other, so that the order is known
			if got := <-arrived; !strings.Contains(got, `"i"`) {
				t.Errorf("first: %s", got)
			}
		} else {
			await(t, told, "a position")
		}
	}
	if s := p.Snapshot(); s.InFlight != 1 || s.Queued != 8 || s.QueueLimit != 8 {
		t.Errorf("%+v", s)
	}
	select {
	case <-p.Changed(): // full
	default:
		t.Error("being full is news")
	}

	resp := post(t, miner.URL+"/v1/chat/completions", ask)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != 503 || resp.Header.Get(api.HeaderError) != api.CodeBusy || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the tenth: %d %v", resp.StatusCode, resp.Header)
	}

	for i := 1; i < n; i++ {
		goOn <- struct{}{}
		if got := <-arrived; !strings.Contains(got, `"`+strings.Repeat("i", i+1)+`"`) {
			t.Errorf("turn %d: %s", i, got)
		}
	}
	goOn <- struct{}{}
	wg.Wait()
	want := [][]string{nil, {"1"}, {"2", "1"}, {"3", "1"}, {"4", "2", "1"}, {"5", "2", "1"}, {"6", "3", "1"}, {"7", "3", "1"}, {"8", "4", "2", "1"}}
	for i := range want {
		// A position that was passed quickly may be skipped, never another order.
		if len(position[i]) > 4 || i > 0 && position[i][0] != want[i][0] || !subsequence(position[i], want[i]) {
			t.Errorf("request %d was told %v, want %v", i, position[i], want[i])
		}
	}
}

// subsequence accepts strictly falling positions within the length of want.
func subsequence(got, want []string) bool {
	return len(got) <= len(want) && slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(b, a) })
}

func TestAnnouncer(t *testing.T) {
	for _, tc := range []struct{ in, out []int }{
		{[]int{8, 7, 6, 5, 4, 3, 2, 1}, []int{8, 4, 2, 1}},
		{[]int{1}, []int{1}},
		{[]int{1, 1, 1}, []int{1}},
		{[]int{3, 2, 1}, []int{3, 1}},
		{[]int{1000, 500, 250, 125, 60, 30, 2, 1}, []int{1000, 500, 250, 1}},
		{[]int{5, 6, 7, 1}, []int{5, 1}},
	} {
		var a announcer
		var out []int
		for _, pos := range tc.in {
			if a.due(pos) {
				out = append(out, pos)
			}
		}
		if !slices.Equal(out, tc.out) {
			t.Errorf("%v: %v, want %v", tc.in, out, tc.out)
		}
	}
}

func TestLimiterInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, 2, nil)
		nothing := func(int) {}
		release, err := l.acquire(t.Context(), time.Minute, nothing)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { // leaves by itself
			if _, err := l.acquire(ctx, time.Minute, nothing); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			if d := time.Since(start); d != 5*time.Second {
				t.Errorf("left after %v", d)
			}
		})
		synctest.Wait()
		var positions []int
		wg.Go(func() { // is sent away
			if _, err := l.acquire(t.Context(), 10*time.Second, func(i int) { positions = append(positions, i) }); !errors.Is(err, errWaited) {
				t.Errorf("%v", err)
			}
		})
		synctest.Wait()
		if _, err := l.acquire(t.Context(), time.Minute, nothing); !errors.Is(err, errFull) {
			t.Errorf("%v", err)
		}
		wg.Wait()
		if !slices.Equal(positions, []int{2, 1}) {
			t.Errorf("told %v", positions)
		}
		if got := l.load(); got != (load{1, 1, 0, 2}) {
			t.Errorf("%+v", got)
		}
		l.resize(2)
		second, err := l.acquire(t.Context(), time.Minute, nothing)
		if err != nil {
			t.Fatal(err)
		}
		l.resize(1) // nobody is cut off
		release()
		release() // twice does no harm
		if got := l.load(); got.running != 1 {
			t.Errorf("%+v", got)
		}
		second()
		if d := l.retryAfter(); d < time.Second || d > time.Minute {
			t.Errorf("retry after %v", d)
		}
	})
}

func TestLimiterNeverLosesASlot(t *testing.T) {
	l := newLimiter(3, 50, func() {})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for j := range 20 {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+j)%3 == 0 {
					cancel()
				}
				release, err := l.acquire(ctx, time.Minute, func(int) {})
				if err == nil {
					if got := l.load(); got.running > 3 {
						t.Errorf("%+v", got)
					}
					release()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if got := l.load(); got != (load{3, 0, 0, 50}) {
		t.Errorf("%+v", got)
	}
}

func TestTheFreerServerAnswers(t *testing.T) {
	a, b := newFake(t, TypeOpenAI, fakeModel{name: "m"}), newFake(t, TypeOpenAI, fakeModel{name: "m"})
	hold, began, _ := hang()
	a.answer = hold
	p := newPool(t, Options{}, Config{Type: TypeOpenAI, URL: a.URL, Slots: 1}, Config{Type: TypeOpenAI, URL: b.URL, Slots: 1})
	miner := newMiner(t, p, "m")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, miner.URL+"/v1/chat/completions", strings.NewReader(ask))
		req.Header.Set("Content-Type", "application/json")
		if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
	})
	await(t, began, "the first server")
	b.take()
	if status, _ := outcome(t, miner.URL+"/v1/chat/completions", ask); status != 200 || len(b.take()) != 1 {
		t.Errorf("%d", status)
	}
	cancel()
	wg.Wait()
}
