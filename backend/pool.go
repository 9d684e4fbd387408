// Package backend is what a miner fronts: AI servers with Ollama's or OpenAI's
// API, the built-in engine, a load simulator. It finds out which models they
// offer and which calls each truly answers, hands out their slots, and passes
// on checked requests as a streaming reverse proxy.
//
// It knows nothing of networks between people: who may call is said by
// WithGrant, and requests arrive at an http.Handler.
//
// Sources: Ollama's docs/api.md; the OpenAI API reference; the documentation of
// llama.cpp's server, vLLM and LM Studio for where they add to it.
package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"

	"mintai/api"
)

// ModelInfo describes one model that is offered.
type ModelInfo struct {
	Name          api.Model
	Calls         []api.Call // that the server truly answers for it
	ContextTokens int        // 0: unknown
	Tools         bool       // can call tools
	Vision        bool       // can see images
	JSON          bool       // can be held to a JSON schema
	SameUserOnly  bool       // for clients of the same user on the same machine: nobody asked for it
	Quantization  string     // "Q4_K_M"; empty: unknown
	Family        string     // "qwen3"; empty: unknown
	Backend       string     // "ollama", "openai", "llama.cpp", "vllm", "lmstudio", "builtin", "demo"
	SizeBytes     int64      // 0: unknown
}

// Snapshot is the state of a Pool at one moment.
type Snapshot struct {
	Models     []ModelInfo // sorted by name; of a name that two servers offer, what either can do
	Slots      int
	InFlight   int
	Queued     int
	QueueLimit int
	Problems   []string // one line each: what, why, what to do
}

// Pool is everything that one miner fronts. It is safe for concurrent use.
type Pool struct {
	opts    Options
	sources []*source
	changed chan struct{}
	nudge   chan struct{} // a request found a server dead: look at once

	looking sync.Mutex // held during a Refresh

	mu       sync.Mutex // guards everything below
	offers   map[api.Model][]offer
	models   []ModelInfo
	backends []*served
	problems []string
	full     bool
	queued   bool
	refused  map[string]uint64
}

// served is something that answers, with its slots.
type served struct {
	name    string // for people
	handler http.Handler
	limiter *limiter
}

// offer is one model of one served.
type offer struct {
	by    *served
	calls []api.Call
}

