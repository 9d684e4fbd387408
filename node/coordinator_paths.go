package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// signalSilence is how long a node's last packet may be ago while its connection
// lives: the idle timeout of signaling.
const signalSilence = 30 * time.Second

// heard notes that a message of the peer has just arrived, from an address that
// it thereby proves.
func (c *coordinator) heard(p *signal.Peer, now time.Time) {
	if p.OverTLS() {
		return
	}
	from := p.Observed()
	if c.view.Saw(p.Node(), from, c.signalAt(from.Addr()), now) {
		c.proved(p.Node(), from, now)
	}
}

// onProof is told of each probe that a node signed.
func (c *coordinator) onProof(proof ice.Proof) {
	now := time.Now()
	if c.view.Saw(proof.Node, proof.From, proof.At, now) {
		c.proved(proof.Node, plain(proof.From), now)
	}
}

// signalAt is the address of this machine to which signaling from an address
// came; zero when it may be one of several.
func (c *coordinator) signalAt(from netip.Addr) netip.AddrPort {
	at := c.Addr()
	if !at.Addr().IsUnspecified() {
		return at
	}
	if from.IsLoopback() {
		return netip.AddrPortFrom(from, at.Port())
	}
	var only netip.Addr
	for _, a := range c.ownAddrs() {
		if a.Is6() != from.Is6() {
			continue
		}
		if only.IsValid() {
			return netip.AddrPort{}
		}
		only = a
	}
	if !only.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(only, at.Port())
}

// ownAddrs are this machine's addresses, as of some seconds ago.
func (c *coordinator) ownAddrs() []netip.Addr {
	const lookEvery = 10 * time.Second
	c.addrsMu.Lock()
	defer c.addrsMu.Unlock()
	if now := time.Now(); now.Sub(c.looked) > lookEvery {
		c.addrs, c.looked = localAddrs(), now
	}
	return c.addrs
}

// look puts together what is known of a peer.
func (c *coordinator) look(p *signal.Peer, candidates []*signalpb.Candidate, said *signalpb.Network, now time.Time) peerView {
	v := peerView{
		id: p.Node(), relay: said.GetRelay(), observed: p.Observed(), overTLS: p.OverTLS(), candidates: candidates,
		local: p.AdmittedAs() == admittedLocal, probes: said.GetHardNatProbing(),
	}
	if !v.overTLS && // its connection lives, so it was heard from there not long ago
		c.view.SawEarlier(v.id, v.observed, c.signalAt(v.observed.Addr()), now.Add(-signalSilence), now) {
		c.proved(v.id, v.observed, now)
	}
	v.proven = c.view.Proven(v.id, now)
	if !v.overTLS && v.observed.Addr().IsLoopback() {
		for _, own := range c.ownAddrs() {
			if own.Is4() == v.observed.Addr().Is4() && len(v.beside) < maxProven {
				v.beside = append(v.beside, netip.AddrPortFrom(own, v.observed.Port()))
			}
		}
	}
	seen := [2]*ice.Family{c.view.Family(v.id, false, now), c.view.Family(v.id, true, now)}
	v.network = readNetwork(seen, said, candidates, v.proven, v.overTLS)
	return v
}

