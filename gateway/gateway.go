// Package gateway is the client's local endpoint: it answers every existing
// OpenAI, Anthropic and Ollama program on loopback, and carries what they ask
// to a miner through an http.RoundTripper that it is given.
//
// It knows HTTP and the three APIs (package api), but no tunnel, no coordinator
// and no QUIC: finding a miner, failing over and measuring are the business of
// the RoundTripper. Nothing outside the short list of package api ever reaches
// it. Model lists are answered here, from what the coordinator's leases say.
//
// It asks for no key: who may use it is who can reach its port. Web pages
// cannot, unless they are allowed by name.
package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"mintai/api"
)

// Config is what New needs. Transport must be set.
type Config struct {
	// Transport carries one checked request to a miner: POST, URL path the
	// api.Call, the request in the context (RequestFromContext) and also as the
	// body, Content-Type and Accept the only header fields. Its errors, and
	// those of the response's body, are shown as they are when they are
	// *api.Error. It has tried all miners that it wants to when it returns.
	Transport http.RoundTripper
	// Models lists what is offered now, a model once or once for each miner.
	// Nil: nothing.
	Models func(context.Context) ([]ModelEntry, error)
	// Explain turns an error of Transport or of a response's body into what a
	// caller may see. Nil: api.AsError, and "the miner was lost" midway.
	Explain func(error) *api.Error
	// Origins are the web pages that may use the endpoint from a browser, such
	// as "https://chat.example.org".
	Origins []string
	// Hosts are further names by which the endpoint may be called, beside
	// localhost and IP addresses.
	Hosts []string
	// BodyDeadline is how long a caller may take to send its request's body.
	// 0: two minutes.
	BodyDeadline time.Duration
	// WriteDeadline is how long a caller may take to accept the next piece of
	// an answer. 0: five minutes.
	WriteDeadline time.Duration
	Log           zerolog.Logger
}

const (
	defaultBodyDeadline  = 2 * time.Minute
	defaultWriteDeadline = 5 * time.Minute
)

type gateway struct {
	Config
	hosts   map[string]bool
	origins map[string]bool
	started time.Time
}

// New returns the local endpoint. It starts nothing and keeps nothing between
// requests; it may be used by many goroutines.
func New(cfg Config) http.Handler {
	g := &gateway{Config: cfg, hosts: make(map[string]bool), origins: make(map[string]bool), started: time.Now()}
	if g.BodyDeadline <= 0 {
		g.BodyDeadline = defaultBodyDeadline
	}
	if g.WriteDeadline <= 0 {
		g.WriteDeadline = defaultWriteDeadline
	}
	for _, h := range cfg.Hosts {
		g.hosts[strings.ToLower(h)] = true
	}
	for _, o := range cfg.Origins {
		g.origins[strings.ToLower(o)] = true
	}
	return g
}

var _ http.Handler = (*gateway)(nil)

// MaxHeader bounds the header fields of a local request, in bytes.
const MaxHeader = api.MaxHeader

// NewServer returns an http.Server for New's handler with bounds on headers and
// on idle connections. Answers may take as long as they take.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    MaxHeader,
	}
}

type requestKey struct{}

// RequestFromContext returns the request that the gateway has parsed, inside
// Config.Transport; nil elsewhere.
func RequestFromContext(ctx context.Context) *api.Request {
	r, _ := ctx.Value(requestKey{}).(*api.Request)
	return r
}

// ServeHTTP answers one local request.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The API that the caller seems to speak, for the shape of refusals.
	spoken := api.Call(r.URL.Path)
	if e := g.guard(w, r); e != nil {
		g.refuse(w, spoken, e)
		return
	}
	if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		w.WriteHeader(http.StatusNoContent) // guard has said what is allowed
		return
	}
	if g.serveModels(w, r) {
		return
	}
	call, err := api.LookupRequest(r)
	if err != nil {
		g.refuse(w, spoken, api.AsError(err))
		return
	}
	g.forward(w, r, call)
}

// refuse answers with an error in the shape of the API.
func (g *gateway) refuse(w http.ResponseWriter, call api.Call, e *api.Error) {
	g.Log.Debug().Str("code", e.Code).Int("status", e.Status).Msg("local request refused")
	retryAdvice(w.Header(), e.Status, e.RetryAfter > 0)
	api.WriteError(w, call, e)
}

// retryAdvice keeps the official SDKs from repeating what was tried with every
// miner already. Where a time to wait is known, they may.
func retryAdvice(h http.Header, status int, retryAfter bool) {
	retried := status >= 500 || status == http.StatusTooManyRequests ||
		status == http.StatusConflict || status == http.StatusRequestTimeout
	if retried && !retryAfter {
		h.Set("X-Should-Retry", "false")
	}
}

// explain turns an error of the Transport into what the caller sees.
func (g *gateway) explain(err error) *api.Error {
	if g.Explain != nil {
		if e := g.Explain(err); e != nil {
			return e
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &api.Error{Status: http.StatusGatewayTimeout, Code: api.CodeTimeout, Message: "no answer in time"}
	}
	return api.AsError(err)
}
