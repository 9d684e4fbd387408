package quicstream

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// refuse answers a request in the tunnel's own name.
func (s *Server) refuse(w http.ResponseWriter, status int, why Refusal, message string) {
	s.stats.refused.Add(1)
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set(HeaderError, string(why))
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, message+"\n")
}

// serveRequest runs on the stream's goroutine. It finds or starts the answer
// and carries it.
func (c *serverConn) serveRequest(w http.ResponseWriter, r *http.Request) {
	s := c.server
	qs := c.stream(r)
	if qs == nil { // not a request stream of this connection
		panic(http.ErrAbortHandler)
	}
	if r.Method == http.MethodConnect || r.Header["Upgrade"] != nil {
		s.refuse(w, http.StatusMethodNotAllowed, RefusedMethod, "CONNECT and upgrades do not pass the tunnel")
		return
	}
	if s.cfg.Authorize != nil {
		if err := s.cfg.Authorize(c.peer); err != nil {
			s.refuse(w, http.StatusForbidden, RefusedUnauthorized, "this client has no live grant")
			return
		}
	}
	id, err := ParseRequestID(r.Header.Get(HeaderRequest))
	if err != nil {
		s.refuse(w, http.StatusBadRequest, RefusedMalformed, HeaderRequest+": "+err.Error())
		return
	}
	offset, resume := int64(0), len(r.Header[HeaderResume]) > 0
	if resume {
		if offset, err = parseOffset(r.Header.Get(HeaderResume)); err != nil {
			s.refuse(w, http.StatusBadRequest, RefusedMalformed, HeaderResume+": "+err.Error())
			return
		}
	}
	attempt, err := parseAttempt(r.Header[HeaderAttempt])
	if err != nil {
		s.refuse(w, http.StatusBadRequest, RefusedMalformed, HeaderAttempt+": "+err.Error())
		return
	}
	key := answerKey{peer: c.peer, id: id}
	if resume && !s.reg.has(key) {
		s.refuse(w, http.StatusNotFound, RefusedUnknownRequest, "nothing to resume under this request ID")
		return
	}
	if resume && len(r.Header[HeaderDigest]) > 0 {
		c.resumeByDigest(w, r, qs, key, offset, attempt) //nolint:contextcheck // an answer outlives its request
		return
	}

	fresh := newAnswer(c.requestContext(), key, &s.cfg, s.reg, &s.stats) //nolint:contextcheck // an answer outlives its request
	body, refusal := c.readBody(fresh, r)
	if refusal != "" {
		s.reg.releaseAll(fresh)
		s.refuseBody(w, refusal)
		return
	}
	fresh.digest = RequestDigest(r, body)
	a, refusal := s.answerFor(fresh, resume)
	if a != fresh {
		clear(body)
		s.reg.releaseAll(fresh)
	}
	if refusal == RefusedUnknownRequest {
		s.refuse(w, http.StatusNotFound, refusal, "nothing to resume under this request ID")
		return
	}
	if refusal != "" { // only RefusedGoingAway is left
		s.refuse(w, http.StatusServiceUnavailable, refusal, "the miner is shutting down")
		return
	}
	if a == fresh {
		s.start(a, r, body)
	} else if !s.mayResume(w, a, fresh.digest, offset) {
		a.settle()
		return
	}
	c.carry(w, r, qs, a, offset, attempt) //nolint:contextcheck // an answer outlives its request
}

// carry lets the request's stream carry the answer from an offset on.
func (c *serverConn) carry(w http.ResponseWriter, r *http.Request, qs *quic.Stream, a *answer, offset int64, attempt uint32) {
	att := &attachment{
		w: w, qs: qs, stall: c.server.cfg.StallTimeout, sent: offset, try: attempt,
		noBody: r.Method == http.MethodHead, pad: padding{off: c.server.cfg.NoPadding},
	}
	err := a.attach(att)
	if errors.Is(err, errOvertaken) {
		a.settle()
		c.server.refuse(w, http.StatusConflict, RefusedStale, "a later attempt carries this answer")
		return
	}
	c.leave(att, err)
}

// resumeByDigest continues an answer whose request is named by its digest alone:
// what is asked for need not cross the network again.
func (c *serverConn) resumeByDigest(w http.ResponseWriter, r *http.Request, qs *quic.Stream, key answerKey, offset int64, attempt uint32) {
	s := c.server
	digest, err := parseDigest(r.Header[HeaderDigest])
	if err != nil {
		s.refuse(w, http.StatusBadRequest, RefusedMalformed, HeaderDigest+": "+err.Error())
		return
	}
	a := s.reg.find(key)
	if a == nil {
		s.refuse(w, http.StatusNotFound, RefusedUnknownRequest, "nothing to resume under this request ID")
		return
	}
	if !s.mayResume(w, a, digest, offset) {
		a.settle()
		return
	}
	_ = qs.SetReadDeadline(time.Time{})
	c.carry(w, r, qs, a, offset, attempt)
}

