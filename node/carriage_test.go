package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mintai/api"
	"mintai/identity"
	"mintai/quicstream"
)

// memoryMiner has one answer, which grows, and carries it over memory tunnels as
// a miner's answer buffer does: over the last one that asked.
type memoryMiner struct {
	mu      sync.Mutex // guards what follows
	changed chan struct{}
	made    []byte
	whole   bool
	started int           // how often the work began
	broken  bool          // it was cancelled: the miner cancels for a reset of the stream that carries
	full    bool          // it refuses what would be a new request, as one whose buffers are full
	bodies  int           // how often the request came whole
	failure string        // the answer's HeaderError: of the handler
	carrier *memoryStream // who carries it
	attempt int           // of it
}

func newMemoryMiner() *memoryMiner { return &memoryMiner{changed: make(chan struct{})} }

func (m *memoryMiner) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memoryMiner) make(b []byte, whole bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made = append(m.made, b...)
	m.whole = whole
	m.changedLocked()
}

// makeAll makes the answer in pieces, one each 10 ms; the returned function waits
// until all is made.
func (m *memoryMiner) makeAll(text []byte, size int) (wait func()) {
	var maker sync.WaitGroup
	maker.Go(func() {
		for i := 0; i < len(text); i += size {
			time.Sleep(10 * time.Millisecond)
			m.make(text[i:min(i+size, len(text))], i+size >= len(text))
		}
	})
	return maker.Wait
}

// check looks whether the work was done once, and not cancelled unless it may be.
func (m *memoryMiner) check(t *testing.T, cancelled bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken && !cancelled || m.started > 1 {
		t.Errorf("the work was cancelled: %v, and began %d times", m.broken, m.started)
	}
}

// memoryTunnel delays what passes it, until it is cut.
type memoryTunnel struct {
	miner *memoryMiner
	delay time.Duration
	lost  chan struct{} // closed when the client knows that the tunnel is lost
	once  sync.Once
	mute  bool // guarded by the miner's mutex: nothing passes any more
}

func (m *memoryMiner) tunnel(delay time.Duration) *memoryTunnel {
	return &memoryTunnel{miner: m, delay: delay, lost: make(chan struct{})}
}

// silence lets nothing pass any more; nobody is told.
func (t *memoryTunnel) silence() {
	t.miner.mu.Lock()
	defer t.miner.mu.Unlock()
	t.mute = true
	t.miner.changedLocked()
}

// cut ends the tunnel at the client.
func (t *memoryTunnel) cut() {
	t.silence()
	t.once.Do(func() { close(t.lost) })
}

func (t *memoryTunnel) isMute() bool {
	t.miner.mu.Lock()
	defer t.miner.mu.Unlock()
	return t.mute
}

// pass waits as long as a packet takes.
func (t *memoryTunnel) pass(ctx context.Context) error {
	timer := time.NewTimer(t.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.lost:
		return &quicstream.LostError{Err: errors.New("cut")}
	}
	if t.isMute() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.lost:
			return &quicstream.LostError{Err: errors.New("cut")}
		}
	}
	return nil
}

