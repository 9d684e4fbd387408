package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"mintai/backend"
	"mintai/ice"
	"mintai/identity"
)

// book is a log that tests can read while it is written.
type book struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// part is a role that runs until the test is over or stop is called.
type part struct {
	t      testing.TB
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

func start(t testing.TB, name string, run func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{t: t, name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = run(ctx) // of those that are killed it is an error, rightly
	}()
	t.Cleanup(p.stop)
	return p
}

// stop ends the part and waits for it.
func (p *part) stop() {
	p.cancel()
	select {
	case <-p.done:
	case <-time.After(testWait):
		p.t.Errorf("%s does not stop", p.name)
	}
}

// lab is a small network in one process: the roles as they are in production,
// over real sockets on loopback.
type lab struct {
	t           testing.TB
	dir         string
	log         *book
	logger      zerolog.Logger
	key         *identity.Key // of the coordinator
	join, local identity.Secret
	registry    *prometheus.Registry // of all roles

	config coordinatorConfig // for changes before the coordinator starts
	co     *coordinator
	part   *part
	addr   string // of the coordinator's signaling

	clientMetrics *clientMetrics
	minerMetrics  *minerMetrics
}

// newLab starts a coordinator. The options change its configuration.
func newLab(t testing.TB, options ...func(*coordinatorConfig)) *lab {
	t.Helper()
	log := &book{}
	l := &lab{
		t: t, dir: t.TempDir(), log: log, logger: zerolog.New(log).Level(zerolog.TraceLevel),
		key: newKey(t), join: identity.NewSecret(), local: identity.NewSecret(), registry: newRegistry(),
	}
	l.clientMetrics, l.minerMetrics = newClientMetrics(l.registry), newMinerMetrics(l.registry)
	l.config = coordinatorConfig{
		Key: l.key, Listen: "127.0.0.1:0", JoinSecret: l.join, Local: l.local,
		TURN: turnSettings{Enabled: true, Listen: "127.0.0.1:0"}, Relays: []string{RelayOwn},
		Reputation: filepath.Join(l.dir, "reputation.db"),
		Deadlines:  DefaultConfig().Coordinator.Deadlines,
		Log:        l.logger, Metrics: newCoordinatorMetrics(l.registry),
	}
	for _, o := range options {
		o(&l.config)
	}
	t.Cleanup(func() {
		if t.Failed() && testing.Verbose() {
			t.Logf("log:\n%s", l.log)
		}
	})
	l.startCoordinator()
	return l
}

func newKey(t testing.TB) *identity.Key {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// startCoordinator starts it, again on the same port if it ran before.
func (l *lab) startCoordinator() {
	l.t.Helper()
	switch {
	case l.addr != "":
		l.config.Listen = l.addr
	case l.config.Listen == "127.0.0.1:0":
		l.config.Listen = keptAddr()
	}
	co, err := newCoordinator(l.config)
	if err != nil {
		l.t.Fatal(err)
	}
	l.co, l.addr = co, co.Addr().String()
	l.part = start(l.t, "the coordinator", co.Run)
}

// keptAddr is a free address whose port is below those that the system gives out:
// nobody takes it between a stop and the next start.
func keptAddr() string {
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		if conn, err := net.ListenPacket("udp4", addr); err == nil {
			_ = conn.Close()
			return addr
		}
	}
}

// killCoordinator takes its socket away, as kill -9 would: it says nothing to
// anybody.
func (l *lab) killCoordinator() {
	_ = l.co.conn.Close()
	l.part.stop()
}

// link is the join link.
func (l *lab) link() string {
	return identity.Link{Addrs: []string{l.addr}, ID: l.key.ID(), Secret: l.join}.String()
}

// member holds the join link.
func (l *lab) member() membership {
	return membership{addrs: []string{l.addr}, id: l.key.ID(), join: l.join, origin: originFlag}
}

// sameUser has read the runtime file.
func (l *lab) sameUser() membership {
	return membership{addrs: []string{l.addr}, id: l.key.ID(), local: l.local, origin: originRuntime}
}

// labMiner is a running miner.
type labMiner struct {
	*miner
	part *part
	pool *backend.Pool
}

// kill takes the miner's socket away, as kill -9 would.
func (m *labMiner) kill() { _ = m.socket.Transport().Conn.Close() }

func (m *labMiner) id() identity.NodeID { return m.cfg.Key.ID() }

// miner starts a miner in front of an AI server and waits until it is offered.
func (l *lab) miner(name string, ai *aiServer, options ...func(*minerConfig)) *labMiner {
	l.t.Helper()
	pool := l.pool(backend.Options{}, backend.Config{Type: backend.TypeOpenAI, URL: ai.URL, Slots: ai.slots, APIKey: ai.key})
	m := l.newMiner(name, pool, options...)
	m.part = start(l.t, name, m.Run)
	l.waitOffered(m)
	return m
}

func (l *lab) pool(opts backend.Options, cfgs ...backend.Config) *backend.Pool {
	l.t.Helper()
	opts.Log = l.logger
	if opts.AutoURLs == nil {
		opts.AutoURLs = []string{}
	}
	pool, err := backend.New(cfgs, opts)
	if err != nil {
		l.t.Fatal(err)
	}
	return pool
}

// newMiner makes a miner that does not run yet.
func (l *lab) newMiner(name string, pool *backend.Pool, options ...func(*minerConfig)) *labMiner {
	l.t.Helper()
	cfg := minerConfig{
		Membership: l.member(), Key: newKey(l.t), Name: name, Loopback: true, Backends: pool,
		TicketFile: filepath.Join(l.dir, name+"-tickets"),
		Deadlines:  MinerDeadlines{ResumeWindow: time.Second, Drain: time.Second},
		Log:        l.logger, Metrics: l.minerMetrics,
	}
	for _, o := range options {
		o(&cfg)
	}
	m, err := newMiner(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	return &labMiner{miner: m, pool: pool}
}

// waitOffered waits until the coordinator knows the miner's models.
func (l *lab) waitOffered(m *labMiner) {
	l.t.Helper()
	waitUntil(l.t, m.cfg.Name+" is offered", func() bool { return l.isOffered(m.id()) })
}

func (l *lab) isOffered(id identity.NodeID) bool {
	for _, o := range l.co.board.Offers(true, time.Now()) {
		if o.Miner == id {
			return true
		}
	}
	return false
}

// labClient is a running client.
type labClient struct {
	*client
	part *part
}

// kill takes the client's socket away, as kill -9 would.
func (c *labClient) kill() { _ = c.socket.Transport().Conn.Close() }

// client starts a client.
func (l *lab) client(options ...func(*clientConfig)) *labClient {
	l.t.Helper()
	return l.run(l.newClient(options...))
}

// run starts a client that was made.
func (l *lab) run(c *labClient) *labClient {
	l.t.Helper()
	c.part = start(l.t, "a client", c.Run)
	waitUntil(l.t, "the client runs", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.lifetime != nil
	})
	return c
}

// newClient makes a client that does not run yet.
func (l *lab) newClient(options ...func(*clientConfig)) *labClient {
	l.t.Helper()
	cfg := clientConfig{
		Membership: l.member(), Key: newKey(l.t), Loopback: true, Deadlines: DefaultConfig().Client.Deadlines,
		TicketFile: filepath.Join(l.dir, "client-tickets"), Name: "laptop", Log: l.logger, Metrics: l.clientMetrics,
	}
	for _, o := range options {
		o(&cfg)
	}
	c, err := newClient(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	return &labClient{client: c}
}

// tunnel returns the client's open tunnel to the miner.
func (c *labClient) tunnel(t testing.TB, m *labMiner) *link {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.links[m.id()]
	if l == nil {
		t.Fatal("there is no tunnel")
	}
	return l
}

// session returns one live session of the client with the miner.
func (c *labClient) session(t testing.TB, m *labMiner) *session {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if s.miner == m.id() {
			return s
		}
	}
	t.Fatal("there is no session")
	return nil
}

func noCandidates() []ice.Candidate { return nil }

// hidden starts a client that sits behind a NAT of its own and names no
// candidate: nobody reaches it but the coordinator.
func (l *lab) hidden(options ...func(*clientConfig)) *labClient {
	l.t.Helper()
	nat := newNATBox(l.t, l.addr)
	c := l.newClient(append(options, func(c *clientConfig) { c.Membership.addrs = []string{nat.addr()} })...)
	c.network.hosts = noCandidates
	return l.run(c)
}

// unreachable starts a miner that sits behind a NAT of its own and names no
// candidate: nobody reaches it but the coordinator, and those it calls.
func (l *lab) unreachable(name string, ai *aiServer) *labMiner {
	l.t.Helper()
	nat := newNATBox(l.t, l.addr)
	pool := l.pool(backend.Options{}, backend.Config{Type: backend.TypeOpenAI, URL: ai.URL, Slots: ai.slots, APIKey: ai.key})
	m := l.newMiner(name, pool, func(c *minerConfig) { c.Membership.addrs = []string{nat.addr()} })
	m.network.hosts = noCandidates
	m.part = start(l.t, name, m.Run)
	l.waitOffered(m)
	return m
}

// natBox forwards datagrams between those behind it and one address, each from
// a port of its own, and lets nobody else in: a NAT whose filtering is
// address-dependent (RFC 4787 §5).
type natBox struct {
	t      testing.TB
	front  *net.UDPConn
	target *net.UDPAddr
	wg     sync.WaitGroup

	mu    sync.Mutex
	ports map[string]*net.UDPConn
}

func newNATBox(t testing.TB, target string) *natBox {
	t.Helper()
	to, err := net.ResolveUDPAddr("udp4", target)
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b := &natBox{t: t, front: front, target: to, ports: map[string]*net.UDPConn{}}
	b.wg.Go(b.outward)
	t.Cleanup(func() {
		_ = front.Close()
		b.mu.Lock()
		for _, c := range b.ports {
			_ = c.Close()
		}
		b.mu.Unlock()
		b.wg.Wait()
	})
	return b
}

func (b *natBox) addr() string { return b.front.LocalAddr().String() }

func (b *natBox) outward() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := b.front.ReadFromUDP(buf)
		if err != nil {
			return
		}
		b.mu.Lock()
		port := b.ports[from.String()]
		if port == nil {
			if port, err = net.DialUDP("udp4", nil, b.target); err != nil {
				b.mu.Unlock()
				return
			}
			b.ports[from.String()] = port
			b.wg.Go(func() { b.inward(port, from) })
		}
		b.mu.Unlock()
		_, _ = port.Write(buf[:n]) // as lossy as UDP
	}
}

func (b *natBox) inward(port *net.UDPConn, to *net.UDPAddr) {
	buf := make([]byte, 64<<10)
	for {
		n, err := port.Read(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // connection refused: the coordinator is away
		}
		_, _ = b.front.WriteToUDP(buf[:n], to)
	}
}
