package ice

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/turn/v5"

	"mintai/identity"
)

// TURNSession is what the server must know of a session.
type TURNSession struct {
	ID       identity.SessionID
	Password string // minted for this session and leg; secret
	// Node is whose leg it is: its limits count. Zero: nobody's.
	Node identity.NodeID
	// Miner says that this is the leg of the session's miner, which has a user
	// name of its own. The legs of one session may reach each other.
	Miner bool
	// Peers are the addresses at which the coordinator itself saw the session's
	// other end. Loopback and private addresses count only when they are listed.
	Peers []netip.Addr
	// Known are exact addresses at which the coordinator saw the other end. They
	// need not speak first, and their IP addresses count as Peers.
	Known []netip.AddrPort
	// Expires ends the right to allocate and to refresh; it must not lie before
	// the end of the session. Calling Allow again moves it.
	Expires time.Time
}

// String names the session and shows no password.
func (s TURNSession) String() string { return "TURN session " + s.ID.Short() }

// Format shows what String does, whatever the verb.
func (s TURNSession) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// turnSession is one leg of a session.
type turnSession struct {
	id     identity.SessionID
	miner  bool
	key    []byte // RFC 8489 §9.2.2: MD5(username ":" realm ":" password)
	node   *nodeUse
	rights *rights
	relays map[*relayConn]struct{}
	// client sent the last signed request, to local.
	client, local netip.AddrPort
}

// rights are what a leg may do now. They are replaced, never changed: relays
// read them without the server's lock.
type rights struct {
	peers   map[netip.Addr]bool
	known   map[netip.AddrPort]bool
	expires time.Time
}

// userName names a leg: the session's identifier, which is hexadecimal, with an
// "m" behind it for the miner's.
func userName(id identity.SessionID, miner bool) string {
	if miner {
		return id.String() + "m"
	}
	return id.String()
}

// Allow admits one leg of a session, or updates it, and returns the user name
// that goes with its password. Addresses that are no single host are left out.
func (t *TURNServer) Allow(s TURNSession) (username string) {
	username = userName(s.ID, s.Miner)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return username
	}
	t.expireLocked(time.Now())
	ts := t.sessions[username]
	if ts == nil {
		ts = &turnSession{id: s.ID, miner: s.Miner, relays: make(map[*relayConn]struct{})}
		ts.node = t.useNodeLocked(s.Node)
		t.sessions[username] = ts
		t.pairLocked(ts)
	}
	ts.key = turn.GenerateAuthKey(username, t.cfg.Realm, s.Password)
	next := &rights{peers: make(map[netip.Addr]bool), known: make(map[netip.AddrPort]bool), expires: s.Expires}
	for _, p := range s.Peers {
		if p = canonicalPeer(p); p.IsValid() {
			next.peers[p] = true
		}
	}
	for _, a := range s.Known {
		next.know(a)
	}
	ts.grantLocked(next)
	return username
}

// know adds an exact address to rights that nobody reads yet.
func (r *rights) know(a netip.AddrPort) {
	if ip := canonicalPeer(a.Addr()); ip.IsValid() {
		r.peers[ip] = true
		r.known[netip.AddrPortFrom(ip, a.Port())] = true
	}
}

func (r *rights) clone() *rights {
	return &rights{peers: maps.Clone(r.peers), known: maps.Clone(r.known), expires: r.expires}
}

// AddPeer lets the client's leg reach one more address at which the session's
// miner was observed. A session that is not known stays so.
func (t *TURNServer) AddPeer(id identity.SessionID, peer netip.Addr) {
	peer = canonicalPeer(peer)
	if !peer.IsValid() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	ts := t.sessions[userName(id, false)]
	if ts == nil || ts.rights.peers[peer] {
		return
	}
	next := ts.rights.clone()
	next.peers[peer] = true
	ts.grantLocked(next)
}

// AddKnown lets one leg of the session reach an exact address at which its
// other end was observed, before anything came from there. A leg that is not
// known stays so.
func (t *TURNServer) AddKnown(id identity.SessionID, miner bool, addr netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ts := t.sessions[userName(id, miner)]
	if ts == nil || len(ts.rights.known) >= maxKnown {
		return
	}
	next := ts.rights.clone()
	next.know(addr)
	ts.grantLocked(next)
}

// maxKnown bounds the exact addresses of a leg; a node has a few, and new ones
// while it roams. Allow begins anew.
const maxKnown = 64

// Extend moves the end of the rights of both legs, also of their relays. A
// session that is not known stays so.
func (t *TURNServer) Extend(id identity.SessionID, expires time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, miner := range []bool{false, true} {
		if ts := t.sessions[userName(id, miner)]; ts != nil {
			next := ts.rights.clone()
			next.expires = expires
			ts.grantLocked(next)
		}
	}
}

// Revoke ends the rights of both legs and frees their allocations at once.
func (t *TURNServer) Revoke(id identity.SessionID) {
	var relays []*relayConn
	t.mu.Lock()
	for _, miner := range []bool{false, true} {
		name := userName(id, miner)
		if ts := t.sessions[name]; ts != nil {
			relays = slices.AppendSeq(relays, maps.Keys(ts.relays))
			t.forgetLocked(name, ts)
		}
	}
	t.mu.Unlock()
	for _, r := range relays {
		r.kill()
	}
}

func (t *TURNServer) forgetLocked(name string, ts *turnSession) {
	delete(t.sessions, name)
	t.leaveNodeLocked(ts.node, 1, 0)
}