func (t *memoryTunnel) RoundTrip(r *http.Request) (*http.Response, error) {
	_, _ = io.Copy(io.Discard, r.Body)
	if err := t.pass(r.Context()); err != nil {
		return nil, err
	}
	m := t.miner
	m.mu.Lock()
	text, offset := r.Header.Get(quicstream.HeaderResume), int64(0)
	if text != "" {
		offset, _ = strconv.ParseInt(text, 10, 64)
	}
	h := http.Header{}
	attempt, _ := strconv.Atoi(r.Header.Get(quicstream.HeaderAttempt))
	if text == "" {
		m.bodies++
	}
	switch {
	case text == "" && m.full:
		h.Set(quicstream.HeaderError, string(quicstream.RefusedBusy))
		m.mu.Unlock()
		return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: h, Body: http.NoBody}, nil
	case attempt < m.attempt:
		h.Set(quicstream.HeaderError, string(quicstream.RefusedStale))
		m.mu.Unlock()
		return &http.Response{StatusCode: http.StatusConflict, Header: h, Body: http.NoBody}, nil
	case text == "" && m.started == 0:
		m.started++
	case m.started == 0 || m.broken, text != "" && r.Header.Get(quicstream.HeaderDigest) == "":
		h.Set(quicstream.HeaderError, string(quicstream.RefusedUnknownRequest))
		m.mu.Unlock()
		return &http.Response{StatusCode: http.StatusNotFound, Header: h, Body: http.NoBody}, nil
	}
	h.Set(quicstream.HeaderAttempt, strconv.Itoa(attempt))
	status := http.StatusOK
	if m.failure != "" {
		h.Set(quicstream.HeaderError, m.failure)
		status = http.StatusServiceUnavailable
	}
	if offset > 0 {
		h.Set(quicstream.HeaderResume, text)
	}
	s := &memoryStream{tunnel: t, ctx: r.Context(), at: int(offset)}
	if old := m.carrier; old != nil {
		old.replaced = true
	}
	m.carrier, m.attempt = s, attempt
	m.changedLocked()
	m.mu.Unlock()
	if err := t.pass(r.Context()); err != nil {
		s.reset()
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: h, Body: s}, nil
}

// memoryStream carries the answer from an offset on.
type memoryStream struct {
	tunnel   *memoryTunnel
	ctx      context.Context //nolint:containedctx // the request's
	at       int
	replaced bool // guarded by the miner's mutex: another stream carries it
}

// reset is what a cancelled stream does at the miner.
func (s *memoryStream) reset() {
	m := s.tunnel.miner
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.carrier == s && !s.tunnel.mute && !m.whole { // work that is done cannot be cancelled
		m.broken = true
		m.changedLocked()
	}
}

func (s *memoryStream) Read(p []byte) (int, error) {
	m := s.tunnel.miner
	for {
		m.mu.Lock()
		mute, replaced, whole, changed := s.tunnel.mute, s.replaced, m.whole, m.changed
		rest := m.made[min(s.at, len(m.made)):]
		m.mu.Unlock()
		select {
		case <-s.tunnel.lost:
			return 0, &quicstream.LostError{Err: errors.New("cut")}
		case <-s.ctx.Done():
			s.reset()
			return 0, context.Cause(s.ctx)
		default:
		}
		switch {
		case mute:
		case replaced:
			return 0, &quicstream.AbortedError{Err: errors.New("replaced")}
		case len(rest) > 0:
			if err := s.tunnel.pass(s.ctx); err != nil {
				if s.ctx.Err() != nil {
					s.reset()
				}
				return 0, err
			}
			n := copy(p, rest)
			s.at += n
			return n, nil
		case whole:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-s.tunnel.lost:
		case <-s.ctx.Done():
		}
	}
}

func (s *memoryStream) Close() error {
	if s.ctx.Err() == nil {
		s.reset()
	}
	return nil
}

func newTestCarriage(ctx context.Context) *carriage {
	return newCarriage(ctx, tunnelRequest{call: api.ChatCompletions, body: []byte(`{"a":1}`), session: identity.NewSessionID(), id: identity.NewSessionID()})
}

// testText has no two places that look alike.
func testText(words int) []byte {
	var b bytes.Buffer
	for i := range words {
		fmt.Fprintf(&b, "w%d ", i)
	}
	return b.Bytes()
}

var errMemoryRefusal = errors.New("an answer that is none")

// carried reads the whole answer beside the test.
func carried(car *carriage) (wait func() ([]byte, error)) {
	type end struct {
		got []byte
		err error
	}
	done := make(chan end, 1)
	go func() {
		resp, err := car.head()
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%w: %s", errMemoryRefusal, resp.Header.Get(quicstream.HeaderError))
			_ = resp.Body.Close()
		}
		if err != nil {
			done <- end{nil, err}
			return
		}
		got, err := io.ReadAll(resp.Body)
		done <- end{got, err}
	}()
	return func() ([]byte, error) { e := <-done; return e.got, e.err }
}

