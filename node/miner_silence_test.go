package node

import (
	"testing"
	"time"

	"mintai/identity"
	"mintai/quicstream"
)

func TestSilences(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	tunnel := func(received uint64, requests int) []quicstream.TunnelInfo {
		return []quicstream.TunnelInfo{{
			Peer: identity.NodeID{1}, Since: start, Requests: requests,
			Stats: quicstream.Stats{PacketsReceived: received},
		}}
	}
	s := silences{}
	for i, c := range []struct {
		ms       int
		received uint64
		requests int
		tell     bool
	}{
		{0, 10, 1, false},      // the first look
		{600, 10, 1, false},    // not yet
		{1000, 10, 1, true},    // silent
		{1200, 10, 1, false},   // told already
		{3000, 10, 1, true},    // still silent
		{3200, 11, 1, false},   // it is back
		{3800, 11, 1, false},   //
		{4200, 11, 1, true},    // silent again
		{4400, 11, 0, false},   // nothing runs any more
		{9000, 11, 0, false},   //
		{9200, 11, 1, false},   // something is asked: it begins anew
		{10200, 11, 1, true},   //
		{12200, 11, 1, true},   //
		{14200, 11, 1, true},   //
		{16200, 11, 1, true},   //
		{18200, 11, 1, true},   //
		{20200, 11, 1, false},  // it is gone for good
		{120200, 11, 1, false}, //
	} {
		if got := s.look(start.Add(time.Duration(c.ms)*time.Millisecond), tunnel(c.received, c.requests)); got != c.tell {
			t.Errorf("look %d: %v", i, got)
		}
	}
	if s.look(start, nil); len(s) != 0 {
		t.Errorf("%d tunnels that are gone are remembered", len(s))
	}
}
