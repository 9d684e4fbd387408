// Command natmatrix measures how MintAI connects across NATs and firewalls: for
// every pair of networks it builds a laboratory (testdata/natlab), runs a
// coordinator, a miner and fresh clients in it, compares path, reason and time
// with what a plain technique can do, and writes the table docs/nat-matrix.md.
// It needs root, Linux, iproute2, nftables and miniupnpd, and changes nothing
// outside its own network namespaces.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"mintai/testdata/labkit"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == fetchWord {
		if err := fetch(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// options are the command line's.
type options struct {
	cells          cellList
	kinds          string
	subset         bool
	n, parallel    int
	later          int
	rtt, settle    time.Duration
	limit          time.Duration
	mintai, natlab string
	out, resume    string
	logs           string
	made           string // the flags that make the report another one
}

const (
	defaultAsks = 20
	defaultRTT  = 50 * time.Millisecond
)

// cellList is the repeatable flag -cell.
type cellList []cell

func (l *cellList) String() string { return "" }

func (l *cellList) Set(s string) error {
	c, err := parseCell(s)
	if err == nil {
		*l = append(*l, c)
	}
	return err
}

func parseOptions(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("natmatrix", flag.ContinueOnError)
	f.Var(&o.cells, "cell", "measure this cell only, as a=KIND,b=KIND[,OPTION...] (a: the client's side, b: the miner's; repeatable)")
	f.StringVar(&o.kinds, "kinds", "", "measure the pairs of these kinds only, as KIND,KIND")
	f.BoolVar(&o.subset, "subset", false, "measure a representative part only")
	f.IntVar(&o.n, "n", defaultAsks, "fresh clients a cell")
	f.IntVar(&o.later, "later", 3, "long answers in a cell that hard-NAT probing may turn direct")
	f.DurationVar(&o.rtt, "rtt", defaultRTT, "round trip between any two sites (R)")
	f.DurationVar(&o.settle, "settle", 300*time.Millisecond, "pause between the miner's measurement of its network and the first ask")
	f.DurationVar(&o.limit, "limit", 15*time.Minute, "longest time for a cell")
	f.IntVar(&o.parallel, "parallel", 3, "laboratories at a time")
	f.StringVar(&o.mintai, "mintai", "", "measure this binary instead of building one")
	f.StringVar(&o.natlab, "natlab", "", "use this laboratory instead of building one")
	f.StringVar(&o.out, "o", "", "write the table to this file instead of printing it")
	f.StringVar(&o.resume, "resume", "", "add each result to this file, and skip what stands there and holds")
	f.StringVar(&o.logs, "logs", "", "keep the logs of each cell in this folder")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is not a flag", f.Arg(0))
	case o.n < 1 || o.parallel < 1:
		return o, errors.New("-n and -parallel are 1 or more")
	case o.later < 0:
		return o, errors.New("-later is 0 or more")
	case o.rtt < time.Millisecond:
		return o, errors.New("-rtt is 1ms or more")
	}
	o.made = labkit.Flags(f, "cell", "limit", "mintai", "natlab", "o", "resume", "logs")
	for _, c := range o.cells {
		o.made += " -cell " + c.String()
	}
	return o, nil
}

// chosen are the cells to measure.
func (o options) chosen() ([]cell, error) {
	switch {
	case len(o.cells) > 0:
		return o.cells, nil
	case o.kinds != "":
		names := strings.Split(o.kinds, ",")
		for _, name := range names {
			if _, ok := kindNamed(name); !ok {
				return nil, fmt.Errorf("no kind %q; there are %s", name, strings.Join(kindNames(), " "))
			}
		}
		return square(names), nil
	case o.subset:
		return subset(), nil
	}
	return everything(), nil
}

// run returns the exit code: 0 every cell holds, 1 one does not, 2 nothing was
// measured, 130 interrupted.
func run(ctx context.Context, args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "natmatrix:", err)
		return 2
	}
	o, err := parseOptions(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return fail(err)
	}
	cells, err := o.chosen()
	if err != nil {
		return fail(err)
	}
	if os.Geteuid() != 0 {
		return fail(errors.New("needs root for network namespaces"))
	}
	work, err := os.MkdirTemp("", "natmatrix-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(work)
	s, err := o.prepare(ctx, work)
	if err != nil {
		return fail(err)
	}
	known, err := readResults(o.resume, s)
	if err != nil {
		return fail(err)
	}
	begin := time.Now()
	results, err := s.measureAll(ctx, cells, known, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "natmatrix: interrupted:", err)
		return 130
	}
	if err := o.write(results, s); err != nil {
		return fail(err)
	}
	failing := 0
	for _, m := range results {
		if len(m.Faults) > 0 {
			failing++
		}
	}
	fmt.Fprintf(os.Stderr, "%d cells hold, %d fail, %.0f s\n", len(results)-failing, failing, time.Since(begin).Seconds())
	if failing > 0 {
		return 1
	}
	return 0
}

func (o options) settings() settings {
	return settings{
		n: o.n, later: o.later, alone: len(o.cells) > 0 || o.subset, rtt: o.rtt, settle: o.settle, limit: o.limit, logs: o.logs, made: o.made,
		quiet: new(sync.RWMutex),
	}
}

// prepare builds the binaries that were not given.
func (o options) prepare(ctx context.Context, work string) (settings, error) {
	s := o.settings()
	var err error
	if s.self, err = os.Executable(); err != nil {
		return s, err
	}
	if s.Programs, err = labkit.Build(ctx, work, o.mintai, o.natlab); err != nil {
		return s, err
	}
	if s.logs != "" {
		if s.logs, err = filepath.Abs(s.logs); err != nil {
			return s, err
		}
	}
	s.binary, err = sum(s.Mintai)
	return s, err
}

// sum names a file by what is in it.
func sum(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// measureAll measures the cells that are not known yet, some at a time, and
// returns all in their order. It returns after every laboratory is down.
func (s settings) measureAll(ctx context.Context, cells []cell, known map[string]*measurement, o options) ([]*measurement, error) {
	results := make([]*measurement, len(cells))
	work := make(chan int)
	var mu sync.Mutex // the results file, the counters and what is printed
	done, problem := 0, error(nil)
	report := func(m *measurement) {
		mu.Lock()
		defer mu.Unlock()
		done++
		fmt.Fprintf(os.Stderr, "%3d/%d  %s\n", done, len(cells), oneLine(m))
		if err := appendResult(o.resume, m); err != nil && problem == nil {
			problem = err
		}
	}
	var workers sync.WaitGroup
	for range min(o.parallel, len(cells)) {
		workers.Go(func() {
			for i := range work {
				// Stopped, it still takes what is left, and returns at once.
				if m, err := s.measure(ctx, cells[i], fmt.Sprintf("mx%d_%d", os.Getpid(), i)); err == nil {
					results[i] = m
					report(m)
				}
			}
		})
	}
	for i, c := range cells {
		if m := known[c.String()]; m != nil {
			mu.Lock()
			done++
			mu.Unlock()
			results[i] = m
			continue
		}
		if ctx.Err() == nil {
			work <- i
		}
	}
	close(work)
	workers.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return results, problem
}

// write writes the table where it is wanted.
func (o options) write(results []*measurement, s settings) error {
	text := document(results, s)
	if o.out == "" {
		_, err := io.WriteString(os.Stdout, text)
		return err
	}
	return os.WriteFile(o.out, []byte(text), 0o644)
}
