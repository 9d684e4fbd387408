package backend

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"mintai/identity"
)

// ErrConfig is wrapped by every error of New.
var ErrConfig = errors.New("backend configuration")

// The types of a Config.
const (
	TypeAuto    = "auto"    // what runs on this machine, else the built-in engine
	TypeOllama  = "ollama"  // an Ollama server
	TypeOpenAI  = "openai"  // llama.cpp, vLLM, LM Studio or any other server with OpenAI's API
	TypeBuiltin = "builtin" // the built-in reference engine
	TypeDemo    = "demo"    // a load simulator for tests and benchmarks
)

// Config is one thing that answers.
type Config struct {
	Type string // one of the Type constants; empty: auto
	// URL of the server. Required for openai, where it may end in /v1 as other
	// programs want it; for ollama the default is http://127.0.0.1:11434; for
	// auto empty means the usual ports of this machine.
	URL    string
	APIKey identity.Secret // sent as a bearer token; empty: none
	Models []string        // offered models; * and ? are wildcards; empty: all
	Slots  int             // requests answered at once; 0: as the server says, else a default by type

	// For demo only.
	FirstToken      time.Duration // wait before the first token
	TokensPerSecond float64       // pace after it; 0: as fast as possible
	Tokens          int           // length of an answer; 0: 64
}

// Options hold what is common to all backends. The zero value works.
type Options struct {
	Log     zerolog.Logger
	Refresh time.Duration // between two looks at the servers; 0: 10 s
	// Builtin answers for Config.Type builtin, and for auto when no server is
	// found. It gets checked requests only. Nil: there is no built-in engine.
	Builtin       http.Handler
	QueueLimit    int           // requests that wait for a slot, per server; 0: 8; negative: none
	QueueWait     time.Duration // longest wait for a slot; 0: 10 min
	HeaderTimeout time.Duration // wait for a streamed answer to begin; 0: 120 s; five times that for a whole one
	ProbeTimeout  time.Duration // wait for an answer during discovery; 0: 3 s
	AutoURLs      []string      // where auto looks; nil: Ollama, LM Studio, llama.cpp and vLLM on 127.0.0.1
}

// autoURLs are the default ports of the servers that people run.
var autoURLs = []string{
	"http://127.0.0.1:11434", // Ollama
	"http://127.0.0.1:1234",  // LM Studio
	"http://127.0.0.1:8080",  // llama.cpp
	"http://127.0.0.1:8000",  // vLLM
}

func (o Options) withDefaults() Options {
	if o.Refresh <= 0 {
		o.Refresh = 10 * time.Second
	}
	if o.QueueLimit == 0 {
		o.QueueLimit = 8
	}
	o.QueueLimit = max(o.QueueLimit, 0)
	if o.QueueWait <= 0 {
		o.QueueWait = 10 * time.Minute
	}
	if o.HeaderTimeout <= 0 {
		o.HeaderTimeout = 120 * time.Second
	}
	if o.ProbeTimeout <= 0 {
		o.ProbeTimeout = 3 * time.Second
	}
	if o.AutoURLs == nil {
		o.AutoURLs = autoURLs
	}
	return o
}

// check reports what is wrong with a Config, as one error per fault.
func (c Config) check() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch c.Type {
	case "", TypeAuto, TypeOllama, TypeBuiltin, TypeDemo:
	case TypeOpenAI:
		if c.URL == "" {
			bad(`type = "openai" needs a url, for example url = "http://127.0.0.1:8000"`)
		}
	default:
		bad("type %q is unknown; known are auto, ollama, openai, builtin, demo", c.Type)
	}
	if c.URL != "" {
		if _, err := parseBase(c.URL, c.Type); err != nil {
			errs = append(errs, err)
		}
	}
	if c.Slots < 0 {
		bad("slots is negative")
	}
	if c.FirstToken < 0 || c.TokensPerSecond < 0 || c.Tokens < 0 {
		bad("first_token, tokens_per_second and tokens must not be negative")
	}
	if strings.ContainsAny(c.APIKey.Reveal(), "\r\n\x00") {
		bad("the API key holds a line break or NUL; check the file that it comes from")
	}
	return errs
}

// base is where a server's APIs are.
type base struct {
	url  *url.URL // scheme and host only
	root string   // path before /api/…
	v1   string   // path that stands for /v1
}

// parseBase reads a configured URL.
func parseBase(raw, typ string) (base, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil: // its text repeats the URL, which may hold a password
		return base{}, errors.New("the url cannot be read; write it as http://host:port")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.Opaque != "":
		return base{}, fmt.Errorf("url %q does not start with http:// or https:// and a host", u.Redacted())
	case u.User != nil:
		return base{}, errors.New("the url holds a password; put it in api_key_env or api_key_file")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return base{}, errors.New("the url holds a query or fragment; leave it out")
	}
	b := base{url: &url.URL{Scheme: u.Scheme, Host: u.Host}}
	p := strings.TrimRight(u.Path, "/")
	switch {
	case strings.HasSuffix(p, "/v1"):
		b.root, b.v1 = strings.TrimSuffix(p, "/v1"), p
	case typ == TypeOpenAI && p != "":
		b.root, b.v1 = p, p // like …/v1beta/openai: the path is the API's own root
	default:
		b.root = strings.TrimSuffix(p, "/api")
		b.v1 = b.root + "/v1"
	}
	return b, nil
}

// at returns the URL of an API path such as "/v1/models" or "/api/tags".
func (b base) at(path string) *url.URL {
	u := *b.url
	if rest, ok := strings.CutPrefix(path, "/v1/"); ok {
		u.Path = b.v1 + "/" + rest
	} else {
		u.Path = b.root + path
	}
	return &u
}

// loopback reports whether the server is on this machine.
func (b base) loopback() bool { return isLoopback(b.url) }

func isLoopback(u *url.URL) bool {
	host := u.Hostname()
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// matchGlob reports whether name matches pattern, in which * stands for any run
// of characters, slashes and colons included, and ? for any one.
func matchGlob(pattern, name string) bool {
	p, n := []rune(pattern), []rune(name)
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(n) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == n[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// wanted reports whether the configuration offers a model; named, whether it
// does so without a wildcard.
func (c Config) wanted(name string) (ok, named bool) {
	if len(c.Models) == 0 {
		return true, false
	}
	for _, g := range c.Models {
		if matchGlob(g, name) {
			ok = true
			named = named || g == name
		}
	}
	return ok, named
}

// literalModels returns the configured names without wildcards.
func (c Config) literalModels() []string {
	var names []string
	for _, g := range c.Models {
		if !strings.ContainsAny(g, "*?") {
			names = append(names, g)
		}
	}
	return names
}