// newest returns what was said last: the first list that says anything.
func newest(lists ...[]*signalpb.Candidate) []*signalpb.Candidate {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// requestNetwork is what a client said last of its network.
func requestNetwork(req *signalpb.MatchRequest, p *signal.Peer) *signalpb.Network {
	if n := req.GetNetwork(); n != nil {
		return n
	}
	return p.Hello().GetNetwork()
}

// otherLocked returns the connection of a session's other end; nil when it is
// not here.
func (c *coordinator) otherLocked(s *coordinatorSession, from signalpb.Role) *signal.Peer {
	if from == signalpb.Role_ROLE_MINER {
		return s.client
	}
	if m := c.miners[s.minerID]; m != nil {
		return m.peer
	}
	return nil
}

func otherRole(r signalpb.Role) signalpb.Role {
	if r == signalpb.Role_ROLE_MINER {
		return signalpb.Role_ROLE_CLIENT
	}
	return signalpb.Role_ROLE_MINER
}

// news is a message that is sent when no lock is held.
type news struct {
	to  *signal.Peer
	env *signalpb.Envelope
}

func tell(messages []news) {
	for _, m := range messages {
		if m.to != nil {
			_ = m.to.TrySendLast(m.env)
		}
	}
}

// proved tells the sessions of a node of an address that it has proven: their
// relays, and for a while after the match their other ends.
func (c *coordinator) proved(id identity.NodeID, addr netip.AddrPort, now time.Time) {
	var messages []news
	c.mu.Lock()
	for s := range c.of[id] {
		role := signalpb.Role_ROLE_CLIENT
		if s.minerID == id {
			role = signalpb.Role_ROLE_MINER
		}
		messages = append(messages, c.provedLocked(s, role, addr, now))
	}
	c.mu.Unlock()
	tell(messages)
}

// provedLocked notes a proven address of one end of a session.
func (c *coordinator) provedLocked(s *coordinatorSession, of signalpb.Role, addr netip.AddrPort, now time.Time) news {
	to, self := c.otherLocked(s, of), c.otherLocked(s, otherRole(of))
	if c.turn != nil && self != nil && len(c.relayable([]netip.AddrPort{addr}, self.Observed().Addr())) > 0 {
		c.turn.AddKnown(s.id, of == signalpb.Role_ROLE_CLIENT, addr)
	}
	if to == nil || s.matched.IsZero() || now.Sub(s.matched) > proofTrickle {
		return news{}
	}
	m := &signalpb.Candidates{Session: s.id[:]}
	if !s.outlook.hidden && len(meaningful([]netip.AddrPort{addr}, c.placesOf(to, now), s.outlook.near, nil)) > 0 {
		m.Candidates = []*signalpb.Candidate{{Kind: signalpb.CandidateKind_CANDIDATE_SRFLX, Address: writeAddress(addr)}}
	}
	forRelay := s.outlook.lend && (of == signalpb.Role_ROLE_MINER || s.outlook.legs)
	if m.Candidates == nil && !forRelay || !s.trickleLocked(of) {
		return news{}
	}
	m.Proven = writeAddresses([]netip.AddrPort{addr})
	return news{to: to, env: &signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: m}}}
}

// placesOf are the IP addresses at which a peer is seen.
func (c *coordinator) placesOf(p *signal.Peer, now time.Time) []netip.Addr {
	v := peerView{observed: p.Observed(), proven: c.view.Proven(p.Node(), now)}
	return v.places()
}

