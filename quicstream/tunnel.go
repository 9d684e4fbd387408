package quicstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
	"github.com/rs/zerolog"

	"mintai/identity"
)

// DialConfig says whom to dial and how.
type DialConfig struct {
	Transport *quic.Transport // the socket; stays open and belongs to the caller
	Addr      net.Addr        // where the path leads, normally a *net.UDPAddr
	Key       *identity.Key   // our own
	Peer      identity.NodeID // the only node that may answer; must not be zero
	Relayed   bool            // the path goes through a relay: no DPLPMTUD (RFC 8899)
	MaxIdle   time.Duration   // a tunnel that hears nothing for so long is lost; 0: DefaultMaxIdle
	Log       zerolog.Logger
}

// Tunnel is a client's connection to one miner. It is an http.RoundTripper; its
// methods may be called from any goroutine.
type Tunnel struct {
	conn  *quic.Conn
	http  *http3.RawClientConn
	peer  identity.NodeID
	log   zerolog.Logger
	loops sync.WaitGroup

	inFlight  atomic.Int64
	lastUsed  atomic.Int64 // Unix nanoseconds
	goingAway atomic.Bool  // the miner takes no new requests
	lastHeard atomic.Int64 // Unix nanoseconds of the last heartbeat
}

var _ http.RoundTripper = (*Tunnel)(nil)

// Dial connects to a miner and proves both NodeIDs. It returns when the
// handshake is complete, failed, or ctx ended. A miner that does not accept
// this client closes the tunnel one round trip later, with ErrUnauthorized.
func Dial(ctx context.Context, cfg DialConfig) (*Tunnel, error) {
	if cfg.Transport == nil || cfg.Addr == nil || cfg.Key == nil || cfg.Peer.IsZero() {
		return nil, errors.New("quicstream: dialing needs a transport, an address, a key and a peer")
	}
	setDefault(&cfg.MaxIdle, DefaultMaxIdle)
	tlsConf, err := cfg.Key.ClientTLS(ALPN, cfg.Peer, nil)
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	conn, err := cfg.Transport.Dial(ctx, cfg.Addr, tlsConf, clientQUIC(cfg.Relayed, cfg.MaxIdle))
	if err != nil {
		return nil, fmt.Errorf("tunnel to %s: %w", cfg.Peer.Short(), dialError(err))
	}
	h3 := &http3.Transport{
		DisableCompression:     true, // offsets and hashes mean body bytes
		MaxResponseHeaderBytes: MaxHeaderBytes,
		Logger:                 slog.New(slog.DiscardHandler),
	}
	t := &Tunnel{conn: conn, http: h3.NewRawClientConn(conn), peer: cfg.Peer, log: cfg.Log}
	t.lastUsed.Store(time.Now().UnixNano())
	t.lastHeard.Store(time.Now().UnixNano())
	t.loops.Go(t.acceptStreams)
	t.loops.Go(t.acceptHeartbeats)
	return t, nil
}

// acceptHeartbeats notes the miner's datagrams, until the connection ends, and
// answers each by one as long as this end's packets may be.
func (t *Tunnel) acceptHeartbeats() {
	filled := make([]byte, maxHeartbeat)
	for {
		beat, err := t.conn.ReceiveDatagram(context.Background())
		if err != nil {
			return
		}
		if len(beat) == 0 || beat[0] != heartbeatDeaf { // else what this end says does not arrive
			t.lastHeard.Store(time.Now().UnixNano())
		}
		sendFull(t.conn, filled)
	}
}

// acceptStreams serves the streams that the miner opens, until the connection
// ends.
func (t *Tunnel) acceptStreams() {
	for {
		str, err := t.conn.AcceptUniStream(context.Background())
		if err != nil {
			return
		}
		t.loops.Go(func() { t.serveStream(str) })
	}
}

