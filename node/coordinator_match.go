package node

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"mintai/api"
	"mintai/ice"
	"mintai/identity"
	"mintai/match"
	"mintai/reputation"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// match answers a client's request with a grant, and its miner with an offer,
// at the same time.
func (c *coordinator) match(p *signal.Peer, req *signalpb.MatchRequest, now time.Time) {
	if p.Role() != signalpb.Role_ROLE_CLIENT {
		return
	}
	var exclude []identity.NodeID
	for _, raw := range req.GetExclude() {
		if id, err := identity.NodeIDFromBytes(raw); err == nil {
			exclude = append(exclude, id)
		}
	}
	c.mu.Lock()
	full := c.clients[p] >= maxSessionsPerClient
	c.mu.Unlock()
	if full {
		c.noMatch(p, &signalpb.NoMatch{
			Nonce: req.GetNonce(), Code: signalpb.NoMatchCode_NO_MATCH_BUSY, RetryAfterMs: 5000,
			Message: "this client holds too many sessions",
		})
		return
	}
	c.offer(p, req, exclude, 1, now)
}

// offer picks a miner and tells both ends, or tells the client why there is none.
func (c *coordinator) offer(p *signal.Peer, req *signalpb.MatchRequest, exclude []identity.NodeID, attempt uint32, now time.Time) {
	started := time.Now()
	id := identity.NewSessionID()
	choice, err := c.board.Take(readNeeds(p, req.GetNeeds(), exclude), id, now.Add(setupLimit), now)
	if err != nil {
		c.noMatch(p, writeNoMatch(req.GetNonce(), err))
		return
	}
	c.mu.Lock()
	entry := c.miners[choice.Miner]
	c.mu.Unlock()
	if entry == nil { // it left between the two looks
		c.board.End(id)
		c.offer(p, req, append(exclude, choice.Miner), attempt, now)
		return
	}
	client := c.look(p, newest(req.GetCandidates(), p.Hello().GetCandidates()), requestNetwork(req, p), now)
	miner := c.look(entry.peer, entry.candidates, entry.network, now)
	o := foresee(client, miner, req.GetNeeds().GetDirectOnly())
	outside := c.outside()
	client.told = meaningful(client.proven, miner.places(), o.near, outside)
	miner.told = meaningful(miner.proven, client.places(), o.near, outside)
	s := &coordinatorSession{
		id: id, client: p, clientID: p.Node(), principal: p.Principal(), minerID: choice.Miner, model: choice.Model,
		request: req, exclude: exclude, attempt: attempt, outlook: o,
		passwords: [2]string{ice.NewCredentials().Pwd, ice.NewCredentials().Pwd},
		offerEnds: now.Add(c.cfg.Deadlines.Offer), expires: now.Add(c.cfg.Deadlines.Session),
	}
	c.mu.Lock()
	c.openLocked(s)
	c.mu.Unlock()
	grant, offer := c.introduction(s, client, miner, o)
	grant.Nonce, grant.MinerName, grant.Attempt = req.GetNonce(), choice.Name, attempt
	grant.Why, grant.Slots = clip(choice.Why), uint32(choice.Slots)
	// The grant leaves first: an answer to the offer may lead to another one.
	_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Grant{Grant: grant}}) // a client that is gone needs no grant
	if err := entry.peer.TrySend(&signalpb.Envelope{Message: &signalpb.Envelope_Offer{Offer: offer}}); err != nil {
		c.nextMiner(s, "could not be told: "+err.Error(), false, now)
		return
	}
	c.introduced(s, client, miner, now)
	c.cfg.Metrics.matched(time.Since(started))
	c.log.Info().Str("session", s.id.Short()).Str("client", p.Node().Short()).Str("miner", choice.Miner.Short()).
		Str("model", string(choice.Model.Name)).Uint32("attempt", attempt).Str("why", choice.Why).
		Stringer("expect", o.expect).Stringer("reason", o.reason).Msg("matched")
}

// relayPort stands where an address needs a port that means nothing: TURN's.
const relayPort = 3478

