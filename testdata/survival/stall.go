package main

import (
	"sync"
	"time"
)

// stallTick is how often the meter looks at the clock; what is late by less than
// stallLimit is nothing unusual.
const (
	stallTick  = 5 * time.Millisecond
	stallLimit = 20 * time.Millisecond
)

// stallMargin is how far from a pause a stall may lie and still be its cause: the
// other processes on the machine stall at about the same time, not at the same.
const stallMargin = 100 * time.Millisecond

// stall is a time in which this program did not run although it should.
type stall struct{ from, to time.Time }

// stallMeter notes when this program itself is late: what arrives is noted late
// then as well, and the processes that it measures are likely to be.
type stallMeter struct {
	quit chan struct{}
	done chan []stall
	once sync.Once
	all  []stall // set by the first stop
}

func startStallMeter() *stallMeter {
	m := &stallMeter{quit: make(chan struct{}), done: make(chan []stall, 1)}
	go m.run()
	return m
}

func (m *stallMeter) run() {
	tick := time.NewTicker(stallTick)
	defer tick.Stop()
	var all []stall
	for last := time.Now(); ; {
		select {
		case <-m.quit:
			m.done <- all
			return
		case <-tick.C:
		}
		now := time.Now()
		if now.Sub(last)-stallTick > stallLimit {
			all = append(all, stall{last.Add(stallTick), now})
		}
		last = now
	}
}

// stop ends it and returns the stalls over the limit.
func (m *stallMeter) stop() []stall {
	m.once.Do(func() {
		close(m.quit)
		m.all = <-m.done
	})
	return m.all
}

// longestStall is the longest that lies about a pause; 0: there is none.
func longestStall(all []stall, p pause) time.Duration {
	most := time.Duration(0)
	for _, s := range all {
		if s.from.Before(p.to.Add(stallMargin)) && s.to.After(p.from.Add(-stallMargin)) {
			most = max(most, s.to.Sub(s.from))
		}
	}
	return most
}
