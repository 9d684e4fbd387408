package node

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal/signalpb"
)

// leaseWith offers a model, with candidates and a network.
func (a *attacker) leaseWith(network *signalpb.Network, candidates ...*signalpb.Candidate) {
	a.t.Helper()
	a.say(&signalpb.Envelope{Message: &signalpb.Envelope_Lease{Lease: &signalpb.Lease{
		Sequence: 1, Slots: 8, Candidates: candidates, Network: network,
		Models: []*signalpb.OfferedModel{{Name: "m", Backend: "openai", Calls: []string{"/v1/chat/completions"}}},
	}}})
	a.hear("the lease's echo", func(e *signalpb.Envelope) bool { return e.GetLeaseAck() != nil })
}

// matched asks for a miner, and returns what both ends were told.
func matched(t *testing.T, client, miner *attacker, n byte, req *signalpb.MatchRequest) (*signalpb.Grant, *signalpb.Offer) {
	t.Helper()
	req.Nonce = append(make([]byte, 15), n)
	if req.Needs == nil {
		req.Needs = &signalpb.Needs{}
	}
	client.say(&signalpb.Envelope{Message: &signalpb.Envelope_MatchRequest{MatchRequest: req}})
	grant := client.hear("a grant", isMatched).GetGrant()
	if grant == nil {
		t.Fatal("no grant")
	}
	offer := miner.hear("an offer", func(e *signalpb.Envelope) bool { return e.GetOffer() != nil }).GetOffer()
	miner.say(&signalpb.Envelope{Message: &signalpb.Envelope_Taken{Taken: &signalpb.Taken{Session: offer.GetSession()}}})
	return grant, offer
}

func isCandidates(e *signalpb.Envelope) bool { return e.GetCandidates() != nil }

func (a *attacker) addr() netip.AddrPort { return a.socket.LocalAddr().(*net.UDPAddr).AddrPort() }

// pathsLab is a coordinator with probes and relay at two addresses of loopback.
func pathsLab(t *testing.T, options ...func(*coordinatorConfig)) *lab {
	t.Helper()
	return newLab(t, append([]func(*coordinatorConfig){func(c *coordinatorConfig) {
		c.STUN, c.TURN.Listen = "127.0.0.1:0", "127.0.0.1:0"
		c.Deadlines.Offer = testWait
	}}, options...)...)
}

func TestGrantTellsWhatToExpect(t *testing.T) {
	t.Parallel()
	l := pathsLab(t)
	miner, client := l.attack(signalpb.Role_ROLE_MINER, "miner"), l.attack(signalpb.Role_ROLE_CLIENT, "client")
	stranger := candidate(hostKind, "8.8.8.8:53")
	miner.leaseWith(nil, stranger)
	grant, offer := matched(t, client, miner, 1, &signalpb.MatchRequest{Candidates: []*signalpb.Candidate{stranger, candidate(hostKind, "127.0.0.1:631")}})
	for name, got := range map[string]struct {
		expect     signalpb.Expectation
		reason     signalpb.PathReason
		proven     []*signalpb.Address
		candidates []*signalpb.Candidate
		near       bool
		peer       *attacker
	}{
		"grant": {grant.GetExpect(), grant.GetExpectReason(), grant.GetProven(), grant.GetCandidates(), grant.GetNear(), miner},
		"offer": {offer.GetExpect(), offer.GetExpectReason(), offer.GetProven(), offer.GetCandidates(), offer.GetNear(), client},
	} {
		if got.expect != signalpb.Expectation_EXPECTATION_DIRECT || got.reason != signalpb.PathReason_PATH_REASON_SAME_MACHINE || !got.near {
			t.Errorf("%s: %v, %v, near %v", name, got.expect, got.reason, got.near)
		}
		if proven := readAddresses(got.proven); !slices.Equal(proven, []netip.AddrPort{got.peer.addr()}) {
			t.Errorf("%s: proven %v", name, proven)
		}
		if c := texts(got.candidates); !slices.Equal(c, []string{"host " + got.peer.addr().String()}) {
			t.Errorf("%s: candidates %v", name, c)
		}
	}
	if r := grant.GetRelay(); r.GetPort() == 0 || r.GetNonce() == "" || r.GetTlsPort() != 0 || offer.GetRelay() != nil {
		t.Errorf("relays: %v, %v", r, offer.GetRelay())
	}
	if grant.GetMinerUdpBlocked() {
		t.Error("the miner is not blocked")
	}
}