// introduction is what the two ends of a session are told of each other: how to
// reach it, and with which credentials.
func (c *coordinator) introduction(s *coordinatorSession, client, miner peerView, o outlook) (*signalpb.Grant, *signalpb.Offer) {
	forClient, forMiner := mintICE()
	c.mu.Lock()
	expires := s.expires // it may be renewed meanwhile
	c.mu.Unlock()
	relaysClient, relayMiner := c.lendRelay(s, client, miner, o, expires)
	sameUser := client.local && miner.local
	lifetime := max(1, time.Until(expires).Milliseconds())
	ofMiner := miner.offered(o)
	grant := &signalpb.Grant{
		Session: s.id[:], Miner: s.minerID[:],
		Model: string(s.model.Name), ExpiresUnixMs: expires.UnixMilli(), LifetimeMs: lifetime, Ice: forClient,
		Candidates:  ofMiner,
		HeadStartMs: c.cfg.Deadlines.HeadStart.Milliseconds(), SameUser: sameUser,
		Expect: writeExpectation(o.expect), ExpectReason: writeReason(o.reason), Proven: writeAddresses(miner.expected(o, o.lend)), Near: o.near,
		MinerMapping: writeBehavior(miner.firstMapping(ofMiner)), MinerUdpBlocked: o.legs,
	}
	offer := &signalpb.Offer{
		Session: s.id[:], Client: s.clientID[:], Model: string(s.model.Name), ExpiresUnixMs: expires.UnixMilli(), LifetimeMs: lifetime,
		Ice: forMiner, Candidates: client.offered(o), Call: s.request.GetNeeds().GetCall(), SameUser: sameUser, Relay: relayMiner,
		Expect: grant.GetExpect(), ExpectReason: grant.GetExpectReason(), Proven: writeAddresses(client.expected(o, o.lend && o.legs)), Near: o.near,
	}
	if o.lend {
		for _, a := range c.relays.addrs() {
			if len(offer.Relays) < signal.MaxAddresses {
				offer.Relays = append(offer.Relays, writeAddress(netip.AddrPortFrom(a, relayPort)))
			}
		}
	}
	if len(relaysClient) > 0 {
		grant.Relay, grant.MoreRelays = relaysClient[0], relaysClient[1:]
	}
	return grant, offer
}

// mintICE makes both sides' credentials, so that no answer leg is needed.
func mintICE() (forClient, forMiner *signalpb.ICE) {
	a, b := ice.NewCredentials(), ice.NewCredentials()
	return &signalpb.ICE{LocalUfrag: a.Ufrag, LocalPwd: a.Pwd, RemoteUfrag: b.Ufrag, RemotePwd: b.Pwd},
		&signalpb.ICE{LocalUfrag: b.Ufrag, LocalPwd: b.Pwd, RemoteUfrag: a.Ufrag, RemotePwd: a.Pwd}
}

// taken notes that the miner expects the client.
func (c *coordinator) taken(p *signal.Peer, m *signalpb.Taken, _ time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sessionLocked(p, m.GetSession())
	switch {
	case s == nil || p.Role() != signalpb.Role_ROLE_MINER:
	case m.GetPath() == 0:
		s.offerEnds = time.Time{}
	case m.GetPath() == s.path:
		s.pathEnds = time.Time{}
	}
}

func (c *coordinator) declined(p *signal.Peer, d *signalpb.Decline, now time.Time) {
	c.mu.Lock()
	s := c.sessionLocked(p, d.GetSession())
	c.mu.Unlock()
	if s == nil || p.Role() != signalpb.Role_ROLE_MINER {
		return
	}
	if d.GetPath() > 0 {
		c.pathDeclined(s, d)
		return
	}
	c.cfg.Metrics.declined()
	c.nextMiner(s, "declined: "+d.GetReason(), false, now)
}

// nextMiner gives the session's request to another miner. One that is only late
// is asked once more when nobody else can: the offer may have been lost.
func (c *coordinator) nextMiner(s *coordinatorSession, reason string, late bool, now time.Time) {
	c.mu.Lock()
	if c.sessions[s.id] != s { // ended meanwhile
		c.mu.Unlock()
		return
	}
	client := s.client // it may reconnect meanwhile
	c.endLocked(s)
	c.mu.Unlock()
	exclude := append(slices.Clip(s.exclude), s.minerID)
	if late && s.attempt == 1 {
		if _, err := c.board.Pick(readNeeds(client, s.request.GetNeeds(), exclude), now); err != nil {
			exclude = s.exclude
		}
	}
	c.log.Info().Str("session", s.id.Short()).Str("miner", s.minerID.Short()).Str("cause", reason).
		Bool("again", len(exclude) == len(s.exclude)).Msg("next miner")
	c.tellMiner(s, sessionEndMessage(s.id, clip(reason)))
	c.offer(client, s.request, exclude, s.attempt+1, now)
}

func (c *coordinator) noMatch(p *signal.Peer, m *signalpb.NoMatch) {
	c.cfg.Metrics.unmatched(m.GetCode())
	c.log.Info().Str("client", p.Node().Short()).Str("code", m.GetCode().String()).Str("message", m.GetMessage()).Msg("no match")
	_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_NoMatch{NoMatch: m}})
}

// clip keeps a line that names of strangers are part of within the bounds that
// its reader checks.
func clip(text string) string {
	if len(text) <= signal.MaxText {
		return text
	}
	return strings.ToValidUTF8(text[:signal.MaxText-len("…")], "") + "…"
}

