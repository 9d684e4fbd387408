package node

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mintai/ice"
	"mintai/identity"
	"mintai/signal/signalpb"
)

// A coordinator from before addresses were proven grants a miner of which
// nothing is proven. Nothing is sent to it, and the person is told why.
func TestGrantOfAnOldCoordinator(t *testing.T) {
	t.Parallel()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	socket, err := ice.Listen(ice.SocketConfig{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	id, miner := identity.NewSessionID(), key.ID()
	local, _ := mintICE()
	at := netip.MustParseAddrPort("127.0.0.1:9")
	grant := &signalpb.Grant{
		Session: id[:], Miner: miner[:], MinerName: "gpu-box", LifetimeMs: time.Hour.Milliseconds(), Ice: local,
		Candidates: writeCandidates([]ice.Candidate{{Kind: ice.Srflx, Addr: at}}),
	}
	for _, old := range []bool{true, false} {
		if !old {
			grant.Proven = writeAddresses([]netip.AddrPort{at})
		}
		s, err := readGrant(grant)
		if err != nil {
			t.Fatal(err)
		}
		c := &connector{
			key: key, socket: socket, relayMode: RelayAuto, deadlines: Deadlines{Direct: 100 * time.Millisecond, QUIC: time.Second, MaxIdle: time.Second},
			trickle: func(identity.SessionID, []ice.Candidate) {}, seen: func(identity.SessionID, ice.Reached) {},
			unsaid:      func() ([]ice.Candidate, <-chan struct{}) { return nil, nil },
			coordinator: func() coordinatorAt { return coordinatorAt{host: "127.0.0.1"} },
		}
		_, err = c.connect(t.Context(), s, wanted{})
		var path *PathError
		if !errors.As(err, &path) || strings.Contains(path.Reason, "older than this program") != old {
			t.Errorf("old %v: %v", old, err)
		}
	}
}
