package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun"
	"github.com/rs/zerolog"

	"mintai/identity"
)

// ErrFewSockets is wrapped when the system grants too few sockets for a fan.
var ErrFewSockets = errors.New("ice: the system grants too few sockets")

const (
	// fanSockets is how many mappings a run opens; with fewer than leastFan no
	// probe is likely to meet one.
	fanSockets, leastFan = 256, 32
	// fanSpare sockets are given back when the system had no more: others of this
	// process need some.
	fanSpare = 16
	// Openers leave openerBurst at a time, every openerGap, and once more after
	// openerRepeat: some are lost.
	openerBurst  = 16
	openerGap    = 2 * time.Millisecond
	openerRepeat = 1500 * time.Millisecond
	// A socket that was met sends a check every fanCheckGap; if none is answered
	// within fanWinner, another that is met may take its place.
	fanCheckGap, fanWinner = 100 * time.Millisecond, time.Second
	// fanReadErrors are more than ICMP messages can cause: the socket is dead.
	fanReadErrors = 16
	// The ports of fanMeasures fresh sockets are measured for measureFirst at most,
	// and for measureRest after the first answer.
	fanMeasures               = 3
	measureFirst, measureRest = 600 * time.Millisecond, 200 * time.Millisecond
)

// FanConfig describes the hard side of one run.
type FanConfig struct {
	ID            identity.SessionID
	Peer          identity.NodeID
	Controlling   bool        // the client is, and dials over the result; the miner is not, and listens on it
	Local, Remote Credentials // of this path, as for SessionConfig
	// Target is the easy side's address, as everybody sees it: public, IPv4.
	Target netip.AddrPort
	// ProvenUntil is until when the coordinator's word that the peer is at the IP
	// address of Target counts, at most a minute ahead.
	ProvenUntil time.Time
	// Stun is where the coordinator answers STUN: the first IPv4 one is asked how
	// the NAT allocates ports. Empty: nothing is foretold.
	Stun []netip.AddrPort
	// Predicted is told once, as soon as the openers are out, what ports the
	// sockets likely have, likeliest first; it is not called when nothing can be
	// foretold. OpenFan waits for its return. May be nil.
	Predicted func(ports []uint16)
	Log       zerolog.Logger
}

// OpenFan opens 256 sockets, or as many as the system grants, sends a signed
// check from each to the target, so that the NAT maps each and lets the target
// in, and returns the one that a check of the peer's ProbePorts has met, as soon
// as a check of its own was answered there: the path works both ways. All others
// are closed then. The first socket that is met is the only one that answers, so
// that the peer seldom sees another, which does not last. It may where openers
// reach it before its own probes do: it then tries each address that its Session
// reports, of which the one that lasts is one.
//
// It ends with ctx, after 6 s (ErrNotPunched), and when the Socket is closed.
// ErrProbing, ErrProbedOften, ErrUnproven, ErrForbidden and ErrFewSockets say why
// a run may not begin.
func (s *Socket) OpenFan(ctx context.Context, cfg FanConfig) (*Punched, error) {
	c, err := Candidate{Addr: cfg.Target}.Check()
	if err != nil {
		return nil, fmt.Errorf("ice: %w", err)
	}
	cfg.Target = c.Addr
	run, end, err := s.beginPunch(ctx, cfg.Target.Addr(), cfg.ProvenUntil, cfg.Local, cfg.Remote)
	if err != nil {
		return nil, err
	}
	defer end()
	f := &fan{
		cfg:       cfg,
		responder: newLegResponder(cfg.Local, cfg.Remote, !cfg.Controlling, Prflx),
		events:    make(chan fanEvent, fanSockets),
		winner:    -1,
	}
	f.responder.room = 3 * fanSockets // two openers each, and the checks
	start := time.Now()
	conn, peer, err := f.run(run, s.LocalAddr().Addr())
	log := cfg.Log.Debug().Str("session", cfg.ID.Short()).Str("peer", cfg.Peer.Short()).
		Int("sockets", f.opened).Dur("after", time.Since(start))
	if err != nil {
		if run.Err() != nil {
			err = s.punchEnded(ctx, ErrNotPunched)
		}
		log.Err(err).Msg("no socket of the fan was met")
		return nil, err
	}
	p, err := newPunched(cfg, conn, peer, f.responder) //nolint:contextcheck // the Punched outlives the run
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("ice: %w", err)
	}
	log.Stringer("addr", peer).Msg("a socket of the fan was met")
	return p, nil
}

