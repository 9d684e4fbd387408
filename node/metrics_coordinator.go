package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mintai/ice"
	"mintai/signal/signalpb"
)

// coordinatorMetrics counts what a coordinator does and sees of its sessions.
type coordinatorMetrics struct {
	nodes     *prometheus.GaugeVec
	sessions  prometheus.Gauge
	miners    prometheus.Gauge
	relays    prometheus.Gauge
	matches   prometheus.Histogram
	unmatches *prometheus.CounterVec
	declines  prometheus.Counter
	tunnels   *prometheus.CounterVec
	rtt       *prometheus.HistogramVec
	receipts  *prometheus.CounterVec
	paths     *prometheus.CounterVec
}

func newCoordinatorMetrics(r prometheus.Registerer) *coordinatorMetrics {
	m := &coordinatorMetrics{
		nodes:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "mintai_coordinator_nodes", Help: "Connected nodes by role."}, []string{"role"}),
		sessions:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "mintai_coordinator_sessions", Help: "Live sessions."}),
		miners:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "mintai_coordinator_leases", Help: "Miners with a lease."}),
		relays:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "mintai_coordinator_relay_allocations", Help: "Relayed addresses in use now."}),
		matches:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mintai_coordinator_match_seconds", Help: "From a request to its grant.", Buckets: prometheus.ExponentialBuckets(0.00002, 2, 14)}),
		unmatches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_coordinator_no_match_total", Help: "Requests without a miner, by cause."}, []string{"cause"}),
		declines:  prometheus.NewCounter(prometheus.CounterOpts{Name: "mintai_coordinator_declined_offers_total", Help: "Offers that miners declined."}),
		tunnels:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_coordinator_tunnel_reports_total", Help: "Reports of clients about their tunnels, by state, kind of path and why it is that."}, []string{"state", "path", "reason"}),
		rtt:       prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "mintai_coordinator_tunnel_rtt_seconds", Help: "Round trips of tunnels, as clients report them.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 13)}, []string{"path"}),
		receipts:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_coordinator_receipts_total", Help: "Accounts of requests, by end and outcome."}, []string{"from", "outcome"}),
		paths:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mintai_coordinator_paths_total", Help: "Requests for another path of a session, by cause."}, []string{"cause"}),
	}
	r.MustRegister(m.paths, m.nodes, m.sessions, m.miners, m.relays, m.matches, m.unmatches, m.declines, m.tunnels, m.rtt, m.receipts)
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

func (m *coordinatorMetrics) lent(allocations int) {
	if m != nil {
		m.relays.Set(float64(allocations))
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

func (m *coordinatorMetrics) path(cause signalpb.PathCause) {
	if m != nil {
		m.paths.WithLabelValues(causeLabel(cause)).Inc()
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

// reasonLabel is the code of a reason, or "unknown".
func reasonLabel(r signalpb.PathReason) string {
	if r < 0 || r > 255 {
		return ice.NoReason.String()
	}
	return ice.Reason(r).String()
}

func (m *coordinatorMetrics) tunnel(s *signalpb.TunnelStatus) {
	if m == nil {
		return
	}
	m.tunnels.WithLabelValues(s.GetState().String(), pathLabel(s.GetPathKind()), reasonLabel(s.GetReason())).Inc()
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

// registerProbes shows what the probe server counts, and how many nodes are
// watched.
func (c *coordinator) registerProbes(r prometheus.Registerer) {
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mintai_coordinator_watched_nodes", Help: "Nodes of whose addresses something is known.",
	}, func() float64 { return float64(c.view.Len()) }))
	if c.probes == nil {
		return
	}
	r.MustRegister(newEventsCollector("mintai_coordinator_probe_events_total", "What the probe server answered and refused.", func() map[string]uint64 {
		s := c.probes.Stats()
		return map[string]uint64{
			"answered": s.Answered, "proofs": s.Proofs, "replayed": s.Replayed, "refused": s.Refused, "flood": s.Flood, "malformed": s.Malformed,
		}
	}))
}
