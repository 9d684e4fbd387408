package node

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"mintai/ice"
	"mintai/quicstream"
)

// eventsCollector shows the counters that a part keeps by itself, most of them
// of what it refused, as one metric by event.
type eventsCollector struct {
	desc *prometheus.Desc
	now  func() map[string]uint64
}

var _ prometheus.Collector = (*eventsCollector)(nil)

func newEventsCollector(name, help string, now func() map[string]uint64) *eventsCollector {
	return &eventsCollector{desc: prometheus.NewDesc(name, help, []string{"event"}, nil), now: now}
}

// Describe names the one metric.
func (c *eventsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect reads the counters.
func (c *eventsCollector) Collect(ch chan<- prometheus.Metric) {
	events := c.now()
	for _, event := range slices.Sorted(maps.Keys(events)) {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(events[event]), event)
	}
}

// registerEvents shows what the coordinator's signaling and relay count.
func (c *coordinator) registerEvents(r prometheus.Registerer) {
	r.MustRegister(newEventsCollector("mintai_coordinator_signal_events_total", "What signaling took and refused.", func() map[string]uint64 {
		events := c.server.Counters()
		for _, state := range []string{"nodes", "early_nonces"} { // of this moment, not sums
			delete(events, state)
		}
		return events
	}))
	if c.turn != nil {
		r.MustRegister(newEventsCollector("mintai_coordinator_relay_events_total", "What the relay carried (bytes) and refused.", func() map[string]uint64 {
			return relayEvents(c.turn.Stats())
		}))
	}
}

func relayEvents(s ice.TURNStats) map[string]uint64 {
	return map[string]uint64{
		"bytes_to_peers": s.BytesToPeers, "bytes_to_clients": s.BytesToClients, "dropped_rate": s.DroppedRate,
		"dropped_peer": s.DroppedPeer, "dropped_flood": s.DroppedFlood, "refused_auth": s.RefusedAuth,
		"refused_peer": s.RefusedPeer, "refused_quota": s.RefusedQuota, "refused_other": s.RefusedOther, "malformed": s.Malformed,
	}
}

// registerEvents shows what the miner's tunnels and backends count.
func (m *miner) registerEvents(r prometheus.Registerer) {
	r.MustRegister(
		newEventsCollector("mintai_miner_tunnel_events_total", "What tunnels took and refused.", func() map[string]uint64 {
			return tunnelEvents(m.server.Counters())
		}),
		newEventsCollector("mintai_miner_refused_requests_total", "Requests refused or failed at the backends, by code.", m.cfg.Backends.Counters),
	)
}

func tunnelEvents(c quicstream.Counters) map[string]uint64 {
	return map[string]uint64{
		"tunnels": c.Tunnels, "refused_tunnels": c.RefusedTunnels, "requests": c.Requests, "refused": c.Refused, "busy": c.Busy,
		"resumed": c.Resumed, "lost": c.Lost, "cancelled": c.Cancelled, "expired": c.Expired, "broken_off": c.BrokenOff,
	}
}