func TestRelayModesInGrants(t *testing.T) {
	t.Parallel()
	l := pathsLab(t)
	miner, client := l.attack(signalpb.Role_ROLE_MINER, "miner"), l.attack(signalpb.Role_ROLE_CLIENT, "client")
	const auto, never, always = signalpb.RelayMode_RELAY_MODE_AUTO, signalpb.RelayMode_RELAY_MODE_NEVER, signalpb.RelayMode_RELAY_MODE_ALWAYS
	for i, tt := range []struct {
		client, miner signalpb.RelayMode
		directOnly    bool
		hidden, lent  bool
	}{
		{auto, auto, false, false, true},
		{always, auto, false, true, true},
		{auto, always, false, true, true},
		{never, auto, false, false, false},
		{auto, never, false, false, false},
		{always, never, false, true, false},
		{auto, auto, true, false, false},
	} {
		miner.leaseWith(&signalpb.Network{Relay: tt.miner})
		grant, offer := matched(t, client, miner, byte(i), &signalpb.MatchRequest{
			Network: &signalpb.Network{Relay: tt.client}, Needs: &signalpb.Needs{DirectOnly: tt.directOnly},
		})
		if (grant.GetRelay() != nil) != tt.lent {
			t.Errorf("%v, %v: relay %v", tt.client, tt.miner, grant.GetRelay())
		}
		hidden := len(grant.GetCandidates()) == 0 && len(offer.GetCandidates()) == 0 && len(offer.GetProven()) == 0
		chosen := grant.GetExpect() == signalpb.Expectation_EXPECTATION_RELAY && grant.GetExpectReason() == signalpb.PathReason_PATH_REASON_RELAY_CHOSEN
		if hidden != tt.hidden || chosen != tt.hidden {
			t.Errorf("%v, %v: %v for reason %v, candidates %v and %v", tt.client, tt.miner, grant.GetExpect(), grant.GetExpectReason(), grant.GetCandidates(), offer.GetCandidates())
		}
		if tt.lent && len(grant.GetProven()) == 0 {
			t.Errorf("%v, %v: the client must know whom its relay may reach", tt.client, tt.miner)
		}
	}
}

// A miner that UDP does not reach is lent a relay of its own.
func TestBlockedMinerGetsALeg(t *testing.T) {
	t.Parallel()
	l := pathsLab(t)
	miner, client := l.attack(signalpb.Role_ROLE_MINER, "miner"), l.attack(signalpb.Role_ROLE_CLIENT, "client")
	miner.leaseWith(&signalpb.Network{UdpBlocked: true})
	grant, offer := matched(t, client, miner, 1, &signalpb.MatchRequest{})
	a, b := grant.GetRelay(), offer.GetRelay()
	if !grant.GetMinerUdpBlocked() || grant.GetExpectReason() != signalpb.PathReason_PATH_REASON_MINER_UDP_BLOCKED || a == nil || b == nil ||
		a.GetUsername() == b.GetUsername() || a.GetPassword() == b.GetPassword() || b.GetNonce() == "" {
		t.Errorf("%v", grant.GetExpectReason())
	}
}