// New checks the configuration and makes a Pool that offers nothing until Run or
// Refresh has looked at the servers. Every fault of every Config is in the error.
func New(cfgs []Config, opts Options) (*Pool, error) {
	opts = opts.withDefaults()
	p := &Pool{opts: opts, changed: make(chan struct{}, 1), nudge: make(chan struct{}, 1), refused: map[string]uint64{}}
	var errs []error
	for i, cfg := range cfgs {
		if cfg.Type == "" {
			cfg.Type = TypeAuto
		}
		for _, err := range cfg.check() {
			errs = append(errs, fmt.Errorf("%w: backend %d: %w", ErrConfig, i+1, err))
		}
		if cfg.Type == TypeBuiltin && opts.Builtin == nil {
			errs = append(errs, fmt.Errorf("%w: backend %d: there is no built-in engine in this program", ErrConfig, i+1))
		}
		p.sources = append(p.sources, newSource(cfg, opts, p.loadChanged))
	}
	if len(cfgs) == 0 {
		errs = append(errs, fmt.Errorf("%w: no backend is configured", ErrConfig))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// Run keeps the Pool's knowledge fresh until ctx ends, then returns nil. It
// looks at once, then each Options.Refresh, and earlier when a request finds a
// server dead.
func (p *Pool) Run(ctx context.Context) error {
	defer p.closeIdle()
	tick := time.NewTicker(p.opts.Refresh)
	defer tick.Stop()
	for {
		p.Refresh(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.nudge:
		}
	}
}

func (p *Pool) closeIdle() {
	p.looking.Lock()
	defer p.looking.Unlock()
	for _, src := range p.sources {
		for _, s := range src.servers {
			s.trans.CloseIdleConnections()
		}
	}
}

// Refresh looks at every server once and returns when all have answered or
// their deadlines have passed. When ctx ends early, nothing changes.
func (p *Pool) Refresh(ctx context.Context) {
	p.looking.Lock()
	defer p.looking.Unlock()
	looks := make([]look, len(p.sources))
	var wg sync.WaitGroup
	for i, src := range p.sources {
		wg.Go(func() { looks[i] = src.look(ctx, time.Now()) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	none := true
	for _, l := range looks {
		none = none && len(l.models) == 0
	}
	var all []found
	var problems []string
	for i, l := range looks {
		problems = append(problems, l.problems...)
		all = append(all, l.models...)
		if none && p.sources[i].cfg.Type == TypeAuto && p.opts.Builtin != nil {
			all = append(all, p.sources[i].fallbackModel())
			none = false
		}
	}
	p.publish(all, problems)
}

// publish replaces what is offered.
func (p *Pool) publish(all []found, problems []string) {
	offers := make(map[api.Model][]offer)
	merged := make(map[api.Model]ModelInfo)
	var backends []*served
	for _, f := range all {
		name := f.info.Name
		offers[name] = append(offers[name], offer{f.by, f.info.Calls})
		if old, ok := merged[name]; ok {
			merged[name] = merge(old, f.info)
		} else {
			merged[name] = f.info
		}
		if !slices.Contains(backends, f.by) {
			backends = append(backends, f.by)
		}
	}
	models := make([]ModelInfo, 0, len(merged))
	for _, m := range merged {
		models = append(models, m)
	}
	slices.SortFunc(models, func(a, b ModelInfo) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	p.mu.Lock()
	news := !reflect.DeepEqual(models, p.models) || !slices.Equal(backends, p.backends) || !slices.Equal(problems, p.problems)
	p.offers, p.models, p.backends = offers, models, backends
	fresh := slices.DeleteFunc(slices.Clone(problems), func(s string) bool { return slices.Contains(p.problems, s) })
	p.problems = problems
	p.mu.Unlock()
	for _, line := range fresh {
		p.opts.Log.Warn().Msg(line)
	}
	if news {
		p.opts.Log.Info().Int("models", len(models)).Int("servers", len(backends)).Msg("what is offered has changed")
		p.signal()
	}
}

// merge describes a model that two servers offer by what either can do.
func merge(a, b ModelInfo) ModelInfo {
	a.Calls = slices.Clone(a.Calls)
	for _, c := range b.Calls {
		if !slices.Contains(a.Calls, c) {
			a.Calls = append(a.Calls, c)
		}
	}
	a.SameUserOnly = a.SameUserOnly && b.SameUserOnly
	if a.ContextTokens != 0 && b.ContextTokens != 0 {
		a.ContextTokens = min(a.ContextTokens, b.ContextTokens) // either may be the one that answers
	}
	a.Tools, a.Vision, a.JSON = a.Tools && b.Tools, a.Vision && b.Vision, a.JSON && b.JSON
	return a
}

// Snapshot returns what is offered and how busy it is.
func (p *Pool) Snapshot() Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Snapshot{Models: make([]ModelInfo, len(p.models)), Problems: slices.Clone(p.problems)}
	for i, m := range p.models {
		m.Calls = slices.Clone(m.Calls)
		s.Models[i] = m
	}
	for _, b := range p.backends {
		l := b.limiter.load()
		s.Slots += l.slots
		s.InFlight += l.running
		s.Queued += l.queued
		s.QueueLimit += l.limit
	}
	return s
}

// Counters returns how many requests ended with each of api's codes, that is,
// were refused here or failed at a server, since the Pool was made.
func (p *Pool) Counters() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.refused)
}

func (p *Pool) count(code string) {
	p.mu.Lock()
	p.refused[code]++
	p.mu.Unlock()
}

// Changed returns a channel that holds one value when the models, the problems
// or the slots have changed since the last receive, or when the Pool became
// full or free, or when somebody began or ceased to wait. Every request less
// than that is no news.
func (p *Pool) Changed() <-chan struct{} { return p.changed }

func (p *Pool) signal() {
	select {
	case p.changed <- struct{}{}:
	default: // one is waiting already
	}
}

// loadChanged is called by the limiters.
func (p *Pool) loadChanged() {
	s := p.Snapshot()
	full, queued := s.InFlight >= s.Slots, s.Queued > 0
	p.mu.Lock()
	news := full != p.full || queued != p.queued
	p.full, p.queued = full, queued
	p.mu.Unlock()
	if news {
		p.signal()
	}
}

// lookAgain asks Run for an early Refresh.
func (p *Pool) lookAgain() {
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}
