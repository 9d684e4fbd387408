package node

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"mintai/api"
	"mintai/ice"
	"mintai/identity"
	"mintai/signal/signalpb"
)

// maxTrickled bounds the candidates that wait to be used.
const maxTrickled = 16

// session is a client's side of one match: what a Grant said.
type session struct {
	id        identity.SessionID
	miner     identity.NodeID
	minerName string
	model     api.Model
	why       string
	slots     int
	sameUser  bool
	expires   time.Time // guarded by the client's mu once the session is remembered
	granted   time.Time
	warm      warmKey // what it was granted for
	once      bool    // for the requests that use it now only; guarded by the client's mu
	uses      int     // requests and tunnels that need it; guarded by the client's mu

	paths   uint32   // asked for after the first; guarded by the client's mu
	attempt *session // the path that is looked for now; nil: none; guarded by the client's mu
	asking  bool     // one has been asked for and is not here; guarded by the client's mu

	localICE, remoteICE ice.Credentials
	candidates          []ice.Candidate
	policy              *ice.Policy // to which addresses anything may be sent
	trickled            chan trickled
	stage               func(string) // tells whoever waits; set before the connect, may be nil
	headStart           time.Duration

	expect       ice.Expectation
	expectReason ice.Reason
	predictable  bool // the miner's NAT maps its socket to the first candidate for everybody
	minerBlocked bool // the miner comes to a relay of its own

	relays []*lentRelay // the preferred first; none: no relay to be had

	number   uint32        // of the path that this was granted for; 0: the first
	probing  *probing      // nil: no hard-NAT probing
	foretold chan []uint16 // ports at which the miner may come out
}

// probing is what both ends have agreed on: one opens many sockets, the other
// sends to many ports.
type probing struct {
	hard        bool // this node opens the sockets
	target      netip.AddrPort
	provenUntil time.Time
}

func readProbing(p *signalpb.HardNATProbing, now time.Time) *probing {
	target, ok := readAddress(p.GetTarget())
	if !ok {
		return nil
	}
	return &probing{hard: p.GetHard(), target: target, provenUntil: now.Add(provenFor - time.Duration(p.GetProvenMsAgo())*time.Millisecond)}
}

// trickled is what came of the other end after the grant.
type trickled struct {
	candidate ice.Candidate // zero: none
	proven    []netip.AddrPort
}

// lentRelay is a relay as a Grant or an Offer names it.
type lentRelay struct {
	config        ice.RelayConfig // without the server
	port, tlsPort uint16          // of the coordinator's own; 0: none
	urls          []string        // of the operator's
}

// own reports whether the relay is the coordinator's own, which it tells of by
// itself, and with which it dies.
func (l *lentRelay) own() bool { return len(l.urls) == 0 }

// same reports whether both are one relay.
func (l *lentRelay) same(other *lentRelay) bool {
	return l != nil && other != nil && l.own() == other.own() && slices.Equal(l.urls, other.urls)
}

func readRelay(r *signalpb.Relay, local, remote ice.Credentials) *lentRelay {
	if r == nil {
		return nil
	}
	return &lentRelay{
		config: ice.RelayConfig{
			Username: r.GetUsername(), Password: r.GetPassword(), Realm: r.GetRealm(), Nonce: r.GetNonce(),
			Local: local, Remote: remote,
		},
		port: uint16(r.GetPort()), tlsPort: uint16(r.GetTlsPort()), urls: r.GetUrls(),
	}
}

// readPolicy says to which of a peer's addresses anything may be sent. Relayed
// addresses must be the coordinator's host's, or be added as they are told.
func readPolicy(proven []*signalpb.Address, near bool) *ice.Policy {
	return &ice.Policy{Proven: readAddresses(proven), Near: near}
}

func readAddresses(in []*signalpb.Address) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(in))
	for _, a := range in {
		if addr, ok := readAddress(a); ok {
			out = append(out, addr)
		}
	}
	return out
}

