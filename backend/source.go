package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"mintai/api"
)

const (
	maxModels   = 512 // offered by one server
	maxFailures = 3   // looks in a row that a slow server may miss before its models go
)

// source is one Config and the servers found by it.
type source struct {
	cfg      Config
	opts     Options
	notify   func()
	servers  map[string]*server // by configured URL
	serving  map[string]*served // by the same
	internal *served            // builtin or demo
}

// found is one model of one server.
type found struct {
	by   *served
	info ModelInfo
}

// look is what one source showed.
type look struct {
	models   []found
	problems []string
}

func newSource(cfg Config, opts Options, notify func()) *source {
	src := &source{
		cfg: cfg, opts: opts, notify: notify,
		servers: make(map[string]*server), serving: make(map[string]*served),
	}
	slots := cfg.Slots
	if slots == 0 {
		slots = defaultSlots(TypeBuiltin)
	}
	switch cfg.Type {
	case TypeBuiltin, TypeAuto:
		src.internal = &served{"the built-in engine", opts.Builtin, newLimiter(slots, opts.QueueLimit, notify)}
	case TypeDemo:
		n := cfg.Tokens
		if n == 0 {
			n = demoTokens
		}
		d := &demo{firstToken: cfg.FirstToken, pace: cfg.TokensPerSecond, tokens: n}
		src.internal = &served{"the load simulator", d, newLimiter(slots, opts.QueueLimit, notify)}
	}
	return src
}

// look asks the source's servers what they offer.
func (src *source) look(ctx context.Context, now time.Time) look {
	switch src.cfg.Type {
	case TypeBuiltin:
		m := src.fallbackModel()
		m.info.SameUserOnly = false
		return look{models: []found{m}}
	case TypeDemo:
		return src.demoModels()
	case TypeOllama, TypeOpenAI:
		raw := src.cfg.URL
		if raw == "" {
			raw = autoURLs[0]
		}
		s, by := src.server(raw, src.cfg.Type)
		return src.lookAt(ctx, s, by, now)
	default:
		return src.lookAround(ctx, now)
	}
}

// server returns the one at a URL, the same each time.
func (src *source) server(raw, kind string) (*server, *served) {
	if s, ok := src.servers[raw]; ok {
		return s, src.serving[raw]
	}
	b, err := parseBase(raw, kind)
	if err != nil { // New has checked it; an unreadable entry of Options.AutoURLs is nobody
		b, _ = parseBase("http://127.0.0.1:0", kind)
	}
	s := newServer(kind, b, src.cfg, src.opts, src.notify)
	src.servers[raw] = s
	src.serving[raw] = &served{b.url.String(), newProxy(s), s.limiter}
	return s, src.serving[raw]
}

// lookAt asks one configured server.
func (src *source) lookAt(ctx context.Context, s *server, by *served, now time.Time) look {
	var (
		models []ModelInfo
		err    error
	)
	if s.kind == TypeOllama {
		models, err = s.lookOllama(ctx, src.cfg, now)
	} else {
		models, err = s.lookOpenAI(ctx, src.cfg, now)
	}
	var l look
	switch {
	case err == nil:
		s.failures, s.models = 0, nil
		for _, m := range models {
			if !plainName(string(m.Name)) {
				continue
			}
			if len(s.models) == maxModels {
				l.problems = append(l.problems, fmt.Sprintf("%s has more than %d models; choose some with models = [...]", s, maxModels))
				break
			}
			s.models = append(s.models, m)
		}
		if len(models) == 0 {
			l.problems = append(l.problems, src.emptyProblem(s))
		}
	case s.busy(err):
		// It may be deep in an answer: keep what was known for a while.
	default:
		s.models, s.calls = nil, nil
	}
	if err != nil {
		l.problems = append(l.problems, problem(s, err))
	}
	for _, m := range s.models {
		l.models = append(l.models, found{by, m})
	}
	return l
}

// busy reports whether err may be due to load, and counts.
func (s *server) busy(err error) bool {
	var timeout interface{ Timeout() bool }
	slow := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.As(err, &timeout) && timeout.Timeout()
	s.failures++
	return slow && s.failures <= maxFailures
}

func plainName(name string) bool {
	if name == "" || len(name) > api.MaxModel || !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return false
		}
	}
	return true
}

