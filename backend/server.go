package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"mintai/api"
	"mintai/identity"
)

// server is one AI server on the other side of a URL.
type server struct {
	kind    string // "ollama", "openai", "llama.cpp", "vllm", "lmstudio"
	base    base
	key     identity.Secret
	opts    Options
	trans   *http.Transport
	limiter *limiter
	fixed   bool // the slots were configured

	// What discovery knows; touched only by Pool.Refresh.
	calls    map[api.Call]bool
	probedAt time.Time
	version  string               // what the calls were found for
	shown    map[string]modelCard // Ollama's /api/show, by name and digest
	failures int                  // in a row
	models   []ModelInfo          // of the last good look
}

func newServer(kind string, b base, cfg Config, opts Options, changed func()) *server {
	s := &server{kind: kind, base: b, key: cfg.APIKey, opts: opts, fixed: cfg.Slots > 0, shown: map[string]modelCard{}}
	slots := cfg.Slots
	if slots == 0 {
		slots = defaultSlots(kind)
	}
	s.limiter = newLimiter(slots, opts.QueueLimit, changed)
	s.trans = &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			if isLoopback(r.URL) {
				return nil, nil // a proxy has no business in a call to this machine
			}
			return http.ProxyFromEnvironment(r)
		},
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		DisableCompression:     true, // offsets and hashes mean body bytes
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: api.MaxHeader,
	}
	return s
}

// defaultSlots is how many requests a server works on at once unless it or the
// configuration says otherwise.
func defaultSlots(kind string) int {
	switch kind {
	case kindVLLM:
		return 16 // batches continuously
	case TypeOpenAI:
		return 4
	case TypeBuiltin, TypeDemo:
		return 64
	default:
		return 1 // OLLAMA_NUM_PARALLEL, llama.cpp -np and LM Studio start with about one
	}
}

// String names the server for people. It holds no secret. Only discovery may
// call it: kind changes.
func (s *server) String() string { return s.kind + " at " + s.base.url.String() }

// authorize puts the miner's own key into a request.
func (s *server) authorize(h http.Header, call api.Call) {
	if s.key == "" {
		return
	}
	h.Set("Authorization", "Bearer "+s.key.Reveal())
	if call.Flavor() == api.Anthropic {
		h.Set("X-Api-Key", s.key.Reveal())
	}
}

// answer is a server's short response during discovery.
type answer struct {
	status int
	body   []byte
}

// maxListing bounds what discovery reads at once.
const maxListing = 8 << 20

// ask sends one discovery request. Redirects are not followed, so that the key
// goes nowhere else.
func (s *server) ask(ctx context.Context, method, path string, body io.Reader) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.ProbeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.base.at(path).String(), body)
	if err != nil {
		return answer{}, fmt.Errorf("building a request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "mintai")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	s.authorize(req.Header, api.Call(path))
	resp, err := s.trans.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxListing+1))
	if err != nil {
		return answer{}, err
	}
	if len(b) > maxListing {
		return answer{}, errNonsense
	}
	return answer{resp.StatusCode, b}, nil
}

// What a look at a server can show.
var (
	errNonsense     = errors.New("answers something else than the API")
	errUnauthorized = errors.New("refused the API key")
	errNotThere     = errors.New("has no such API")
)

// reason says in a few words why a server could not be used. Errors of net/http
// may quote what the server sent, so their text is not repeated.
func reason(err error) string {
	var (
		dns *net.DNSError
		op  *net.OpError
		nt  net.Error
	)
	switch {
	case errors.Is(err, errNonsense), errors.Is(err, errUnauthorized), errors.Is(err, errNotThere):
		return err.Error()
	case isRefused(err):
		return "does not answer (connection refused)"
	case errors.As(err, &dns):
		return "has a host name that is not known here"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &nt) && nt.Timeout():
		return "does not answer in time"
	case errors.As(err, &op) && op.Op == "dial":
		return "cannot be reached"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closes the connection without an answer"
	default:
		return "cannot be used (not HTTP, or its certificate is not trusted)"
	}
}

// isNetwork reports whether a round trip failed on the way, and not because of
// what the server sent.
func isNetwork(err error) bool {
	var (
		nt   net.Error
		cert *tls.CertificateVerificationError
	)
	return errors.As(err, &nt) || errors.As(err, &cert) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.DeadlineExceeded)
}
