package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"mintai/api"
)

const copyBuffer = 32 << 10

var buffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// forward reads a call strictly, sends it through the Transport and streams the
// answer back, each piece as it comes. It is written out instead of using
// httputil.ReverseProxy because nothing of the caller's header passes in either
// direction, the body is the checked one, and a failure midway must be said
// inside the stream before the connection is cut.
func (g *gateway) forward(w http.ResponseWriter, r *http.Request, call api.Call) {
	started := time.Now()
	control := http.NewResponseController(w)
	// Recorders in tests and wrapped writers may know no deadlines.
	_ = control.SetReadDeadline(started.Add(g.BodyDeadline))
	req, err := api.ReadRequest(call, r.Header, http.MaxBytesReader(w, r.Body, api.MaxBody))
	_ = control.SetReadDeadline(time.Time{})
	if err != nil {
		g.refuse(w, call, api.AsError(err))
		return
	}
	resp, err := g.Transport.RoundTrip(outgoing(r, req))
	if err != nil {
		if gone(r.Context(), err) {
			panic(http.ErrAbortHandler) // nobody is left to answer
		}
		e := g.explain(err)
		g.Log.Info().Str("call", string(call)).Str("model", string(req.Model)).
			Str("code", e.Code).Dur("after", time.Since(started)).Msg("request failed")
		g.refuse(w, call, e)
		return
	}
	defer func() { _ = resp.Body.Close() }() // early, it cancels the work at the AI server
	n, err := g.answer(w, control, call, resp)
	if err == nil {
		g.Log.Debug().Str("call", string(call)).Str("model", string(req.Model)).
			Int("status", resp.StatusCode).Int64("bytes", n).Dur("after", time.Since(started)).Msg("request answered")
		return
	}
	if !gone(r.Context(), err) {
		g.Log.Info().Str("call", string(call)).Str("model", string(req.Model)).
			Str("code", g.explainMidway(err).Code).Int64("bytes", n).Dur("after", time.Since(started)).Msg("answer cut off")
	}
	// The connection is cut without its last chunk: the answer cannot be taken
	// for a whole one (RFC 9112 §8).
	panic(http.ErrAbortHandler)
}

// gone reports whether the caller itself went away.
func gone(ctx context.Context, err error) bool {
	var writeErr *writeError
	return ctx.Err() != nil || errors.As(err, &writeErr)
}

// outgoing builds the request for the Transport.
func outgoing(r *http.Request, req *api.Request) *http.Request {
	ctx := context.WithValue(r.Context(), requestKey{}, req)
	out := (&http.Request{
		Method: http.MethodPost, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Content-Type": {"application/json"},
			"User-Agent":   {""}, // say nothing about this side
		},
		Body:          io.NopCloser(bytes.NewReader(req.Body)),
		GetBody:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(req.Body)), nil },
		ContentLength: int64(len(req.Body)),
		Host:          "miner", // the Transport knows which
	}).WithContext(ctx)
	out.URL = &url.URL{Scheme: "https", Host: out.Host, Path: string(req.Call)}
	if accept := r.Header.Get("Accept"); accept != "" && len(accept) <= 256 {
		out.Header.Set("Accept", accept)
	}
	return out
}

// answer passes the response on and returns how many bytes of its body went
// out. Only status, Retry-After, a known Content-Type and our own error code
// pass of its head.
func (g *gateway) answer(w http.ResponseWriter, control *http.ResponseController, call api.Call, resp *http.Response) (int64, error) {
	if resp.StatusCode < 200 || resp.StatusCode > 599 || resp.StatusCode >= 300 && resp.StatusCode < 400 {
		g.refuse(w, call, &api.Error{
			Status: http.StatusBadGateway, Code: api.CodeBackendNonsense,
			Message: "the AI server answered with status " + strconv.Itoa(resp.StatusCode),
		})
		return 0, nil
	}
	h := w.Header()
	api.FilterResponseHeader(h, resp.Header)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/octet-stream") // never guessed from the body
	}
	if code := resp.Header.Get(api.HeaderError); code != "" && len(code) <= 64 {
		h.Set(api.HeaderError, code)
	}
	retryAdvice(h, resp.StatusCode, h.Get("Retry-After") != "")
	streamed := streamKind(h.Get("Content-Type"))
	if resp.ContentLength >= 0 && streamed == notStreamed {
		h.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(resp.StatusCode)
	body := io.Reader(resp.Body)
	if streamed != notStreamed {
		_ = control.Flush() // the head, so that the caller knows that it was heard
		body = &eventReader{body: resp.Body, kind: streamed, failure: func(err error) []byte {
			return failureEvent(call, streamed, g.explainMidway(err))
		}}
	}
	return g.copy(w, control, body)
}

// writeError is a failure to write to the caller, in contrast to one to read
// from the miner.
type writeError struct{ err error }

func (e *writeError) Error() string { return "writing to the caller: " + e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// copy passes each piece on as it comes.
func (g *gateway) copy(w http.ResponseWriter, control *http.ResponseController, body io.Reader) (n int64, err error) {
	buf, _ := buffers.Get().(*[copyBuffer]byte)
	defer func() {
		clear(buf[:]) // an answer does not linger in the pool
		buffers.Put(buf)
		_ = control.SetWriteDeadline(time.Time{}) // not for the connection's next request
	}()
	for {
		read, rerr := body.Read(buf[:])
		if read > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(g.WriteDeadline))
			written, err := w.Write(buf[:read])
			n += int64(written)
			if err == nil {
				err = control.Flush()
			}
			if err != nil && !errors.Is(err, http.ErrNotSupported) {
				return n, &writeError{err}
			}
		}
		if errors.Is(rerr, io.EOF) {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// explainMidway is explain for an answer that had begun.
func (g *gateway) explainMidway(err error) *api.Error {
	e := g.explain(err)
	if e.Code != api.CodeInternal {
		return e
	}
	return &api.Error{
		Status: http.StatusBadGateway, Code: api.CodeMinerLost,
		Message: "the miner was lost before the answer was complete", Hint: "ask again",
	}
}
