package signal

import (
	"context"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
)

// gateTimeout bounds how long the coordinator's first packet may wait for the
// stream. It is reached only when a ticket turns out to permit no 0-RTT.
const gateTimeout = 100 * time.Millisecond

// earlyGate keeps quic-go from reading the coordinator's transport parameters
// while the node opens its stream in 0-RTT: the library does both without a lock
// (https://github.com/quic-go/quic-go/issues/4303). Only a coordinator that
// answers within microseconds ever meets the gate. It is a trace that records
// nothing, because a trace is what the library calls at that moment.
type earlyGate struct {
	opened chan struct{}
	once   sync.Once
}

var (
	_ qlogwriter.Trace    = (*earlyGate)(nil)
	_ qlogwriter.Recorder = (*earlyGate)(nil)
)

func newEarlyGate() *earlyGate { return &earlyGate{opened: make(chan struct{})} }

// open lets the parameters through. It may be called often.
func (g *earlyGate) open() { g.once.Do(func() { close(g.opened) }) }

// tracer is a quic.Config's Tracer.
func (g *earlyGate) tracer(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return g }

// AddProducer implements qlogwriter.Trace.
func (g *earlyGate) AddProducer() qlogwriter.Recorder { return g }

// RecordEvent implements qlogwriter.Recorder.
func (g *earlyGate) RecordEvent(e qlogwriter.Event) {
	set, ok := e.(qlog.ParametersSet)
	if !ok || set.SentBy.String() != "server" {
		return
	}
	timer := time.NewTimer(gateTimeout)
	defer timer.Stop()
	select {
	case <-g.opened:
	case <-timer.C:
	}
}

// Close implements qlogwriter.Recorder.
func (*earlyGate) Close() error { return nil }