// answerFor returns the answer that already exists for fresh's key, or
// registers fresh when it may start.
func (s *Server) answerFor(fresh *answer, resume bool) (*answer, Refusal) {
	s.mu.Lock() // with the count of handlers: Shutdown must not miss one
	defer s.mu.Unlock()
	if resume || s.draining {
		a := s.reg.find(fresh.key)
		switch {
		case a != nil:
			return a, ""
		case resume:
			return nil, RefusedUnknownRequest
		default:
			return nil, RefusedGoingAway
		}
	}
	if a := s.reg.insert(fresh); a != nil {
		return a, ""
	}
	s.running++
	return fresh, ""
}

// parseAttempt reads HeaderAttempt; 0 when there is none.
func parseAttempt(values []string) (uint32, error) {
	if len(values) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseUint(values[0], 10, 32)
	if err != nil || len(values) > 1 || strconv.FormatUint(n, 10) != values[0] {
		return 0, errors.New("want a decimal number")
	}
	return uint32(n), nil
}

// mayResume checks that the client asks for the same request and for bytes that
// are kept, and answers it when not.
func (s *Server) mayResume(w http.ResponseWriter, a *answer, asked Digest, offset int64) bool {
	if a.digest != asked {
		s.refuse(w, http.StatusConflict, RefusedOtherRequest, "this request ID belongs to another request")
		return false
	}
	base, end, _ := a.state()
	switch {
	case offset < base:
		s.refuse(w, http.StatusGone, RefusedGone, "these bytes of the answer are no longer kept")
		return false
	case offset > end:
		s.refuse(w, http.StatusRequestedRangeNotSatisfiable, RefusedOffset, "the answer is not that long yet")
		return false
	}
	s.stats.resumed.Add(1)
	return true
}

// requestContext is the root of a handler's context. It ends with no
// connection: the answer buffer decides.
func (c *serverConn) requestContext() context.Context {
	ctx := context.WithValue(context.Background(), peerKey, c.peer)
	ctx = context.WithValue(ctx, remoteKey, addrPort(c.conn.RemoteAddr()))
	ctx = context.WithValue(ctx, http.LocalAddrContextKey, c.conn.LocalAddr())
	// httputil.ReverseProxy panics with http.ErrAbortHandler when its backend
	// dies midway only if it finds this key. Without it a truncated answer
	// would end like a complete one.
	return context.WithValue(ctx, http.ServerContextKey, contextServer)
}

var contextServer = new(http.Server)

// start runs the handler for a registered answer.
func (s *Server) start(a *answer, r *http.Request, body []byte) {
	s.stats.requests.Add(1)
	req := r.WithContext(a.ctx)
	req.Header = r.Header.Clone() // the handler outlives this stream
	prompt := &requestBody{left: body, all: body[:cap(body)]}
	req.Body = prompt
	req.ContentLength = int64(len(body))
	if len(body) == 0 {
		req.Body = http.NoBody
	}
	req.TransferEncoding, req.Trailer = nil, nil
	go s.runHandler(a, req, prompt)
}

// runHandler is owned by the Server: Shutdown waits for it.
func (s *Server) runHandler(a *answer, req *http.Request, body *requestBody) {
	defer s.handlerDone()
	w := &answerWriter{a: a, header: make(http.Header)}
	failure := s.callHandler(w, req)
	if failure == nil && w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if failure == nil && !w.noBody && req.Method != http.MethodHead {
		failure = a.short()
	}
	if failure != nil && !a.cancelled() {
		s.stats.brokenOff.Add(1)
	}
	s.reg.release(a, body.wipe())
	a.finish(failure)
}

// requestBody is a body in memory. A proxy's transport may still read it when
// the handler has returned, hence the mutex.
type requestBody struct {
	mu        sync.Mutex
	left, all []byte
}

// Read fails once the handler has returned.
func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.all == nil:
		return 0, http.ErrBodyReadAfterClose
	case len(b.left) == 0:
		return 0, io.EOF
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

// Close does nothing: the body belongs to the answer.
func (b *requestBody) Close() error { return nil }

// wipe overwrites the body and returns its capacity.
func (b *requestBody) wipe() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.all)
	clear(b.all)
	b.left, b.all = nil, nil
	return n
}

func (s *Server) handlerDone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	s.wakeLocked()
}

