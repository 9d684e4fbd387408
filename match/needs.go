package match

import (
	"fmt"
	"strings"

	"mintai/api"
	"mintai/identity"
)

// Needs is what a request needs of the miner that answers it.
type Needs struct {
	Model api.Model // as the user wrote it; empty: any that answers the call
	// Miner is the name or NodeID of the only miner wanted, or at least six
	// characters that its NodeID begins with; empty: any. A whole NodeID never
	// matches another miner's name.
	Miner         string
	Call          api.Call // the API called; empty: any
	Tools         bool
	Vision        bool
	JSON          bool
	ContextTokens int     // estimate of prompt and answer; 0: unknown
	MinReputation float64 // between 0 and 1; 0: any

	// Local says that the asker was admitted as the coordinator's own user on
	// its own machine.
	Local bool
	// Asker is the node that asks, so that sessions on their way are shared
	// fairly among askers; zero: unknown.
	Asker identity.NodeID
	// Exclude are the miners that just failed this client.
	Exclude []identity.NodeID
}

// Bounds of what a request may ask for; a longer text names nothing.
const (
	maxName    = 256
	maxExclude = 64
)

// check refuses needs that make no sense, with a sentence for the user.
func (n *Needs) check() error {
	bad := func(format string, args ...any) error {
		return &NoMatchError{Code: CodeBadRequest, Detail: fmt.Sprintf(format, args...)}
	}
	switch {
	case len(n.Model) > maxName:
		return bad("the model's name has %d characters; at most %d are possible", len(n.Model), maxName)
	case len(n.Miner) > maxName:
		return bad("the miner's name has %d characters; at most %d are possible", len(n.Miner), maxName)
	case !(n.MinReputation >= 0 && n.MinReputation <= 1): // NaN as well
		return bad("the least reputation must be between 0 and 1, not %v", n.MinReputation)
	case n.ContextTokens < 0:
		return bad("the context cannot be %d tokens", n.ContextTokens)
	case len(n.Exclude) > maxExclude:
		return bad("%d miners were tried already; giving up", len(n.Exclude))
	}
	return nil
}

// minPrefix is the shortest NodeID prefix that names a miner.
const minPrefix = 6

// pin is the miner that a person asked for, as far as the text alone tells.
type pin struct {
	text   string
	id     identity.NodeID // when the text is a whole NodeID
	prefix bool            // some NodeID begins with the text
}

// means reports whether a person asked for this miner: by its NodeID, by what
// it begins with, or by its name in any case.
func (p *pin) means(e *entry) bool {
	switch {
	case !p.id.IsZero():
		return e.lease.Miner == p.id
	case p.prefix:
		return strings.HasPrefix(e.text, p.text)
	}
	return strings.EqualFold(e.lease.Name, p.text)
}

// pinnedLocked reads Needs.Miner against the NodeIDs at hand. A NodeID prefix goes
// before a name, so that a miner cannot take the place of a connected one by
// calling itself like the other's NodeID.
func (b *Board) pinnedLocked(text string) pin {
	if id, err := identity.ParseNodeID(text); err == nil {
		return pin{text: text, id: id}
	}
	p := pin{text: text}
	if len(text) < minPrefix {
		return p
	}
	for _, e := range b.entries {
		if strings.HasPrefix(e.text, text) {
			p.prefix = true
			break
		}
	}
	return p
}