// halfCarried is an answer of which "half" has come over its first tunnel, a second
// of virtual time ago.
func halfCarried(ctx context.Context) (m *memoryMiner, car *carriage, first *memoryTunnel, wait func() ([]byte, error)) {
	m, car = newMemoryMiner(), newTestCarriage(ctx)
	first = m.tunnel(time.Millisecond)
	car.move(first)
	wait = carried(car)
	m.make([]byte("half"), false)
	time.Sleep(time.Second)
	return m, car, first, wait
}

func TestCarriageMovesBetweenTunnels(t *testing.T) {
	text := testText(200)
	for name, c := range map[string]struct {
		events func(m *memoryMiner, car *carriage, first *memoryTunnel)
	}{
		"to a faster tunnel": {func(m *memoryMiner, car *carriage, _ *memoryTunnel) { car.move(m.tunnel(time.Millisecond)) }},
		"to a slower one":    {func(m *memoryMiner, car *carriage, _ *memoryTunnel) { car.move(m.tunnel(90 * time.Millisecond)) }},
		"after a silence": {func(m *memoryMiner, car *carriage, first *memoryTunnel) {
			first.silence()
			time.Sleep(1250 * time.Millisecond)
			car.move(m.tunnel(20 * time.Millisecond))
		}},
		"after a cut": {func(m *memoryMiner, car *carriage, first *memoryTunnel) {
			first.cut()
			time.Sleep(400 * time.Millisecond)
			car.move(m.tunnel(20 * time.Millisecond))
		}},
		"twice in a row": {func(m *memoryMiner, car *carriage, _ *memoryTunnel) {
			car.move(m.tunnel(30 * time.Millisecond))
			car.move(m.tunnel(20 * time.Millisecond))
		}},
		"the next one dies at once": {func(m *memoryMiner, car *carriage, first *memoryTunnel) {
			next := m.tunnel(30 * time.Millisecond)
			car.move(next)
			next.cut()
			time.Sleep(50 * time.Millisecond)
			first.cut()
			time.Sleep(50 * time.Millisecond)
			car.move(m.tunnel(20 * time.Millisecond))
		}},
	} {
		for _, before := range []time.Duration{0, 5 * time.Millisecond, 700 * time.Millisecond} { // before the head, in it, in the answer
			t.Run(fmt.Sprintf("%s/%v", name, before), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMemoryMiner()
					car := newTestCarriage(t.Context())
					first := m.tunnel(20 * time.Millisecond)
					car.move(first)
					wait := carried(car)
					defer m.makeAll(text, 10)()
					time.Sleep(before)
					c.events(m, car, first)
					got, err := wait()
					if err != nil || !bytes.Equal(got, text) {
						t.Errorf("%d of %d bytes, %v", len(got), len(text), err)
					}
					m.check(t, false)
					_ = car.Close()
				})
			})
		}
	}
}

func TestCarriageGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, car, first, wait := halfCarried(t.Context())
		first.cut()
		synctest.Wait()
		car.giveUp(&quicstream.LostError{Err: errPatience})
		got, err := wait()
		if string(got) != "half" || !errors.Is(err, errPatience) {
			t.Errorf("%q, %v", got, err)
		}
		_ = car.Close()
	})
}

func TestCarriageThatTheMinerForgot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, car, first, wait := halfCarried(t.Context())
		first.cut()
		car.move(newMemoryMiner().tunnel(time.Millisecond)) // it was started anew
		got, err := wait()
		if string(got) != "half" || !errors.Is(err, errResume) {
			t.Errorf("%q, %v", got, err)
		}
		_ = car.Close()
	})
}