// readGrant turns a Grant into a session. A grant that lacks what it must have
// is an error: the coordinator is broken or not what it says.
func readGrant(g *signalpb.Grant) (*session, error) {
	id, err := identity.SessionIDFromBytes(g.GetSession())
	if err != nil {
		return nil, fmt.Errorf("grant: %w", err)
	}
	miner, err := identity.NodeIDFromBytes(g.GetMiner())
	if err != nil {
		return nil, fmt.Errorf("grant: miner: %w", err)
	}
	s := &session{
		id: id, miner: miner, minerName: g.GetMinerName(), model: api.Model(g.GetModel()), why: g.GetWhy(),
		slots: int(g.GetSlots()), sameUser: g.GetSameUser(), expires: expiry(g),
		candidates: readCandidates(g.GetCandidates()),
		granted:    time.Now(),
		trickled:   make(chan trickled, maxTrickled),
		headStart:  time.Duration(g.GetHeadStartMs()) * time.Millisecond,
		policy:     readPolicy(g.GetProven(), g.GetNear()),
		expect:     readExpectation(g.GetExpect()), expectReason: ice.Reason(g.GetExpectReason()),
		predictable:  g.GetMinerMapping() == signalpb.Behavior_BEHAVIOR_ENDPOINT_INDEPENDENT,
		minerBlocked: g.GetMinerUdpBlocked(), number: g.GetPath(), foretold: make(chan []uint16, maxForetold),
	}
	s.localICE, s.remoteICE = readICE(g.GetIce())
	if s.localICE.Ufrag == "" || s.remoteICE.Ufrag == "" {
		return nil, fmt.Errorf("grant: no ICE credentials")
	}
	if s.minerName == "" {
		s.minerName = miner.Short()
	}
	for _, r := range append([]*signalpb.Relay{g.GetRelay()}, g.GetMoreRelays()...) {
		if lent := readRelay(r, s.localICE, s.remoteICE); lent != nil {
			s.relays = append(s.relays, lent)
		}
	}
	return s, nil
}

func readExpectation(e signalpb.Expectation) ice.Expectation {
	switch e {
	case signalpb.Expectation_EXPECTATION_DIRECT:
		return ice.Direct
	case signalpb.Expectation_EXPECTATION_RELAY:
		return ice.RelayNeeded
	default:
		return ice.Doubtful
	}
}

// unproven reports whether the grant names candidates and none of the addresses
// that they must be among, as coordinators did before there were proofs. Nothing
// is sent to those, so that such a coordinator must be replaced first.
func (s *session) unproven() bool {
	return len(s.candidates) > 0 && len(s.policy.Proven) == 0 && !s.policy.Near
}

// expired reports whether the miner refuses new requests of the session.
func (s *session) expired(now time.Time) bool { return !now.Before(s.expires) }

// trickle hands a candidate to whoever connects the session. One too many is
// dropped: the useful ones come first.
func (s *session) trickle(c trickled) {
	select {
	case s.trickled <- c:
	default:
	}
}

func readICE(m *signalpb.ICE) (local, remote ice.Credentials) {
	return ice.Credentials{Ufrag: m.GetLocalUfrag(), Pwd: m.GetLocalPwd()},
		ice.Credentials{Ufrag: m.GetRemoteUfrag(), Pwd: m.GetRemotePwd()}
}

// readCandidates drops candidates that are no usable UDP address.
func readCandidates(in []*signalpb.Candidate) []ice.Candidate {
	out := make([]ice.Candidate, 0, len(in))
	for _, c := range in {
		addr, ok := readAddress(c.GetAddress())
		kind, known := candidateKinds[c.GetKind()]
		if ok && known {
			out = append(out, ice.Candidate{Kind: kind, Addr: addr, Priority: c.GetPriority()})
		}
	}
	return out
}

var candidateKinds = map[signalpb.CandidateKind]ice.Kind{
	signalpb.CandidateKind_CANDIDATE_HOST:   ice.Host,
	signalpb.CandidateKind_CANDIDATE_SRFLX:  ice.Srflx,
	signalpb.CandidateKind_CANDIDATE_PRFLX:  ice.Prflx,
	signalpb.CandidateKind_CANDIDATE_MAPPED: ice.Mapped,
	signalpb.CandidateKind_CANDIDATE_RELAY:  ice.RelayUDP,
}

func writeCandidates(in []ice.Candidate) []*signalpb.Candidate {
	out := make([]*signalpb.Candidate, 0, len(in))
	for _, c := range in {
		out = append(out, &signalpb.Candidate{Kind: writeKind(c.Kind), Address: writeAddress(c.Addr), Priority: c.Priority})
	}
	return out
}

func writeKind(k ice.Kind) signalpb.CandidateKind {
	for wire, kind := range candidateKinds {
		if kind == k {
			return wire
		}
	}
	return signalpb.CandidateKind_CANDIDATE_UNSPECIFIED
}

func readAddress(a *signalpb.Address) (netip.AddrPort, bool) {
	ip, ok := netip.AddrFromSlice(a.GetIp())
	if !ok || a.GetPort() == 0 || a.GetPort() > 65535 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(a.GetPort())), true
}

func writeAddress(a netip.AddrPort) *signalpb.Address {
	return &signalpb.Address{Ip: a.Addr().Unmap().AsSlice(), Port: uint32(a.Port())}
}
