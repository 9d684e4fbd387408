package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"mintai/testdata/labkit"
)

// measurement is what a cell showed: one line of the results file.
type measurement struct {
	Cell     cell           `json:"cell"`
	Binary   string         `json:"binary"` // of mintai, the beginning of its SHA-256
	N        int            `json:"n"`
	RTT      float64        `json:"rtt_ms"`
	Asked    int            `json:"asked"`
	Failed   int            `json:"failed"`
	Failure  string         `json:"failure,omitempty"` // the first
	Kinds    map[string]int `json:"kinds,omitempty"`   // of paths
	Codes    map[string]int `json:"codes,omitempty"`   // of reasons; "-": none was said
	Reasons  map[string]int `json:"reasons,omitempty"` // in people's words
	FirstMS  []float64      `json:"first_token_ms,omitempty"`
	Round    int            `json:"round"`            // that all of the above is of
	Before   []string       `json:"before,omitempty"` // the faults of the rounds before it
	Footer   string         `json:"footer,omitempty"`
	Metrics  []tunnelCount  `json:"metrics,omitempty"`
	Disagree []string       `json:"disagree,omitempty"` // what footer and metrics say otherwise
	Faults   []string       `json:"faults,omitempty"`   // none: the cell holds
	Later    []laterAsk     `json:"later,omitempty"`    // long answers, see later.go
	Took     float64        `json:"took_s"`
}

// maxRounds is how often a cell is measured that does not hold: a busy machine is
// late, and a late packet can change a path or fail an ask. All rounds but the
// first have the machine for themselves, as far as this program goes, and
// moreAsks times as many asks. Only the last one counts.
const (
	maxRounds = 3
	moreAsks  = 3
)

// giveUp is how many asks fail before the rest of them is left out.
const giveUp = 3

// settings are for all cells of a run.
type settings struct {
	labkit.Programs
	self   string // this program
	binary string
	n      int
	later  int
	alone  bool // -later counts for every cell alike
	rtt    time.Duration
	settle time.Duration
	limit  time.Duration // for a cell
	logs   string        // folder in which cells leave theirs; empty: none does
	made   string        // flags, for the report
	quiet  *sync.RWMutex // held shared by each cell, and alone where one is measured again
}

// measure builds a cell's laboratory and asks. The error is for a run that was
// interrupted; all else is a fault of the cell.
func (s settings) measure(ctx context.Context, c cell, id string) (*measurement, error) {
	begin := time.Now()
	m := &measurement{Cell: c, Binary: s.binary, N: s.n, RTT: float64(s.rtt) / float64(time.Millisecond)}
	limited, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	err := s.inLab(limited, c, id, m)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	e := expect(c)
	m.Faults = append(e.faults(m), m.laterFaults()...)
	if err != nil {
		m.Faults = append([]string{err.Error()}, m.Faults...)
	}
	m.Took = time.Since(begin).Seconds()
	return m, nil
}

func (s settings) inLab(ctx context.Context, c cell, id string, m *measurement) (err error) {
	s.quiet.RLock()
	defer s.quiet.RUnlock()
	l := &lab{Lab: &labkit.Lab{Programs: s.Programs, ID: id}, cell: c, settle: s.settle}
	if s.logs != "" {
		l.Dir = filepath.Join(s.logs, c.String())
		err = errors.Join(os.RemoveAll(l.Dir), os.MkdirAll(l.Dir, 0o700))
	} else {
		l.Dir, err = os.MkdirTemp("", "natmatrix-"+id+"-")
	}
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.Down(ctx))
		if s.logs == "" {
			err = errors.Join(err, os.RemoveAll(l.Dir))
		}
	}()
	if err := l.build(ctx, s.rtt); err != nil {
		return err
	}
	if err := l.coordinate(ctx); err != nil {
		return err
	}
	if err := l.mine(ctx); err != nil {
		return err
	}
	asked := map[tunnelCount]int{} // by path and reason, in all rounds
	m.Round = 1
	s.askAll(ctx, l, m, asked)
	spare := 0 // asks that failed in former rounds
	if e := expect(c); m.again(e) {
		s.quiet.RUnlock()
		s.quiet.Lock()
		for m.again(e) && ctx.Err() == nil {
			spare += m.Failed
			m.next(e)
			s.askAll(ctx, l, m, asked)
		}
		s.quiet.Unlock()
		s.quiet.RLock()
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the cell took too long: %w", err)
	}
	if m.Failed > 0 {
		return nil
	}
	if err := s.fetchMetrics(ctx, l, m, asked, spare); err != nil {
		return err
	}
	return s.askLater(ctx, l, m)
}

// report is what matters of `mintai -mode client ask -json`.
type report struct {
	Path      *pathReport `json:"path"`
	PathFirst *pathReport `json:"path_first"`
	MatchMS   float64     `json:"match_ms"`
	TTFT      float64     `json:"ttft_ms"`
	Error     *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
	Footer string `json:"-"` // which -v prints beside it
}

type pathReport struct {
	Kind   string  `json:"kind"`
	Reason string  `json:"reason"`
	Code   string  `json:"code"`
	Since  float64 `json:"since_ms"`
}

// again reports whether the cell is measured once more. What the program's own
// outputs say otherwise is a fault in any round.
func (m *measurement) again(e expectation) bool {
	return m.Round < maxRounds && len(m.Disagree) == 0 && len(e.roundFaults(m)) > 0
}