// What the miner says to a ride counts when the ride before fails, even if the
// answer still came over that one then.
func TestCarriageRefusedWhileItCarries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, car, first, wait := halfCarried(t.Context())
		car.move(newMemoryMiner().tunnel(time.Millisecond)) // which has no such answer
		time.Sleep(time.Second)
		m.make([]byte(" and"), false)
		time.Sleep(time.Second)
		first.cut()
		got, err := wait()
		if string(got) != "half and" || !errors.Is(err, errResume) {
			t.Errorf("%q, %v", got, err)
		}
		_ = car.Close()
	})
}

// A request that was lost on a tunnel that is well is sent again, some times.
func TestCarriageAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := testText(20)
		m := newMemoryMiner()
		car := newTestCarriage(t.Context())
		first, well := m.tunnel(time.Millisecond), m.tunnel(time.Millisecond)
		car.move(first)
		wait := carried(car)
		car.again(well) // nothing is wrong
		stop := m.makeAll(text, 10)
		time.Sleep(15 * time.Millisecond)
		first.cut()
		time.Sleep(time.Second)
		car.again(well)
		if got, err := wait(); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d of %d bytes, %v", len(got), len(text), err)
		}
		stop()
		m.check(t, false)
		_ = car.Close()

		lost := newTestCarriage(t.Context())
		bad := m.tunnel(time.Millisecond)
		bad.cut()
		lost.move(bad)
		wait = carried(lost)
		for range maxRetries + 1 {
			time.Sleep(100 * time.Millisecond)
			lost.again(bad)
		}
		if _, err := wait(); !errors.Is(err, errPatience) {
			t.Errorf("%v", err)
		}
		_ = lost.Close()
	})
}

// Before anything of the answer is here the request may be at the miner all the
// same: it is not sent twice, and a refusal of the second does not harm the first.
func TestCarriageMovesBeforeTheHead(t *testing.T) {
	text := testText(50)
	for name, c := range map[string]struct {
		first   time.Duration // delay of the first tunnel: the request is at the miner after it
		full    bool          // the miner takes nothing new after 100 ms, when the next tunnel comes
		bodies  int
		failure string // of the handler
		cut     bool   // the first tunnel then, in which the request is on its way
		want    error
	}{
		"at the miner":                   {20 * time.Millisecond, false, 1, "", false, nil},
		"at the miner, lost":             {20 * time.Millisecond, false, 1, "", true, nil},
		"on its way":                     {300 * time.Millisecond, false, 1, "", false, nil},
		"on its way, lost":               {300 * time.Millisecond, false, 1, "", true, nil},
		"the miner is full":              {20 * time.Millisecond, true, 1, "", false, nil},
		"the miner is full, and it lost": {300 * time.Millisecond, true, 1, "", true, errMemoryRefusal},
		"the handler refuses":            {20 * time.Millisecond, false, 1, "busy", false, errMemoryRefusal},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemoryMiner()
				m.failure = c.failure
				car := newTestCarriage(t.Context())
				first := m.tunnel(c.first)
				car.move(first)
				wait := carried(car)
				time.Sleep(10 * time.Millisecond)
				if c.failure == "" {
					time.Sleep(90 * time.Millisecond)
				}
				m.mu.Lock()
				m.full = c.full
				m.mu.Unlock()
				if c.cut {
					first.cut()
					synctest.Wait()
				}
				car.move(m.tunnel(20 * time.Millisecond))
				defer m.makeAll(text, 10)()
				got, err := wait()
				if !errors.Is(err, c.want) || c.want == nil && !bytes.Equal(got, text) {
					t.Errorf("%d of %d bytes, %v", len(got), len(text), err)
				}
				m.mu.Lock()
				if m.bodies != c.bodies {
					t.Errorf("the request came whole %d times, want %d", m.bodies, c.bodies)
				}
				m.mu.Unlock()
				m.check(t, c.failure != "")
				_ = car.Close()
			})
		})
	}
}

