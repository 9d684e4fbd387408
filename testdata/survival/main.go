// Command survival measures what a running answer survives: for each event it
// builds a laboratory (testdata/natlab) with a coordinator, a miner and a client,
// lets an answer run, lets something happen to the path that it takes, and
// compares the answer with what the AI server said, byte for byte, and the longest
// pause in it with a limit. It writes docs/survival.md. It needs root, Linux,
// iproute2, nftables, conntrack and coturn, and changes nothing outside its own
// network namespaces.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"mintai/testdata/labkit"
)

func main() {
	if len(os.Args) > 1 {
		if inside, ok := insides[os.Args[1]]; ok {
			if err := inside(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// options are the command line's.
type options struct {
	events         nameList
	n, parallel    int
	answer         time.Duration
	rtt            time.Duration
	mintai, natlab string
	out, logs      string
	made           string // the flags that make the report another one
}

// nameList is the repeatable flag -event.
type nameList []string

func (l *nameList) String() string { return "" }

func (l *nameList) Set(s string) error {
	if !slices.ContainsFunc(events, func(e event) bool { return e.name == s }) {
		return fmt.Errorf("no event %q; there are %s", s, strings.Join(eventNames(), " "))
	}
	*l = append(*l, s)
	return nil
}

func eventNames() []string {
	names := make([]string, 0, len(events))
	for _, e := range events {
		names = append(names, e.name)
	}
	return names
}

// leastAnswer is how long an answer must be for every event to happen in it.
const leastAnswer = 12 * time.Second

func parseOptions(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("survival", flag.ContinueOnError)
	f.Var(&o.events, "event", "measure this event only (repeatable): "+strings.Join(eventNames(), " "))
	f.IntVar(&o.n, "n", 5, "trials an event")
	f.IntVar(&o.parallel, "parallel", 1, "laboratories at a time; trials of the upgrade, whose limit is short, are made alone")
	f.DurationVar(&o.answer, "answer", 30*time.Second, "length of the answer")
	f.DurationVar(&o.rtt, "rtt", 50*time.Millisecond, "round trip between any two sites (R)")
	f.StringVar(&o.mintai, "mintai", "", "measure this binary instead of building one")
	f.StringVar(&o.natlab, "natlab", "", "use this laboratory instead of building one")
	f.StringVar(&o.out, "o", "", "write the report to this file instead of printing it")
	f.StringVar(&o.logs, "logs", "", "keep the logs of each trial in this folder")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is not a flag", f.Arg(0))
	case o.n < 1 || o.parallel < 1:
		return o, errors.New("-n and -parallel are 1 or more")
	case o.answer < leastAnswer:
		return o, fmt.Errorf("-answer is %v or more", leastAnswer)
	case o.rtt < time.Millisecond:
		return o, errors.New("-rtt is 1ms or more")
	}
	o.made = labkit.Flags(f, "event", "mintai", "natlab", "o", "logs")
	for _, name := range o.events {
		o.made += " -event " + name
	}
	return o, nil
}

func (o options) chosen() []event {
	if len(o.events) == 0 {
		return events
	}
	return slices.DeleteFunc(slices.Clone(events), func(e event) bool { return !slices.Contains(o.events, e.name) })
}

// run returns the exit code: 0 everything holds, 1 something does not, 2 nothing
// was measured, 130 interrupted.
func run(ctx context.Context, args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "survival:", err)
		return 2
	}
	o, err := parseOptions(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return fail(err)
	}
	if os.Geteuid() != 0 {
		return fail(errors.New("needs root for network namespaces"))
	}
	work, err := os.MkdirTemp("", "survival-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(work)
	s := settings{options: o, work: work}
	if s.Programs, err = labkit.Build(ctx, work, o.mintai, o.natlab); err != nil {
		return fail(err)
	}
	if s.ai, err = labkit.BuildOne(ctx, work, "openaiserver", "", "", "mintai/testdata/openaiserver"); err != nil {
		return fail(err)
	}
	if s.self, err = os.Executable(); err != nil {
		return fail(err)
	}
	if s.logs != "" {
		if s.logs, err = filepath.Abs(s.logs); err != nil {
			return fail(err)
		}
	}
	begin := time.Now()
	results, failing := s.measure(ctx)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "survival: interrupted")
		return 130
	}
	text := document(results, o)
	if o.out == "" {
		_, err = io.WriteString(os.Stdout, text)
	} else {
		err = os.WriteFile(o.out, []byte(text), 0o644)
	}
	if err != nil {
		return fail(err)
	}
	all := 0
	for _, r := range results {
		all += len(r.trials)
	}
	fmt.Fprintf(os.Stderr, "%d trials hold, %d fail, %.0f s\n", all-failing, failing, time.Since(begin).Seconds())
	if failing > 0 {
		return 1
	}
	return 0
}

// measure makes all trials, some at a time, and returns them in their order with
// the number of those that fail. It returns after every laboratory is down.
func (s settings) measure(ctx context.Context) (results []*result, failing int) {
	type job struct {
		r *result
		i int
	}
	var shared, alone []job
	for _, e := range s.chosen() {
		r := &result{event: e, trials: make([]*trial, s.n)}
		results = append(results, r)
		for i := range s.n {
			if e.limit == upgradeLimit {
				alone = append(alone, job{r, i})
			} else {
				shared = append(shared, job{r, i})
			}
		}
	}
	var mu sync.Mutex // what is printed, the counters, and late
	count := 0
	var late []job // to be made again when nothing else runs
	work := func(jobs <-chan job, beside bool) {
		for j := range jobs {
			var before []*trial
			for ctx.Err() == nil {
				mu.Lock()
				count++
				id := fmt.Sprintf("sv%d_%d", os.Getpid(), count)
				mu.Unlock()
				if t := j.r.trials[j.i]; t != nil {
					before = append(t.before, t)
				}
				t := s.try(ctx, j.r.event, id)
				t.before = before
				again := t.again(j.r.event, beside)
				mu.Lock()
				j.r.trials[j.i] = t
				if again && beside {
					late = append(late, j)
				}
				fmt.Fprintln(os.Stderr, t.line(j.r.event))
				if again {
					fmt.Fprintln(os.Stderr, "    this trial is repeated alone")
				} else if len(t.faults) > 0 {
					failing++
				}
				mu.Unlock()
				if !again || beside {
					break
				}
			}
		}
	}
	part := func(all []job, workers int) {
		jobs := make(chan job)
		var running sync.WaitGroup
		for range workers {
			running.Go(func() { work(jobs, workers > 1) })
		}
		for _, j := range all {
			jobs <- j
		}
		close(jobs)
		running.Wait()
	}
	part(shared, s.parallel)
	part(late, 1)
	part(alone, 1)
	return results, failing
}