func (src *source) emptyProblem(s *server) string {
	if len(src.cfg.Models) > 0 {
		return fmt.Sprintf("%s has no model that fits models = %q; check the names", s, src.cfg.Models)
	}
	if s.kind == TypeOllama {
		return fmt.Sprintf("%s has no models; get one with: ollama pull qwen3", s)
	}
	return fmt.Sprintf("%s offers no model that answers requests; load one there", s)
}

// problem writes one line: what, why, what to do.
func problem(s *server, err error) string {
	do := "check the url and that the server runs"
	switch {
	case errors.Is(err, errUnauthorized):
		do = "set api_key_env or api_key_file"
	case errors.Is(err, errNonsense), errors.Is(err, errNotThere):
		do = "check the url and the type"
	case s.kind == TypeOllama:
		do = "start it with: ollama serve"
	}
	return fmt.Sprintf("%s %s; %s", s, reason(err), do)
}

// lookAround asks the usual ports, all at the same time.
func (src *source) lookAround(ctx context.Context, now time.Time) look {
	urls := src.opts.AutoURLs
	if src.cfg.URL != "" {
		urls = []string{src.cfg.URL}
	}
	servers, by := make([]*server, len(urls)), make([]*served, len(urls))
	for i, raw := range urls {
		servers[i], by[i] = src.server(raw, TypeAuto)
	}
	looks := make([]look, len(urls))
	var wg sync.WaitGroup
	for i := range urls {
		wg.Go(func() { looks[i] = src.lookAtUnknown(ctx, servers[i], by[i], now) })
	}
	wg.Wait()
	var all look
	for _, l := range looks {
		all.models = append(all.models, l.models...)
		all.problems = append(all.problems, l.problems...)
	}
	return all
}

// lookAtUnknown finds out what kind of server listens at a URL. Nobody there,
// or another program, is no problem: it was only a guess. A configured URL is
// more than that.
func (src *source) lookAtUnknown(ctx context.Context, s *server, by *served, now time.Time) look {
	if s.kind == TypeAuto {
		kind, err := s.recognise(ctx)
		if err != nil {
			if src.cfg.URL != "" || errors.Is(err, errUnauthorized) && s.base.loopback() {
				return look{problems: []string{problem(s, err)}}
			}
			return look{}
		}
		s.kind = kind
		if !s.fixed {
			s.limiter.resize(defaultSlots(kind))
		}
	}
	l := src.lookAt(ctx, s, by, now)
	if len(s.models) == 0 && s.failures > 0 { // gone: another program may come to its port
		s.kind, s.shown = TypeAuto, map[string]modelCard{}
		if src.cfg.URL == "" {
			l.problems = nil
		}
	}
	return l
}

// recognise tells Ollama from a server with OpenAI's API.
func (s *server) recognise(ctx context.Context) (string, error) {
	got, err := s.ask(ctx, http.MethodGet, "/api/version", nil)
	if err != nil {
		return "", err
	}
	if got.status == http.StatusOK && isVersion(got.body) {
		if tags, err := s.ask(ctx, http.MethodGet, "/api/tags", nil); err == nil && tags.status == http.StatusOK {
			return TypeOllama, nil
		}
	}
	got, err = s.ask(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return "", err
	}
	if err := statusError(got.status); err != nil {
		return "", err
	}
	if !isList(got.body) {
		return "", errNonsense
	}
	return TypeOpenAI, nil
}

// fallbackModel is the built-in engine as auto offers it.
func (src *source) fallbackModel() found {
	return found{src.internal, ModelInfo{
		Name: TypeBuiltin, Backend: TypeBuiltin, SameUserOnly: true,
		Calls: []api.Call{api.ChatCompletions, api.Completions, api.OllamaChat, api.OllamaGenerate},
	}}
}

func (src *source) demoModels() look {
	names := src.cfg.literalModels()
	if len(names) == 0 {
		names = []string{demoModel}
	}
	var l look
	for _, name := range names {
		l.models = append(l.models, found{src.internal, ModelInfo{
			Name: api.Model(name), Backend: TypeDemo, Calls: demoCalls,
			Tools: true, Vision: true, JSON: true, ContextTokens: 1 << 20,
		}})
	}
	return l
}