// serveStream keeps the tunnel's own stream type and hands on the rest.
func (t *Tunnel) serveStream(str *quic.ReceiveStream) {
	if streamType(str) != drainStream {
		t.http.HandleUnidirectionalStream(str)
		return
	}
	str.CancelRead(streamCode(http3.ErrCodeNoError))
	t.goingAway.Store(true)
	t.closeIfDrained()
}

// streamType peeks at the type of a unidirectional stream; a type that cannot
// be read is left to http3 to complain about.
func streamType(str *quic.ReceiveStream) uint64 {
	var buf [8]byte
	if _, err := str.Peek(buf[:1]); err != nil {
		return 0
	}
	n := 1 << (buf[0] >> 6) // RFC 9000 §16: the two high bits are the length
	if _, err := str.Peek(buf[:n]); err != nil {
		return 0
	}
	v, _, err := quicvarint.Parse(buf[:n])
	if err != nil {
		return 0
	}
	return v
}

// closeIfDrained ends a tunnel whose miner takes no new requests once the last
// answer is here.
func (t *Tunnel) closeIfDrained() {
	if t.goingAway.Load() && t.inFlight.Load() == 0 {
		_ = t.conn.CloseWithError(quic.ApplicationErrorCode(Done), Done.String())
	}
}

// Peer returns the NodeID at the other end.
func (t *Tunnel) Peer() identity.NodeID { return t.peer }

// RoundTrip sends a request through the tunnel and returns the head of the
// answer. The end of the request's context resets the stream, which frees the
// miner's backend. It adds HeaderRequest when missing; scheme, host and the
// connection's own header fields do not travel. Errors are the context's,
// *LostError, *AbortedError, ErrGoingAway, ErrBadMethod or ErrHeaderTooLarge.
func (t *Tunnel) RoundTrip(req *http.Request) (*http.Response, error) {
	out, err := outgoing(req)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	t.begin()
	if t.goingAway.Load() && req.Header[HeaderResume] == nil {
		closeBody(req)
		t.end()
		return nil, ErrGoingAway
	}
	res, err := t.http.RoundTrip(out)
	if err != nil {
		closeBody(req)
		t.end()
		return nil, t.requestError(req.Context(), 0, err)
	}
	res.Request = req
	res.Body = &answerBody{t: t, ctx: req.Context(), inner: res.Body}
	return res, nil
}

// outgoing returns the request as it travels.
func outgoing(req *http.Request) (*http.Request, error) {
	if req.Method == http.MethodConnect || req.Header["Upgrade"] != nil {
		return nil, ErrBadMethod
	}
	if req.URL == nil {
		return nil, errors.New("quicstream: request without URL")
	}
	out := *req
	url := *req.URL
	url.Scheme, url.Host, url.User = "https", "mintai", nil // which name the user dialed is nobody's business
	out.URL, out.Host = &url, ""
	out.Header = req.Header.Clone()
	if out.Header == nil {
		out.Header = make(http.Header)
	}
	if out.Header.Get(HeaderRequest) == "" {
		out.Header.Set(HeaderRequest, NewRequestID().String())
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil
	}
	if headerSize(&out) > MaxHeaderBytes {
		return nil, ErrHeaderTooLarge
	}
	return &out, nil
}

