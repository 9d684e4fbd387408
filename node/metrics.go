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

	"mintai/signal/signalpb"
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
	failures   prometheus.Counter
	connect    *prometheus.HistogramVec
	firstToken prometheus.Histogram
}

func newClientMetrics(r prometheus.Registerer) *clientMetrics {
	m := &clientMetrics{
		requests:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_client_requests_total", Help: "Requests by outcome and kind of path."}, []string{"outcome", "path"}),
		tunnels:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "mintai_client_tunnels", Help: "Open tunnels by kind of path."}, []string{"path"}),
		failures:   prometheus.NewCounter(prometheus.CounterOpts{Name: "mintai_client_connect_failures_total", Help: "Sessions for which no path was found."}),
		connect:    prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "mintai_client_connect_seconds", Help: "From the grant to the open tunnel.", Buckets: prometheus.ExponentialBuckets(0.002, 2, 13)}, []string{"path"}),
		firstToken: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mintai_client_first_token_seconds", Help: "From the request to the first byte of its answer.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 15)}),
	}
	r.MustRegister(m.requests, m.tunnels, m.failures, m.connect, m.firstToken)
	return m
}

func (m *clientMetrics) request(a account) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(a.outcome.String(), a.path.Kind).Inc()
	if a.firstToken > 0 {
		m.firstToken.Observe(a.firstToken.Seconds())
	}
}

func (m *clientMetrics) tunnelUp(p Path, took time.Duration) {
	if m == nil {
		return
	}
	m.tunnels.WithLabelValues(p.Kind).Inc()
	m.connect.WithLabelValues(p.Kind).Observe(took.Seconds())
}

func (m *clientMetrics) tunnelDown(p Path) {
	if m != nil {
		m.tunnels.WithLabelValues(p.Kind).Dec()
	}
}

func (m *clientMetrics) tunnelFailed() {
	if m != nil {
		m.failures.Inc()
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

// coordinatorMetrics counts what a coordinator does and sees of its sessions.
type coordinatorMetrics struct {
	nodes     *prometheus.GaugeVec
	sessions  prometheus.Gauge
	miners    prometheus.Gauge
	matches   prometheus.Histogram
	unmatches *prometheus.CounterVec
	declines  prometheus.Counter
	tunnels   *prometheus.CounterVec
	rtt       *prometheus.HistogramVec
	receipts  *prometheus.CounterVec
}

func newCoordinatorMetrics(r prometheus.Registerer) *coordinatorMetrics {
	m := &coordinatorMetrics{
		nodes:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "mintai_coordinator_nodes", Help: "Connected nodes by role."}, []string{"role"}),
		sessions:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "mintai_coordinator_sessions", Help: "Live sessions."}),
		miners:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "mintai_coordinator_leases", Help: "Miners with a lease."}),
		matches:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mintai_coordinator_match_seconds", Help: "From a request to its grant.", Buckets: prometheus.ExponentialBuckets(0.00002, 2, 14)}),
		unmatches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_coordinator_no_match_total", Help: "Requests without a miner, by cause."}, []string{"cause"}),
		declines:  prometheus.NewCounter(prometheus.CounterOpts{Name: "mintai_coordinator_declined_offers_total", Help: "Offers that miners declined."}),
		tunnels:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_coordinator_tunnel_reports_total", Help: "Reports of clients about their tunnels, by state and kind of path."}, []string{"state", "path"}),
		rtt:       prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "mintai_coordinator_tunnel_rtt_seconds", Help: "Round trips of tunnels, as clients report them.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 13)}, []string{"path"}),
		receipts:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_coordinator_receipts_total", Help: "Accounts of requests, by end and outcome."}, []string{"from", "outcome"}),
	}
	r.MustRegister(m.nodes, m.sessions, m.miners, m.matches, m.unmatches, m.declines, m.tunnels, m.rtt, m.receipts)
	return m
}

func (m *coordinatorMetrics) joined(role signalpb.Role) {
	if m != nil {
		m.nodes.WithLabelValues(roleName(role)).Inc()
	}
}

func (m *coordinatorMetrics) left(role signalpb.Role) {
	if m != nil {
		m.nodes.WithLabelValues(roleName(role)).Dec()
	}
}

func (m *coordinatorMetrics) load(sessions, miners int) {
	if m != nil {
		m.sessions.Set(float64(sessions))
		m.miners.Set(float64(miners))
	}
}

func (m *coordinatorMetrics) matched(took time.Duration) {
	if m != nil {
		m.matches.Observe(took.Seconds())
	}
}

func (m *coordinatorMetrics) unmatched(code signalpb.NoMatchCode) {
	if m != nil {
		m.unmatches.WithLabelValues(code.String()).Inc()
	}
}

func (m *coordinatorMetrics) declined() {
	if m != nil {
		m.declines.Inc()
	}
}

// pathLabel keeps what a client claims from making ever new series.
func pathLabel(kind string) string {
	switch kind {
	case "host", "srflx", "prflx", "mapped", "relay-udp", "relay-tls", "":
		return kind
	default:
		return "other"
	}
}

func (m *coordinatorMetrics) tunnel(s *signalpb.TunnelStatus) {
	if m == nil {
		return
	}
	m.tunnels.WithLabelValues(s.GetState().String(), pathLabel(s.GetPathKind())).Inc()
	if s.GetState() == signalpb.TunnelState_TUNNEL_UP && s.GetRttUs() > 0 {
		m.rtt.WithLabelValues(pathLabel(s.GetPathKind())).Observe(float64(s.GetRttUs()) / 1e6)
	}
}

func (m *coordinatorMetrics) receipt(fromClient bool, r *signalpb.Receipt) {
	if m == nil {
		return
	}
	from := "miner"
	if fromClient {
		from = "client"
	}
	m.receipts.WithLabelValues(from, r.GetOutcome().String()).Inc()
}
