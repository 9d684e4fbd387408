package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"mintai/ice"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// upgradeLimit is for the search of a direct path beside a relayed one: as long
// as hard-NAT probing takes.
const upgradeLimit = 7 * time.Second

// rescueGrace is how long a relayed tunnel waits for a direct handshake under way
// when an answer has stopped.
const rescueGrace = 100 * time.Millisecond

// errUnlikely says that no direct path is foreseen, so that none was looked for.
var errUnlikely = errors.New("no direct path is foreseen")

// wanted says what path is looked for. The zero wanted is the first of a session.
type wanted struct {
	cause      signalpb.PathCause
	old        *link     // the present tunnel
	until      time.Time // by when it must be there
	introduced func()    // called when the coordinator has introduced the two
	relayOnly  bool      // no direct path will do
	// tell tells the miner of this node's relayed address. Nil: the coordinator
	// passes it on.
	tell func(context.Context, []ice.Candidate) error
}

// isUpgrade reports whether only a direct path will do.
func (w wanted) isUpgrade() bool { return w.cause == signalpb.PathCause_PATH_CAUSE_UPGRADE }

// isRescue reports whether an answer may be waiting.
func (w wanted) isRescue() bool {
	return w.cause == signalpb.PathCause_PATH_CAUSE_LOST || w.cause == signalpb.PathCause_PATH_CAUSE_MOVED
}

// findPath opens another tunnel to the session's miner, or says why not.
func (c *client) findPath(ctx context.Context, s *session, w wanted) searched {
	ctx, cancel := context.WithDeadline(ctx, w.until)
	defer cancel()
	if w.isUpgrade() && (c.connector.relayMode == RelayAlways || c.sig.Status().OverTLS) {
		return searched{err: errUnlikely}
	}
	l, err := c.anotherPath(ctx, s, w)
	if err == nil {
		return searched{link: l, session: s}
	}
	var none *signal.NoMatchError
	if errors.As(err, &none) && none.NoMatch.GetCode() == signalpb.NoMatchCode_NO_MATCH_NO_SESSION && w.isRescue() {
		return c.anotherSession(ctx, s, w) // the coordinator was started anew
	}
	return searched{err: err}
}

// anotherPath asks the coordinator to introduce the two once more.
func (c *client) anotherPath(ctx context.Context, s *session, w wanted) (*link, error) {
	req := &signalpb.PathRequest{
		Nonce: make([]byte, 16), Session: s.id[:], Cause: w.cause,
		Network: c.network.message(), Candidates: writeCandidates(c.network.candidates()),
		Probing: w.isUpgrade() && c.probing,
	}
	_, _ = rand.Read(req.Nonce) // never fails: crypto/rand aborts the process instead
	c.mu.Lock()
	s.paths++
	req.Path = s.paths
	s.attempt, s.asking = nil, true // what comes of the miner from now on is for the new path
	c.mu.Unlock()
	defer c.stopAsking(s)
	matching, err := c.sig.Path(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("asking for another path: %w", err)
	}
	defer matching.Close()
	attempt, err := readGrant(matching.Grant)
	if err != nil {
		return nil, err
	}
	if attempt.id != s.id || attempt.miner != s.miner {
		return nil, errors.New("the coordinator named another miner than this session's")
	}
	if req.GetProbing() { // and not because a coordinator says so
		attempt.probing = readProbing(matching.Grant.GetProbing(), time.Now())
	}
	if w.isUpgrade() && attempt.expect == ice.RelayNeeded && attempt.probing == nil {
		return nil, errUnlikely
	}
	c.mu.Lock()
	s.attempt, s.asking = attempt, false
	c.catchUpLocked(attempt)
	c.mu.Unlock()
	if w.introduced != nil {
		w.introduced()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() { // ends with this function
		select {
		case update := <-matching.Updates(): // the miner does not know the session any more, or does not answer
			cancel(update.Err)
		case <-done:
		}
	}()
	l, err := c.connector.connect(ctx, attempt, w)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
		return nil, err
	}
	return l, nil
}

// stopAsking lets what comes of the miner go to nobody but the session's next
// path.
func (c *client) stopAsking(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.attempt, s.asking = nil, false
}

// anotherSession matches anew, with the very same miner: only that one has the
// answers that wait.
func (c *client) anotherSession(ctx context.Context, s *session, w wanted) searched {
	n := s.warm.needs()
	n.miner = s.miner.String()
	matching, err := c.sig.Match(ctx, c.matchRequest(n, nil, 1))
	if err != nil {
		return searched{err: fmt.Errorf("matching anew: %w", err)} // the miner may be on its way to the new coordinator too
	}
	defer matching.Close()
	fresh, err := readGrant(matching.Grant)
	if err == nil && fresh.miner != s.miner {
		c.endSession(fresh.id, "not the pinned miner")
		err = errors.New("the coordinator named another miner than this session's")
	}
	if err != nil {
		return searched{err: err}
	}
	c.remember(fresh, s.warm.needs())
	if w.introduced != nil {
		w.introduced()
	}
	l, err := c.connector.connect(ctx, fresh, w)
	if err != nil {
		c.done(fresh)
		c.retire(fresh, "no path")
		return searched{err: err}
	}
	return searched{link: l, session: fresh}
}

// needs are those that a session of the key was granted for.
func (k warmKey) needs() needs {
	n := needs{model: k.model, miner: k.miner, call: k.call}
	n.Tools, n.Vision, n.JSON = k.tools, k.vision, k.json
	if k.contextClass > 0 {
		n.ContextTokens = 4096 << (k.contextClass - 1)
	}
	return n
}

// relocated is called when this machine's addresses have changed.
func (c *client) relocated() {
	c.log.Info().Msg("this machine is in another network")
	c.network.relocated()
	c.wakeRoutes(func(r *route) chan struct{} { return r.moved })
}

// wakeRoutes tells every route of something.
func (c *client) wakeRoutes(of func(*route) chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		wake(of(l.route))
	}
}
