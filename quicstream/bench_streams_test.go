package quicstream

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	streamCount  = 1000
	streamRate   = 30 // tokens a second and stream
	streamTokens = 3 * streamRate
	streamRounds = 5
	streamEvent  = `data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" token"}}]}` + "\n\n"
)

// tokenBackend answers at a steady rate without drift, each stream at a phase
// of its own.
func tokenBackend(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	_ = out.Flush()
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for range streamTokens {
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
		if _, err := io.WriteString(w, streamEvent); err != nil {
			return
		}
		_ = out.Flush()
		next = next.Add(time.Second / streamRate)
		timer.Reset(time.Until(next))
	}
}

// chain is a local endpoint that leads to the backend in one way or another.
type chain struct {
	endpoint string
	client   *http.Client
}

func newChain(b *testing.B, transport http.RoundTripper, target string) *chain {
	b.Helper()
	u, err := url.Parse(target)
	if err != nil {
		b.Fatal(err)
	}
	front := httptest.NewServer(&httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(u) },
	})
	b.Cleanup(front.Close)
	local := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: streamCount}
	b.Cleanup(local.CloseIdleConnections)
	return &chain{endpoint: front.URL, client: &http.Client{Transport: local}}
}

// run lets all streams run at once and returns the gaps between tokens.
func (c *chain) run(b *testing.B) (gaps []time.Duration, cpuPerToken time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	cpu := cpuTime()
	spread := time.NewTicker(time.Second / streamCount)
	defer spread.Stop()
	for range streamCount {
		<-spread.C
		wg.Go(func() {
			mine, err := c.stream(ctx)
			if err != nil {
				b.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			gaps = append(gaps, mine...)
		})
	}
	wg.Wait()
	return gaps, (cpuTime() - cpu) / (streamCount * streamTokens)
}

func (c *chain) stream(ctx context.Context) ([]time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint+"/v1/chat/completions", http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	gaps := make([]time.Duration, 0, streamTokens)
	var last time.Time
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		now := time.Now()
		if !last.IsZero() {
			gaps = append(gaps, now.Sub(last))
		}
		last = now
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(gaps) != streamTokens-1 {
		return nil, io.ErrUnexpectedEOF
	}
	return gaps, nil
}

func percentile99(gaps []time.Duration) float64 {
	slices.Sort(gaps)
	return float64(gaps[len(gaps)*99/100]) / 1e6
}

// BenchmarkStreams lets 1,000 token streams run at once through one tunnel
// (local endpoint, tunnel, proxy, backend) and through the same two proxies
// over plain HTTP/1.1. It reports the 99th percentile of the time between
// tokens, which ideally is 33 ms, and CPU time a token for everything together.
func BenchmarkStreams(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(tokenBackend))
	b.Cleanup(backend.Close)
	target, err := url.Parse(backend.URL)
	if err != nil {
		b.Fatal(err)
	}
	toBackend := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: streamCount}
	b.Cleanup(toBackend.CloseIdleConnections)
	miner := &httputil.ReverseProxy{
		Transport:     toBackend,
		FlushInterval: -1,
		Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(target) },
	}
	r := newRig(b, ServerConfig{Handler: miner})
	tunnelled := newChain(b, r.dial(), "http://miner")

	plainMiner := httptest.NewServer(miner)
	b.Cleanup(plainMiner.Close)
	toMiner := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: streamCount}
	b.Cleanup(toMiner.CloseIdleConnections)
	plain := newChain(b, toMiner, plainMiner.URL)

	var p99, p99Plain, ratio, cpu, cpuPlain []float64
	b.ReportAllocs()
	for b.Loop() {
		for i := range streamRounds {
			var gaps, plainGaps []time.Duration
			var c, pc time.Duration
			if i%2 == 0 {
				gaps, c = tunnelled.run(b)
				plainGaps, pc = plain.run(b)
			} else {
				plainGaps, pc = plain.run(b)
				gaps, c = tunnelled.run(b)
			}
			if b.Failed() {
				return
			}
			p99 = append(p99, percentile99(gaps))
			p99Plain = append(p99Plain, percentile99(plainGaps))
			ratio = append(ratio, p99[len(p99)-1]/p99Plain[len(p99Plain)-1])
			cpu = append(cpu, float64(c)/1e3)
			cpuPlain = append(cpuPlain, float64(pc)/1e3)
		}
	}
	b.ReportMetric(median(p99), "p99-ms")
	b.ReportMetric(median(p99Plain), "p99-plain-ms")
	b.ReportMetric(median(ratio), "p99-x-plain")
	b.ReportMetric(median(cpu), "cpu-us/token")
	b.ReportMetric(median(cpuPlain), "cpu-plain-us/token")
}

// BenchmarkPadding compares what a token costs with and without padding: the same
// 1,000 streams through two tunnels in turns. It reports CPU time a token, and the
// median of the ratios.
func BenchmarkPadding(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(tokenBackend))
	b.Cleanup(backend.Close)
	target, err := url.Parse(backend.URL)
	if err != nil {
		b.Fatal(err)
	}
	toBackend := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: streamCount}
	b.Cleanup(toBackend.CloseIdleConnections)
	miner := &httputil.ReverseProxy{
		Transport:     toBackend,
		FlushInterval: -1,
		Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(target) },
	}
	padded := newChain(b, newRig(b, ServerConfig{Handler: miner}).dial(), "http://miner")
	bare := newChain(b, newRig(b, ServerConfig{Handler: miner, NoPadding: true}).dial(), "http://miner")
	var with, without, ratio []float64
	for b.Loop() {
		for i := range 2 * streamRounds {
			var p, n time.Duration
			if i%2 == 0 {
				_, p = padded.run(b)
				_, n = bare.run(b)
			} else {
				_, n = bare.run(b)
				_, p = padded.run(b)
			}
			if b.Failed() {
				return
			}
			with, without = append(with, float64(p)/1e3), append(without, float64(n)/1e3)
			ratio = append(ratio, float64(p)/float64(n))
		}
	}
	b.ReportMetric(median(with), "cpu-padded-us/token")
	b.ReportMetric(median(without), "cpu-bare-us/token")
	b.ReportMetric(median(ratio), "cpu-x-bare")
}
