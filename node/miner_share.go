package node

import "mintai/identity"

// mayCheckLocked reports whether one more session of the client may look for a
// path. When too many do, it takes the place of the latest one of the client
// that has the most: one that asks and never comes keeps nobody else out. A
// session in use goes on, and only looks no further.
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
		if l := latest[s.client]; l == nil || l.used && !s.used || l.used == s.used && s.checked.After(l.checked) {
			latest[s.client] = s
		}
		if count[s.client] > count[most] {
			most = s.client
		}
	}
	switch {
	case checking < maxChecking:
		return true
	case count[most] <= count[client]+1:
		return false
	}
	victim := latest[most]
	if !victim.used {
		m.endLocked(victim)
		return true
	}
	victim.stopChecksLocked()
	victim.stopProbeLocked()
	m.socket.Dismiss(victim.id)
	return true
}
