package portmap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Ports below 1024 are asked for over UPnP alone, and hold up no others.
func TestWellKnownPorts(t *testing.T) {
	ports := []Port{{Number: 443, TCP: true}, {Number: 4433}, {Number: 4434, External: 53}}
	for name, c := range map[string]struct {
		speak         map[Protocol]time.Duration
		refuse        error // of UPnP
		asked, mapped string
	}{
		"UPnP too":     {speak: map[Protocol]time.Duration{PCP: 0, UPnP: 0}, asked: "pcp 4433 upnp 443 upnp 4434", mapped: "[pcp 4433 upnp 443 upnp 4434]"},
		"UPnP refuses": {speak: map[Protocol]time.Duration{PCP: 0, UPnP: 0}, refuse: ErrRefused, asked: "pcp 4433 upnp 443 upnp 4434", mapped: "[pcp 4433]"},
		"no UPnP":      {speak: map[Protocol]time.Duration{PCP: 0, NATPMP: 0}, asked: "pcp 4433", mapped: "[pcp 4433]"},
		"NAT-PMP":      {speak: map[Protocol]time.Duration{NATPMP: 0}, asked: "nat-pmp 4433", mapped: "[nat-pmp 4433]"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHome(c.speak)
				if c.refuse != nil {
					h.refuse[UPnP] = c.refuse
				}
				m, stop := h.start(t, Config{Ports: ports})
				after(20 * time.Millisecond)
				if len(m.Mappings()) != 1 || m.Mappings()[0].Internal != 4433 || !changes(m) {
					t.Errorf("at first %+v", m.Mappings())
				}
				after(time.Second)
				if got := fmt.Sprint(h.entries()); got != c.mapped {
					t.Errorf("entries %s", got)
				}
				stop()
				if asked := slices.Sorted(slices.Values(h.log)); strings.Join(asked, " ") != c.asked {
					t.Errorf("asked for %v", asked)
				}
			})
		})
	}
}

// crowded is a router that counts how many questions it has at a time.
type crowded struct {
	p    Protocol
	now  atomic.Int64
	most atomic.Int64

	removed atomic.Int64

	mu sync.Mutex
}

func (r *crowded) protocol() Protocol { return r.p }

func (r *crowded) add(context.Context, ask) (Mapping, error) {
	now := r.now.Add(1)
	defer r.now.Add(-1)
	r.mu.Lock()
	r.most.Store(max(r.most.Load(), now))
	r.mu.Unlock()
	<-time.After(time.Second)
	return Mapping{}, ErrRefused
}

func (r *crowded) remove(ctx context.Context, _ ask) error {
	now := r.now.Add(1)
	defer r.now.Add(-1)
	r.mu.Lock()
	r.most.Store(max(r.most.Load(), now))
	r.mu.Unlock()
	select {
	case <-time.After(400 * time.Millisecond):
		r.removed.Add(1)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestUPnPIsAskedForAFewPortsAtATime(t *testing.T) {
	for p, want := range map[Protocol]int64{PCP: 12, UPnP: upnpAtOnce} {
		synctest.Test(t, func(t *testing.T) {
			var slots []*slot
			for i := range 12 {
				slots = append(slots, &slot{ask: ask{port: Port{Number: uint16(5000 + i)}, external: 5000}})
			}
			r := &crowded{p: p}
			for _, err := range add(t.Context(), r, slots) {
				if !errors.Is(err, ErrRefused) {
					t.Error(err)
				}
			}
			if got := r.most.Load(); got != want {
				t.Errorf("%s: %d at a time, want %d", p, got, want)
			}
		})
	}
}

// Many mappings have more time to be deleted than one.
func TestManyAreDeletedAFewAtATime(t *testing.T) {
	for ports, want := range map[int]int64{1: 0, 12: 12} { // each takes longer than one may
		synctest.Test(t, func(t *testing.T) {
			r := &crowded{p: UPnP}
			s := &session{m: New(Config{}), link: loopback}
			for i := range ports {
				s.slots = append(s.slots, &slot{router: r, ask: ask{port: Port{Number: uint16(5000 + i)}}})
			}
			s.forget(t.Context())
			if r.removed.Load() != want || r.most.Load() > upnpAtOnce {
				t.Errorf("of %d mappings %d deleted, %d at a time", ports, r.removed.Load(), r.most.Load())
			}
		})
	}
}
