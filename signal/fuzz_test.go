package signal

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"testing"

	"google.golang.org/protobuf/proto"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// samples has one of each message.
func samples() []*signalpb.Envelope {
	id, node := bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 32)
	candidates := []*signalpb.Candidate{{Kind: signalpb.CandidateKind_CANDIDATE_HOST, Address: &signalpb.Address{Ip: []byte{192, 0, 2, 1}, Port: 9}, Priority: 1}}
	ice := &signalpb.ICE{LocalUfrag: "abcd", RemoteUfrag: "efgh", LocalPwd: "0123456789012345678901", RemotePwd: "0123456789012345678901"}
	model := &signalpb.OfferedModel{Name: "qwen3:8b", Calls: []string{"/v1/chat/completions"}, ContextTokens: 8192, SizeBytes: 1 << 33}
	addrs := []*signalpb.Address{candidates[0].GetAddress(), {Ip: bytes.Repeat([]byte{1}, 16), Port: 3479}}
	network := &signalpb.Network{
		Families: []*signalpb.FamilyNetwork{
			{Mapping: signalpb.Behavior_BEHAVIOR_ENDPOINT_INDEPENDENT, Filtering: signalpb.Behavior_BEHAVIOR_ADDRESS_AND_PORT_DEPENDENT, Mapped: addrs[0]},
			{Ipv6: true, NoNat: true, Mapped: addrs[1]},
		},
		UdpBlocked: true, Relay: signalpb.RelayMode_RELAY_MODE_ALWAYS,
	}
	lent := &signalpb.Relay{Urls: []string{"turn:192.0.2.1:3478"}, Username: "u", Password: "p", Nonce: "f00", Port: 3478, TlsPort: 443}
	return []*signalpb.Envelope{
		hello(client),
		{Message: &signalpb.Envelope_Hello{Hello: &signalpb.Hello{Role: miner, Name: "gpu-box", JoinProof: node, LocalProof: node, Candidates: candidates, Network: network}}},
		{Message: &signalpb.Envelope_Welcome{Welcome: &signalpb.Welcome{Observed: candidates[0].GetAddress(), AdmittedAs: "local", LeaseTtlMs: 60_000, Stun: addrs, OverTls: true}}},
		{Message: &signalpb.Envelope_Refused{Refused: &signalpb.Refused{Code: signalpb.RefusalCode_REFUSAL_TOO_MANY, Message: "full", RetryAfterMs: 5000}}},
		{Message: &signalpb.Envelope_MatchRequest{MatchRequest: &signalpb.MatchRequest{
			Nonce: id, Exclude: [][]byte{node}, Attempt: 1,
			Needs:   &signalpb.Needs{Model: "qwen3:8b", Miner: "gpu-box", Call: "/v1/chat/completions", MinReputation: 0.5},
			Network: network, Candidates: candidates,
		}}},
		{Message: &signalpb.Envelope_Grant{Grant: &signalpb.Grant{
			Nonce: id, Session: id, Miner: node, Ice: ice, Candidates: candidates, ExpiresUnixMs: 1 << 41,
			Relay: lent, Expect: signalpb.Expectation_EXPECTATION_RELAY, ExpectReason: signalpb.PathReason_PATH_REASON_BOTH_NATS_HARD,
			Proven: addrs, Near: true, MinerMapping: signalpb.Behavior_BEHAVIOR_ADDRESS_DEPENDENT, MinerUdpBlocked: true,
		}}},
		{Message: &signalpb.Envelope_NoMatch{NoMatch: &signalpb.NoMatch{Nonce: id, Message: "none", Offered: []string{"a"}, Filters: []*signalpb.FilterStep{{Reason: "full", Removed: 1}}}}},
		{Message: &signalpb.Envelope_Offer{Offer: &signalpb.Offer{
			Session: id, Client: node, Ice: ice, Candidates: candidates, Relay: lent, Proven: addrs, Near: true,
			Expect: signalpb.Expectation_EXPECTATION_DIRECT, ExpectReason: signalpb.PathReason_PATH_REASON_PORT_MAPPING,
		}}},
		{Message: &signalpb.Envelope_Taken{Taken: &signalpb.Taken{Session: id}}},
		{Message: &signalpb.Envelope_Decline{Decline: &signalpb.Decline{Session: id, Reason: "busy"}}},
		{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{Session: id, Candidates: candidates, Proven: addrs}}},
		{Message: &signalpb.Envelope_Lease{Lease: &signalpb.Lease{Sequence: 1, Slots: 2, Models: []*signalpb.OfferedModel{model}, Candidates: candidates, Network: network}}},
		{Message: &signalpb.Envelope_LeaseAck{LeaseAck: &signalpb.LeaseAck{Sequence: 1, Observed: candidates[0].GetAddress()}}},
		{Message: &signalpb.Envelope_TunnelStatus{TunnelStatus: &signalpb.TunnelStatus{Session: id, State: signalpb.TunnelState_TUNNEL_UP, PathKind: "host", RttUs: 14_000, Reason: signalpb.PathReason_PATH_REASON_HANDSHAKE_FAILED}}},
		{Message: &signalpb.Envelope_Receipt{Receipt: &signalpb.Receipt{Session: id, Request: id, Outcome: signalpb.Outcome_OUTCOME_OK, TokensPerSecond: 62}}},
		{Message: &signalpb.Envelope_ModelsRequest{ModelsRequest: &signalpb.ModelsRequest{Nonce: id}}},
		{Message: &signalpb.Envelope_Models{Models: &signalpb.Models{Nonce: id, EmptyMiners: []string{"box"}, Offers: []*signalpb.ModelOffer{{Model: model, Miner: node, Reputation: 1}}}}},
		{Message: &signalpb.Envelope_Renew{Renew: &signalpb.Renew{Session: id}}},
		{Message: &signalpb.Envelope_Renewed{Renewed: &signalpb.Renewed{Session: id, ExpiresUnixMs: 1 << 41}}},
		{Message: &signalpb.Envelope_SessionEnd{SessionEnd: &signalpb.SessionEnd{Session: id, Reason: "done"}}},
		{Message: &signalpb.Envelope_PeerSeen{PeerSeen: &signalpb.PeerSeen{Session: id, Address: addrs[1]}}},
		{Message: &signalpb.Envelope_PathRequest{PathRequest: &signalpb.PathRequest{
			Nonce: id, Session: id, Path: 1, Cause: signalpb.PathCause_PATH_CAUSE_UPGRADE, Network: network, Candidates: candidates, Probing: true,
		}}},
		{Message: &signalpb.Envelope_ProbePorts{ProbePorts: &signalpb.ProbePorts{Session: id, Path: 1, Ports: []uint32{1, 65535}}}},
		{Message: &signalpb.Envelope_Goodbye{Goodbye: &signalpb.Goodbye{Reason: "stopping"}}},
	}
}