// fan is one run of OpenFan. Only run's goroutine uses what is in it, but for
// the responder and the events.
type fan struct {
	cfg       FanConfig
	responder *responder
	conns     []*net.UDPConn
	opened    int
	events    chan fanEvent
	readers   sync.WaitGroup

	winner int       // the socket that was met, or -1
	since  time.Time // when it was
	peer   net.Addr  // where its checks go
}

// fanEvent is a signed message of the peer on one of the sockets.
type fanEvent struct {
	socket int
	from   netip.AddrPort
	answer []byte // to a request; nil: the message answers a check of ours
}

// run returns the socket, with nobody reading it. Its own goroutines have ended.
func (f *fan) run(ctx context.Context, bound netip.Addr) (*net.UDPConn, netip.AddrPort, error) {
	local := &net.UDPAddr{}
	if bound.Is4() && !bound.IsUnspecified() {
		local.IP = bound.AsSlice()
	}
	var measured []mappedPort
	var measuring sync.WaitGroup
	if server, ok := fanServer(f.cfg.Stun); ok && f.cfg.Predicted != nil {
		measuring.Go(func() { measured = measurePorts(ctx, local, server) })
	}
	err := f.open(local)
	measuring.Wait()
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	done := make(chan struct{})
	for i, conn := range f.conns {
		f.readers.Go(func() { f.read(i, conn, done) })
	}
	var told sync.WaitGroup
	won, from, err := f.meet(ctx, measured, &told)
	close(done)
	for i, conn := range f.conns {
		if i == won {
			_ = conn.SetReadDeadline(time.Unix(1, 0))
		} else {
			_ = conn.Close()
		}
	}
	f.readers.Wait()
	told.Wait()
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	_ = f.conns[won].SetReadDeadline(time.Time{})
	return f.conns[won], from, nil
}

// open opens as many sockets as there may be.
func (f *fan) open(local *net.UDPAddr) error {
	var err error
	for len(f.conns) < fanSockets {
		var conn *net.UDPConn
		if conn, err = net.ListenUDP("udp4", local); err != nil {
			break
		}
		f.conns = append(f.conns, conn)
	}
	keep := len(f.conns)
	if err != nil {
		keep = max(0, keep-fanSpare)
	}
	few := keep < leastFan
	if few {
		keep = 0
	}
	for _, conn := range f.conns[keep:] {
		_ = conn.Close()
	}
	opened := len(f.conns)
	f.conns, f.opened = f.conns[:keep], keep
	if few {
		return fmt.Errorf("%w: %d, and some are needed elsewhere: %w", ErrFewSockets, opened, err)
	}
	return nil
}

// read takes the peer's messages from one socket until it is closed or its
// deadline passes, and nothing more once a check was answered: what follows is
// QUIC's.
func (f *fan) read(i int, conn *net.UDPConn, done <-chan struct{}) {
	buf := make([]byte, maxSTUN+1)
	for failed := 0; failed < fanReadErrors; {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed) || isTimeout(err):
			return
		case err != nil: // such as the echo of an ICMP message
			failed++
			continue
		}
		e, ok := f.message(i, buf[:n], canonical(from))
		if !ok {
			continue
		}
		select {
		case f.events <- e:
		case <-done:
			return
		}
		if e.answer == nil {
			return
		}
	}
}

// message reads one datagram. What the peer has not signed is nothing.
func (f *fan) message(i int, b []byte, from netip.AddrPort) (fanEvent, bool) {
	if from.Addr() != f.cfg.Target.Addr() {
		return fanEvent{}, false
	}
	if f.responder.answered(b, from) {
		return fanEvent{socket: i, from: from}, true
	}
	out, err := f.responder.answer(b, from)
	return fanEvent{socket: i, from: from, answer: out}, err == nil
}