// A refusal counts for nothing while another ride may carry the answer.
func TestCarriageRefusedBeforeTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := testText(50)
		m := newMemoryMiner()
		car := newTestCarriage(t.Context())
		car.move(m.tunnel(300 * time.Millisecond)) // on its way for long
		wait := carried(car)
		full := newMemoryMiner()
		full.full = true
		car.move(full.tunnel(20 * time.Millisecond))
		defer m.makeAll(text, 10)()
		if got, err := wait(); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d of %d bytes, %v", len(got), len(text), err)
		}
		m.check(t, false)
		_ = car.Close()
	})
}

func TestCarriageIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		_, car, first, wait := halfCarried(ctx)
		first.silence()
		stop := errors.New("enough")
		cancel(stop)
		if got, err := wait(); string(got) != "half" || !errors.Is(err, stop) {
			t.Errorf("%q, %v", got, err)
		}
		_ = car.Close()
	})
}

// FuzzCarriage moves an answer between tunnels that die in any order. Whatever
// happens, what is read is the answer, or a beginning of it and an error.
func FuzzCarriage(f *testing.F) {
	f.Add([]byte{0, 3, 9, 1, 8, 2, 200, 1, 2, 3, 4})
	f.Add([]byte{1, 1, 1, 2, 2, 2, 3, 3, 0, 0, 0, 1})
	f.Add([]byte{10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120})
	f.Add([]byte{4, 5, 12, 8, 5, 20, 1, 4, 6, 0, 10})
	f.Add([]byte{100, 2, 6, 6, 30, 4, 5, 4, 1, 40, 5, 7})
	text := testText(120)
	f.Fuzz(func(t *testing.T, events []byte) {
		if len(events) > 64 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			m := newMemoryMiner()
			car := newTestCarriage(t.Context())
			tunnels := []*memoryTunnel{m.tunnel(7 * time.Millisecond)}
			car.move(tunnels[0])
			wait := carried(car)
			defer m.makeAll(text, 7)()
			refuses, again, closed := false, false, false
			for _, e := range events {
				last := tunnels[len(tunnels)-1]
				switch e % 8 {
				case 0:
					time.Sleep(time.Duration(e) * time.Millisecond)
				case 1:
					last.silence()
				case 2:
					last.cut()
				case 3:
					tunnels[int(e)%len(tunnels)].cut()
				case 4:
					next := m.tunnel(time.Duration(e%90) * time.Millisecond)
					tunnels = append(tunnels, next)
					car.move(next)
				case 5: // a refusal may be all that comes of the request
					refuses = true
					m.mu.Lock()
					m.full = !m.full
					m.mu.Unlock()
				case 6: // it does so a few times only
					again = true
					car.again(last)
				case 7: // whoever asked is gone
					closed = closed || e > 200
				}
				if closed {
					_ = car.Close()
				}
			}
			giveUp := len(events)%2 == 0
			if giveUp {
				tunnels[len(tunnels)-1].cut()
				time.Sleep(200 * time.Millisecond)
				car.giveUp(&quicstream.LostError{Err: errPatience})
				for _, x := range tunnels {
					x.cut()
				}
			} else {
				car.move(m.tunnel(3 * time.Millisecond))
				time.Sleep(deadTunnel)
				for _, x := range tunnels { // which were left
					if x.isMute() {
						x.cut()
					}
				}
			}
			got, err := wait()
			if !bytes.HasPrefix(text, got) || err == nil && len(got) != len(text) {
				t.Errorf("%d bytes that are not the beginning, or not all: %v", len(got), err)
			}
			if err != nil && !giveUp && !refuses && !closed && !(again && errors.Is(err, errPatience)) {
				t.Errorf("with a tunnel that is well: %v", err)
			}
			m.check(t, err != nil || closed)
			_ = car.Close()
		})
	})
}