// grantLocked replaces the leg's rights, also of its relays.
func (ts *turnSession) grantLocked(r *rights) {
	ts.rights = r
	for relay := range ts.relays {
		relay.rights.Store(r)
	}
}

// expireLocked forgets legs whose time is over. Their relays pass nothing any
// more and end when they cannot be refreshed.
func (t *TURNServer) expireLocked(now time.Time) {
	if now.Sub(t.swept) < sweepInterval {
		return
	}
	t.swept = now
	for name, ts := range t.sessions {
		if now.After(ts.rights.expires) && len(ts.relays) == 0 {
			t.forgetLocked(name, ts)
		}
	}
}

// sweepInterval spares a busy server from looking through all sessions for each
// new one.
const sweepInterval = 10 * time.Second

// canonicalPeer returns the one spelling of an address that can be a miner's,
// or the zero Addr.
func canonicalPeer(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a == broadcast {
		return netip.Addr{}
	}
	return a
}

// authenticate looks up the key of a request's user. The server then compares
// the signature.
func (t *TURNServer) authenticate(ra *turn.RequestAttributes) (string, []byte, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ts := t.sessions[ra.Username]
	if ts == nil || ra.Realm != t.cfg.Realm || time.Now().After(ts.rights.expires) {
		t.counters.refusedAuth.Add(1)
		return "", nil, false
	}
	return ra.Username, ts.key, true
}

// onAuth is called in the goroutine of the listener, right before the handler
// of the request: what the handler asks next is asked for this user.
func (t *TURNServer) onAuth(src, dst net.Addr, _, username, _, _ string, verdict bool) {
	if !verdict {
		t.counters.refusedAuth.Add(1)
		return
	}
	t.mu.Lock()
	if ts := t.sessions[username]; ts != nil {
		ts.client, ts.local = tcpOrUDP(src), tcpOrUDP(dst)
	}
	t.mu.Unlock()
	if s := t.stream(src); s != nil {
		s.user = username
		if !s.signed.Swap(true) {
			s.admitted()
		}
		return
	}
	if l := t.listener(dst); l != nil {
		l.user = username
	}
}

// tcpOrUDP returns the canonical form of a client's or listener's address.
func tcpOrUDP(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return addrPort(a)
}

// onAllocated is called for each new allocation, in the goroutine that serves
// the request and before its answer.
func (t *TURNServer) onAllocated(src, dst net.Addr, _, username, _ string, relayed net.Addr, _ int) {
	t.question(src, dst, username, addrPort(relayed))
	if t.cfg.OnAllocated == nil {
		return
	}
	t.mu.Lock()
	ts := t.sessions[username]
	t.mu.Unlock()
	if ts == nil {
		return // revoked meanwhile
	}
	over := "udp"
	if _, ok := src.(*net.TCPAddr); ok {
		over = "tls"
	}
	t.cfg.OnAllocated(ts.id, ts.miner, addrPort(relayed), over)
}

// quota refuses allocations over a limit with the right error code (486);
// the relayGenerator enforces the same limits without a race.
func (t *TURNServer) quota(username, _ string, _ net.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.quotaLocked(username, time.Now()); err != nil {
		t.counters.refusedQuota.Add(1)
		return false
	}
	return true
}

// quotaLocked decides on one more allocation of a leg, and says which one of the
// same leg must go for it; nil: none.
func (t *TURNServer) quotaLocked(username string, now time.Time) (gives *relayConn, err error) {
	ts := t.sessions[username]
	if t.closed || ts == nil {
		return nil, fmt.Errorf("turn: no such session")
	}
	freed := 0
	if len(ts.relays) >= t.cfg.PerSession {
		if gives = ts.idlest(now.Sub(t.began)); gives == nil {
			return nil, fmt.Errorf("turn: session %s has %d allocations", ts.id.Short(), len(ts.relays))
		}
		freed = 1
	}
	switch {
	case ts.node != nil && ts.node.relays-freed >= t.cfg.MaxPerNode:
		return nil, fmt.Errorf("turn: node %s has %d allocations", ts.node.id.Short(), ts.node.relays)
	case len(t.relays)-freed >= t.cfg.MaxAllocations:
		return nil, fmt.Errorf("turn: %d allocations in all", len(t.relays))
	}
	return gives, nil
}

// inUse is how long an allocation keeps its place after its client has sent
// something through it. It bounds how often allocations replace each other, and is
// less than a client waits before it looks for another path.
const inUse = time.Second

// idlest returns the leg's relay whose client is silent for longest, or nil when
// all are in use. A client whose NAT has forgotten it cannot free what it had: its
// Refresh comes from another address.
func (ts *turnSession) idlest(now time.Duration) (idlest *relayConn) {
	least := now - inUse
	for r := range ts.relays {
		if at := time.Duration(r.used.Load()); at <= least {
			idlest, least = r, at
		}
	}
	return idlest
}

// mayReach reports whether peer is where the other end of the user's session
// is, or the other leg.
func (t *TURNServer) mayReach(username string, peer netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ts := t.sessions[username]
	return ts != nil && (ts.rights.peers[peer] || t.pairedIPLocked(ts, peer))
}

// permit decides on a permission and counts refusals.
func (t *TURNServer) permit(user string, peerIP net.IP) bool {
	peer, ok := netip.AddrFromSlice(peerIP)
	if ok && t.mayReach(user, canonicalPeer(peer)) {
		return true
	}
	t.counters.refusedPeer.Add(1)
	t.log.Debug().Str("session", shortUser(user)).Stringer("addr", peer.Unmap()).
		Msg("turn: permission refused, not the address of the session's other end")
	return false
}

func shortUser(name string) string { return name[:min(8, len(name))] }