// outside are the IP addresses at which this machine, and what else is in its
// network, is seen from the Internet, as far as it is known.
func (c *coordinator) outside() []netip.Addr {
	var out []netip.Addr
	add := func(a netip.Addr) {
		if a = a.Unmap(); isPublic(a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, public := range c.cfg.Public {
		if ip, ok := splitIP(hostOnly(public)); ok {
			add(ip)
		}
	}
	add(c.home.external(c.Addr().Port(), false).Addr())
	for _, a := range c.ownAddrs() {
		add(a)
	}
	return out
}

// introduced notes that the two ends of a session have been told of each other
// as they were seen, and tells what they have proven meanwhile.
func (c *coordinator) introduced(s *coordinatorSession, client, miner peerView, now time.Time) {
	c.mu.Lock()
	s.matched = now
	var messages []news
	for role, seen := range map[signalpb.Role]peerView{signalpb.Role_ROLE_CLIENT: client, signalpb.Role_ROLE_MINER: miner} {
		for _, addr := range c.view.Proven(seen.id, now) {
			if !provenIP(seen.proven, addr.Addr()) {
				messages = append(messages, c.provedLocked(s, role, addr, now))
			}
		}
	}
	c.mu.Unlock()
	tell(messages)
}

// peerSeen takes a report of where a session's other end arrived from. It tells
// nothing when the two are near: between neighbours there is perhaps no NAT, and
// one that is on this machine sees what the coordinator sees.
func (c *coordinator) peerSeen(p *signal.Peer, m *signalpb.PeerSeen, now time.Time) {
	addr, ok := readAddress(m.GetAddress())
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	if s == nil || !ok || s.outlook.near || s.reports >= maxTrickles {
		c.mu.Unlock()
		return
	}
	s.reports++
	other := s.clientID
	if p.Role() == signalpb.Role_ROLE_CLIENT {
		other = s.minerID
	}
	c.mu.Unlock()
	if own := p.Observed().Addr(); !own.IsLoopback() && !slices.Contains(c.ownAddrs(), own) {
		c.view.PeerSaw(other, addr, now)
	}
}

// passCandidates passes trickled candidates to the session's other end, those
// that it may use.
func (c *coordinator) passCandidates(p *signal.Peer, m *signalpb.Candidates, now time.Time) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	if s == nil || !s.trickleLocked(p.Role()) {
		c.mu.Unlock()
		return
	}
	to, o := c.otherLocked(s, p.Role()), s.outlook
	c.mu.Unlock()
	if to == nil {
		return
	}
	from := peerView{told: meaningful(c.view.Proven(p.Node(), now), c.placesOf(to, now), o.near, c.outside())}
	candidates := from.trickled(m.GetCandidates(), o, c.relays.addrs())
	if len(candidates) == 0 {
		return
	}
	_ = to.TrySendLast(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{
		Session: m.GetSession(), Candidates: candidates,
	}}})
}

// lendRelay opens the relay for one session: its client may reach that
// session's miner, at the addresses where the coordinator has seen it, and
// nobody else. A miner that UDP does not reach gets a leg of its own.
func (c *coordinator) lendRelay(s *coordinatorSession, client, miner peerView, o outlook, expires time.Time) (forClient []*signalpb.Relay, forMiner *signalpb.Relay) {
	if !o.lend {
		return nil, nil
	}
	for _, r := range c.cfg.Relays {
		var a, b *signalpb.Relay
		switch {
		case r != RelayOwn:
			a = c.operatorRelay(s, r, expires)
			if o.legs {
				b = a
			}
		case c.turn != nil:
			a, b = c.lendOwn(s, client, miner, o, expires)
		default:
			continue
		}
		forClient = append(forClient, a)
		if forMiner == nil {
			forMiner = b
		}
	}
	return forClient, forMiner
}

// lendOwn opens the relay inside this process for a session.
func (c *coordinator) lendOwn(s *coordinatorSession, client, miner peerView, o outlook, expires time.Time) (forClient, forMiner *signalpb.Relay) {
	forClient = c.ownRelay(client, ice.TURNSession{ID: s.id, Password: s.passwords[0], Known: append(c.relayable(miner.proven, miner.observed.Addr()), miner.beside...), Expires: expires})
	if o.legs {
		forMiner = c.ownRelay(miner, ice.TURNSession{ID: s.id, Miner: true, Password: s.passwords[1], Known: append(c.relayable(client.proven, client.observed.Addr()), client.beside...), Expires: expires})
	}
	return forClient, forMiner
}

// relayable are the proven addresses to which the relay may carry what a node
// says. One packet proves an address, and its source may be forged, even as an
// address inside this machine's network or as its own. Those count only if the
// node's connection, which takes packets in both directions, comes from there,
// or from this machine.
func (c *coordinator) relayable(proven []netip.AddrPort, connected netip.Addr) []netip.AddrPort {
	own := c.ownAddrs()
	here := connected.IsLoopback() || slices.Contains(own, connected)
	out := make([]netip.AddrPort, 0, len(proven))
	for _, a := range proven {
		ip := a.Addr()
		isOwn := ip.IsLoopback() || slices.Contains(own, ip)
		if ip == connected || here && isOwn || isPublic(ip) && !isOwn {
			out = append(out, a)
		}
	}
	return out
}

