package quicstream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"

	"mintai/identity"
)

// serverConn is one accepted tunnel.
type serverConn struct {
	server *Server
	conn   *quic.Conn
	peer   identity.NodeID
	since  time.Time
	echoed atomic.Uint64 // heartbeats that the client answered

	mu      sync.Mutex // guards streams
	streams map[quic.StreamID]*quic.Stream
}

// maxTunnels is how many tunnels one client may have: several processes of one
// user share a key. Two overlap when a path changes; those that died stay until
// their idle timeout.
const maxTunnels = 128

// serveConn runs one tunnel until it or ctx ends, and waits for its streams.
func (s *Server) serveConn(ctx context.Context, conn *quic.Conn) {
	peer, err := identity.PeerID(conn.ConnectionState().TLS)
	if err == nil && s.cfg.Await != nil {
		s.await(ctx, conn, peer)
	}
	if err == nil && s.cfg.Authorize != nil {
		err = s.cfg.Authorize(peer)
	}
	if err != nil {
		s.stats.refusedTunnels.Add(1)
		s.cfg.Log.Debug().Err(err).Stringer("remote", conn.RemoteAddr()).Msg("tunnel refused")
		_ = conn.CloseWithError(quic.ApplicationErrorCode(Unauthorized), Unauthorized.String())
		return
	}
	c := &serverConn{server: s, conn: conn, peer: peer, since: time.Now(), streams: make(map[quic.StreamID]*quic.Stream)}
	if !s.add(c) {
		c.close(GoingAway)
		return
	}
	s.stats.tunnels.Add(1)
	stop := context.AfterFunc(ctx, func() { c.close(closeCode(ctx)) })
	defer stop()
	if s.isDraining() { // a client that lost its path may still fetch its answer
		c.announceDrain()
	}
	err = c.run() //nolint:contextcheck // ends with the connection, which ctx closes
	last := s.remove(c)
	if ce, ok := errors.AsType[*CloseError](err); ok && ce.Remote && ce.Code.ends() && last {
		for _, a := range s.reg.of(peer) {
			a.stop(ErrCancelled) // the client needs nothing of it any more
		}
	}
	s.cfg.Log.Debug().Err(err).Str("peer", peer.Short()).Stringer("remote", conn.RemoteAddr()).Msg("tunnel ended")
}

// closeCode is why a context ended.
func closeCode(ctx context.Context) CloseCode {
	if ce, ok := errors.AsType[*CloseError](context.Cause(ctx)); ok {
		return ce.Code
	}
	return GoingAway
}

// await lets a grant that is on its way arrive, while ctx and the connection
// last.
func (s *Server) await(ctx context.Context, conn *quic.Conn, peer identity.NodeID) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(conn.Context(), cancel) //nolint:contextcheck // whichever ends first
	defer stop()
	s.cfg.Await(ctx, peer)
}

func (s *Server) add(c *serverConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	mine := s.connsLocked(c.peer)
	if len(mine) >= maxTunnels {
		mostDispensable(mine).close(Replaced)
	}
	s.conns[c] = struct{}{}
	return true
}

// mostDispensable is the oldest tunnel that carries nothing, else the oldest:
// most likely it is dead, and not known to be yet.
func mostDispensable(conns []*serverConn) *serverConn {
	return slices.MinFunc(conns, func(a, b *serverConn) int {
		return cmp.Or(cmp.Compare(min(a.requests(), 1), min(b.requests(), 1)), a.since.Compare(b.since))
	})
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// remove forgets c and reports whether it was its client's last tunnel.
func (s *Server) remove(c *serverConn) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.wakeLocked()
	return len(s.connsLocked(c.peer)) == 0
}

// run serves HTTP/3 until the connection ends. It accepts the streams itself,
// because a handler must tell a reset of its stream from the connection's end,
// and http3 hides which one it was.
func (c *serverConn) run() error {
	h3 := &http3.Server{
		Handler:        http.HandlerFunc(c.serveRequest),
		MaxHeaderBytes: MaxHeaderBytes,
		Logger:         slog.New(slog.DiscardHandler),
	}
	hc, err := h3.NewRawServerConn(c.conn)
	if err != nil {
		c.close(Misbehaved)
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			str, err := c.conn.AcceptUniStream(context.Background()) // ends with the connection
			if err != nil {
				return
			}
			wg.Go(func() { hc.HandleUnidirectionalStream(str) })
		}
	})
	wg.Go(c.heartbeat)
	wg.Go(c.acceptEchoes)
	for {
		str, err := c.conn.AcceptStream(context.Background()) // ends with the connection
		if err != nil {
			return connError(err)
		}
		_ = str.SetReadDeadline(time.Now().Add(headTimeout))
		c.track(str)
		wg.Go(func() {
			defer c.untrack(str)
			hc.HandleRequestStream(str)
		})
	}
}

