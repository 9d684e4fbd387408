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

type turnSession struct {
	id     identity.SessionID
	key    []byte // RFC 8489 §9.2.2: MD5(username ":" realm ":" password)
	rights *rights
	relays map[*relayConn]struct{}
}

// rights are what a session may do now. They are replaced, never changed:
// relays read them without the server's lock.
type rights struct {
	peers   map[netip.Addr]bool
	expires time.Time
}

// Allow admits the session, or updates it, and returns the user name that goes
// with its password. Addresses that are no single host are left out.
func (t *TURNServer) Allow(s TURNSession) (username string) {
	username = s.ID.String()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return username
	}
	t.expireLocked(time.Now())
	ts := t.sessions[username]
	if ts == nil {
		ts = &turnSession{id: s.ID, relays: make(map[*relayConn]struct{})}
		t.sessions[username] = ts
	}
	ts.key = turn.GenerateAuthKey(username, t.cfg.Realm, s.Password)
	peers := make(map[netip.Addr]bool, len(s.Peers))
	for _, p := range s.Peers {
		if p = canonicalPeer(p); p.IsValid() {
			peers[p] = true
		}
	}
	ts.grantLocked(&rights{peers: peers, expires: s.Expires})
	return username
}

// AddPeer lets the session reach one more address at which its miner was
// observed. A session that is not known stays so.
func (t *TURNServer) AddPeer(id identity.SessionID, peer netip.Addr) {
	peer = canonicalPeer(peer)
	if !peer.IsValid() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	ts := t.sessions[id.String()]
	if ts == nil || ts.rights.peers[peer] {
		return
	}
	peers := maps.Clone(ts.rights.peers)
	peers[peer] = true
	ts.grantLocked(&rights{peers: peers, expires: ts.rights.expires})
}

// AddKnown lets one leg of the session reach an exact address at which its
// other end was observed, before anything came from there. A leg that is not
// known stays so.
func (t *TURNServer) AddKnown(id identity.SessionID, miner bool, addr netip.AddrPort) {
	_, _, _ = id, miner, addr
}

// Extend moves the end of the session's rights, also of its relays. A session
// that is not known stays so.
func (t *TURNServer) Extend(id identity.SessionID, expires time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ts := t.sessions[id.String()]; ts != nil {
		ts.grantLocked(&rights{peers: ts.rights.peers, expires: expires})
	}
}

// Revoke ends the session's rights and frees its allocations at once.
func (t *TURNServer) Revoke(id identity.SessionID) {
	t.mu.Lock()
	ts := t.sessions[id.String()]
	delete(t.sessions, id.String())
	var relays []*relayConn
	if ts != nil {
		relays = slices.Collect(maps.Keys(ts.relays))
	}
	t.mu.Unlock()
	for _, r := range relays {
		r.kill()
	}
}

// grantLocked replaces the session's rights, also of its relays.
func (ts *turnSession) grantLocked(r *rights) {
	ts.rights = r
	for relay := range ts.relays {
		relay.rights.Store(r)
	}
}

// expireLocked forgets sessions whose time is over. Their relays pass nothing
// any more and end when they cannot be refreshed.
func (t *TURNServer) expireLocked(now time.Time) {
	if now.Sub(t.swept) < sweepInterval {
		return
	}
	t.swept = now
	for name, ts := range t.sessions {
		if now.After(ts.rights.expires) && len(ts.relays) == 0 {
			delete(t.sessions, name)
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
	for _, l := range t.listeners {
		if l.LocalAddr() == dst || l.LocalAddr().String() == dst.String() {
			l.user, l.client = username, addrPort(src)
			return
		}
	}
}

// quota refuses allocations over a limit with the right error code (486);
// the relayGenerator enforces the same limits without a race.
func (t *TURNServer) quota(username, _ string, _ net.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.quotaLocked(username); err != nil {
		t.counters.refusedQuota.Add(1)
		return false
	}
	return true
}

func (t *TURNServer) quotaLocked(username string) error {
	ts := t.sessions[username]
	switch {
	case t.closed || ts == nil:
		return fmt.Errorf("turn: no such session")
	case len(ts.relays) >= t.cfg.PerSession:
		return fmt.Errorf("turn: session %s has %d allocations", ts.id.Short(), len(ts.relays))
	case len(t.relays) >= t.cfg.MaxAllocations:
		return fmt.Errorf("turn: %d allocations in all", len(t.relays))
	}
	return nil
}

// mayReach reports whether the user's session has peer for its miner.
func (t *TURNServer) mayReach(username string, peer netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ts := t.sessions[username]
	return ts != nil && ts.rights.peers[peer]
}
