package node

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mintai/backend"
	"mintai/ice"
)

// whole is a complete answer.
func whole(c *aiCall) {
	c.piece("yes")
	c.end()
}

// silentUDP is an address at which nothing ever answers over UDP.
func silentUDP(t testing.TB) string {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.LocalAddr().String()
}

// withTLS makes the coordinator listen on TLS as well.
func withTLS(c *coordinatorConfig) { c.TLS = tlsSettings{Listen: "127.0.0.1:0"} }

// blocked is a membership whose packets over UDP lead nowhere.
func (l *lab) blocked() membership {
	m := l.member()
	m.addrs, m.tls = []string{silentUDP(l.t)}, l.co.tls.Addr().Port()
	return m
}

// pathOf asks and returns the path that the report tells.
func pathOf(t *testing.T, c *labClient) jsonPath {
	t.Helper()
	got := c.ask(t, askOptions{prompt: []string{"?"}, json: true}).wait()
	var report jsonReport
	if err := json.Unmarshal([]byte(got.out), &report); err != nil || got.exit != ExitOK || report.Path == nil {
		t.Fatalf("%v: %+v", err, got)
	}
	return *report.Path
}

// A network that lets no UDP through is no obstacle, on either side or on both:
// the packets take a relay over TLS, and the reason says whose network it is.
func TestUDPBlocked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		client, miner bool
		reason        ice.Reason
	}{
		{"here", true, false, ice.ClientUDPBlocked},
		{"there", false, true, ice.MinerUDPBlocked},
		{"on both sides", true, true, ice.BothUDPBlocked},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, withTLS)
			ai := newAI(t, "m", whole)
			var m *labMiner
			if c.miner {
				m = l.miner("gpu-box", ai, func(cfg *minerConfig) { cfg.Membership = l.blocked() })
			} else {
				m = l.unreachable("gpu-box", ai)
			}
			var cl *labClient
			if c.client {
				cl = l.client(func(cfg *clientConfig) { cfg.Membership = l.blocked() })
			} else {
				cl = l.hidden()
			}
			if got := pathOf(t, cl); got.Kind != ice.RelayTLS.String() || got.Code != c.reason.String() {
				t.Errorf("path %+v, want %s, %s", got, ice.RelayTLS, c.reason)
			}
			if n := l.co.turn.Stats().Allocations; n == 0 {
				t.Error("no relay is lent")
			}
			// It exists only while it is needed.
			cl.part.stop()
			waitUntil(t, "the relays are free", func() bool { return l.co.turn.Stats().Allocations == 0 })
			m.part.stop()
		})
	}
}

// What the owner of either end sets about relays holds.
func TestRelayModes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		client, miner RelayMode
	}{
		{"the client's always", RelayAlways, RelayAuto},
		{"the miner's always", RelayAuto, RelayAlways},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			ai := newAI(t, "m", whole)
			l.miner("gpu-box", ai, func(cfg *minerConfig) { cfg.Relay = c.miner })
			cl := l.client(func(cfg *clientConfig) { cfg.Relay = c.client })
			if got := pathOf(t, cl); got.Kind != ice.RelayUDP.String() || got.Code != ice.RelayChosen.String() {
				t.Errorf("path %+v, want a chosen relay", got)
			}
		})
	}
	t.Run("never", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		ai := newAI(t, "m", whole)
		l.unreachable("gpu-box", ai)
		registry := prometheus.NewRegistry()
		cl := l.hidden(func(c *clientConfig) {
			c.Relay, c.Metrics = RelayNever, newClientMetrics(registry)
			c.Deadlines.Direct = 300 * time.Millisecond
		})
		got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait()
		if got.exit != ExitNoPath || !strings.Contains(got.err, `relays are turned off here (relay = "never")`) {
			t.Errorf("%+v", got)
		}
		if n := l.co.turn.Stats().Allocations; n != 0 {
			t.Errorf("%d relays are lent", n)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() != "mintai_client_connect_failures_total" {
				continue
			}
			if m := family.GetMetric(); len(m) != 1 || m[0].GetCounter().GetValue() < 1 || m[0].GetLabel()[0].GetName() != "reason" {
				t.Errorf("failures %v", m)
			}
			return
		}
		t.Error("no failure was counted")
	})
}

// A miner behind its own relay serves several clients, and each has its own.
func TestBlockedMinerServesMany(t *testing.T) {
	t.Parallel()
	l := newLab(t, withTLS)
	ai := newAI(t, "m", whole)
	pool := l.pool(backend.Options{}, backend.Config{Type: backend.TypeOpenAI, URL: ai.URL, Slots: ai.slots, APIKey: ai.key})
	m := l.newMiner("gpu-box", pool, func(c *minerConfig) { c.Membership = l.blocked() })
	m.part = start(t, "gpu-box", m.Run)
	l.waitOffered(m)
	for range 3 {
		if got := pathOf(t, l.hidden()); got.Code != ice.MinerUDPBlocked.String() {
			t.Errorf("path %+v", got)
		}
	}
	if n := l.co.turn.Stats().Allocations; n != 3 {
		t.Errorf("%d relays are lent, want 3", n)
	}
}
