package signal

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// idleMiners is how many miners the measurement connects.
const idleMiners = 1000

// maxIdleMemory is what one of them may cost the coordinator, in bytes.
const maxIdleMemory = 70_000

// The miners run in a process of their own, so that this one holds nothing but
// the coordinator.
const (
	envMiners      = "SIGNAL_TEST_MINERS"
	envCoordinator = "SIGNAL_TEST_COORDINATOR"
	envID          = "SIGNAL_TEST_ID"
)

// TestMinersProcess is the other process of the measurement.
func TestMinersProcess(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv(envMiners))
	if err != nil {
		return // this is an ordinary test run
	}
	id, err := identity.ParseNodeID(os.Getenv(envID))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var transport *quic.Transport
	for i := range count {
		if i%100 == 0 {
			transport = newTransport(t, 0, nil)
		}
		n, err := NewNode(NodeConfig{
			Key: newKey(t), Transport: transport, Addrs: []string{os.Getenv(envCoordinator)}, Coordinator: id,
			Hello: func(identity.NodeID) *signalpb.Hello { return &signalpb.Hello{Role: miner, Name: "idle"} },
		})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { _ = n.Run(ctx) })
		if err := n.WaitConnected(patient(t)); err != nil {
			t.Fatal(err)
		}
		if err := n.Send(testLease()); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the other process has measured
	cancel()
	wg.Wait()
}

func testLease() *signalpb.Envelope {
	return &signalpb.Envelope{Message: &signalpb.Envelope_Lease{Lease: &signalpb.Lease{
		Sequence: 1, Slots: 1, Models: []*signalpb.OfferedModel{{Name: "m", Calls: []string{"/v1/chat/completions"}}},
	}}}
}

// counted counts leases and keeps nothing.
type counted struct{ leases, left chan struct{} }

func (c counted) Joined(*Peer)      {}
func (c counted) Left(*Peer, error) { c.left <- struct{}{} }
func (c counted) Message(_ *Peer, env *signalpb.Envelope) {
	if env.GetLease() != nil {
		c.leases <- struct{}{}
	}
}

func TestMemoryOfIdleMiners(t *testing.T) {
	miners := idleMiners
	if raceEnabled { // slow, and the figure means nothing
		miners = 100
	}
	perMiner := measureIdle(t, miners)
	t.Logf("%d bytes an idle miner", perMiner)
	if !raceEnabled && perMiner > maxIdleMemory {
		t.Errorf("an idle miner costs %d bytes, more than %d", perMiner, maxIdleMemory)
	}
}

func BenchmarkIdleMiner(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(float64(measureIdle(b, idleMiners)), "B/miner")
	}
}

func measureIdle(t testing.TB, miners int) int {
	handler := counted{make(chan struct{}, miners+1), make(chan struct{}, miners+1)}
	c := startCoordinator(t, newKey(t), 0, nil, func(cfg *ServerConfig) { cfg.Handler = handler })
	// What the first connection alone costs the process is nobody's share.
	_, _, stop := runNode(t, c, miner, nil)
	eventually(t, "one miner has joined", func() bool { return c.Len() == 1 })
	stop()
	<-handler.left
	before := footprint(t)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMinersProcess$")
	cmd.Env = append(os.Environ(), fmt.Sprint(envMiners, "=", miners), envCoordinator+"="+c.addr(), envID+"="+c.key.ID().String())
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range miners {
		select {
		case <-handler.leases:
		case <-ctx.Done():
			t.Fatalf("only %d miners connected: %v", c.Len(), c.Counters())
		}
	}
	after := footprint(t)
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for range miners {
		<-handler.left
	}
	return (after - before) / miners
}

// footprint is the memory that the process holds now, in bytes: on Linux its
// resident set without file pages, elsewhere what Go has from the system.
func footprint(t testing.TB) int {
	t.Helper()
	for range 3 { // stacks shrink with the second collection
		runtime.GC()
	}
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.Sys - m.HeapReleased)
	}
	for line := range strings.Lines(string(b)) {
		if kb, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no RssAnon in /proc/self/status")
	return 0
}
