package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"mintai/ice"
)

// The metric structs accept a nil receiver, for processes that serve none.

// newRegistry returns a registry with the Go runtime's and the process's metrics.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// statusServer answers /metrics and /healthz, and what a role adds. Its methods
// accept a nil receiver, for a process that serves none.
type statusServer struct {
	ln  net.Listener
	mux *http.ServeMux
	log zerolog.Logger
}

// listenStatus opens addr. Healthy is asked at each /healthz. It returns nil
// when addr is empty, and when it cannot be had: a taken port is a warning, not
// a failure.
func listenStatus(addr string, registry *prometheus.Registry, healthy func() error, log zerolog.Logger) *statusServer {
	if addr == "" {
		return nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		log.Warn().Err(err).Msg("no /metrics and /healthz: choose another address with metrics = in the configuration")
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return &statusServer{ln: ln, mux: mux, log: log}
}

// guard keeps web pages out of what only this machine may see: a page that
// points its own name at this machine (DNS rebinding) still sends that name.
func (s *statusServer) guard(next http.Handler) http.Handler {
	if addr, ok := s.ln.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && !strings.EqualFold(host, "localhost") {
			http.Error(w, "call this page as 127.0.0.1 or localhost", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// handle adds a page.
func (s *statusServer) handle(pattern string, page http.HandlerFunc) {
	if s != nil {
		s.mux.HandleFunc(pattern, page)
	}
}

// Run serves until ctx ends.
func (s *statusServer) Run(ctx context.Context) error {
	if s == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	srv := &http.Server{
		Handler: s.guard(s.mux), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	s.log.Info().Str("addr", "http://"+s.ln.Addr().String()).Msg("metrics and health")
	if err := srv.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		s.log.Warn().Err(err).Msg("metrics server ended") // the role goes on without
	}
	<-ctx.Done()
	return ctx.Err()
}

// clientMetrics counts what a client does.
type clientMetrics struct {
	requests   *prometheus.CounterVec
	tunnels    *prometheus.GaugeVec
	failures   *prometheus.CounterVec
	connect    *prometheus.HistogramVec
	firstToken prometheus.Histogram
	moves      *prometheus.CounterVec
}

func newClientMetrics(r prometheus.Registerer) *clientMetrics {
	m := &clientMetrics{
		requests:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_client_requests_total", Help: "Requests by outcome, and by kind of path and the reason for it."}, []string{"outcome", "path", "reason"}),
		tunnels:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "mintai_client_tunnels", Help: "Open tunnels by kind of path and the reason for it."}, []string{"path", "reason"}),
		failures:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_client_connect_failures_total", Help: "Sessions for which no path was found, by the reason for what was expected of the path."}, []string{"reason"}),
		connect:    prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "mintai_client_connect_seconds", Help: "From the grant to the open tunnel.", Buckets: prometheus.ExponentialBuckets(0.002, 2, 13)}, []string{"path"}),
		firstToken: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mintai_client_first_token_seconds", Help: "From the request to the first byte of its answer.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 15)}),
	}
	m.moves = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_client_path_changes_total", Help: "Tunnels that gave over to another one, by what the former and the new path are: direct or relay."}, []string{"from", "to"})
	r.MustRegister(m.moves, m.requests, m.tunnels, m.failures, m.connect, m.firstToken)
	return m
}

func (m *clientMetrics) request(a account) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(a.outcome.String(), a.path.Kind, a.path.Code).Inc()
	if a.firstToken > 0 {
		m.firstToken.Observe(a.firstToken.Seconds())
	}
}

func (m *clientMetrics) tunnelUp(p Path, took time.Duration) {
	if m == nil {
		return
	}
	m.tunnels.WithLabelValues(p.Kind, p.Code).Inc()
	m.connect.WithLabelValues(p.Kind).Observe(took.Seconds())
}

func (m *clientMetrics) tunnelMoved(from, to Path) {
	if m == nil {
		return
	}
	m.tunnelDown(from)
	m.tunnels.WithLabelValues(to.Kind, to.Code).Inc()
	m.moves.WithLabelValues(from.word(), to.word()).Inc()
}

func (m *clientMetrics) tunnelDown(p Path) {
	if m != nil {
		m.tunnels.WithLabelValues(p.Kind, p.Code).Dec()
	}
}

func (m *clientMetrics) tunnelFailed(expected ice.Reason) {
	if m != nil {
		m.failures.WithLabelValues(expected.String()).Inc()
	}
}

// minerMetrics counts what a miner does.
type minerMetrics struct {
	requests   *prometheus.CounterVec
	declines   *prometheus.CounterVec
	tokens     prometheus.Counter
	firstToken prometheus.Histogram
}

func newMinerMetrics(r prometheus.Registerer) *minerMetrics {
	m := &minerMetrics{
		requests:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_miner_requests_total", Help: "Requests by outcome."}, []string{"outcome"}),
		declines:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_miner_declined_offers_total", Help: "Declined offers by cause."}, []string{"cause"}),
		tokens:     prometheus.NewCounter(prometheus.CounterOpts{Name: "mintai_miner_tokens_total", Help: "Tokens of answers."}),
		firstToken: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mintai_miner_first_token_seconds", Help: "From a request's arrival to its first byte.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 15)}),
	}
	r.MustRegister(m.requests, m.declines, m.tokens, m.firstToken)
	return m
}

func (m *minerMetrics) request(a account) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(a.outcome.String()).Inc()
	m.tokens.Add(float64(a.tokens))
	if a.firstToken > 0 {
		m.firstToken.Observe(a.firstToken.Seconds())
	}
}

func (m *minerMetrics) declined(cause string) {
	if m != nil {
		m.declines.WithLabelValues(cause).Inc()
	}
}