// heartbeatPeriod is how often a miner sends something while a request runs,
// even when the model is silent.
const heartbeatPeriod = 500 * time.Millisecond

// heartbeat sends a datagram (RFC 9221) at each beat while a request runs, so
// that a client can tell a slow model from a dead path in seconds. It fills the
// largest packet that the connection believes to pass: a path that loses what is
// long and lets the rest through is as dead for answers as one that loses all. The
// client echoes each with one as long. The first byte says whether it is heard.
func (c *serverConn) heartbeat() {
	beat := time.NewTicker(heartbeatPeriod)
	defer beat.Stop()
	filled := make([]byte, maxHeartbeat)
	var hearing ear
	for {
		select {
		case now := <-beat.C:
			if c.requests() == 0 {
				hearing = ear{}
				continue
			}
			filled[0] = heartbeatHearing
			if hearing.deaf(now, c.conn.ConnectionStats().PacketsReceived, c.echoed.Load()) {
				filled[0] = heartbeatDeaf
			}
			sendFull(c.conn, filled)
		case <-c.conn.Context().Done():
			return
		}
	}
}

const (
	// maxHeartbeat is longer than any packet: quic-go then says how much fits.
	maxHeartbeat = 1500
	// deafAfter is how long nothing may come from a client that should have
	// acknowledged a heartbeat.
	deafAfter = heartbeatPeriod
	// deafToLong is the same for echoes, of which one may be lost.
	deafToLong = 750 * time.Millisecond
)

// ear judges whether a client is heard while a request runs, and its long packets
// too: on a path that loses those no request arrives.
type ear struct {
	packets uint64
	echoes  uint64
	heard   time.Time // any packet
	echo    time.Time // an echo, or the beginning
}

// deaf takes the counts of this moment. A client from which no echo ever came
// sends none.
func (e *ear) deaf(now time.Time, packets, echoes uint64) bool {
	if packets != e.packets || e.heard.IsZero() {
		e.packets, e.heard = packets, now
	}
	if echoes != e.echoes || e.echo.IsZero() {
		e.echoes, e.echo = echoes, now
	}
	return now.Sub(e.heard) >= deafAfter || echoes > 0 && now.Sub(e.echo) >= deafToLong
}

// acceptEchoes counts the client's datagrams, until the connection ends.
func (c *serverConn) acceptEchoes() {
	for {
		if _, err := c.conn.ReceiveDatagram(context.Background()); err != nil {
			return
		}
		c.echoed.Add(1)
	}
}

// The first byte of a heartbeat.
const (
	heartbeatHearing = 0 // the client is heard
	heartbeatDeaf    = 1 // nothing comes from it: the path is dead in that direction
)

// sendFull sends the longest beginning of buf that fits. It blocks while
// quic-go's queue is full; nothing is to be done about the connection's end.
func sendFull(conn *quic.Conn, buf []byte) {
	err := conn.SendDatagram(buf)
	if large, ok := errors.AsType[*quic.DatagramTooLargeError](err); ok && large.MaxDatagramPayloadSize > 0 {
		_ = conn.SendDatagram(buf[:min(maxHeartbeat, large.MaxDatagramPayloadSize)])
	}
}

func (c *serverConn) track(str *quic.Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[str.StreamID()] = str
}

func (c *serverConn) untrack(str *quic.Stream) {
	c.mu.Lock()
	delete(c.streams, str.StreamID())
	c.mu.Unlock()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.server.draining {
		c.server.wakeLocked()
	}
}

// drainStream is the type of a unidirectional stream with which the miner says
// that it takes no new requests. HTTP/3 has GOAWAY for it, which http3 sends
// only for connections whose streams it accepts itself. Other clients ignore
// streams of a type that they do not know (RFC 9114 §6.2).
const drainStream = 0x4d490001

// announceDrain asks the client to close the tunnel once it has its answers.
func (c *serverConn) announceDrain() {
	str, err := c.conn.OpenUniStream()
	if err != nil {
		return // the connection is over, or the client allows no more streams: it will find out
	}
	_, _ = str.Write(quicvarint.Append(nil, drainStream))
	_ = str.Close()
}

// stream returns the QUIC stream of a request, nil when there is none.
func (c *serverConn) stream(r *http.Request) *quic.Stream {
	body, ok := r.Body.(interface{ StreamID() quic.StreamID })
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[body.StreamID()]
}

func (c *serverConn) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

func (c *serverConn) close(code CloseCode) {
	_ = c.conn.CloseWithError(quic.ApplicationErrorCode(code), code.String())
}

// addrPort converts the addresses that UDP sockets have.
func addrPort(addr net.Addr) netip.AddrPort {
	if udp, ok := addr.(*net.UDPAddr); ok {
		ap := udp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	ap, _ := netip.ParseAddrPort(addr.String())
	return ap
}