func TestSamplesCoverTheSchemaAndAreValid(t *testing.T) {
	kinds := map[string]bool{}
	for _, env := range samples() {
		if err := validate(env); err != nil {
			t.Errorf("%v: %v", env, err)
		}
		m := env.ProtoReflect()
		kinds[string(m.WhichOneof(m.Descriptor().Oneofs().Get(0)).Name())] = true
	}
	fields := (&signalpb.Envelope{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if name := string(fields.Get(i).Name()); !kinds[name] {
			t.Errorf("no sample of %s", name)
		}
	}
}

// FuzzMessage: whatever parses is written and read again as the same message;
// whatever does not is refused with a known error.
func FuzzMessage(f *testing.F) {
	for _, env := range samples() {
		b, err := encode(env)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xff, 0xff, 0x7f})
	f.Add([]byte{0x80, 0x80, 0x04})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		env, err := ReadMessage(r)
		if err != nil {
			if env != nil {
				t.Fatal("half a message with an error")
			}
			for _, known := range []error{io.EOF, io.ErrUnexpectedEOF, ErrTooLarge, ErrMalformed} {
				if errors.Is(err, known) {
					return
				}
			}
			t.Fatalf("unknown error %v", err)
		}
		var field *FieldError
		if err := Validate(env); err != nil && !errors.As(err, &field) {
			t.Fatalf("unknown error %v", err)
		}
		var w bytes.Buffer
		if err := WriteMessage(&w, env); err != nil {
			t.Fatal(err)
		}
		again, err := ReadMessage(&w)
		if err != nil || w.Len() != 0 || !proto.Equal(env, again) {
			t.Fatalf("%v became %v, %v", env, again, err)
		}
	})
}

// FuzzTicketFile: a file that another program wrote must not end the node.
func FuzzTicketFile(f *testing.F) {
	f.Add([]byte(`{"v":1,"alpn":"mintai/1","node":"","coordinator":"","ticket":"","state":""}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var state *tls.ClientSessionState
		state, id, err := parseTicket(b, identity.NodeID{1})
		if err != nil && (state != nil || !id.IsZero()) {
			t.Fatal("half a ticket with an error")
		}
	})
}