// callHandler returns why the handler broke off, nil when it returned.
func (s *Server) callHandler(w http.ResponseWriter, req *http.Request) (failure error) {
	defer func() {
		if p := recover(); p != nil {
			failure = errBroken
			if p != http.ErrAbortHandler { //nolint:errorlint // a panic's value, never wrapped
				s.cfg.Log.Error().Str("panic", fmt.Sprintf("%T", p)).Bytes("stack", debug.Stack()).Msg("tunnel handler panicked")
			}
		}
	}()
	s.cfg.Handler.ServeHTTP(w, req)
	return nil
}

// short reports an answer that ended before its announced length.
func (a *answer) short() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n, err := strconv.ParseInt(a.header.Get("Content-Length"), 10, 64); err == nil && n != a.kept.end {
		return errBroken
	}
	return nil
}

func (a *answer) cancelled() bool { return a.ctx.Err() != nil }

// leave ends the stream as the answer ended.
func (c *serverConn) leave(att *attachment, err error) {
	if att.str == nil {
		panic(http.ErrAbortHandler) // http3 resets the stream
	}
	clear(att.frame[:cap(att.frame)])
	clear(att.last[:cap(att.last)])
	if err == nil {
		att.str.CancelRead(streamCode(http3.ErrCodeNoError)) // a no-op after EOF
		_ = att.str.Close()
		return
	}
	if errors.Is(err, errBroken) {
		att.qs.SetReliableBoundary() // the client gets every byte up to here, then the error
	}
	att.str.CancelRead(streamCode(http3.ErrCodeInternalError))
	att.str.CancelWrite(streamCode(http3.ErrCodeInternalError))
}

func streamCode(c http3.ErrCode) quic.StreamErrorCode { return quic.StreamErrorCode(c) }

func (s *Server) refuseBody(w http.ResponseWriter, why Refusal) {
	switch why {
	case RefusedTooLarge:
		s.refuse(w, http.StatusRequestEntityTooLarge, why, fmt.Sprintf("request bodies end at %d bytes", s.cfg.MaxBody))
	case RefusedBusy:
		s.stats.busy.Add(1)
		s.refuse(w, http.StatusServiceUnavailable, why, "this client's buffers are full")
	default:
		s.refuse(w, http.StatusBadRequest, RefusedMalformed, "the request body did not arrive")
	}
}

// readBody reads the whole body, charging it to a.
func (c *serverConn) readBody(a *answer, r *http.Request) ([]byte, Refusal) {
	cfg := &c.server.cfg
	if r.ContentLength > cfg.MaxBody {
		return nil, RefusedTooLarge
	}
	if !a.reg.reserve(a, answerOverhead) {
		return nil, RefusedBusy
	}
	qs := c.stream(r)
	_ = qs.SetReadDeadline(time.Now().Add(cfg.BodyTimeout))
	defer func() { _ = qs.SetReadDeadline(time.Time{}) }()
	// Grow with what arrives, not with what is announced.
	size := min(max(r.ContentLength+1, 512), 64<<10)
	body, charged := make([]byte, 0, size), 0
	for {
		if cap(body) > charged {
			if !a.reg.reserve(a, cap(body)-charged) {
				clear(body)
				return nil, RefusedBusy
			}
			charged = cap(body)
		}
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > cfg.MaxBody:
			clear(body)
			return nil, RefusedTooLarge
		case errors.Is(err, io.EOF):
			return body, ""
		case err != nil:
			clear(body)
			return nil, RefusedMalformed
		case len(body) == cap(body):
			bigger := make([]byte, len(body), 2*cap(body))
			copy(bigger, body)
			clear(body)
			body = bigger
		}
	}
}

// Digest identifies a request's content, so that its ID cannot be reused for
// another: SHA-256 (FIPS 180-4) over method, target, content type and body.
type Digest [sha256.Size]byte

// String returns lower-case hexadecimal, as HeaderDigest has it.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

var errDigest = errors.New("want 64 lower-case hex digits")

func parseDigest(values []string) (Digest, error) {
	var d Digest
	if len(values) != 1 || len(values[0]) != 2*len(d) {
		return Digest{}, errDigest
	}
	if _, err := hex.Decode(d[:], []byte(values[0])); err != nil || d.String() != values[0] {
		return Digest{}, errDigest
	}
	return d, nil
}

// RequestDigest is the Digest of a request with that body.
func RequestDigest(r *http.Request, body []byte) (sum Digest) {
	h := sha256.New()
	for _, part := range []string{"mintai/request/v1", r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type")} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		_, _ = io.WriteString(h, part)
	}
	h.Write(body)
	h.Sum(sum[:0])
	return sum
}
