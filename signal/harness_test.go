package signal

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"go.uber.org/goleak"

	"mintai/identity"
	"mintai/signal/signalpb"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t testing.TB) *identity.Key {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newTransport opens a loopback socket; port 0 takes any.
func newTransport(t testing.TB, port int, reset *quic.StatelessResetKey) *quic.Transport {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: conn, StatelessResetKey: reset}
	t.Cleanup(func() {
		_ = tr.Close()
		_ = conn.Close()
	})
	return tr
}

type event struct {
	kind string // "joined", "message", "left", "connected", "disconnected"
	peer *Peer
	env  *signalpb.Envelope
	err  error
}

// recorder is both kinds of handler; answer, when set, sees each message first.
type recorder struct {
	events chan event
	answer func(*Peer, *signalpb.Envelope)
}

func newRecorder() *recorder { return &recorder{events: make(chan event, 4096)} }

func (r *recorder) Joined(p *Peer)          { r.events <- event{kind: "joined", peer: p} }
func (r *recorder) Left(p *Peer, err error) { r.events <- event{kind: "left", peer: p, err: err} }
func (r *recorder) Message(p *Peer, env *signalpb.Envelope) {
	r.events <- event{kind: "message", peer: p, env: env}
	if r.answer != nil {
		r.answer(p, env)
	}
}

func (r *recorder) next(t testing.TB, kind string) event {
	t.Helper()
	select {
	case e := <-r.events:
		if e.kind != kind {
			t.Fatalf("event %q (%v, %v) instead of %q", e.kind, e.env, e.err, kind)
		}
		return e
	case <-time.After(patience):
		t.Fatalf("no %q event", kind)
	}
	return event{}
}

type nodeRecorder struct{ *recorder }

func (r nodeRecorder) Connected(*signalpb.Welcome) { r.events <- event{kind: "connected"} }
func (r nodeRecorder) Disconnected(err error)      { r.events <- event{kind: "disconnected", err: err} }

func (r nodeRecorder) Message(env *signalpb.Envelope) {
	r.events <- event{kind: "message", env: env}
}

// coordinator is a running Server.
type coordinator struct {
	*Server
	key  *identity.Key
	tr   *quic.Transport
	rec  *recorder
	stop func()
}

func (c *coordinator) addr() string { return c.tr.Conn.LocalAddr().String() }

type option func(*ServerConfig)

// grants answers each MatchRequest with a Grant.
func grants(p *Peer, env *signalpb.Envelope) {
	if m := env.GetMatchRequest(); m != nil {
		_ = p.Send(testGrant(m.GetNonce(), 1))
	}
}

func testGrant(nonce []byte, attempt uint32) *signalpb.Envelope {
	session := identity.NewSessionID()
	return &signalpb.Envelope{Message: &signalpb.Envelope_Grant{Grant: &signalpb.Grant{
		Nonce: nonce, Session: session[:], Miner: make([]byte, 32), Model: "m", Attempt: attempt,
		Ice: &signalpb.ICE{LocalUfrag: "abcd", RemoteUfrag: "efgh", LocalPwd: "0123456789012345678901", RemotePwd: "0123456789012345678901"},
	}}}
}

func startCoordinator(t testing.TB, key *identity.Key, port int, answer func(*Peer, *signalpb.Envelope), opts ...option) *coordinator {
	t.Helper()
	c := &coordinator{key: key, tr: newTransport(t, port, ResetKey(key)), rec: newRecorder()}
	c.rec.answer = answer
	cfg := ServerConfig{
		Key: key, Conn: c.tr, Handler: c.rec,
		Admit: func(Joining) (string, string, error) { return "member", "somebody", nil },
	}
	for _, o := range opts {
		o(&cfg)
	}
	var err error
	if c.Server, err = NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = c.tr.Close()
		_ = c.tr.Conn.Close()
	})
	t.Cleanup(c.stop)
	return c
}

// runNode runs a Node until the test or stop ends it.
func runNode(t testing.TB, c *coordinator, role signalpb.Role, change func(*NodeConfig)) (*Node, *recorder, func()) {
	t.Helper()
	n, rec, run := makeNode(t, c, role, change)
	return n, rec, run()
}

// makeNode makes a Node and returns what starts it.
func makeNode(t testing.TB, c *coordinator, role signalpb.Role, change func(*NodeConfig)) (*Node, *recorder, func() (stop func())) {
	t.Helper()
	rec := newRecorder()
	cfg := NodeConfig{
		Key: newKey(t), Addrs: []string{c.addr()}, Coordinator: c.key.ID(), Handler: nodeRecorder{rec},
		Hello: func(identity.NodeID) *signalpb.Hello { return &signalpb.Hello{Role: role, Name: "test"} },
	}
	if change != nil {
		change(&cfg)
	}
	if cfg.Transport == nil {
		cfg.Transport = newTransport(t, 0, nil)
	}
	n, err := NewNode(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n, rec, func() func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		stop := sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		})
		t.Cleanup(stop)
		return stop
	}
}

const (
	client = signalpb.Role_ROLE_CLIENT
	miner  = signalpb.Role_ROLE_MINER
)

func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a state that no event announces.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
