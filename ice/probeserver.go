package ice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"mintai/identity"
)

// ProbeServerConfig configures StartProbes.
type ProbeServerConfig struct {
	// Coordinator is whom probes must be signed for.
	Coordinator identity.NodeID
	// Addrs are the addresses to answer at. An unspecified address means all of
	// this machine's addresses of its family, also those that it gets later. None:
	// all of both families.
	Addrs []netip.Addr
	// Ports are the two ports that are opened on each address; zero is any free
	// one, the same on all addresses. The first is 3478 by custom. When the second
	// cannot be had the server does without, and says so in the log.
	Ports [2]uint16
	// Shared leaves the reading of the first port to whoever gets Conns: a
	// TURNServer that listens on the same sockets. Probes to it are answered
	// only while those are read.
	Shared bool
	// OnProof is told where a node's signed packet came from, once per packet.
	// It is called from several goroutines and must not block. May be nil.
	OnProof func(Proof)
	// Known reports whether a node has joined. Those have half of the signatures
	// that are verified, and a memory for replays, to themselves: strangers, who
	// can make any number of keys and forge any source, cannot use them up. It is
	// called for each signed request and must not block. Nil: nobody has.
	Known func(identity.NodeID) bool
	Log   zerolog.Logger
	// Tap, when set, sees every Binding Request before anything looks at it. It
	// must not keep the slice, and is called from several goroutines.
	Tap func([]byte)
}

// ProbeServer answers STUN Binding Requests of anybody (RFC 8489) at several
// addresses and ports. To nodes that sign theirs it also answers from another
// address than the one they asked (RFC 5780 §6.1), and it reports where such
// requests came from.
type ProbeServer struct {
	cfg     ProbeServerConfig
	log     zerolog.Logger
	sockets [2][]*probeSocket // by port
	readers sync.WaitGroup

	counters probeCounters
	requests requestLimit
	checks   [2]*rate.Limiter // signatures verified: of strangers, of nodes that joined
	replays  [2]replays       // the same

	mu        sync.Mutex // guards what follows
	announced map[bool][]netip.Addr
	looked    time.Time
}

// maxVerified bounds the signatures that are verified in a second, of strangers
// and of nodes that joined each: together a fifth of a core. A request over it
// is lost, and sent again.
const maxVerified = 2000

// announcedFor is how long the list of the machine's addresses is used.
const announcedFor = 10 * time.Second

// ProbeStats describes the server since its start.
type ProbeStats struct {
	Answered  uint64 // requests that were answered with an address
	Proofs    uint64 // addresses proven, each packet once
	Replayed  uint64 // signed requests that proved nothing: seen before, or off the clock
	Refused   uint64 // requests with a wrong signature or asking for what is not given
	Flood     uint64 // requests of a source, or in all, that are too many
	Malformed uint64 // datagrams to the second port that are no Binding Request
}

type probeCounters struct {
	answered, proofs, replayed, refused, flood, malformed atomic.Uint64
}

// StartProbes opens the sockets and answers until Close.
func StartProbes(cfg ProbeServerConfig) (*ProbeServer, error) {
	cfg.Addrs = slices.Clone(cfg.Addrs)
	for i, a := range cfg.Addrs {
		cfg.Addrs[i] = a.Unmap()
	}
	p := &ProbeServer{
		cfg:       cfg,
		log:       cfg.Log,
		checks:    [2]*rate.Limiter{rate.NewLimiter(maxVerified, maxVerified), rate.NewLimiter(maxVerified, maxVerified)},
		announced: make(map[bool][]netip.Addr),
	}
	if err := p.open(); err != nil {
		return nil, fmt.Errorf("probes: %w", err)
	}
	for i, sockets := range p.sockets {
		for _, s := range sockets {
			if i == 1 || !cfg.Shared {
				p.readers.Go(s.run)
			}
		}
	}
	return p, nil
}

// Addrs returns the addresses to announce to nodes, as this machine knows them:
// each address with both ports. The coordinator of a machine behind a
// one-to-one NAT must announce the public addresses in their place. Addresses
// of a wildcard are looked up anew every now and then.
func (p *ProbeServer) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, v6 := range []bool{false, true} {
		for _, addr := range p.addrs(v6) {
			for i := range p.sockets {
				if s := p.at(i, addr); s != nil {
					out = append(out, netip.AddrPortFrom(addr, s.local.Port()))
				}
			}
		}
	}
	return out
}

