package signal

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/rs/zerolog"

	"mintai/identity"
)

// maxTicketFile bounds what is read of a ticket file, in bytes.
const maxTicketFile = 64 << 10

// tickets is a tls.ClientSessionCache for one coordinator, kept in a file so
// that the next process may send its first request in 0-RTT. The ticket is not
// used up: several processes of a user may start at once, and the coordinator
// tells their requests apart by nonce.
type tickets struct {
	path string // empty: memory only
	node identity.NodeID
	log  zerolog.Logger

	mu          sync.Mutex // guards all below
	coordinator identity.NodeID
	state       *tls.ClientSessionState // nil: none
}

var _ tls.ClientSessionCache = (*tickets)(nil)

// ticketFile is what stands in the file. It is a secret: whoever has it can
// act as the node until the ticket expires.
type ticketFile struct {
	Version     int             `json:"v"`
	ALPN        string          `json:"alpn"`
	Node        identity.NodeID `json:"node"`        // whose key the session proved
	Coordinator identity.NodeID `json:"coordinator"` // who can open the ticket
	Ticket      []byte          `json:"ticket"`
	State       []byte          `json:"state"`
}

func openTickets(path string, node identity.NodeID, log zerolog.Logger) *tickets {
	t := &tickets{path: path, node: node, log: log}
	if path == "" {
		return t
	}
	if err := t.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Debug().Err(err).Msg("no usable session ticket")
	}
	return t
}

// load reads the file. A file that is broken, exposed, or of another key is as
// good as none: the handshake then takes a round trip more.
func (t *tickets) load() error {
	f, err := os.Open(t.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := private(f); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTicketFile))
	if err != nil {
		return err
	}
	state, coordinator, err := parseTicket(b, t.node)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.coordinator = state, coordinator
	return nil
}

func parseTicket(b []byte, node identity.NodeID) (*tls.ClientSessionState, identity.NodeID, error) {
	var file ticketFile
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, identity.NodeID{}, fmt.Errorf("ticket file: %w", err)
	}
	if file.Version != 1 || file.ALPN != ALPN || file.Node != node || file.Coordinator.IsZero() {
		return nil, identity.NodeID{}, errors.New("ticket file: of another version or key")
	}
	session, err := tls.ParseSessionState(file.State)
	if err != nil {
		return nil, identity.NodeID{}, fmt.Errorf("ticket file: %w", err)
	}
	state, err := tls.NewResumptionState(file.Ticket, session)
	if err != nil {
		return nil, identity.NodeID{}, fmt.Errorf("ticket file: %w", err)
	}
	return state, file.Coordinator, nil
}

// has reports whether a ticket of this coordinator is at hand.
func (t *tickets) has(coordinator identity.NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state != nil && t.coordinator == coordinator && !coordinator.IsZero()
}

// of returns the cache for a connection to coordinator; zero when its name will
// be known only later: then nothing is resumed, and bind says whose it was.
func (t *tickets) of(coordinator identity.NodeID) *ticketCache {
	return &ticketCache{tickets: t, coordinator: coordinator}
}

// Get returns a copy of the ticket whoever gave it; connections use ticketCache.
// It is a copy because quic-go marks the state of a connection without 0-RTT as
// unfit for 0-RTT, and several connections are made at once.
func (t *tickets) Get(string) (*tls.ClientSessionState, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == nil {
		return nil, false
	}
	state, err := cloneTicket(t.state)
	return state, err == nil
}

func cloneTicket(state *tls.ClientSessionState) (*tls.ClientSessionState, error) {
	ticket, session, err := state.ResumptionState()
	if err != nil {
		return nil, err
	}
	b, err := session.Bytes()
	if err != nil {
		return nil, err
	}
	if session, err = tls.ParseSessionState(b); err != nil {
		return nil, err
	}
	return tls.NewResumptionState(ticket, session)
}

// Put forgets the ticket when state is nil; new tickets come by way of store.
func (t *tickets) Put(_ string, state *tls.ClientSessionState) {
	if state == nil {
		t.forget()
	}
}

func (t *tickets) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = nil
	if t.path != "" {
		_ = os.Remove(t.path)
	}
}

// store keeps a ticket and writes it to the file.
func (t *tickets) store(coordinator identity.NodeID, state *tls.ClientSessionState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.coordinator = state, coordinator
	if t.path == "" {
		return
	}
	if err := t.saveLocked(); err != nil {
		t.log.Warn().Err(err).Msg("the session ticket was not stored: the next start takes a round trip more")
	}
}

func (t *tickets) saveLocked() error {
	ticket, session, err := t.state.ResumptionState()
	if err != nil {
		return err
	}
	state, err := session.Bytes()
	if err != nil {
		return err
	}
	b, err := json.Marshal(ticketFile{Version: 1, ALPN: ALPN, Node: t.node, Coordinator: t.coordinator, Ticket: ticket, State: state})
	if err != nil {
		return err
	}
	return writePrivate(t.path, b)
}

// writePrivate replaces a file in one step, readable by its owner only.
func writePrivate(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ticket-*") // CreateTemp uses 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(b)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// ticketCache shows a coordinator's own ticket, and no other's, to one
// connection: what is sent in 0-RTT can be read by whoever gave the ticket.
type ticketCache struct {
	tickets *tickets

	mu          sync.Mutex // guards all below
	coordinator identity.NodeID
	early       *tls.ClientSessionState // came before the coordinator's name was known
}

var _ tls.ClientSessionCache = (*ticketCache)(nil)

// Get implements tls.ClientSessionCache.
func (c *ticketCache) Get(key string) (*tls.ClientSessionState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.tickets.has(c.coordinator) {
		return nil, false
	}
	return c.tickets.Get(key)
}

// Put implements tls.ClientSessionCache.
func (c *ticketCache) Put(key string, state *tls.ClientSessionState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case state == nil:
		c.tickets.Put(key, nil)
	case c.coordinator.IsZero():
		c.early = state
	default:
		c.tickets.store(c.coordinator, state)
	}
}

// bind names the coordinator, after the handshake proved it and it is trusted.
func (c *ticketCache) bind(coordinator identity.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.coordinator = coordinator
	if c.early != nil {
		c.tickets.store(coordinator, c.early)
		c.early = nil
	}
}