// ownRelay lends one leg to whom it is for, at the ports that lead there.
func (c *coordinator) ownRelay(to peerView, t ice.TURNSession) *signalpb.Relay {
	t.Node = to.id
	user := c.turn.Allow(t)
	outside := isPublic(to.observed.Addr())
	return &signalpb.Relay{
		Port:    uint32(c.home.port(c.turnPort(), false, outside)),
		TlsPort: uint32(c.home.port(c.tlsPort(), true, outside)), Username: user, Password: t.Password,
		Realm: c.turn.Realm(), Nonce: c.turn.Nonce(), ExpiresUnixMs: t.Expires.UnixMilli(),
	}
}

// operatorRelay makes credentials for relays that somebody else runs. Those
// refuse even to refresh once they have expired, and no renewal of the session
// reaches them.
func (c *coordinator) operatorRelay(s *coordinatorSession, url string, expires time.Time) *signalpb.Relay {
	expires = expires.Add(operatorRelayLife)
	user, password := ice.RESTCredentials(c.cfg.TURN.Secret.Reveal(), s.id, expires)
	return &signalpb.Relay{Urls: []string{url}, Username: user, Password: password, ExpiresUnixMs: expires.UnixMilli()}
}

// allocated tells a session's other end of a relayed address as soon as there is
// one: before the end whose leg it is knows it itself.
func (c *coordinator) allocated(id identity.SessionID, ofMiner bool, relayed netip.AddrPort, over string) {
	role := signalpb.Role_ROLE_CLIENT
	if ofMiner {
		role = signalpb.Role_ROLE_MINER
	}
	c.mu.Lock()
	s := c.sessions[id]
	var to *signal.Peer
	if s != nil && s.relayed < maxTrickles {
		s.relayed++
		to = c.otherLocked(s, role)
	}
	c.mu.Unlock()
	if to == nil {
		return
	}
	_ = to.TrySendLast(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{
		Session:    id[:],
		Candidates: []*signalpb.Candidate{{Kind: signalpb.CandidateKind_CANDIDATE_RELAY, Address: writeAddress(relayed)}},
	}}})
	c.log.Debug().Str("session", id.Short()).Str("role", roleName(role)).Str("over", over).Stringer("relayed", relayed).Msg("relay allocated")
}

// operatorRelays are the relays that somebody else runs, and where they are.
type operatorRelays struct {
	urls []string // RFC 7065

	mu    sync.Mutex // guards found
	found []netip.Addr
}

// resolveEvery is how often the names of relays are looked up.
const resolveEvery = 5 * time.Minute

// run looks up the relays until ctx ends.
func (r *operatorRelays) run(ctx context.Context, log zerolog.Logger) {
	if len(r.urls) == 0 {
		return
	}
	r.resolve(ctx, log)
	every(ctx, resolveEvery, func(time.Time) { r.resolve(ctx, log) })
}

func (r *operatorRelays) resolve(ctx context.Context, log zerolog.Logger) {
	var found []netip.Addr
	for _, url := range r.urls {
		host := turnHost(url)
		lookup, cancel := context.WithTimeout(ctx, 5*time.Second)
		addrs, err := net.DefaultResolver.LookupNetIP(lookup, "ip", host)
		cancel()
		if err != nil {
			log.Warn().Err(err).Str("relay", host).Msg("this relay's name does not resolve here")
		}
		for _, a := range addrs {
			found = append(found, a.Unmap())
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(found) > 0 { // a name server that is away for a while moves no relay
		r.found = found
	}
}

// turnHost is the host of a URL that the configuration accepts.
func turnHost(url string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(url, "turn:"), "?")
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}

// addrs are the IP addresses of the relays.
func (r *operatorRelays) addrs() []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.found)
}
