package signal

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"mintai/signal/signalpb"
)

// TestBadFieldsOfPathsAreNamed breaks one field of a valid message at a time.
func TestBadFieldsOfPathsAreNamed(t *testing.T) {
	type (
		env     = signalpb.Envelope
		network = signalpb.Network
		address = signalpb.Address
	)
	v4 := &address{Ip: []byte{192, 0, 2, 1}, Port: 9}
	many := func(n int) []*address {
		all := make([]*address, n)
		for i := range all {
			all[i] = v4
		}
		return all
	}
	good := map[string]*env{}
	for _, sample := range samples() { // the last of each kind has all fields
		m := sample.ProtoReflect()
		good[string(m.WhichOneof(m.Descriptor().Oneofs().Get(0)).Name())] = sample
	}
	tests := map[string]struct {
		message string
		change  func(*env)
		field   string
	}{
		"three families":      {"hello", func(e *env) { n := e.GetHello().Network; n.Families = append(n.Families, n.Families[0]) }, "hello.network.families"},
		"one family twice":    {"hello", func(e *env) { e.GetHello().Network.Families[1].Ipv6 = false }, "hello.network.families"},
		"unknown mapping":     {"lease", func(e *env) { e.GetLease().Network.Families[0].Mapping = 4 }, "lease.network.families.mapping"},
		"unknown filtering":   {"lease", func(e *env) { e.GetLease().Network.Families[0].Filtering = -1 }, "lease.network.families.filtering"},
		"mapped of IPv6":      {"lease", func(e *env) { e.GetLease().Network.Families[1].Mapped = v4 }, "lease.network.families.mapped"},
		"mapped without port": {"lease", func(e *env) { e.GetLease().Network.Families[0].Mapped = &address{Ip: v4.GetIp()} }, "lease.network.families.mapped"},
		"unknown relay mode":  {"match_request", func(e *env) { e.GetMatchRequest().Network = &network{Relay: 3} }, "match_request.network.relay"},
		"candidate of a match": {"match_request", func(e *env) {
			e.GetMatchRequest().Candidates = []*signalpb.Candidate{{Kind: 9, Address: v4}}
		}, "match_request.candidates.kind"},
		"too much STUN":        {"welcome", func(e *env) { e.GetWelcome().Stun = many(MaxAddresses + 1) }, "welcome.stun"},
		"STUN at port 0":       {"welcome", func(e *env) { e.GetWelcome().Stun[0] = &address{Ip: v4.GetIp()} }, "welcome.stun"},
		"too much proven":      {"grant", func(e *env) { e.GetGrant().Proven = many(MaxAddresses + 1) }, "grant.proven"},
		"unknown expectation":  {"grant", func(e *env) { e.GetGrant().Expect = 3 }, "grant.expect"},
		"reason of nothing":    {"grant", func(e *env) { e.GetGrant().ExpectReason = 7 }, "grant.expect_reason"},
		"reason too high":      {"grant", func(e *env) { e.GetGrant().ExpectReason = 21 }, "grant.expect_reason"},
		"miner's mapping":      {"grant", func(e *env) { e.GetGrant().MinerMapping = 4 }, "grant.miner_mapping"},
		"long nonce":           {"grant", func(e *env) { e.GetGrant().Relay.Nonce = strings.Repeat("a", MaxNonce+1) }, "grant.relay.nonce"},
		"nonce not ASCII":      {"grant", func(e *env) { e.GetGrant().Relay.Nonce = "é" }, "grant.relay.nonce"},
		"nonce with a newline": {"offer", func(e *env) { e.GetOffer().Relay.Nonce = "a\n" }, "offer.relay.nonce"},
		"port of the relay":    {"offer", func(e *env) { e.GetOffer().Relay.Port = 65536 }, "offer.relay.port"},
		"TLS port":             {"offer", func(e *env) { e.GetOffer().Relay.TlsPort = 1 << 31 }, "offer.relay.tls_port"},
		"URLs of an offer":     {"offer", func(e *env) { e.GetOffer().Relay.Urls = make([]string, MaxURLs+1) }, "offer.relay.urls"},
		"proven in an offer":   {"offer", func(e *env) { e.GetOffer().Proven[1] = nil }, "offer.proven"},
		"unknown in an offer":  {"offer", func(e *env) { e.GetOffer().Expect = -1 }, "offer.expect"},
		"proven, trickled":     {"candidates", func(e *env) { e.GetCandidates().Proven = many(MaxAddresses + 1) }, "candidates.proven"},
		"mapped IPv4 proven": {"candidates", func(e *env) {
			e.GetCandidates().Proven[0] = &address{Ip: []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 1, 2, 3, 4}, Port: 1}
		}, "candidates.proven"},
		"nowhere seen":       {"peer_seen", func(e *env) { e.GetPeerSeen().Address = nil }, "peer_seen.address"},
		"seen in no session": {"peer_seen", func(e *env) { e.GetPeerSeen().Session = nil }, "peer_seen.session"},
		"no cause":           {"path_request", func(e *env) { e.GetPathRequest().Cause = 0 }, "path_request.cause"},
		"unknown cause":      {"path_request", func(e *env) { e.GetPathRequest().Cause = 4 }, "path_request.cause"},
		"first path":         {"path_request", func(e *env) { e.GetPathRequest().Path = 0 }, "path_request.path"},
		"network of a path":  {"path_request", func(e *env) { e.GetPathRequest().Network = &network{Relay: 3} }, "path_request.network.relay"},
		"port 0 probed":      {"probe_ports", func(e *env) { e.GetProbePorts().Ports[0] = 0 }, "probe_ports.ports"},
		"port too high":      {"probe_ports", func(e *env) { e.GetProbePorts().Ports[0] = 65536 }, "probe_ports.ports"},
		"too many ports":     {"probe_ports", func(e *env) { e.GetProbePorts().Ports = make([]uint32, MaxProbePorts+1) }, "probe_ports.ports"},
		"too many relays":    {"grant", func(e *env) { e.GetGrant().MoreRelays = make([]*signalpb.Relay, MaxMoreRelays+1) }, "grant.more_relays"},
		"probing nowhere":    {"grant", func(e *env) { e.GetGrant().Probing = &signalpb.HardNATProbing{} }, "grant.probing.target"},
		"proven in future":   {"offer", func(e *env) { e.GetOffer().Probing = &signalpb.HardNATProbing{Target: v4, ProvenMsAgo: -1} }, "offer.probing.proven_ms_ago"},
		"reason of a tunnel": {"tunnel_status", func(e *env) { e.GetTunnelStatus().Reason = 9 }, "tunnel_status.reason"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			e := proto.CloneOf(good[test.message])
			test.change(e)
			var field *FieldError
			if err := Validate(e); !errors.As(err, &field) || field.Field != test.field {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestManyAddressesAreValid: the bounds themselves are allowed.
func TestManyAddressesAreValid(t *testing.T) {
	addrs := make([]*signalpb.Address, MaxAddresses)
	for i := range addrs {
		addrs[i] = &signalpb.Address{Ip: make([]byte, 16), Port: 65535}
	}
	for _, e := range []*signalpb.Envelope{
		{Message: &signalpb.Envelope_Welcome{Welcome: &signalpb.Welcome{Stun: addrs}}},
		{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{Session: make([]byte, 16), Proven: addrs}}},
	} {
		if err := Validate(e); err != nil {
			t.Error(err)
		}
	}
}
