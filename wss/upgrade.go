package wss

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/coder/websocket"
)

// connKey is where a request's context holds its connection.
type connKey struct{}

// serveHTTP answers what comes over TLS without TURN: WebSockets at Path, a line
// of text for who looks what this is, and 404. There are no cookies and nothing
// that a browser's user could lend to a foreign page, so Origin does not matter.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == Path:
		s.serveWebSocket(w, r)
	case r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "This is a MintAI coordinator. Programs connect to it; there is nothing to see here.\n")
	default:
		http.NotFound(w, r)
	}
}

// speaks reports whether the client offers the subprotocol.
func speaks(h http.Header, subprotocol string) bool {
	for _, line := range h.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(name) == subprotocol {
				return true
			}
		}
	}
	return false
}

func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	secure, ok := r.Context().Value(connKey{}).(*tls.Conn)
	if ok && speaks(r.Header, TURNSubprotocol) {
		s.serveTURN(w, r, secure)
		return
	}
	if !ok || !speaks(r.Header, Subprotocol) {
		w.Header().Set("Sec-WebSocket-Protocol", Subprotocol)
		http.Error(w, "only WebSockets with the subprotocol "+Subprotocol, http.StatusUpgradeRequired)
		return
	}
	flight, err := decodeFlight(r.Header.Get(flightHeader))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer func() {
		for _, d := range flight {
			d.release()
		}
	}()
	if !s.begin(nil) {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	defer s.running.Done()
	if len(flight) > 0 {
		w.Header().Set(flightHeader, strconv.Itoa(len(flight)))
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{Subprotocol}, InsecureSkipVerify: true,
	})
	if err != nil {
		s.cfg.Log.Debug().Err(err).Stringer("remote", secure.RemoteAddr()).Msg("no WebSocket")
		return
	}
	given := flight
	flight = nil
	s.carry(ws, secure.NetConn(), given)
}

// carry moves datagrams until the connection ends.
func (s *Server) carry(ws *websocket.Conn, raw net.Conn, flight []*datagram) {
	out := newQueue()
	from := newAddr(raw.RemoteAddr(), out)
	from.conn, _ = raw.(*serverConn)
	w := newWire(ws, raw, out)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s.add(w, cancel)
	defer s.remove(w)
	log := s.cfg.Log.With().Stringer("remote", from).Logger()
	log.Debug().Int("early", len(flight)).Msg("WebSocket opened")

	sent := make(chan error, 1)
	go func() {
		sent <- w.send(ctx.Done(), func() (websocket.StatusCode, string) { return farewell(context.Cause(ctx)) })
	}()
	deliver := func(d *datagram) bool {
		d.from = from
		// After the end it goes on to read, for the other end's close message.
		return s.packets.deliver(d, ctx.Done()) || ctx.Err() != nil
	}
	for _, d := range flight {
		deliver(d)
	}
	err := w.receive(deliver)
	cancel(err)
	out.closed.Store(true)
	if failed := <-sent; failed != nil && errors.Is(err, net.ErrClosed) {
		err = failed
	}
	_ = raw.Close()
	if cause := context.Cause(ctx); errors.Is(err, net.ErrClosed) {
		err = cause
	}
	log.Debug().AnErr("reason", ended(err)).Uint64("dropped", out.dropped.Load()).Msg("WebSocket ended")
}

// farewell is how the other end learns why (RFC 6455 §7.4.1).
func farewell(cause error) (websocket.StatusCode, string) {
	switch {
	case errors.Is(cause, errStopping):
		return websocket.StatusGoingAway, "stopping"
	case errors.Is(cause, errIdle):
		return websocket.StatusPolicyViolation, "idle"
	case errors.Is(cause, errNoText):
		return websocket.StatusUnsupportedData, "binary messages only"
	}
	return websocket.StatusNormalClosure, ""
}
