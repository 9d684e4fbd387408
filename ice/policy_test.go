package ice

import (
	"errors"
	"net/netip"
	"testing"

	"mintai/identity"
)

func TestPolicy(t *testing.T) {
	proven := []netip.AddrPort{
		netip.MustParseAddrPort("203.0.113.7:4433"),
		netip.MustParseAddrPort("[2001:db8::7]:4433"),
		netip.MustParseAddrPort("127.0.0.1:4433"),
		netip.MustParseAddrPort("169.254.1.1:4433"),
		netip.MustParseAddrPort("[::ffff:203.0.113.9]:4433"),
		netip.MustParseAddrPort("192.168.9.9:4433"),
	}
	far := &Policy{Proven: proven, Relays: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("::ffff:198.51.100.2")}}
	near := &Policy{Proven: proven, Near: true}
	for _, tc := range []struct {
		kind              Kind
		addr              string
		nobody, far, near bool // what a policy without rights, far and near allow
	}{
		{Srflx, "203.0.113.7:4433", false, true, true},
		{Srflx, "203.0.113.7:9", false, true, true}, // a NAT may choose another port
		{Mapped, "203.0.113.7:9", false, true, true},
		{Srflx, "203.0.113.8:4433", false, false, false},
		{Srflx, "203.0.113.9:4433", false, true, true},
		{Srflx, "[::ffff:203.0.113.7]:4433", false, true, true},
		{Host, "[2001:db8::7]:9", false, true, true},
		{Host, "[2001:db8::8]:4433", false, false, false},
		{Host, "192.168.1.5:4433", false, false, true},
		{Host, "10.0.0.1:4433", false, false, true},
		{Host, "172.16.0.1:4433", false, false, true},
		{Host, "172.32.0.1:4433", false, false, false},
		{Host, "100.64.0.1:4433", false, false, true},
		{Host, "100.128.0.1:4433", false, false, false},
		{Host, "[fd00::1]:4433", false, false, true},
		{Host, "192.168.9.9:1", false, true, true}, // the coordinator is in that network
		{Host, "127.0.0.1:4433", false, true, true},
		{Host, "127.0.0.1:22", false, false, false},
		{Host, "127.0.0.2:4433", false, false, false},
		{Host, "[::1]:4433", false, false, false},
		{Host, "[::ffff:127.0.0.1]:22", false, false, false},
		{Host, "169.254.1.1:4433", false, true, true},
		{Host, "169.254.1.1:80", false, false, false},
		{Host, "169.254.169.254:80", false, false, false}, // where clouds keep credentials
		{Host, "[fe80::1]:4433", false, false, false},
		{RelayUDP, "198.51.100.1:50000", false, true, false},
		{RelayUDP, "198.51.100.2:50000", false, true, false},
		{RelayTLS, "198.51.100.1:50000", false, true, false},
		{RelayUDP, "203.0.113.7:4433", false, false, false}, // proven, but no relay
		{Srflx, "198.51.100.1:50000", false, false, false},  // a relay, but not its candidate
		{Host, "0.1.2.3:4433", false, false, false},
		{Host, "[64:ff9b::7f00:1]:22", false, false, false}, // loopback behind a NAT64
	} {
		c := Candidate{Kind: tc.kind, Addr: netip.MustParseAddrPort(tc.addr)}
		for name, p := range map[string]struct {
			*Policy
			want bool
		}{"no": {&Policy{}, tc.nobody}, "far": {far, tc.far}, "near": {near, tc.near}, "nil": {nil, true}} {
			err := p.Allows(c)
			if (err == nil) != p.want || err != nil && !errors.Is(err, ErrForbidden) {
				t.Errorf("%v, %s policy: %v", c, name, err)
			}
			if err == nil && !p.allowsAddr(c.Addr) {
				t.Errorf("%v, %s policy: allowed as a candidate and not as a source", c, name)
			}
		}
	}
}

// Nothing makes these addresses good, not even a coordinator that vouches.
func TestPolicyNever(t *testing.T) {
	for _, s := range []string{
		"0.0.0.0:1", "[::]:1", "224.0.0.1:1", "239.1.2.3:1", "255.255.255.255:1", "[ff02::1]:1", "[::ffff:224.0.0.1]:1",
		"203.0.113.7:0", "[fe80::1%eth0]:1",
	} {
		a := netip.MustParseAddrPort(s)
		all := &Policy{Proven: []netip.AddrPort{a}, Near: true, Relays: []netip.Addr{a.Addr()}}
		for _, p := range []*Policy{nil, all} {
			for _, k := range []Kind{Host, RelayUDP} {
				if err := p.Allows(Candidate{Kind: k, Addr: a}); !errors.Is(err, ErrBadCandidate) {
					t.Errorf("%s: %v", s, err)
				}
			}
		}
		if all.allowsAddr(a) {
			t.Errorf("%s is a good source", s)
		}
	}
}

func TestPolicyIsBoundedAndCopied(t *testing.T) {
	p := &Policy{Proven: testAddrs(maxProven)}
	c := p.clone()
	c.prove(testAddrs(maxProven + 5))
	c.prove([]netip.AddrPort{{}})
	if len(c.Proven) != maxProven {
		t.Errorf("%d proven addresses", len(c.Proven))
	}
	p.Proven[0] = netip.AddrPort{}
	if !c.Proven[0].IsValid() || (*Policy)(nil).clone() != nil {
		t.Error("the copy shares its addresses")
	}
}

// A session under a policy sends to nobody that it forbids, whoever names them,
// and answers nobody either, until a proof comes.
func TestSessionKeepsItsPolicy(t *testing.T) {
	client, miner := newParty(t, SocketConfig{Loopback: true}), newParty(t, SocketConfig{Loopback: true})
	victim := newParty(t, SocketConfig{Loopback: true})
	at := loopback(client.socket)
	m, err := miner.socket.Open(SessionConfig{
		ID: identity.SessionID{1}, Peer: client.key.ID(), Local: miner.creds, Remote: client.creds,
		Candidates: []Candidate{at, loopback(victim.socket), {Kind: Srflx, Addr: netip.MustParseAddrPort("203.0.113.7:1")}},
		Policy:     &Policy{},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	c := open(t, client, miner, true, loopback(miner.socket))
	eventually(t, "checks from a forbidden address", func() bool { return miner.socket.Stats().Forbidden >= 5 })
	if err := m.AddRemote(at); !errors.Is(err, ErrForbidden) {
		t.Errorf("a forbidden candidate: %v", err)
	}
	if st := m.Stats(); st.Sent != 0 || st.Authenticated != 0 {
		t.Errorf("stats %+v", st)
	}
	if st := victim.socket.Stats(); st.Received != 0 {
		t.Errorf("the victim got %d checks", st.Received)
	}
	// The proof makes the candidate good that was refused.
	m.Prove(at.Addr)
	if r := await(t, m.Addrs()); r.Addr != at.Addr || r.Kind != Host {
		t.Errorf("reached %v", r)
	}
	await(t, c.Addrs())
	if st := victim.socket.Stats(); st.Received != 0 {
		t.Errorf("the victim got %d checks", st.Received)
	}
}
