package quicstream

import (
	"net/http"
)

// answerWriter is the http.ResponseWriter that a handler sees. Trailers and
// hijacking are not offered. It is used by one goroutine, like any other.
type answerWriter struct {
	a      *answer
	header http.Header
	status int
	noBody bool
}

var (
	_ http.ResponseWriter = (*answerWriter)(nil)
	_ http.Flusher        = (*answerWriter)(nil)
)

// Header is the header of the answer, fixed by the first WriteHeader.
func (w *answerWriter) Header() http.Header { return w.header }

// WriteHeader sends an informational answer or fixes the final head, which goes
// out with the first byte, Flush or the end.
func (w *answerWriter) WriteHeader(status int) {
	switch {
	case status < 100 || status > 999:
		panic("quicstream: invalid status code") // as net/http does
	case w.status != 0, status == http.StatusSwitchingProtocols:
		return
	case status < 200:
		w.a.inform(status, w.header)
		return
	}
	w.status = status
	w.noBody = status == http.StatusNoContent || status == http.StatusNotModified
	w.a.setHead(status, w.header)
}

// Write hands body bytes on. It blocks while the client is slow and returns the
// cause of the request's context once that ended.
func (w *answerWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		if w.header["Content-Type"] == nil && len(p) > 0 {
			w.header.Set("Content-Type", http.DetectContentType(p))
		}
		w.WriteHeader(http.StatusOK)
	}
	if w.noBody {
		return 0, http.ErrBodyNotAllowed
	}
	w.a.releaseHead()
	return w.a.write(p)
}

// Flush lets the head go out; body bytes never wait.
func (w *answerWriter) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *answerWriter) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.a.releaseHead()
	return nil
}

// hopByHop fields never leave the connection they came from (RFC 9110 §7.6.1,
// RFC 9114 §4.2). Trailers do not pass the answer buffer.
var hopByHop = [...]string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// answerHeader copies what may go out of a handler's header.
func answerHeader(h http.Header) http.Header {
	out := h.Clone()
	if out == nil {
		out = make(http.Header)
	}
	for _, name := range hopByHop {
		delete(out, name)
	}
	for name := range out {
		if len(name) > len(http.TrailerPrefix) && name[:len(http.TrailerPrefix)] == http.TrailerPrefix {
			delete(out, name)
		}
	}
	return out
}
