package wss

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/coder/websocket"
)

// TURNSubprotocol is the WebSocket subprotocol of a stream of TURN (RFC 8656
// §2.1), for proxies that open TLS: they pass on web traffic and nothing else.
const TURNSubprotocol = "mintai-turn.1"

// turnMessage bounds one message of such a stream. Where messages begin and end
// means nothing; a writer sends about one TLS record at a time.
const turnMessage = 64 << 10

// webStream is a WebSocket as a stream with addresses.
type webStream struct {
	net.Conn
	local, remote net.Addr
}

func (s *webStream) LocalAddr() net.Addr  { return s.local }
func (s *webStream) RemoteAddr() net.Addr { return s.remote }

func newWebStream(ws *websocket.Conn, under net.Conn) *webStream {
	ws.SetReadLimit(turnMessage)
	return &webStream{
		Conn:  websocket.NetConn(context.Background(), ws, websocket.MessageBinary), // ended by Close
		local: under.LocalAddr(), remote: under.RemoteAddr(),
	}
}

// refusesTURN reports whether a failed handshake may be because of ALPN: RFC
// 7301 §3.2 has an alert for it, and what opens TLS may just hang up.
func refusesTURN(err error) bool {
	var alert *net.OpError // crypto/tls tells the other end's alerts so
	return errors.As(err, &alert) && alert.Op == "remote error" || errors.Is(err, io.EOF)
}

// turnOverWeb opens a stream of TURN in a WebSocket.
func (d *Dialer) turnOverWeb(ctx context.Context, hostport string) (net.Conn, error) {
	l, err := d.dial(ctx, hostport, protocolHTTP)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	ws, _, err := l.upgrade(ctx, hostport, TURNSubprotocol, http.Header{})
	if err != nil {
		_ = l.raw.Close()
		return nil, fmt.Errorf("%s: %w: %w", hostport, ErrNoTURN, err)
	}
	return newWebStream(ws, l.raw), nil
}

// serveTURN hands a WebSocket to whoever serves TURN.
func (s *Server) serveTURN(w http.ResponseWriter, r *http.Request, secure *tls.Conn) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{TURNSubprotocol}, InsecureSkipVerify: true,
	})
	if err != nil {
		s.cfg.Log.Debug().Err(err).Stringer("remote", secure.RemoteAddr()).Msg("no WebSocket")
		return
	}
	stream := newWebStream(ws, secure)
	conn, _ := secure.NetConn().(*serverConn)
	if !s.turn.push(&turnConn{Conn: stream, conn: conn}) {
		_ = ws.CloseNow()
	}
}
