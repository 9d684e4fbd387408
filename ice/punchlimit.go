package ice

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

var (
	// ErrProbing is wrapped by OpenFan and ProbePorts while the socket, or another of
	// the same PunchFile, has a run.
	ErrProbing = errors.New("ice: one is probing already")
	// ErrProbedOften is wrapped when too many runs were begun lately.
	ErrProbedOften = errors.New("ice: probed too often")
	// ErrUnproven is wrapped when nobody vouches any more that the peer is at the
	// target, or claims to for longer than anybody can.
	ErrUnproven = errors.New("ice: nothing proves now that the peer is there")
	// ErrNotPunched is wrapped when a run ended and nothing had met.
	ErrNotPunched = errors.New("ice: the peer's packets met none of the sockets")
)

const (
	// punchRun bounds one run: at 2 ms a probe all have left after 5 s.
	punchRun = 6 * time.Second
	// punchesPerTarget bounds the runs to one IP address in a punchWindow,
	// punchesPerNet those to a /24, and punchesPerSocket those to all: 20,000
	// probes, or 2 MB. Sockets with the same PunchFile count as one.
	punchesPerTarget, punchesPerNet, punchesPerSocket = 3, 4, 8
	punchWindow                                       = time.Minute
	// maxProof is how far ahead a proof may reach.
	maxProof = time.Minute
)

// punchLimit bounds the runs of a socket, and of all that keep their runs in the
// same file, whatever the coordinator, the peer and the caller want. The zero
// punchLimit has seen none and knows of no other socket.
type punchLimit struct {
	path string // of the file; empty: none
	log  zerolog.Logger

	mu      sync.Mutex // guards what follows
	running bool
	file    *punchFile   // locked by the run; nil: none, or it cannot be had
	begun   []punchBegun // of the last punchWindow, at most punchesPerSocket
}

type punchBegun struct {
	target netip.Addr
	at     time.Time
}

// begin notes a run, if there may be one; end must follow. Where the file cannot be
// had, such as without a state folder, the socket's own runs are what is bounded.
func (l *punchLimit) begin(target netip.Addr, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running {
		return ErrProbing
	}
	var err error
	if l.begun, err = judgePunch(l.begun, target, now); err != nil {
		return err
	}
	if l.path != "" {
		if err := l.shareLocked(target, now); err != nil {
			return err
		}
	}
	l.begun = append(l.begun, punchBegun{target, now})
	l.running = true
	return nil
}

// shareLocked notes the run in the file, which it leaves locked, or says why
// another's runs forbid it.
func (l *punchLimit) shareLocked(target netip.Addr, now time.Time) error {
	file, err := openPunchFile(l.path)
	if err == nil {
		err = file.begin(target, now)
	}
	switch {
	case errors.Is(err, ErrProbedOften):
		file.close()
		return err
	case errors.Is(err, ErrProbing):
		return err
	case err != nil:
		l.log.Debug().Err(err).Msg("runs of hard-NAT probing are counted for this process only")
	}
	l.file = file
	return nil
}

func (l *punchLimit) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = false
	if l.file != nil {
		l.file.close()
		l.file = nil
	}
}

// judgePunch drops what is older than punchWindow, and reports why there may be no
// run to target now; the error wraps ErrProbedOften.
func judgePunch(begun []punchBegun, target netip.Addr, now time.Time) ([]punchBegun, error) {
	kept, same, beside := begun[:0], 0, 0
	_, near := limitedAs(target)
	for _, b := range begun {
		if age := now.Sub(b.at); age < 0 || age >= punchWindow {
			continue
		}
		kept = append(kept, b)
		if b.target == target {
			same++
		}
		if _, n := limitedAs(b.target); n == near {
			beside++
		}
	}
	switch {
	case same >= punchesPerTarget:
		return kept, fmt.Errorf("%w: %d times within a minute at %s", ErrProbedOften, same, target)
	case beside >= punchesPerNet:
		return kept, fmt.Errorf("%w: %d times within a minute at the network of %s", ErrProbedOften, beside, target)
	case len(kept) >= punchesPerSocket:
		return kept, fmt.Errorf("%w: %d times within a minute", ErrProbedOften, len(kept))
	}
	return kept, nil
}

// reserved are addresses of IPv4 that belong to no host: "this network" and
// those of the former class E (RFC 6890 §2.2.2).
var reserved = [2]netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("240.0.0.0/4")}

// punchTarget reports why a run may not send to an address; the error wraps
// ErrForbidden. Only public addresses of IPv4 are: nothing else is behind a NAT
// of this kind. Loopback is for tests.
func punchTarget(addr netip.Addr, loopback bool) error {
	addr = addr.Unmap()
	switch {
	case !addr.Is4():
		return fmt.Errorf("%w: %s is not IPv4, and only that is probed", ErrForbidden, addr)
	case addr.IsLoopback() && loopback:
		return nil
	case !addr.IsGlobalUnicast() || addr.IsPrivate() || shared.Contains(addr) ||
		reserved[0].Contains(addr) || reserved[1].Contains(addr):
		return fmt.Errorf("%w: %s is not public", ErrForbidden, addr)
	}
	return nil
}

// proven reports why a proof does not count now; the error wraps ErrUnproven.
func proven(until, now time.Time) error {
	switch ahead := until.Sub(now); {
	case ahead <= 0:
		return fmt.Errorf("%w: the proof has expired", ErrUnproven)
	case ahead > maxProof:
		return fmt.Errorf("%w: the proof claims to hold for %s", ErrUnproven, ahead.Round(time.Second))
	}
	return nil
}

// beginPunch checks everything that a run needs and notes it. The context ends
// with ctx, after punchRun, or when the socket closes; end must be called when
// there is no error.
func (s *Socket) beginPunch(ctx context.Context, target netip.Addr, until time.Time, local, remote Credentials) (run context.Context, end func(), err error) {
	if err := checkBoth(local, remote); err != nil {
		return nil, nil, fmt.Errorf("ice: %w", err)
	}
	if err := punchTarget(target, s.LocalAddr().Addr().IsLoopback()); err != nil {
		return nil, nil, fmt.Errorf("ice: %w", err)
	}
	now := time.Now()
	if err := proven(until, now); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	if err := s.punches.begin(target, now); err != nil {
		return nil, nil, err
	}
	run, cancel := context.WithTimeout(ctx, punchRun)
	s.stopPunch = cancel
	s.wg.Add(1) // Close waits for the run
	return run, func() {
		cancel()
		s.punches.end()
		s.wg.Done()
	}, nil
}

// punchEnded says why a run without a result ended.
func (s *Socket) punchEnded(ctx context.Context, otherwise error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return otherwise
}