// meet sends the openers and waits until one socket has exchanged messages with
// the peer. It returns -1 with an error.
func (f *fan) meet(ctx context.Context, measured []mappedPort, told *sync.WaitGroup) (int, netip.AddrPort, error) {
	next, round := 0, 0 // the socket whose opener is next
	opener := time.NewTimer(0)
	defer opener.Stop()
	check := time.NewTicker(fanCheckGap)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return -1, netip.AddrPort{}, ctx.Err()
		case <-opener.C:
			if f.winner >= 0 {
				continue // it is met: no more of them
			}
			for range openerBurst {
				if next < len(f.conns) {
					f.check(next, net.UDPAddrFromAddrPort(f.cfg.Target))
					next++
				}
			}
			switch {
			case next < len(f.conns):
				opener.Reset(openerGap)
			case round == 0:
				next, round = 0, 1
				opener.Reset(openerRepeat)
				f.foretell(measured, told)
			}
		case <-check.C:
			if f.winner >= 0 {
				f.check(f.winner, f.peer)
			}
		case e := <-f.events:
			if e.answer == nil {
				return e.socket, e.from, nil
			}
			f.met(e, time.Now())
		}
	}
}

// met handles a signed request of the peer.
func (f *fan) met(e fanEvent, now time.Time) {
	if f.winner != e.socket {
		if f.winner >= 0 && now.Sub(f.since) < fanWinner {
			return
		}
		f.winner, f.since = e.socket, now
	}
	f.peer = net.UDPAddrFromAddrPort(e.from)
	_, _ = f.conns[e.socket].WriteTo(e.answer, f.peer)
	f.check(e.socket, f.peer)
}

// check sends a check from one socket. No route, or a full buffer: as if lost.
func (f *fan) check(i int, to net.Addr) {
	if b, err := f.responder.checkTo(addrPort(to)); err == nil {
		_, _ = f.conns[i].WriteTo(b, to)
	}
}

// foretell tells the caller what ports the sockets likely have.
func (f *fan) foretell(measured []mappedPort, told *sync.WaitGroup) {
	if f.cfg.Predicted == nil {
		return
	}
	locals := make([]uint16, len(f.conns))
	for i, conn := range f.conns {
		locals[i] = addrPort(conn.LocalAddr()).Port()
	}
	if ports := foretellPorts(measured, locals); len(ports) > 0 {
		told.Go(func() { f.cfg.Predicted(ports) })
	}
}

// fanServer returns the address to ask: one only, since a NAT of this kind gives
// each destination another port, and the steps would not be told apart.
func fanServer(servers []netip.AddrPort) (netip.AddrPort, bool) {
	for _, a := range servers {
		if c, err := (Candidate{Addr: a}).Check(); err == nil && c.Addr.Addr().Is4() {
			return c.Addr, true
		}
	}
	return netip.AddrPort{}, false
}

// measurePorts asks the server from fresh sockets, one behind the other, which
// ports the NAT gave them. Nil: not all were answered.
func measurePorts(ctx context.Context, local *net.UDPAddr, server netip.AddrPort) []mappedPort {
	deadline := time.Now().Add(measureFirst)
	ids := make(map[transactionID]int)
	var conns []*net.UDPConn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for i := range fanMeasures {
		conn, err := net.ListenUDP("udp4", local)
		if err != nil {
			return nil
		}
		conns = append(conns, conn)
		m, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
		if err != nil {
			return nil
		}
		ids[m.TransactionID] = i
		if _, err := conn.WriteToUDPAddrPort(m.Raw, server); err != nil {
			return nil
		}
	}
	var out []mappedPort
	for i, conn := range conns {
		stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
		_ = conn.SetReadDeadline(deadline)
		port, ok := readMapped(conn, server, func(id transactionID) bool { at, ours := ids[id]; return ours && at == i })
		stop()
		if !ok || ctx.Err() != nil {
			return nil
		}
		if rest := time.Now().Add(measureRest); rest.Before(deadline) {
			deadline = rest
		}
		out = append(out, mappedPort{local: addrPort(conn.LocalAddr()).Port(), mapped: port})
	}
	return out
}

// readMapped waits for the server's answer until the socket's deadline.
func readMapped(conn *net.UDPConn, server netip.AddrPort, ours func(transactionID) bool) (uint16, bool) {
	buf := make([]byte, maxSTUN+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return 0, false
		}
		if _, id := classify(buf[:n]); canonical(from) != server || !ours(id) {
			continue
		}
		a, ok := readAnswer(buf[:n], server)
		return a.mapped.Port(), ok && !a.refused
	}
}
