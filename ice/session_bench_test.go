package ice

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkReached measures the time from "both sides have the candidates" to
// the first address at the client, over loopback. It reports the median and
// the worst of all rounds in microseconds.
func BenchmarkReached(b *testing.B) {
	client, miner := newParty(b, SocketConfig{}), newParty(b, SocketConfig{})
	var took []time.Duration
	for b.Loop() {
		client.creds, miner.creds = NewCredentials(), NewCredentials()
		start := time.Now()
		m := openQuiet(b, miner, client, false, loopback(client.socket))
		c := openQuiet(b, client, miner, true, loopback(miner.socket))
		took = append(took, await(b, c.Addrs()).At.Sub(start))
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-µs")
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-µs")
}

func openQuiet(b *testing.B, p, peer *party, controlling bool, candidates ...Candidate) *Session {
	b.Helper()
	x, err := p.socket.Open(SessionConfig{
		Peer: peer.key.ID(), Controlling: controlling, Local: p.creds, Remote: peer.creds, Candidates: candidates,
	})
	if err != nil {
		b.Fatal(err)
	}
	return x
}
