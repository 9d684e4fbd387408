package ice

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"
)

// Punched is an extra socket that reaches the peer: one of those that OpenFan
// opened. Close it when the QUIC connections over it have ended.
type Punched struct {
	log       zerolog.Logger
	conn      *net.UDPConn
	peer      netip.AddrPort
	transport *quic.Transport
	responder *responder
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// newPunched takes the socket over. It ends with Close.
func newPunched(cfg FanConfig, conn *net.UDPConn, peer netip.AddrPort, r *responder) (*Punched, error) {
	// The peer alone may begin a connection, as over the node's own socket.
	g := newGate()
	g.admit(cfg.ID, peer.Addr())
	p := &Punched{
		log:       cfg.Log,
		conn:      conn,
		peer:      peer,
		transport: &quic.Transport{Conn: newGatedConn(conn, g)},
		responder: r,
	}
	if err := (&demux{transport: p.transport}).arm(); err != nil {
		_ = p.transport.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.wg.Go(func() { p.answer(ctx) })
	return p, nil
}

// answer is the only reader of the transport's STUN.
func (p *Punched) answer(ctx context.Context) {
	buf := make([]byte, maxSTUN+1)
	for {
		n, from, err := p.transport.ReadNonQUICPacket(ctx, buf)
		if err != nil {
			return
		}
		src := addrPort(from)
		if src.Addr() != p.peer.Addr() {
			continue
		}
		out, err := p.responder.answer(buf[:n], src)
		if err != nil {
			p.log.Trace().Err(err).Stringer("addr", src).Msg("punched: datagram ignored")
			continue
		}
		_, _ = p.transport.WriteTo(out, from)
	}
}

// Transport returns the QUIC transport over the socket, to dial or to listen on.
// Close ends it.
func (p *Punched) Transport() *quic.Transport { return p.transport }

// Peer returns the peer's address, which answered.
func (p *Punched) Peer() netip.AddrPort { return p.peer }

// Kind is Prflx: only packets tell by which address the peer sees the socket.
func (p *Punched) Kind() Kind { return Prflx }

// Close ends the transport and the socket and waits until every goroutine has
// ended. Close QUIC connections first: they end without a word.
func (p *Punched) Close() error {
	p.closeOnce.Do(func() {
		p.cancel()
		p.closeErr = errors.Join(p.transport.Close(), p.conn.Close())
		p.wg.Wait()
	})
	return p.closeErr
}