// headerSize is the size of the field section (RFC 9114 §4.2.2: name, value and
// 32 bytes for each field).
func headerSize(req *http.Request) int {
	const perField, pseudoFields = 32, 4
	n := pseudoFields*(perField+len(":authority")) + len(req.URL.RequestURI()) + len(req.URL.Host) + len(req.Method)
	for name, values := range req.Header {
		for _, v := range values {
			n += len(name) + len(v) + perField
		}
	}
	return n
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

func (t *Tunnel) begin() {
	now := time.Now().UnixNano()
	if t.inFlight.Add(1) == 1 {
		t.lastHeard.Store(now) // no heartbeats came while nothing ran
	}
	t.lastUsed.Store(now)
}

func (t *Tunnel) end() {
	t.lastUsed.Store(time.Now().UnixNano())
	t.inFlight.Add(-1)
	t.closeIfDrained()
}

// requestError translates the end of a request after received body bytes.
func (t *Tunnel) requestError(ctx context.Context, received int64, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if cause := context.Cause(t.conn.Context()); cause != nil && !isStreamReset(err) { //nolint:contextcheck // the connection's own
		return &LostError{Received: received, Err: connError(cause)}
	}
	switch {
	case isStreamReset(err):
		return &AbortedError{Received: received, Err: err}
	case isConnError(err):
		return &LostError{Received: received, Err: connError(err)}
	}
	return err
}

// answerBody counts what it hands on and names its errors.
type answerBody struct {
	t        *Tunnel
	ctx      context.Context //nolint:containedctx // the request's: RoundTrip's contract ties the body to it
	inner    io.ReadCloser
	received int64
	over     atomic.Bool
	err      error // what Read returns from now on
}

// Read returns io.EOF only at the true end of the answer.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.inner.Read(p)
	b.received += int64(n)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			err = b.t.requestError(b.ctx, b.received, err)
		}
		b.err = err
		b.finish()
	}
	return n, err
}

// Close resets the stream unless the answer was read to its end.
func (b *answerBody) Close() error {
	err := b.inner.Close()
	b.finish()
	return err
}

func (b *answerBody) finish() {
	if b.over.CompareAndSwap(false, true) {
		b.t.end()
	}
}

// Done is closed when the tunnel has ended, for whatever reason.
func (t *Tunnel) Done() <-chan struct{} { return t.conn.Context().Done() }

// Err says why the tunnel ended, nil while it lives: *CloseError when an end
// closed it, a QUIC error when the path died.
func (t *Tunnel) Err() error {
	if cause := context.Cause(t.conn.Context()); cause != nil {
		return connError(cause)
	}
	return nil
}

// InFlight returns how many requests run: sent, and the answer's body neither
// read to its end nor closed.
func (t *Tunnel) InFlight() int { return int(t.inFlight.Load()) }

// LastUsed returns when a request last began or ended, or when the tunnel was
// made.
func (t *Tunnel) LastUsed() time.Time { return time.Unix(0, t.lastUsed.Load()) }

// LastHeard returns when the path last worked both ways: when the miner's
// heartbeat came, which it sends twice a second while a request runs, and said
// that the miner hears this end. Silence of more than a second with a request in
// flight means that the path is dead, or the miner is.
func (t *Tunnel) LastHeard() time.Time { return time.Unix(0, t.lastHeard.Load()) }

// Close ends the tunnel, tells the miner why, and waits for its goroutines.
// Running requests fail with *LostError. Closing again does nothing.
func (t *Tunnel) Close(code CloseCode) error {
	err := t.conn.CloseWithError(quic.ApplicationErrorCode(code), code.String())
	t.loops.Wait()
	return err
}

// Stats describes the path as QUIC sees it.
type Stats struct {
	RTT             time.Duration // smoothed (RFC 9002 §5.3)
	MinRTT          time.Duration
	BytesSent       uint64 // with retransmissions, without UDP and IP headers
	BytesReceived   uint64
	PacketsSent     uint64
	PacketsReceived uint64
	PacketsLost     uint64 // declared lost by this end
	Remote          netip.AddrPort
	Local           netip.AddrPort // of the socket; its IP may be unspecified
}

// Stats returns the numbers of this moment.
func (t *Tunnel) Stats() Stats { return connStats(t.conn) }

func connStats(conn *quic.Conn) Stats {
	s := conn.ConnectionStats()
	return Stats{
		RTT:             s.SmoothedRTT,
		MinRTT:          s.MinRTT,
		BytesSent:       s.BytesSent,
		BytesReceived:   s.BytesReceived,
		PacketsSent:     s.PacketsSent,
		PacketsReceived: s.PacketsReceived,
		PacketsLost:     s.PacketsLost,
		Remote:          addrPort(conn.RemoteAddr()),
		Local:           addrPort(conn.LocalAddr()),
	}
}