// addrs returns the addresses of one family, without their ports.
func (p *ProbeServer) addrs(v6 bool) []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) > announcedFor {
		clear(p.announced)
		p.looked = now
	}
	if got, ok := p.announced[v6]; ok {
		return got
	}
	var out []netip.Addr
	wildcard := len(p.cfg.Addrs) == 0
	for _, a := range p.cfg.Addrs {
		switch {
		case a.Is6() != v6:
		case a.IsUnspecified():
			wildcard = true
		case !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	if wildcard {
		for _, a := range announceableAddrs(v6) {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	p.announced[v6] = out
	return out
}

// Conns returns the sockets of the first port, without the Binding Requests that
// arrive there: for TURNConfig.Conns. Who gets them reads and closes them.
func (p *ProbeServer) Conns() []net.PacketConn {
	out := make([]net.PacketConn, 0, len(p.sockets[0]))
	for _, s := range p.sockets[0] {
		out = append(out, s)
	}
	return out
}

// Stats returns the counters of the server.
func (p *ProbeServer) Stats() ProbeStats {
	c := &p.counters
	return ProbeStats{
		Answered:  c.answered.Load(),
		Proofs:    c.proofs.Load(),
		Replayed:  c.replayed.Load(),
		Refused:   c.refused.Load(),
		Flood:     c.flood.Load(),
		Malformed: c.malformed.Load(),
	}
}

// Close closes all sockets and waits for the goroutines that read them. Closing
// twice is not an error.
func (p *ProbeServer) Close() error {
	var errs []error
	for _, sockets := range p.sockets {
		for _, s := range sockets {
			if err := s.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	p.readers.Wait()
	return errors.Join(errs...)
}

// serve answers one Binding Request, or does not.
func (p *ProbeServer) serve(s *probeSocket, b []byte, from net.Addr, dst netip.Addr, now time.Time) {
	if p.cfg.Tap != nil {
		p.cfg.Tap(b)
	}
	src := addrPort(from)
	if !p.requests.answers(b, src.Addr(), now) || !p.mayVerify(b, now) {
		p.counters.flood.Add(1)
		return
	}
	req, err := VerifyProbe(b, p.cfg.Coordinator, now)
	if err != nil {
		p.counters.refused.Add(1)
		return
	}
	at := netip.AddrPortFrom(dst, s.local.Port())
	trusted := p.trust(req, src, at, now)
	out, refused := p.answerFrom(req, trusted, s, dst)
	if len(req.Unknown) > 0 || refused {
		p.counters.refused.Add(1)
		if refused {
			req.Unknown = append(req.Unknown, stun.AttrChangeRequest.Value())
		}
		p.send(s, dst, refusal(req), len(b), from)
		return
	}
	setters := []stun.Setter{
		stun.NewTransactionIDSetter(req.Transaction), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: src.Addr().AsSlice(), Port: int(src.Port())},
	}
	if req.Signed {
		setters = append(setters, mappedAs(stun.AttrResponseOrigin, out.addr()))
		if other := p.change(ChangeIP|ChangePort, s, dst); other.socket != nil {
			setters = append(setters, mappedAs(stun.AttrOtherAddress, other.addr()))
		}
	}
	m, err := stun.Build(append(setters, stun.Fingerprint)...)
	if err != nil {
		return // only when an address is none
	}
	p.counters.answered.Add(1)
	p.send(out.socket, out.src, m.Raw, len(b), from)
}

// trust reports whether the request is from the node that signed it, and tells
// of the address that it proves.
func (p *ProbeServer) trust(req ProbeRequest, src, at netip.AddrPort, now time.Time) bool {
	if !req.Signed {
		return false
	}
	age := replayedProbe
	if req.Fresh {
		age = p.see(req, src, at, now)
	}
	switch age {
	case newProbe:
		p.counters.proofs.Add(1)
		if p.cfg.OnProof != nil {
			p.cfg.OnProof(Proof{Node: req.Node, From: src, At: at})
		}
		return true
	case repeatedProbe: // RFC 8489 §6.3: a retransmission gets the same answer
		return true
	default:
		p.counters.replayed.Add(1)
		return false
	}
}

// class is the index of a node's share of checks and replays.
func (p *ProbeServer) class(id identity.NodeID) int {
	if p.cfg.Known != nil && p.cfg.Known(id) {
		return 1
	}
	return 0
}

// mayVerify reports whether there is time to verify the request's signature. The
// node that it names may be a lie; who knows no name of a node that joined takes
// the strangers' share only.
func (p *ProbeServer) mayVerify(b []byte, now time.Time) bool {
	if attribute(b, attrSignature) == nil {
		return true
	}
	id, err := identity.NodeIDFromBytes(attribute(b, attrNode))
	if err == nil && p.class(id) == 1 && p.checks[1].AllowN(now, 1) {
		return true
	}
	return p.checks[0].AllowN(now, 1)
}

// see is replays.see for a node that may have joined, or left, since it sent the
// probe for the first time.
func (p *ProbeServer) see(req ProbeRequest, src, at netip.AddrPort, now time.Time) probeAge {
	own := p.class(req.Node)
	if p.replays[1-own].has(req) {
		return p.replays[1-own].see(req, src, at, now)
	}
	return p.replays[own].see(req, src, at, now)
}

// origin is where an answer is sent from.
type origin struct {
	socket *probeSocket
	src    netip.Addr
}

func (o origin) addr() netip.AddrPort { return netip.AddrPortFrom(o.src, o.socket.local.Port()) }

// answerFrom picks where the answer is sent from. A change of address makes this
// server send to somebody who may not have asked, so it is for signed requests;
// the others, and those for which there is no other address, are refused as by
// a server that does not know the attribute (RFC 5780 §6.1).
func (p *ProbeServer) answerFrom(req ProbeRequest, trusted bool, s *probeSocket, dst netip.Addr) (from origin, refused bool) {
	if req.Change == 0 {
		return origin{s, dst}, false
	}
	if !trusted {
		return origin{}, true
	}
	from = p.change(req.Change, s, dst)
	return from, from.socket == nil
}

// change returns another address and port of the server, as asked, or none.
func (p *ProbeServer) change(c Change, s *probeSocket, dst netip.Addr) origin {
	port, addr := s.port, dst
	if c&ChangePort != 0 {
		port = 1 - port
	}
	if c&ChangeIP != 0 {
		all := p.addrs(dst.Is6())
		i := slices.Index(all, dst)
		if i < 0 || len(all) < 2 {
			return origin{}
		}
		addr = all[(i+1)%len(all)]
	}
	return origin{p.at(port, addr), addr}
}

// send writes an answer unless it is too long for its request.
func (p *ProbeServer) send(s *probeSocket, src netip.Addr, answer []byte, request int, to net.Addr) {
	if !amplifies(len(answer), request) {
		_ = s.writeFrom(answer, src, to) // a failing route is a lost datagram
	}
}

// refusal is a 420 (Unknown Attribute), RFC 8489 §6.3.1.
func refusal(req ProbeRequest) []byte {
	m := stun.New()
	m.TransactionID = req.Transaction
	m.SetType(stun.BindingError)
	m.WriteHeader()
	m.Add(stun.AttrErrorCode, []byte{0, 0, 4, 20})
	var unknown []byte
	for _, a := range req.Unknown {
		unknown = binary.BigEndian.AppendUint16(unknown, a)
	}
	m.Add(stun.AttrUnknownAttributes, unknown)
	if err := stun.Fingerprint.AddTo(m); err != nil {
		return nil
	}
	return m.Raw
}

// mappedAs writes an address as MAPPED-ADDRESS does (RFC 8489 §14.1), which
// RFC 5780 §7 uses for its attributes.
func mappedAs(t stun.AttrType, addr netip.AddrPort) stun.Setter {
	return mappedAttr{t, addr}
}

type mappedAttr struct {
	typ  stun.AttrType
	addr netip.AddrPort
}

// AddTo adds the attribute to m.
func (a mappedAttr) AddTo(m *stun.Message) error {
	family := byte(1)
	if a.addr.Addr().Is6() {
		family = 2
	}
	v := binary.BigEndian.AppendUint16([]byte{0, family}, a.addr.Port())
	m.Add(a.typ, append(v, a.addr.Addr().AsSlice()...))
	return nil
}

// attribute returns the value of an attribute, not nil if it is there. It reads
// as far as b is well-formed.
func attribute(b []byte, want stun.AttrType) []byte {
	for b = b[min(len(b), stunHeader):]; len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if stun.AttrType(binary.BigEndian.Uint16(b)) == want {
			return b[4:min(4+n, len(b))]
		}
		b = b[min(4+(n+3)&^3, len(b)):]
	}
	return nil
}