// What a node proves after the match reaches the other end, and its relay; what
// it only claims does not.
func TestLateProofs(t *testing.T) {
	t.Parallel()
	l := pathsLab(t)
	miner, client := l.attack(signalpb.Role_ROLE_MINER, "miner"), l.attack(signalpb.Role_ROLE_CLIENT, "client")
	miner.leaseWith(nil)
	grant, _ := matched(t, client, miner, 1, &signalpb.MatchRequest{})
	session := grant.GetSession()
	claim := func(c ...*signalpb.Candidate) {
		client.say(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{Session: session, Candidates: c}}})
	}
	claim(candidate(mappedKind, "30.0.0.1:99"), candidate(relayKind, "127.0.0.1:50000"))

	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	proof, _ := ice.SignProbe(client.key, l.key.ID(), 0, time.Now())
	for range 2 { // a replay is no news
		if _, err := socket.WriteToUDPAddrPort(proof, l.co.probes.Addrs()[0]); err != nil {
			t.Fatal(err)
		}
	}
	from := socket.LocalAddr().(*net.UDPAddr).AddrPort()
	got := miner.hear("the proof", isCandidates).GetCandidates()
	if !slices.Equal(readAddresses(got.GetProven()), []netip.AddrPort{from}) || len(got.GetCandidates()) != 1 {
		t.Errorf("%v", got)
	}
	// The order of one peer's messages is kept: what was claimed before was dropped.
	claim(candidate(hostKind, from.String()), candidate(hostKind, "127.0.0.1:631"))
	if got := miner.hear("candidates", isCandidates).GetCandidates(); !slices.Equal(texts(got.GetCandidates()), []string{"host " + from.String()}) || got.GetProven() != nil {
		t.Errorf("%v", got)
	}

	// Whose session is old is told nothing more.
	id, _ := identity.SessionIDFromBytes(session)
	l.co.mu.Lock()
	l.co.sessions[id].matched = time.Now().Add(-proofTrickle - time.Second)
	before := l.co.sessions[id].trickles[signalpb.Role_ROLE_CLIENT]
	l.co.mu.Unlock()
	l.co.onProof(ice.Proof{Node: client.key.ID(), From: netip.MustParseAddrPort("30.0.0.1:1"), At: l.co.probes.Addrs()[0]})
	l.co.mu.Lock()
	after := l.co.sessions[id].trickles[signalpb.Role_ROLE_CLIENT]
	l.co.mu.Unlock()
	if before != after {
		t.Error("an old session is told of a proof")
	}
}

// The coordinator tells of relayed addresses of its own relay by itself.
func TestAllocationsAreTold(t *testing.T) {
	t.Parallel()
	l := pathsLab(t)
	miner, client := l.attack(signalpb.Role_ROLE_MINER, "miner"), l.attack(signalpb.Role_ROLE_CLIENT, "client")
	miner.leaseWith(nil)
	grant, _ := matched(t, client, miner, 1, &signalpb.MatchRequest{})
	id, _ := identity.SessionIDFromBytes(grant.GetSession())
	for ofMiner, other := range map[bool]*attacker{false: miner, true: client} {
		l.co.allocated(id, ofMiner, at("60.0.0.1:50000"), "udp")
		if got := other.hear("the relayed address", isCandidates).GetCandidates(); !slices.Equal(texts(got.GetCandidates()), []string{"relay-udp 60.0.0.1:50000"}) {
			t.Errorf("of the miner %v: %v", ofMiner, got)
		}
	}
	for range 10 * maxTrickles {
		l.co.allocated(id, false, at("60.0.0.1:50000"), "udp")
	}
	l.co.allocated(identity.NewSessionID(), false, at("60.0.0.1:50000"), "udp")
	l.co.mu.Lock()
	defer l.co.mu.Unlock()
	if n := l.co.sessions[id].relayed; n != maxTrickles {
		t.Errorf("told %d times", n)
	}
}

// A peer's report counts where the two are apart, and for the other end only.
func TestPeerReports(t *testing.T) {
	t.Parallel()
	l := pathsLab(t)
	miner, client := l.attack(signalpb.Role_ROLE_MINER, "miner"), l.attack(signalpb.Role_ROLE_CLIENT, "client")
	miner.leaseWith(nil)
	grant, _ := matched(t, client, miner, 1, &signalpb.MatchRequest{})
	report := func(from *attacker, addr string) {
		from.say(&signalpb.Envelope{Message: &signalpb.Envelope_PeerSeen{PeerSeen: &signalpb.PeerSeen{Session: grant.GetSession(), Address: writeAddress(at(addr))}}})
	}
	// All are on this machine, so nothing is learnt; it must not disturb either.
	report(client, miner.addr().String())
	report(miner, "30.0.0.1:5")
	miner.leaseWith(nil) // answered after the report
	for _, id := range []identity.NodeID{miner.key.ID(), client.key.ID()} {
		if f := l.co.view.Family(id, false, time.Now()); f == nil || f.Mapping != ice.Unknown {
			t.Errorf("%+v", f)
		}
	}
}

