package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"mintai/api"
	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// While the coordinator is away nobody can introduce a client and its miner anew.
// Their tunnel still works, and so does a relay that is not the coordinator's own.
// So the client opens a leg there, tells the miner of it through the tunnel, and
// keeps a second tunnel over it ready for the case that the first one's path dies.

const (
	// pathCall is the path of the request by which a client tells its miner of
	// another path through the tunnel that there is.
	pathCall = "/mintai/path"
	// pathCallLimit is for that request.
	pathCallLimit = 3 * time.Second
	// maxPathOffer bounds its body, in bytes.
	maxPathOffer = 8 << 10
	// standbyLimit is for opening a tunnel that waits, standbyAgain the pause after
	// a try that failed.
	standbyLimit = 5 * time.Second
	standbyAgain = 5 * time.Second
)

// coordinatorWatch notices within seconds that the coordinator is gone. What is
// sent to it is acknowledged by QUIC; nothing else is asked of it.
type coordinatorWatch struct {
	heard uint64    // packets, at since
	since time.Time // from when nothing has come
	said  time.Time // when something was said to it last
}

// look reports whether the coordinator is away, and whether something should be
// said to it now to find out.
func (w *coordinatorWatch) look(now time.Time, heard uint64) (away, say bool) {
	if w.since.IsZero() || heard != w.heard {
		w.heard, w.since = heard, now
	}
	if now.Sub(w.said) >= coordinatorAsk {
		w.said, say = now, true
	}
	return now.Sub(w.since) >= coordinatorAsk+coordinatorSilence, say
}

// standbyRelays are the relays that a session's path could take without the
// coordinator: those of others, but for the one that is in use.
func standbyRelays(s *session, l *link) []*lentRelay {
	var out []*lentRelay
	for _, r := range s.relays {
		if !r.own() && !r.same(l.lent) {
			out = append(out, r)
		}
	}
	return out
}

// prepare keeps a tunnel ready while the coordinator is away and a request runs.
func (r *route) prepare(ctx context.Context, now time.Time) {
	relays := standbyRelays(r.s, r.link)
	if len(relays) == 0 || r.c.connector.relayMode == RelayNever {
		return
	}
	away, say := r.watch.look(now, r.c.sig.Heard())
	if say {
		r.c.report(r.s, signalpb.TunnelState_TUNNEL_UP, r.link)
	}
	if !away || r.standby != nil || r.preparing || now.Before(r.prepareAgain) || r.keeper.silent(now) {
		return
	}
	r.preparing = true
	s, l, c, prepared := r.s, r.link, r.c, r.prepared
	c.log.Info().Str("session", s.id.Short()).Str("peer", s.miner.Short()).Msg("the coordinator is away: another path is prepared over a relay of others")
	r.rest.Go(func() { prepared <- c.standby(ctx, s, l, relays) })
}

// ready takes in a tunnel that waits, or that there is none.
func (r *route) ready(now time.Time, f searched) {
	r.preparing = false
	if f.err != nil {
		r.prepareAgain = now.Add(standbyAgain)
		r.c.log.Debug().Err(f.err).Str("session", r.s.id.Short()).Msg("no path is prepared")
		return
	}
	if r.keeper.searching == rescue { // it comes just in time
		r.stopSearch()
		r.found <- f
		return
	}
	r.standby = f.link
	r.c.log.Debug().Str("session", r.s.id.Short()).Str("path", f.link.kind.String()).Msg("another path is prepared")
}

// standDown closes the tunnel that waits: nothing runs that it waits for.
func (r *route) standDown(code quicstream.CloseCode) {
	if r.standby != nil {
		r.standby.close(code)
		r.standby = nil
	}
}

