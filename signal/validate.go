package signal

import (
	"errors"
	"fmt"
	"math"
	"unicode"
	"unicode/utf8"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// Bounds of what a stranger may put into a message.
const (
	MaxName       = 64  // bytes of a node's name
	MaxText       = 512 // bytes of a line for people, a model's name, a URL
	MaxWord       = 64  // bytes of a short label: path kind, family, version
	MaxCandidates = 16  // in one message
	MaxModels     = 256 // in a lease
	MaxCalls      = 32  // of one model
	MaxExclude    = 64  // miners in a MatchRequest
	MaxOffers     = 512 // in Models
	MaxURLs       = 8   // of a relay
	MaxAddresses  = 16  // of STUN in a Welcome; proven, in one message
	MaxNonce      = 128 // bytes of a relay's nonce
	MaxMoreRelays = 1   // beside the first, in a Grant
	MaxProbePorts = 512 // in ProbePorts
	proofSize     = 32  // HMAC-SHA256
	maxTokens     = 1 << 30
)

// FieldError says which field of a message breaks the rules.
type FieldError struct {
	Field  string // as in the schema, e.g. "hello.name"
	Reason string
}

// Error names the field and the rule. The value is never shown.
func (e *FieldError) Error() string { return "signal: " + e.Field + ": " + e.Reason }

// errUnknown marks an Envelope that holds nothing this version knows.
var errUnknown = errors.New("signal: unknown message")

// Validate checks every field that the other end filled: lengths, counts,
// characters, ranges and enums. The error is a *FieldError. An Envelope without
// a known message is valid: it comes from a newer version and is to be ignored.
func Validate(env *signalpb.Envelope) error {
	err := validate(env)
	if errors.Is(err, errUnknown) {
		return nil
	}
	return err
}

func validate(env *signalpb.Envelope) error {
	switch m := env.GetMessage().(type) {
	case *signalpb.Envelope_Hello:
		return checkHello(m.Hello)
	case *signalpb.Envelope_Welcome:
		return first(text("welcome.admitted_as", m.Welcome.GetAdmittedAs(), MaxWord), text("welcome.version", m.Welcome.GetVersion(), MaxWord),
			optionalAddress("welcome.observed", m.Welcome.GetObserved()), duration("welcome.lease_ttl_ms", m.Welcome.GetLeaseTtlMs()),
			addresses("welcome.stun", m.Welcome.GetStun()))
	case *signalpb.Envelope_Refused:
		return first(text("refused.message", m.Refused.GetMessage(), MaxText), duration("refused.retry_after_ms", m.Refused.GetRetryAfterMs()))
	case *signalpb.Envelope_MatchRequest:
		return checkMatchRequest(m.MatchRequest)
	case *signalpb.Envelope_Grant:
		return checkGrant(m.Grant)
	case *signalpb.Envelope_NoMatch:
		return checkNoMatch(m.NoMatch)
	case *signalpb.Envelope_Offer:
		return checkOffer(m.Offer)
	case *signalpb.Envelope_Taken:
		return id16("taken.session", m.Taken.GetSession())
	case *signalpb.Envelope_Decline:
		return first(id16("decline.session", m.Decline.GetSession()), text("decline.reason", m.Decline.GetReason(), MaxText),
			duration("decline.retry_after_ms", m.Decline.GetRetryAfterMs()))
	case *signalpb.Envelope_Candidates:
		return first(id16("candidates.session", m.Candidates.GetSession()), candidates("candidates.candidates", m.Candidates.GetCandidates()),
			addresses("candidates.proven", m.Candidates.GetProven()))
	case *signalpb.Envelope_Lease:
		return checkLease(m.Lease)
	case *signalpb.Envelope_LeaseAck:
		return optionalAddress("lease_ack.observed", m.LeaseAck.GetObserved())
	case *signalpb.Envelope_TunnelStatus:
		return checkTunnelStatus(m.TunnelStatus)
	case *signalpb.Envelope_Receipt:
		return checkReceipt(m.Receipt)
	case *signalpb.Envelope_ModelsRequest:
		return id16("models_request.nonce", m.ModelsRequest.GetNonce())
	case *signalpb.Envelope_Models:
		return checkModels(m.Models)
	case *signalpb.Envelope_Renew:
		return id16("renew.session", m.Renew.GetSession())
	case *signalpb.Envelope_Renewed:
		return first(id16("renewed.session", m.Renewed.GetSession()), duration("renewed.expires_unix_ms", m.Renewed.GetExpiresUnixMs()),
			duration("renewed.lifetime_ms", m.Renewed.GetLifetimeMs()))
	case *signalpb.Envelope_SessionEnd:
		return first(id16("session_end.session", m.SessionEnd.GetSession()), text("session_end.reason", m.SessionEnd.GetReason(), MaxText))
	case *signalpb.Envelope_PeerSeen:
		return first(id16("peer_seen.session", m.PeerSeen.GetSession()), address("peer_seen.address", m.PeerSeen.GetAddress()))
	case *signalpb.Envelope_PathRequest:
		return checkPathRequest(m.PathRequest)
	case *signalpb.Envelope_ProbePorts:
		return checkProbePorts(m.ProbePorts)
	case *signalpb.Envelope_Goodbye:
		return text("goodbye.reason", m.Goodbye.GetReason(), MaxText)
	default:
		return errUnknown
	}
}

func checkHello(h *signalpb.Hello) error {
	if r := h.GetRole(); r != signalpb.Role_ROLE_CLIENT && r != signalpb.Role_ROLE_MINER {
		return &FieldError{"hello.role", "neither client nor miner"}
	}
	return first(text("hello.name", h.GetName(), MaxName), text("hello.version", h.GetVersion(), MaxWord),
		proof("hello.join_proof", h.GetJoinProof()), proof("hello.local_proof", h.GetLocalProof()),
		candidates("hello.candidates", h.GetCandidates()), checkNetwork("hello.network", h.GetNetwork()))
}

func checkMatchRequest(m *signalpb.MatchRequest) error {
	if err := first(id16("match_request.nonce", m.GetNonce()), count("match_request.exclude", len(m.GetExclude()), MaxExclude)); err != nil {
		return err
	}
	for _, id := range m.GetExclude() {
		if err := id32("match_request.exclude", id); err != nil {
			return err
		}
	}
	n := m.GetNeeds()
	return first(text("needs.model", n.GetModel(), MaxText), text("needs.miner", n.GetMiner(), MaxName),
		text("needs.call", n.GetCall(), MaxWord), limit("needs.context_tokens", n.GetContextTokens(), maxTokens),
		fraction("needs.min_reputation", n.GetMinReputation()), checkNetwork("match_request.network", m.GetNetwork()),
		candidates("match_request.candidates", m.GetCandidates()))
}

func checkICE(field string, i *signalpb.ICE) error {
	// RFC 8839 §5.4: ufrag 4 to 256 ice-chars, password 22 to 256.
	return first(iceChars(field+".local_ufrag", i.GetLocalUfrag(), 4), iceChars(field+".remote_ufrag", i.GetRemoteUfrag(), 4),
		iceChars(field+".local_pwd", i.GetLocalPwd(), 22), iceChars(field+".remote_pwd", i.GetRemotePwd(), 22))
}

func checkGrant(g *signalpb.Grant) error {
	return first(id16("grant.nonce", g.GetNonce()), id16("grant.session", g.GetSession()), id32("grant.miner", g.GetMiner()),
		text("grant.miner_name", g.GetMinerName(), MaxName), text("grant.model", g.GetModel(), MaxText),
		text("grant.why", g.GetWhy(), MaxText), duration("grant.expires_unix_ms", g.GetExpiresUnixMs()), duration("grant.lifetime_ms", g.GetLifetimeMs()),
		duration("grant.head_start_ms", g.GetHeadStartMs()), checkICE("grant.ice", g.GetIce()),
		candidates("grant.candidates", g.GetCandidates()), checkRelay("grant.relay", g.GetRelay()),
		expected("grant", g.GetExpect(), g.GetExpectReason()), addresses("grant.proven", g.GetProven()),
		behavior("grant.miner_mapping", g.GetMinerMapping()), relays("grant.more_relays", g.GetMoreRelays()),
		checkProbing("grant.probing", g.GetProbing()))
}

func checkPathRequest(p *signalpb.PathRequest) error {
	if c := p.GetCause(); c < signalpb.PathCause_PATH_CAUSE_LOST || c > signalpb.PathCause_PATH_CAUSE_UPGRADE {
		return &FieldError{"path_request.cause", "unknown"}
	}
	if p.GetPath() == 0 {
		return &FieldError{"path_request.path", "the first path comes with the match"}
	}
	return first(id16("path_request.nonce", p.GetNonce()), id16("path_request.session", p.GetSession()),
		checkNetwork("path_request.network", p.GetNetwork()), candidates("path_request.candidates", p.GetCandidates()))
}

func checkProbePorts(p *signalpb.ProbePorts) error {
	if err := first(id16("probe_ports.session", p.GetSession()), count("probe_ports.ports", len(p.GetPorts()), MaxProbePorts)); err != nil {
		return err
	}
	for _, port := range p.GetPorts() {
		if port == 0 || port > math.MaxUint16 {
			return &FieldError{"probe_ports.ports", "not a port"}
		}
	}
	return nil
}

func checkProbing(field string, p *signalpb.HardNATProbing) error {
	if p == nil {
		return nil
	}
	return first(address(field+".target", p.GetTarget()), duration(field+".proven_ms_ago", p.GetProvenMsAgo()))
}

func relays(field string, rs []*signalpb.Relay) error {
	if err := count(field, len(rs), MaxMoreRelays); err != nil {
		return err
	}
	for _, r := range rs {
		if err := checkRelay(field, r); err != nil {
			return err
		}
	}
	return nil
}

func checkNoMatch(n *signalpb.NoMatch) error {
	if err := first(id16("no_match.nonce", n.GetNonce()), text("no_match.message", n.GetMessage(), MaxText),
		count("no_match.filters", len(n.GetFilters()), 32), count("no_match.offered", len(n.GetOffered()), 32),
		duration("no_match.retry_after_ms", n.GetRetryAfterMs())); err != nil {
		return err
	}
	for _, f := range n.GetFilters() {
		if err := text("no_match.filters.reason", f.GetReason(), MaxText); err != nil {
			return err
		}
	}
	for _, o := range n.GetOffered() {
		if err := text("no_match.offered", o, MaxText); err != nil {
			return err
		}
	}
	return nil
}

func checkOffer(o *signalpb.Offer) error {
	return first(id16("offer.session", o.GetSession()), id32("offer.client", o.GetClient()), text("offer.model", o.GetModel(), MaxText),
		text("offer.call", o.GetCall(), MaxWord), duration("offer.expires_unix_ms", o.GetExpiresUnixMs()), duration("offer.lifetime_ms", o.GetLifetimeMs()),
		checkICE("offer.ice", o.GetIce()), candidates("offer.candidates", o.GetCandidates()),
		checkRelay("offer.relay", o.GetRelay()), expected("offer", o.GetExpect(), o.GetExpectReason()),
		addresses("offer.proven", o.GetProven()), checkProbing("offer.probing", o.GetProbing()), addresses("offer.relays", o.GetRelays()))
}

func checkLease(l *signalpb.Lease) error {
	if err := first(count("lease.models", len(l.GetModels()), MaxModels), limit("lease.slots", l.GetSlots(), 1<<16),
		limit("lease.in_flight", l.GetInFlight(), 1<<20), limit("lease.queued", l.GetQueued(), 1<<20),
		limit("lease.queue_limit", l.GetQueueLimit(), 1<<20), candidates("lease.candidates", l.GetCandidates()),
		checkNetwork("lease.network", l.GetNetwork())); err != nil {
		return err
	}
	for _, m := range l.GetModels() {
		if err := checkModel("lease.models", m); err != nil {
			return err
		}
	}
	return nil
}

func checkModel(field string, m *signalpb.OfferedModel) error {
	if m.GetName() == "" {
		return &FieldError{field + ".name", "empty"}
	}
	if err := first(text(field+".name", m.GetName(), MaxText), count(field+".calls", len(m.GetCalls()), MaxCalls),
		limit(field+".context_tokens", m.GetContextTokens(), maxTokens), text(field+".quantization", m.GetQuantization(), MaxWord),
		text(field+".family", m.GetFamily(), MaxWord), text(field+".backend", m.GetBackend(), MaxWord),
		duration(field+".size_bytes", m.GetSizeBytes())); err != nil {
		return err
	}
	for _, c := range m.GetCalls() {
		if err := text(field+".calls", c, MaxWord); err != nil {
			return err
		}
	}
	return nil
}

func checkTunnelStatus(t *signalpb.TunnelStatus) error {
	if s := t.GetState(); s < signalpb.TunnelState_TUNNEL_CONNECTING || s > signalpb.TunnelState_TUNNEL_CLOSED {
		return &FieldError{"tunnel_status.state", "unknown"}
	}
	return first(id16("tunnel_status.session", t.GetSession()), text("tunnel_status.path_kind", t.GetPathKind(), MaxWord),
		text("tunnel_status.path_reason", t.GetPathReason(), MaxText), duration("tunnel_status.rtt_us", t.GetRttUs()),
		known("tunnel_status.reason", t.GetReason()))
}

func checkReceipt(r *signalpb.Receipt) error {
	if o := r.GetOutcome(); o < signalpb.Outcome_OUTCOME_OK || o > signalpb.Outcome_OUTCOME_TIMEOUT {
		return &FieldError{"receipt.outcome", "unknown"}
	}
	if f := r.GetTokensPerSecond(); !(f >= 0 && f <= 1e9) { // false for NaN
		return &FieldError{"receipt.tokens_per_second", "out of range"}
	}
	return first(id16("receipt.session", r.GetSession()), id16("receipt.request", r.GetRequest()),
		duration("receipt.first_token_us", r.GetFirstTokenUs()), duration("receipt.total_us", r.GetTotalUs()),
		text("receipt.path_kind", r.GetPathKind(), MaxWord), text("receipt.model", r.GetModel(), MaxText))
}

func checkModels(m *signalpb.Models) error {
	if err := first(id16("models.nonce", m.GetNonce()), count("models.offers", len(m.GetOffers()), MaxOffers),
		count("models.empty_miners", len(m.GetEmptyMiners()), MaxOffers)); err != nil {
		return err
	}
	for _, o := range m.GetOffers() {
		if err := first(checkModel("models.offers.model", o.GetModel()), id32("models.offers.miner", o.GetMiner()),
			text("models.offers.miner_name", o.GetMinerName(), MaxName), fraction("models.offers.reputation", o.GetReputation())); err != nil {
			return err
		}
	}
	for _, n := range m.GetEmptyMiners() {
		if err := text("models.empty_miners", n, MaxName); err != nil {
			return err
		}
	}
	return nil
}

func candidates(field string, cs []*signalpb.Candidate) error {
	if err := count(field, len(cs), MaxCandidates); err != nil {
		return err
	}
	for _, c := range cs {
		if k := c.GetKind(); k < signalpb.CandidateKind_CANDIDATE_HOST || k > signalpb.CandidateKind_CANDIDATE_RELAY {
			return &FieldError{field + ".kind", "unknown"}
		}
		if _, err := AddrPort(c.GetAddress()); err != nil {
			return &FieldError{field + ".address", "not an address"}
		}
	}
	return nil
}

func optionalAddress(field string, a *signalpb.Address) error {
	if a == nil {
		return nil
	}
	if _, err := AddrPort(a); err != nil {
		return &FieldError{field, "not an address"}
	}
	return nil
}

// text accepts printable UTF-8: names and reasons end on screens.
func text(field, s string, limit int) error {
	if len(s) > limit {
		return &FieldError{field, fmt.Sprintf("longer than %d bytes", limit)}
	}
	if !utf8.ValidString(s) {
		return &FieldError{field, "not UTF-8"}
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return &FieldError{field, "contains a control character"}
		}
	}
	return nil
}