// next begins the next round, and notes why.
func (m *measurement) next(e expectation) {
	m.Before = append(m.Before, strings.Join(e.roundFaults(m), "; "))
	m.Round++
	m.Asked, m.Failed, m.Failure, m.FirstMS = 0, 0, "", nil
	m.Kinds, m.Codes, m.Reasons = nil, nil, nil
}

// wanted is how many clients ask in the round.
func (m *measurement) wanted() int {
	if m.Round > 1 {
		return moreAsks * m.N
	}
	return m.N
}

// askAll makes the asks of one round, and adds what it counted of paths to asked.
func (s settings) askAll(ctx context.Context, l *lab, m *measurement, asked map[tunnelCount]int) {
	m.Kinds, m.Codes, m.Reasons = map[string]int{}, map[string]int{}, map[string]int{}
	for i := range m.wanted() {
		if ctx.Err() != nil || m.Failed == giveUp {
			return
		}
		m.Asked++
		r, err := s.ask(ctx, l, fmt.Sprintf("ask%d.%d", m.Round, i))
		if err != nil {
			m.Failed++
			if m.Failure == "" {
				m.Failure = err.Error()
			}
			continue
		}
		code := r.Path.Code
		if code == "" {
			code = "-"
		}
		m.Kinds[r.Path.Kind]++
		m.Codes[code]++
		m.Reasons[r.Path.Reason]++
		m.FirstMS = append(m.FirstMS, r.TTFT)
		asked[tunnelCount{Path: r.Path.Kind, Reason: r.Path.Code}]++
		m.Footer = r.Footer
		if fault := footerFault(r); fault != "" && !slices.Contains(m.Disagree, fault) {
			m.Disagree = append(m.Disagree, fault)
		}
	}
}

// ask is one client with an empty HOME.
func (s settings) ask(ctx context.Context, l *lab, name string) (report, error) {
	return s.askFor(ctx, l, name, "demo")
}

// askFor asks a model.
func (s settings) askFor(ctx context.Context, l *lab, name, model string) (report, error) {
	home := filepath.Join(l.Dir, name)
	if err := os.Mkdir(home, 0o700); err != nil {
		return report{}, err
	}
	defer os.RemoveAll(home)
	var r report
	out, problem, code, err := l.Run(ctx, "a", home, l.Mintai, "-mode", "client", "ask", "-json", "-v", "-m", model, "-join", l.link, "tell me")
	switch {
	case err != nil:
		return r, fmt.Errorf("%w: %s", err, labkit.LastLine(problem))
	case json.Unmarshal([]byte(out), &r) != nil:
		return r, fmt.Errorf("exit code %d and no report: %s", code, labkit.LastLine(out+problem))
	case code != 0 && r.Error != nil:
		return r, fmt.Errorf("exit code %d, %s: %s", code, r.Error.Code, r.Error.Message)
	case code != 0:
		return r, fmt.Errorf("exit code %d: %s", code, labkit.LastLine(problem))
	case r.Path == nil || r.PathFirst == nil || r.TTFT <= 0:
		return r, fmt.Errorf("no path or no first token in the report: %s", labkit.LastLine(out))
	}
	r.Footer = footerOf(problem)
	return r, nil
}

// footerOf is the line of ask -v that ends in figures; empty if there is none.
func footerOf(stderr string) string {
	for line := range strings.Lines(stderr) {
		if strings.Contains(line, " on demo-box · ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// footerFault says where a footer is not what the report of the same ask says;
// empty if they agree.
func footerFault(r report) string {
	word := "direct"
	if strings.HasPrefix(r.Path.Kind, "relay") {
		word = "relay"
	}
	switch {
	case r.Footer == "":
		return "no footer"
	case !strings.Contains(r.Footer, "· "+word+" "):
		return fmt.Sprintf("the footer does not say %s: %s", word, r.Footer)
	case !footerSays(r.Footer, r.Path.Reason):
		return fmt.Sprintf("the footer gives another reason than the report (%s): %s", r.Path.Reason, r.Footer)
	}
	return ""
}

// footerSays reports whether a footer holds the reason, in parentheses; it cuts
// very long ones.
func footerSays(footer, reason string) bool {
	const whole = 100
	end := ")"
	if len(reason) > whole {
		reason, end = reason[:whole], ""
	}
	return reason != "" && strings.Contains(footer, "("+reason+end)
}

func (m *measurement) rtt() time.Duration {
	return time.Duration(m.RTT * float64(time.Millisecond))
}

// over reports whether the first token comes too late.
func (m *measurement) over(e expectation) bool {
	return len(m.FirstMS) > 0 && m.median() > float64(e.limit(m.rtt()))/float64(time.Millisecond)
}

// median, and what nine in ten stay below; 0 when nothing was measured.
func (m *measurement) median() float64 {
	s := slices.Sorted(slices.Values(m.FirstMS))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func (m *measurement) p90() float64 {
	s := slices.Sorted(slices.Values(m.FirstMS))
	if len(s) == 0 {
		return 0
	}
	return s[(9*len(s)+9)/10-1] // nearest rank
}

func (m *measurement) max() float64 {
	if len(m.FirstMS) == 0 {
		return 0
	}
	return slices.Max(m.FirstMS)
}

// commonest is the key seen most often; empty when there is none.
func commonest(counts map[string]int) string {
	key := ""
	for k, n := range counts {
		if n > counts[key] || n == counts[key] && k < key {
			key = k
		}
	}
	return key
}
