package wss

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	handshakeTimeout = 10 * time.Second // of TLS
	headerTimeout    = 5 * time.Second  // of a request's head
	keptTimeout      = 15 * time.Second // between two requests
	maxHeader        = 16 << 10         // bytes of a request's head
	// datagramIdle is how long a WebSocket may carry nothing, in either
	// direction. Nodes send something each 15 s, and QUIC answers them; it does
	// not answer who only keeps a place.
	datagramIdle = time.Minute
	sweepEvery   = 5 * time.Second
	// admitTime is how long a connection has, when all places are taken, to come
	// from somebody whom the coordinator knows, before it makes room.
	admitTime = 3 * time.Second
)

var (
	errStopping = errors.New("the server stops")
	errIdle     = errors.New("nothing was sent for too long")
)

// ServerConfig says where a Server listens and whom it lets in.
type ServerConfig struct {
	// Listen is the TCP address, ":443" when empty.
	Listen string
	// CertFile and KeyFile are the certificate chain and its key, PEM. They are
	// read again when they change. Empty: a self-signed one.
	CertFile, KeyFile string

	// ACMEDomains are the names for which certificates are obtained by ACME
	// (RFC 8555), and no other name ever is. Naming any accepts the terms of
	// service of the directory. Until there is one, and for any other name, the
	// file's or a self-signed certificate is used.
	ACMEDomains []string
	// ACMECache is the folder where the account's key and certificates stay,
	// created with mode 0700. It must not be empty when there are domains.
	ACMECache string
	// ACMEDirectory is the CA's directory URL; empty: Let's Encrypt.
	ACMEDirectory string
	// ACMEHTTP is the TCP address for the challenge http-01, usually ":80".
	// Empty: only tls-alpn-01 (RFC 8737), which needs this server on port 443.
	ACMEHTTP string

	// MaxConns is how many connections there may be in all, 4096 when 0.
	MaxConns int
	// PerPrefix is how many of them may come from one IPv4 /24 or IPv6 /56, 512
	// when 0.
	PerPrefix int
	// PerPrefixRate is how many new ones a second such a network may open in the
	// long run, 20 when 0; ten times as many at once.
	PerPrefixRate float64

	Log zerolog.Logger
}

func (c *ServerConfig) fill() {
	if c.Listen == "" {
		c.Listen = ":443"
	}
	if c.MaxConns <= 0 {
		c.MaxConns = 4096
	}
	if c.PerPrefix <= 0 {
		c.PerPrefix = 512
	}
	if c.PerPrefixRate <= 0 {
		c.PerPrefixRate = 20
	}
}

// Server is a coordinator's TLS port.
type Server struct {
	cfg     ServerConfig
	tcp     net.Listener
	tls     *tls.Config
	certs   *certificates
	http    *http.Server
	web     *handover
	turn    *handover
	packets *packets
	limits  *admission

	done chan struct{} // closed by Close
	once sync.Once

	mu      sync.Mutex // guards what follows
	serving bool
	served  chan struct{} // closed when Serve is over
	stopped bool
	conns   map[*serverConn]struct{}
	wires   map[*wire]context.CancelCauseFunc
	running sync.WaitGroup // of what conns and wires need; Add only under mu while not stopped
}

// Listen opens the port. Nothing is accepted before Serve; close the Server also
// when that is never called.
func Listen(cfg ServerConfig) (*Server, error) {
	cfg.fill()
	certs, err := newCertificates(cfg)
	if err != nil {
		return nil, err
	}
	tcp, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		certs.close()
		return nil, err
	}
	s := &Server{
		cfg: cfg, tcp: tcp, certs: certs,
		web: newHandover(tcp.Addr()), turn: newHandover(tcp.Addr()), packets: newPackets(tcp.Addr()),
		limits: &admission{max: cfg.MaxConns, perPrefix: cfg.PerPrefix, rate: cfg.PerPrefixRate, burst: 10 * cfg.PerPrefixRate},
		done:   make(chan struct{}), served: make(chan struct{}),
		conns: make(map[*serverConn]struct{}), wires: make(map[*wire]context.CancelCauseFunc),
	}
	s.tls = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: certs.get,
		NextProtos:     append([]string{protocolTURN, protocolHTTP}, certs.protocols()...),
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       keptTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:          log.New(io.Discard, "", 0), // strangers' mistakes
	}
	return s, nil
}

// Addr returns the address that is listened on.
func (s *Server) Addr() netip.AddrPort { return addrPort(s.tcp.Addr()) }

// Packets returns all WebSockets' datagrams, as one PacketConn for one
// quic.Transport. Its addresses are *Addr, one a connection. ReadFrom fails only
// after its deadline (os.ErrDeadlineExceeded) or Close (net.ErrClosed); WriteTo
// never blocks, drops what finds no room, and fails when the connection is gone.
func (s *Server) Packets() net.PacketConn { return s.packets }

// TURN returns the connections of clients that asked for TURN, with TLS already
// taken off. They end by themselves when idle, and with the Server.
func (s *Server) TURN() net.Listener { return s.turn }

// Serve accepts connections until ctx ends or Close is called, and then closes
// all of them, telling the other ends; it waits about a second for silent ones.
// It returns nil then. It can be called once; otherwise, and after Close, it
// returns net.ErrClosed.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.serving || s.stopped {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.serving = true
	s.mu.Unlock()
	defer close(s.served)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	parts.Go(func() { _ = s.http.Serve(s.web) })
	parts.Go(func() { s.sweep(ctx) })
	parts.Go(func() { s.certs.run(ctx) })
	parts.Go(func() { s.accept(ctx) })

	select {
	case <-ctx.Done():
	case <-s.done:
	}
	cancel()
	s.shutDown()
	parts.Wait()
	return nil
}

