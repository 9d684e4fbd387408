package node

import (
	"net/netip"
	"testing"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// What the coordinator tells of a session is not lost when it is read before
// whoever waits for the grant has taken it: both may come in one packet.
func TestCandidatesThatOvertakeTheirGrant(t *testing.T) {
	t.Parallel()
	c := &client{sessions: map[identity.SessionID]*session{}, warm: map[warmKey][]*session{}}
	addr := netip.MustParseAddrPort("20.0.0.9:49152")
	say := func(id identity.SessionID, candidates []ice.Candidate, proven ...netip.AddrPort) {
		(*clientHandler)(c).Message(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{
			Session: id[:], Candidates: writeCandidates(candidates), Proven: writeAddresses(proven),
		}}})
	}
	s := &session{id: identity.NewSessionID(), trickled: make(chan trickled, maxTrickled)}
	say(identity.NewSessionID(), []ice.Candidate{{Kind: ice.Srflx, Addr: addr}})
	say(s.id, []ice.Candidate{{Kind: ice.RelayUDP, Addr: addr}})
	say(s.id, nil, addr)
	c.remember(s, needs{})
	say(s.id, []ice.Candidate{{Kind: ice.Srflx, Addr: addr}}, addr)
	for i, want := range []struct{ candidate, proven bool }{{true, false}, {false, true}, {true, true}} {
		select {
		case got := <-s.trickled:
			if got.candidate.Addr.IsValid() != want.candidate || len(got.proven) > 0 != want.proven {
				t.Errorf("%d: %+v", i, got)
			}
		default:
			t.Fatalf("%d: nothing came", i)
		}
	}
	if n := len(s.trickled); n > 0 {
		t.Errorf("%d more came", n)
	}
	for range 10 * maxEarly {
		say(identity.NewSessionID(), []ice.Candidate{{Kind: ice.Srflx, Addr: addr}})
	}
	if len(c.early) != maxEarly {
		t.Errorf("%d wait for sessions that never come", len(c.early))
	}
}

// A tunnel over a relay lives as long as the session for which that was lent,
// whoever owns the relay: the miner's own is no exception.
func TestSessionsOfRelaysAreRenewed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for kind, want := range map[ice.Kind]bool{ice.RelayTLS: true, ice.RelayUDP: true, ice.Srflx: false} {
		l := &link{kind: kind, owner: &session{expires: now.Add(renewBefore / 2)}}
		if got := l.endsSoon(now); got != want {
			t.Errorf("%v: %v", kind, got)
		}
		if l.endsSoon(now.Add(-renewBefore)) {
			t.Errorf("%v: too early", kind)
		}
	}
}

// A client that connects to its coordinator anew, as it does when UDP comes back,
// hears there at once what concerns its sessions.
func TestSessionsFollowTheConnection(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.miner("gpu-box", newAI(t, "m", whole))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	s := cl.session(t, m)
	spokenOn := func() *signal.Peer {
		l.co.mu.Lock()
		defer l.co.mu.Unlock()
		if known := l.co.sessions[s.id]; known != nil {
			return known.client
		}
		return nil
	}
	before := spokenOn()
	if before == nil {
		t.Fatal("the coordinator does not know the session")
	}
	before.Close(signal.CloseLostRace, "for a test")
	waitUntil(t, "the session is spoken of on another connection", func() bool {
		p := spokenOn()
		return p != nil && p != before
	})
}
