package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"

	"mintai/api"
)

// proxy passes checked requests on to a server and filters what comes back.
type proxy struct {
	server  *server
	reverse *httputil.ReverseProxy
}

var _ http.Handler = (*proxy)(nil)

func newProxy(s *server) *proxy {
	p := &proxy{server: s}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL, r.Out.Host = s.base.at(r.In.URL.Path), "" },
		Transport:     filter{s},
		FlushInterval: -1, // each token at once
		// Its lines may quote what a server sent; failures are logged by Pool.
		ErrorLog:     log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) { p.failed(w, r, err) },
	}
	return p
}

// ServeHTTP expects a request made by cleanRequest.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Without this value ReverseProxy ends the answer of a server that died
	// midway as if it were whole; with it, it panics with http.ErrAbortHandler.
	ctx := r.Context()
	if ctx.Value(http.ServerContextKey) == nil {
		ctx = context.WithValue(ctx, http.ServerContextKey, &http.Server{})
	}
	r = r.WithContext(ctx)
	p.server.authorize(r.Header, api.Call(r.URL.Path))
	p.reverse.ServeHTTP(finalWriter{w}, r)
}

// cleanRequest returns what a server gets to see of a request: the path of the
// call, the checked body, what the body is and which answer is understood.
// Nothing else that a stranger sent goes on.
func cleanRequest(ctx context.Context, req *api.Request, accept []string) (*http.Request, error) {
	ctx = context.WithValue(ctx, streamKey{}, req.Stream)
	ctx = context.WithValue(ctx, callKey{}, req.Call)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, string(req.Call), bytes.NewReader(req.Body))
	if err != nil {
		return nil, fmt.Errorf("building the request for the AI server: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	if len(accept) == 1 && len(accept[0]) <= 256 {
		r.Header.Set("Accept", accept[0])
	}
	r.Header.Set("User-Agent", "mintai")
	if req.Call.Flavor() == api.Anthropic {
		r.Header.Set("Anthropic-Version", "2023-06-01") // required by the Messages API
	}
	return r, nil
}

// streamKey marks whether the answer streams, which decides how long its
// headers may take.
type streamKey struct{}

// callKey marks which call it is: the URL may be the server's own.
type callKey struct{}

// finalWriter drops a server's informational responses, which carry headers.
type finalWriter struct{ http.ResponseWriter }

func (w finalWriter) WriteHeader(status int) {
	if status >= 200 {
		w.ResponseWriter.WriteHeader(status)
	}
}

// Unwrap lets http.ResponseController flush.
func (w finalWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// filter is the round trip to a server: a deadline for the headers, and only
// what may pass of the answer.
type filter struct{ server *server }

// errSlow says that the headers did not come in time.
var errSlow = errors.New("the answer did not begin in time")

func (f filter) RoundTrip(r *http.Request) (*http.Response, error) {
	limit := f.server.opts.HeaderTimeout
	if stream, _ := r.Context().Value(streamKey{}).(bool); !stream {
		limit *= 5 // the headers of a whole answer come when it is finished
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	timer := time.AfterFunc(limit, func() { cancel(errSlow) })
	got, err := f.server.trans.RoundTrip(r.WithContext(ctx))
	if !timer.Stop() && err == nil {
		_ = got.Body.Close() // it came at the very moment of the deadline
		err = errSlow
	}
	if err != nil {
		cause := context.Cause(ctx)
		cancel(nil)
		if errors.Is(cause, errSlow) {
			return nil, errSlow
		}
		return nil, err
	}
	body := &endingBody{got.Body, func() { cancel(nil) }}
	resp, err := f.pass(r, got, body)
	if err != nil {
		_ = body.Close()
		return nil, err
	}
	return resp, nil
}

// endingBody ends the request's context once the answer is closed.
type endingBody struct {
	io.ReadCloser
	end func()
}

func (b *endingBody) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}

// pass makes the answer that a stranger sees. It is a new Response, so that
// trailers stay behind with the old one.
func (f filter) pass(r *http.Request, got *http.Response, body io.ReadCloser) (*http.Response, error) {
	resp := &http.Response{
		Status: got.Status, StatusCode: got.StatusCode,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: body, ContentLength: -1, Request: r,
	}
	api.FilterResponseHeader(resp.Header, got.Header)
	_, known := api.AnswerType(got.Header)
	switch {
	case got.StatusCode == http.StatusUnauthorized, got.StatusCode == http.StatusForbidden:
		// The server means the miner's key; the client can do nothing about it,
		// and some servers quote the key.
		return nil, errUnauthorized
	case got.StatusCode == http.StatusOK && known && got.Header.Get("Content-Encoding") == "":
		if endsByClosing(got) {
			resp.Body = untilSaid(r, body)
		}
		return resp, nil
	case got.StatusCode < 400 || got.StatusCode > 599:
		return nil, errNonsense
	case !known:
		return nil, &statusOnly{got.StatusCode, resp.Header.Get("Retry-After")}
	}
	// An error that the server explains: its own words go to the client, unless
	// they quote the key.
	const most = 64 << 10
	slow := time.AfterFunc(10*time.Second, func() { _ = body.Close() })
	text, err := io.ReadAll(io.LimitReader(body, most))
	slow.Stop()
	if err != nil || len(text) == most {
		return nil, &statusOnly{got.StatusCode, resp.Header.Get("Retry-After")}
	}
	_ = body.Close()
	if key := f.server.key.Reveal(); key != "" {
		text = bytes.ReplaceAll(text, []byte(key), []byte(f.server.key.String()))
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	return resp, nil
}

// statusOnly is an error answer whose text is not JSON and does not pass.
type statusOnly struct {
	status     int
	retryAfter string
}

func (e *statusOnly) Error() string {
	return fmt.Sprintf("answered %d %s", e.status, http.StatusText(e.status))
}

// failed answers a request that the server did not.
func (p *proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody waits for an answer any more
	}
	e := explain(err)
	p.server.opts.Log.Warn().Str("server", p.server.base.url.String()).Str("code", e.Code).Int("status", e.Status).Msg("the AI server failed a request")
	api.WriteError(w, api.Call(r.URL.Path), e)
}

// explain turns a failed round trip into what the client is told.
func explain(err error) *api.Error {
	var status *statusOnly
	switch {
	case errors.As(err, &status):
		e := &api.Error{
			Status: status.status, Code: api.CodeBackendError,
			Message: "the AI server " + status.Error(),
		}
		if n, err := strconv.Atoi(status.retryAfter); err == nil {
			e.RetryAfter = time.Duration(n) * time.Second
		}
		return e
	case errors.Is(err, errSlow):
		return &api.Error{
			Status: http.StatusGatewayTimeout, Code: api.CodeTimeout,
			Message: "the AI server did not begin to answer in time", Hint: "it may be loading the model; try again",
		}
	case errors.Is(err, errUnauthorized):
		return &api.Error{
			Status: http.StatusBadGateway, Code: api.CodeBackendAuth,
			Message: "the AI server refused the miner's API key", Hint: "the miner's owner has to set api_key_env or api_key_file",
		}
	case errors.Is(err, errNonsense), !isNetwork(err):
		return &api.Error{
			Status: http.StatusBadGateway, Code: api.CodeBackendNonsense,
			Message: "the AI server answered something else than the API",
		}
	default:
		return &api.Error{
			Status: http.StatusBadGateway, Code: api.CodeBackendDown,
			Message: "the AI server " + reason(err), Hint: "the miner's owner has to start it",
		}
	}
}
