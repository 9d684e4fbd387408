package node

import "mintai/identity"

// mayCheckLocked reports whether one more session of the client may look for a
// path. When too many do, it takes the place of the latest one of the client
// that has the most: one that asks and never comes keeps nobody else out.
func (m *miner) mayCheckLocked(client identity.NodeID) bool {
	latest := map[identity.NodeID]*minerSession{}
	count := map[identity.NodeID]int{}
	checking := 0
	var most identity.NodeID
	for _, s := range m.sessions {
		if s.checks == nil {
			continue
		}
		checking++
		count[s.client]++
		if l := latest[s.client]; !s.used && (l == nil || s.since.After(l.since)) { // one in use keeps its place
			latest[s.client] = s
		}
		if count[s.client] > count[most] {
			most = s.client
		}
	}
	switch {
	case checking < maxChecking:
		return true
	case count[most] <= count[client]+1 || latest[most] == nil:
		return false
	}
	m.endLocked(latest[most])
	return true
}