// Close stops Serve and returns when it is over.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.done) })
	s.mu.Lock()
	serving := s.serving
	s.stopped = s.stopped || !serving
	s.mu.Unlock()
	if serving {
		<-s.served
	} else {
		s.shutDown()
	}
	return nil
}

// shutDown says goodbye on every WebSocket, closes everything and waits.
func (s *Server) shutDown() {
	_ = s.tcp.Close()
	s.mu.Lock()
	s.stopped = true
	for _, end := range s.wires {
		end(errStopping)
	}
	s.mu.Unlock()
	_ = s.turn.Close()
	_ = s.web.Close()
	_ = s.http.Close() // requests that are no WebSocket yet
	s.running.Wait()
	_ = s.packets.Close()
	s.certs.close()

	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.conns)) // TURN's, and who is between two parts
	s.mu.Unlock()
	for _, c := range left {
		_ = c.Close()
	}
}

// begin counts one more goroutine that shutDown waits for, with its connection
// if that is new.
func (s *Server) begin(c *serverConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	if c != nil {
		s.conns[c] = struct{}{}
	}
	s.running.Add(1)
	return true
}

func (s *Server) add(w *wire, end context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		end(errStopping)
	}
	s.wires[w] = end
}

func (s *Server) remove(w *wire) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.wires, w)
}

// accept admits connections and starts their handshakes.
func (s *Server) accept(ctx context.Context) {
	for {
		raw, err := s.tcp.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				_ = raw.Close()
			}
			return
		}
		if err != nil { // usually: no file descriptors left
			s.cfg.Log.Warn().Err(err).Msg("accepting over TCP")
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				return
			}
		}
		from := addrPort(raw.RemoteAddr()).Addr()
		if err := s.enter(from, time.Now()); err != nil {
			_ = raw.Close()
			s.cfg.Log.Debug().Err(err).Stringer("remote", raw.RemoteAddr()).Msg("connection over TCP refused")
			continue
		}
		c := &serverConn{Conn: raw, server: s, from: from, since: time.Now()}
		if !s.begin(c) {
			_ = c.Close()
			return
		}
		go s.handshake(ctx, c)
	}
}

// enter counts a connection. When all places are taken, the oldest of those
// that nobody has vouched for makes room: strangers who only keep their places
// keep nobody else out.
func (s *Server) enter(from netip.Addr, now time.Time) error {
	err := s.limits.enter(from, now)
	if !errors.Is(err, errFull) {
		return err
	}
	var oldest *serverConn
	s.mu.Lock()
	for c := range s.conns {
		if c.admitted.Load() <= 0 && now.Sub(c.since) > admitTime && (oldest == nil || c.since.Before(oldest.since)) {
			oldest = c
		}
	}
	s.mu.Unlock()
	if oldest == nil {
		return err
	}
	s.cfg.Log.Debug().Stringer("remote", oldest.RemoteAddr()).Msg("connection over TCP makes room")
	_ = oldest.Close()
	return s.limits.enter(from, now)
}

// handshake does TLS and hands the connection to the part that was asked for.
func (s *Server) handshake(ctx context.Context, c *serverConn) {
	defer s.running.Done()
	secure := tls.Server(c, s.tls)
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	taken := false
	switch protocol := secure.ConnectionState().NegotiatedProtocol; protocol {
	case protocolTURN:
		taken = s.turn.push(&turnConn{Conn: secure, conn: c})
	case protocolHTTP, "":
		taken = s.web.push(secure)
	default: // acme-tls/1: the handshake was all (RFC 8737 §3)
	}
	if !taken {
		_ = secure.Close()
	}
}

// sweep ends WebSockets that carry nothing.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.endIdle(now)
		}
	}
}

func (s *Server) endIdle(now time.Time) {
	oldest := now.Add(-datagramIdle).UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	for w, end := range s.wires {
		if min(w.sent.Load(), w.received.Load()) < oldest {
			end(errIdle)
		}
	}
}

// serverConn is an accepted TCP connection; its end makes room for another one.
type serverConn struct {
	net.Conn
	server *Server
	from   netip.Addr
	since  time.Time
	once   sync.Once
	// admitted counts what the coordinator knows the connection for.
	admitted atomic.Int32
}

func (c *serverConn) admit(yes bool) {
	if yes {
		c.admitted.Add(1)
	} else {
		c.admitted.Add(-1)
	}
}

func (c *serverConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.server.limits.leave(c.from)
		c.server.mu.Lock()
		delete(c.server.conns, c)
		c.server.mu.Unlock()
	})
	return err
}

// newCertificates prepares what the configuration asks for.
func newCertificates(cfg ServerConfig) (*certificates, error) {
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return nil, errors.New("a TLS certificate needs its key and a key its certificate: one of the two files is not given")
	}
	own, err := selfSigned()
	if err != nil {
		return nil, err
	}
	c := &certificates{own: own}
	if cfg.CertFile != "" {
		if c.file, err = openCertificate(cfg.CertFile, cfg.KeyFile, cfg.Log); err != nil {
			return nil, err
		}
	}
	if len(cfg.ACMEDomains) > 0 {
		if c.acme, err = newACME(cfg); err != nil {
			return nil, fmt.Errorf("ACME: %w", err)
		}
	}
	return c, nil
}