// standby opens a tunnel over a relay that needs no coordinator. The miner learns
// of it through the present tunnel.
func (c *client) standby(ctx context.Context, s *session, l *link, relays []*lentRelay) searched {
	ctx, cancel := context.WithTimeout(ctx, standbyLimit)
	defer cancel()
	own, miners := ice.NewCredentials(), ice.NewCredentials()
	attempt := &session{
		id: s.id, miner: s.miner, minerName: s.minerName, model: s.model, expires: s.expires, granted: s.granted, warm: s.warm,
		localICE: own, remoteICE: miners, candidates: s.candidates, policy: s.policy,
		trickled: make(chan trickled, maxTrickled), foretold: make(chan []uint16, maxForetold),
		expect: ice.RelayNeeded, expectReason: ice.NothingCame,
	}
	for _, r := range relays {
		lent := *r
		lent.config.Local, lent.config.Remote = own, miners
		attempt.relays = append(attempt.relays, &lent)
	}
	c.mu.Lock()
	s.paths++
	attempt.number = s.paths
	c.mu.Unlock()
	found, err := c.connector.connect(ctx, attempt, wanted{
		cause: signalpb.PathCause_PATH_CAUSE_LOST, until: time.Now().Add(standbyLimit), relayOnly: true, old: l,
		tell: func(ctx context.Context, candidates []ice.Candidate) error {
			return tellThrough(ctx, l, attempt, candidates)
		},
	})
	if err != nil {
		return searched{err: err}
	}
	return searched{link: found, session: s}
}

// tellThrough tells the miner of another path through the tunnel that there is.
func tellThrough(ctx context.Context, l *link, attempt *session, candidates []ice.Candidate) error {
	ctx, cancel := context.WithTimeout(ctx, pathCallLimit)
	defer cancel()
	body, err := proto.Marshal(&signalpb.Envelope{Message: &signalpb.Envelope_Offer{Offer: &signalpb.Offer{
		Session: attempt.id[:], Client: make([]byte, len(attempt.miner)), Path: attempt.number, Candidates: writeCandidates(candidates),
		Ice: &signalpb.ICE{
			LocalUfrag: attempt.remoteICE.Ufrag, LocalPwd: attempt.remoteICE.Pwd,
			RemoteUfrag: attempt.localICE.Ufrag, RemotePwd: attempt.localICE.Pwd,
		},
	}}})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://miner"+pathCall, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "")
	resp, err := l.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the miner answers %d", resp.StatusCode)
	}
	return nil
}

// servePath takes word of another path from a client, through its tunnel. Only
// where the coordinator said that relays are is anything sent.
func (m *miner) servePath(w http.ResponseWriter, r *http.Request) {
	client, _ := quicstream.PeerFromContext(r.Context())
	body, err := io.ReadAll(io.LimitReader(r.Body, maxPathOffer+1))
	env := &signalpb.Envelope{}
	if err != nil || len(body) > maxPathOffer || proto.Unmarshal(body, env) != nil || signal.Validate(env) != nil || env.GetOffer() == nil {
		api.WriteError(w, "", &api.Error{Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: "no word of a path"})
		return
	}
	if err := m.takeTold(client, env.GetOffer()); err != nil {
		api.WriteError(w, "", &api.Error{Status: http.StatusConflict, Code: api.CodeBadRequest, Message: err.Error()})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

var errTold = errors.New("not a session of this client, or not a path to be tried")

// takeTold looks for a client at the relay that it names.
func (m *miner) takeTold(client identity.NodeID, o *signalpb.Offer) error {
	id, err := identity.SessionIDFromBytes(o.GetSession())
	if err != nil || o.GetPath() == 0 || m.cfg.Relay == RelayNever {
		return errTold
	}
	m.mu.Lock()
	s := m.sessions[id]
	if s == nil || s.client != client {
		m.mu.Unlock()
		return errTold
	}
	told := &signalpb.Offer{Ice: o.GetIce(), Path: o.GetPath(), Proven: writeAddresses(s.policy.Proven), Near: s.policy.Near, Relays: writeAddresses(s.relays)}
	relays := s.relays
	m.mu.Unlock()
	if refusal := m.takePath(id, client, told); refusal != "" {
		return errors.New(refusal)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s = m.sessions[id]; s == nil || s.checks == nil {
		return errTold
	}
	err = errTold
	for _, c := range readCandidates(o.GetCandidates()) {
		if c.Kind.Relayed() && isAmong(relays, c.Addr.Addr()) {
			s.checks.AllowRelay(c.Addr.Addr())
			if s.checks.AddRemote(c) == nil {
				m.socket.Admit(id, c.Addr.Addr())
				err = nil
			}
		}
	}
	return err
}

// isAmong reports whether an IP address is one of some.
func isAmong(addrs []netip.AddrPort, ip netip.Addr) bool {
	for _, a := range addrs {
		if a.Addr() == ip {
			return true
		}
	}
	return false
}