// The kind of a path and its reason are what clients report, and nothing that
// they make up.
func TestTunnelReasonsInMetrics(t *testing.T) {
	t.Parallel()
	l := pathsLab(t)
	m := l.config.Metrics
	for _, s := range []*signalpb.TunnelStatus{
		{State: signalpb.TunnelState_TUNNEL_UP, PathKind: "relay-tls", Reason: signalpb.PathReason_PATH_REASON_CLIENT_UDP_BLOCKED},
		{State: signalpb.TunnelState_TUNNEL_UP, PathKind: "x", Reason: 77},
	} {
		m.tunnel(s)
	}
	families, err := l.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		switch f.GetName() {
		case "mintai_coordinator_tunnel_reports_total":
			for _, series := range f.GetMetric() {
				labels := ""
				for _, label := range series.GetLabel() {
					labels += label.GetName() + "=" + label.GetValue() + " "
				}
				got = append(got, labels)
			}
		case "mintai_coordinator_relay_allocations":
			got = append(got, f.GetName())
		}
	}
	slices.Sort(got)
	want := []string{
		"mintai_coordinator_relay_allocations", "path=other reason=unknown state=TUNNEL_UP ", "path=relay-tls reason=client-udp-blocked state=TUNNEL_UP ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestOperatorRelays(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"turn:relay.example.org":                 "relay.example.org",
		"turn:192.0.2.1:3478?transport=udp":      "192.0.2.1",
		"turn:[2001:db8::1]:3478?transport=udp":  "2001:db8::1",
		"turn:[2001:db8::1]":                     "2001:db8::1",
		"turn:relay.example.org?transport=udp":   "relay.example.org",
		"turn:relay.example.org:1?transport=udp": "relay.example.org",
	} {
		if got := turnHost(url); got != want {
			t.Errorf("%s: %s", url, got)
		}
	}
	r := operatorRelays{urls: []string{"turn:192.0.2.1:3478", "turn:[2001:db8::1]"}}
	l := newLab(t)
	r.resolve(t.Context(), l.logger)
	if got := r.addrs(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}) {
		t.Errorf("%v", got)
	}
}

// One forged packet makes the relay carry nothing into the coordinator's own
// network, or to its own services.
func TestForgedSourcesAreNotRelayedTo(t *testing.T) {
	c := &coordinator{addrs: []netip.Addr{netip.MustParseAddr("20.0.0.1"), netip.MustParseAddr("10.0.0.1")}, looked: time.Now()}
	proven := addrs("30.0.0.1:1", "10.0.0.5:8125", "169.254.169.254:9999", "127.0.0.1:5353", "20.0.0.1:6081", "10.0.0.1:6081", "100.64.0.9:2", "[fd00:ec2::254]:5")
	for connected, want := range map[string][]netip.AddrPort{
		"30.0.0.1":  addrs("30.0.0.1:1"),
		"10.0.0.5":  addrs("30.0.0.1:1", "10.0.0.5:8125"), // a miner in the coordinator's network
		"20.0.0.1":  addrs("30.0.0.1:1", "127.0.0.1:5353", "20.0.0.1:6081", "10.0.0.1:6081"),
		"127.0.0.1": addrs("30.0.0.1:1", "127.0.0.1:5353", "20.0.0.1:6081", "10.0.0.1:6081"),
	} {
		if got := c.relayable(proven, netip.MustParseAddr(connected)); !slices.Equal(got, want) {
			t.Errorf("connected from %s: %v, want %v", connected, got, want)
		}
	}
}

// A miner on the coordinator's machine is seen on loopback and comes to the relay
// from another address of it: the leg of a client elsewhere must know that from
// the start, not only once the miner has proven it.
func TestTheRelayKnowsWhoIsBesideIt(t *testing.T) {
	beside := peerView{observed: at("127.0.0.1:5000"), proven: addrs("127.0.0.1:5000"), beside: addrs("192.168.1.2:5000")}
	if got := beside.expected(outlook{hidden: true}, true); !slices.Equal(got, addrs("192.168.1.2:5000", "127.0.0.1:5000")) {
		t.Errorf("to a client elsewhere: %v", got)
	}
	if got := beside.expected(outlook{hidden: true}, false); len(got) != 0 {
		t.Errorf("without a relay: %v", got)
	}
	beside.told = beside.proven
	if got := beside.expected(outlook{}, true); !slices.Equal(got, addrs("127.0.0.1:5000")) {
		t.Errorf("to a client beside it: %v", got)
	}
}