// receipt records what a session showed.
func (c *coordinator) receipt(p *signal.Peer, m *signalpb.Receipt, now time.Time) {
	c.mu.Lock()
	s := c.sessionLocked(p, m.GetSession())
	c.mu.Unlock()
	if s == nil {
		return
	}
	request, err := identity.SessionIDFromBytes(m.GetRequest())
	if err != nil {
		return
	}
	from := reputation.FromClient
	if p.Role() == signalpb.Role_ROLE_MINER {
		from = reputation.FromMiner
	} else {
		c.board.End(s.id) // its request is over: the miner's lease has or had its load
	}
	err = c.ledger.Record(reputation.Receipt{
		Session: s.id, Request: reputation.RequestID(request), Miner: s.minerID, Client: s.clientID, ClientPrincipal: s.principal,
		Model: s.model.Name, From: from, Outcome: reputation.Outcome(m.GetOutcome()),
		FirstToken: time.Duration(m.GetFirstTokenUs()) * time.Microsecond, Total: time.Duration(m.GetTotalUs()) * time.Microsecond,
		Tokens: m.GetTokens(), TokensPerSecond: m.GetTokensPerSecond(), Bytes: m.GetBytes(), PathKind: m.GetPathKind(), At: now,
	})
	if err != nil {
		c.log.Debug().Err(err).Str("session", s.id.Short()).Str("peer", p.Node().Short()).Msg("receipt not counted")
		return
	}
	c.cfg.Metrics.receipt(from == reputation.FromClient, m)
}

func readNeeds(p *signal.Peer, n *signalpb.Needs, exclude []identity.NodeID) match.Needs {
	return match.Needs{
		Model: api.Model(n.GetModel()), Miner: n.GetMiner(), Call: api.Call(n.GetCall()),
		Tools: n.GetTools(), Vision: n.GetVision(), JSON: n.GetJson(), ContextTokens: int(n.GetContextTokens()),
		MinReputation: n.GetMinReputation(), Local: p.AdmittedAs() == admittedLocal, Asker: p.Node(), Exclude: exclude,
	}
}

func readLease(p *signal.Peer, l *signalpb.Lease, expires time.Time) match.Lease {
	lease := match.Lease{
		Miner: p.Node(), Name: p.Name(), Principal: p.Principal(), Local: p.AdmittedAs() == admittedLocal,
		Slots: int(l.GetSlots()), InFlight: int(l.GetInFlight()), Queued: int(l.GetQueued()), QueueLimit: int(l.GetQueueLimit()),
		Draining: l.GetDraining(), Expires: expires,
	}
	for _, m := range l.GetModels() {
		model := match.Model{
			Name: api.Model(m.GetName()), ContextTokens: int(m.GetContextTokens()), Tools: m.GetTools(), Vision: m.GetVision(),
			JSON: m.GetJson(), SameUserOnly: m.GetSameUserOnly(), Quantization: m.GetQuantization(), SizeBytes: m.GetSizeBytes(),
			Family: m.GetFamily(), Backend: m.GetBackend(),
		}
		for _, call := range m.GetCalls() {
			model.Calls = append(model.Calls, api.Call(call))
		}
		lease.Models = append(lease.Models, model)
	}
	return lease
}

func writeModel(m match.Model) *signalpb.OfferedModel {
	out := &signalpb.OfferedModel{
		Name: string(m.Name), ContextTokens: uint32(m.ContextTokens), Tools: m.Tools, Vision: m.Vision, Json: m.JSON,
		SameUserOnly: m.SameUserOnly, Quantization: m.Quantization, SizeBytes: m.SizeBytes, Family: m.Family, Backend: m.Backend,
	}
	for _, call := range m.Calls {
		out.Calls = append(out.Calls, string(call))
	}
	return out
}

// writeNoMatch tells the client what each filter removed.
func writeNoMatch(nonce []byte, err error) *signalpb.NoMatch {
	out := &signalpb.NoMatch{Nonce: nonce, Code: signalpb.NoMatchCode_NO_MATCH_FILTERED, Message: clip(err.Error())}
	var none *match.NoMatchError
	if !errors.As(err, &none) {
		return out
	}
	for _, f := range none.Filters {
		out.Filters = append(out.Filters, &signalpb.FilterStep{Reason: clip(f.Reason), Removed: uint32(f.Removed)})
	}
	for _, m := range none.Offered {
		out.Offered = append(out.Offered, string(m))
	}
	out.Code, out.RetryAfterMs = signalpb.NoMatchCode(none.Code), none.RetryAfter.Milliseconds()
	return out
}
