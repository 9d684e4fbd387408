package node

import "time"

// expiring is a message that limits a session in time.
type expiring interface {
	GetLifetimeMs() int64
	GetExpiresUnixMs() int64
}

// expiry is when the session ends, by this machine's own clock. The lifetime
// counts: the coordinator's clock and this one may be hours apart, and either
// may be set at any moment. Only a coordinator of before it says no lifetime.
func expiry(m expiring) time.Time {
	if ms := m.GetLifetimeMs(); ms > 0 {
		return time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	return time.UnixMilli(m.GetExpiresUnixMs())
}