// iceChars accepts the ice-char set of RFC 8839 §5.4.
func iceChars(field, s string, least int) error {
	if len(s) < least || len(s) > 256 {
		return &FieldError{field, fmt.Sprintf("not %d to 256 characters", least)}
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '/') {
			return &FieldError{field, "a character outside a-z A-Z 0-9 + /"}
		}
	}
	return nil
}

func id16(field string, b []byte) error {
	if len(b) != nonceSize {
		return &FieldError{field, "not 16 bytes"}
	}
	return nil
}

func id32(field string, b []byte) error {
	if len(b) != len(identity.NodeID{}) {
		return &FieldError{field, "not 32 bytes"}
	}
	return nil
}

func proof(field string, b []byte) error {
	if len(b) != 0 && len(b) != proofSize {
		return &FieldError{field, "not 32 bytes"}
	}
	return nil
}

func count(field string, n, limit int) error {
	if n > limit {
		return &FieldError{field, fmt.Sprintf("more than %d", limit)}
	}
	return nil
}

func limit(field string, n, most uint32) error {
	if n > most {
		return &FieldError{field, fmt.Sprintf("more than %d", most)}
	}
	return nil
}

// duration accepts what is not negative: times, sizes.
func duration(field string, n int64) error {
	if n < 0 || n > math.MaxInt64/1_000_000 { // fits a time.Duration in ms
		return &FieldError{field, "out of range"}
	}
	return nil
}

func fraction(field string, f float64) error {
	if !(f >= 0 && f <= 1) { // false for NaN
		return &FieldError{field, "not between 0 and 1"}
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
