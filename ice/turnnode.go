package ice

import (
	"golang.org/x/time/rate"

	"mintai/identity"
)

// nodeUse is what all sessions of one node use together.
type nodeUse struct {
	id               identity.NodeID
	sessions, relays int           // guarded by the server's mu
	limit            *rate.Limiter // nil: none
}

// useNodeLocked counts one more session of a node. Nobody's sessions are not
// counted.
func (t *TURNServer) useNodeLocked(id identity.NodeID) *nodeUse {
	if id == (identity.NodeID{}) {
		return nil
	}
	n := t.nodes[id]
	if n == nil {
		n = &nodeUse{id: id, limit: newByteLimit(t.cfg.NodeBytesPerSecond)}
		t.nodes[id] = n
	}
	n.sessions++
	return n
}

// leaveNodeLocked forgets a session of a node, or one of its relays, and the
// node with its last.
func (t *TURNServer) leaveNodeLocked(n *nodeUse, sessions, relays int) {
	if n == nil {
		return
	}
	n.sessions -= sessions
	n.relays -= relays
	if n.sessions == 0 && n.relays == 0 && t.nodes[n.id] == n {
		delete(t.nodes, n.id)
	}
}

// newByteLimit allows a quarter of a second at once, at least one window of a
// young connection. A rate that is not positive is none.
func newByteLimit(bytesPerSecond int) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), max(bytesPerSecond/4, 64<<10))
}
