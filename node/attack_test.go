package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
)

// attacker is a node that says to the coordinator what it likes.
type attacker struct {
	t      testing.TB
	key    *identity.Key
	conn   *quic.Conn
	stream *quic.Stream
	socket *net.UDPConn
}

// attack admits an attacker: it holds the join link.
func (l *lab) attack(role signalpb.Role, name string) *attacker {
	l.t.Helper()
	return l.attackWith(role, name, &quic.Config{})
}

func (l *lab) attackWith(role signalpb.Role, name string, conf *quic.Config) *attacker {
	l.t.Helper()
	a := &attacker{t: l.t, key: newKey(l.t)}
	tlsConf, err := a.key.ClientTLS(signal.ALPN, l.key.ID(), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	a.socket, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		l.t.Fatal(err)
	}
	transport := &quic.Transport{Conn: a.socket}
	l.t.Cleanup(func() {
		_ = transport.Close()
		_ = a.socket.Close()
	})
	ctx, cancel := context.WithTimeout(l.t.Context(), testWait)
	defer cancel()
	to, err := net.ResolveUDPAddr("udp4", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	if a.conn, err = transport.Dial(ctx, to, tlsConf, conf); err != nil {
		l.t.Fatal(err)
	}
	if a.stream, err = a.conn.OpenStreamSync(ctx); err != nil {
		l.t.Fatal(err)
	}
	a.say(&signalpb.Envelope{Message: &signalpb.Envelope_Hello{
		Hello: l.member().hello(role, a.key.ID(), l.key.ID(), name, nil),
	}})
	a.hear("a welcome", func(e *signalpb.Envelope) bool { return e.GetWelcome() != nil })
	return a
}

func (a *attacker) say(env *signalpb.Envelope) {
	a.t.Helper()
	if err := signal.WriteMessage(a.stream, env); err != nil {
		a.t.Fatal(err)
	}
}

// hear reads until the message that is waited for.
func (a *attacker) hear(what string, is func(*signalpb.Envelope) bool) *signalpb.Envelope {
	a.t.Helper()
	_ = a.stream.SetReadDeadline(time.Now().Add(testWait))
	for {
		env, err := signal.ReadMessage(a.stream)
		if err != nil {
			a.t.Fatalf("waiting for %s: %v", what, err)
		}
		if is(env) {
			return env
		}
	}
}

// request asks for any miner.
func (a *attacker) request(n uint64) {
	a.t.Helper()
	nonce := make([]byte, 16)
	binary.BigEndian.PutUint64(nonce, n)
	a.say(&signalpb.Envelope{Message: &signalpb.Envelope_MatchRequest{MatchRequest: &signalpb.MatchRequest{Nonce: nonce, Needs: &signalpb.Needs{}}}})
}

// isMatched tells the answers to a request.
func isMatched(e *signalpb.Envelope) bool { return e.GetGrant() != nil || e.GetNoMatch() != nil }

// lease offers models.
func (a *attacker) lease(models ...*signalpb.OfferedModel) {
	a.t.Helper()
	a.say(&signalpb.Envelope{Message: &signalpb.Envelope_Lease{Lease: &signalpb.Lease{Sequence: 1, Slots: 1, Models: models}}})
	a.hear("the lease's echo", func(e *signalpb.Envelope) bool { return e.GetLeaseAck() != nil })
}

// A miner that offers names as long as they may be, and as many, takes nobody
// else's answers away.
func TestLongNamesDisturbNobody(t *testing.T) {
	t.Parallel()
	l, _, _ := ready(t, says("ok"))
	var models []*signalpb.OfferedModel
	for i := range 100 {
		models = append(models, &signalpb.OfferedModel{
			Name: strings.Repeat("a", signal.MaxText-3) + fmt.Sprintf("%03d", i), Backend: "openai", Calls: []string{"/v1/chat/completions"},
		})
	}
	for range 6 {
		l.attack(signalpb.Role_ROLE_MINER, strings.Repeat("n", signal.MaxName)).lease(models...)
	}
	if got := l.ask("-m", "m", "?").wait(); got.exit != ExitOK || got.out != "ok" {
		t.Errorf("a model by its name: %+v", got)
	}
	if got := l.ask("-m", "unknown", "?").wait(); got.exit != ExitNoMiner || !strings.Contains(got.err, "do not offer unknown") {
		t.Errorf("an unknown model: %+v", got)
	}
	if got := typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-join", l.link(), "models").wait(); got.exit != ExitOK || !strings.Contains(got.out, "\nm ") {
		t.Errorf("the list: exit %d, %d bytes, %q", got.exit, len(got.out), got.err)
	}
}

// A client that asks for miners and never comes leaves room for the others.
func TestIdleSessionsDisturbNobody(t *testing.T) {
	t.Parallel()
	l, _, ai := ready(t, says("ok"))
	a := l.attack(signalpb.Role_ROLE_CLIENT, "greedy")
	granted := 0
	for i := range uint64(300) {
		a.request(i)
		if a.hear("an answer", isMatched).GetGrant() != nil {
			granted++
		}
	}
	t.Logf("%d sessions", granted)
	if got := l.ask("?").wait(); got.exit != ExitOK || got.out != "ok" {
		t.Errorf("%+v", got)
	}
	if n := ai.count(); n != 1 {
		t.Errorf("%d questions at the AI server, want 1", n)
	}
}

// A client that floods a session with candidates and renewals does not push the
// session's miner off the coordinator, however slowly that one reads.
func TestFloodedMinerStays(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	slow := l.attackWith(signalpb.Role_ROLE_MINER, "slow", &quic.Config{InitialStreamReceiveWindow: 4 << 10, MaxStreamReceiveWindow: 4 << 10})
	slow.lease(&signalpb.OfferedModel{Name: "m", Backend: "openai", Calls: []string{"/v1/chat/completions"}})
	a := l.attack(signalpb.Role_ROLE_CLIENT, "hasty")
	a.request(1)
	session := a.hear("a grant", isMatched).GetGrant().GetSession()
	offer := slow.hear("an offer", func(e *signalpb.Envelope) bool { return e.GetOffer() != nil }).GetOffer()
	slow.say(&signalpb.Envelope{Message: &signalpb.Envelope_Taken{Taken: &signalpb.Taken{Session: offer.GetSession()}}})
	var candidates []*signalpb.Candidate
	for i := range signal.MaxCandidates {
		candidates = append(candidates, &signalpb.Candidate{
			Kind: signalpb.CandidateKind_CANDIDATE_HOST, Address: &signalpb.Address{Ip: []byte{192, 0, 2, byte(i)}, Port: 9},
		})
	}
	for range 150 {
		a.say(&signalpb.Envelope{Message: &signalpb.Envelope_Candidates{Candidates: &signalpb.Candidates{Session: session, Candidates: candidates}}})
		a.say(&signalpb.Envelope{Message: &signalpb.Envelope_Renew{Renew: &signalpb.Renew{Session: session}}})
	}
	a.request(2) // its answer comes when all of that was worked on
	a.hear("the second answer", func(e *signalpb.Envelope) bool {
		return isMatched(e) && binary.BigEndian.Uint64(append(e.GetGrant().GetNonce(), e.GetNoMatch().GetNonce()...)) == 2
	})
	if _, ok := l.co.server.Peer(slow.key.ID()); !ok || l.co.server.Counters()["queue_full"] != 0 {
		t.Errorf("the miner was dropped: %v", l.co.server.Counters())
	}
}

// A node that asks and does not read the answers costs a bounded memory.
func TestUnreadListsAreBounded(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var models []*signalpb.OfferedModel
	for i := range 100 {
		models = append(models, &signalpb.OfferedModel{Name: strings.Repeat("a", 500) + fmt.Sprintf("%03d", i), Backend: "openai"})
	}
	l.attack(signalpb.Role_ROLE_MINER, "many").lease(models...)
	a := l.attackWith(signalpb.Role_ROLE_CLIENT, "deaf", &quic.Config{InitialStreamReceiveWindow: 4 << 10, MaxStreamReceiveWindow: 4 << 10})
	for i := range uint64(200) {
		nonce := make([]byte, 16)
		binary.BigEndian.PutUint64(nonce, i)
		a.say(&signalpb.Envelope{Message: &signalpb.Envelope_ModelsRequest{ModelsRequest: &signalpb.ModelsRequest{Nonce: nonce}}})
	}
	a.request(1)
	lists := 0
	a.hear("the answer after the lists", func(e *signalpb.Envelope) bool {
		if e.GetModels() != nil {
			lists++
		}
		return isMatched(e)
	})
	if lists < 1 || lists > 50 {
		t.Errorf("%d lists of 64 KiB waited", lists)
	}
}

// offerOf is an offer of model m to a client.
func offerOf(client identity.NodeID) (identity.SessionID, *signalpb.Offer) {
	id := identity.NewSessionID()
	_, forMiner := mintICE()
	return id, &signalpb.Offer{
		Session: id[:], Client: client[:], Model: "m", Ice: forMiner, ExpiresUnixMs: time.Now().Add(time.Hour).UnixMilli(),
	}
}

// A client whose sessions all look for a path leaves room at the miner, and
// sessions in which nothing is asked do not last.
func TestMinerSharesItsSessions(t *testing.T) {
	t.Parallel()
	_, m, _ := ready(t, says("ok"))
	greedy, modest := newKey(t).ID(), newKey(t).ID()
	take := func(client identity.NodeID) string {
		id, offer := offerOf(client)
		return m.takeOffer(id, client, offer)
	}
	for i := range maxChecking {
		if refusal := take(greedy); refusal != "" {
			t.Fatalf("offer %d: %s", i, refusal)
		}
	}
	if refusal := take(greedy); refusal != "busy" {
		t.Errorf("one more of the greedy client: %q", refusal)
	}
	for range maxChecking/2 - 1 {
		if refusal := take(modest); refusal != "" {
			t.Fatalf("the modest client: %s", refusal)
		}
	}
	m.mu.Lock()
	g, n := m.granted[greedy], m.granted[modest]
	m.mu.Unlock()
	if g+n != maxChecking || n != maxChecking/2-1 {
		t.Errorf("%d of the greedy client and %d of the modest one look for a path", g, n)
	}
	m.sweep(time.Now().Add(unusedLife + time.Second))
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.sessions) != 0 || len(m.granted) != 0 {
		t.Errorf("%d sessions are left", len(m.sessions))
	}
}

// A client that has used its sessions, and looks for other paths in all of them
// again and again, leaves room too; what it uses goes on.
func TestMinerSharesItsChecks(t *testing.T) {
	t.Parallel()
	_, m, _ := ready(t, says("ok"))
	greedy, modest := newKey(t).ID(), newKey(t).ID()
	for range maxChecking {
		id, offer := offerOf(greedy)
		if refusal := m.takeOffer(id, greedy, offer); refusal != "" {
			t.Fatal(refusal)
		}
		m.mu.Lock()
		m.sessions[id].used = true
		m.mu.Unlock()
	}
	id, offer := offerOf(modest)
	if refusal := m.takeOffer(id, modest, offer); refusal != "" {
		t.Errorf("the modest client: %s", refusal)
	}
	m.mu.Lock()
	if m.granted[greedy] != maxChecking || m.granted[modest] != 1 {
		t.Errorf("%d and %d sessions", m.granted[greedy], m.granted[modest])
	}
	m.mu.Unlock()
	refusal := ""
	for path := uint32(1); path <= maxPaths+1; path++ {
		_, ice := mintICE()
		refusal = m.takePath(id, modest, &signalpb.Offer{Ice: ice, Path: path})
		if (refusal != "") != (path > maxPaths) {
			t.Fatalf("path %d: %q", path, refusal)
		}
	}
}

// Whatever a coordinator grants, an ask ends in time, with one line.
func TestHostileCoordinator(t *testing.T) {
	t.Parallel()
	address := func(port uint32, ip ...byte) *signalpb.Candidate {
		return &signalpb.Candidate{Kind: signalpb.CandidateKind_CANDIDATE_HOST, Address: &signalpb.Address{Ip: ip, Port: port}}
	}
	for name, change := range map[string]func(*signalpb.Grant){
		"no such miner": func(g *signalpb.Grant) { g.Miner = bytes.Repeat([]byte{7}, 32) },
		"an endless wait": func(g *signalpb.Grant) {
			g.Candidates, g.HeadStartMs, g.Relay = nil, 1<<40, &signalpb.Relay{Urls: []string{"turn:127.0.0.1:9"}, Username: "u", Password: "p"}
		},
		"over already":   func(g *signalpb.Grant) { g.ExpiresUnixMs = 1 },
		"no credentials": func(g *signalpb.Grant) { g.Ice.LocalPwd, g.Ice.RemotePwd = "", "" },
		"no candidates":  func(g *signalpb.Grant) { g.Candidates, g.Relay = nil, nil },
		"other services": func(g *signalpb.Grant) {
			g.Relay = &signalpb.Relay{Urls: []string{"turn:127.0.0.1:1", "http://127.0.0.1/", "turn:[::1]:9?transport=tcp", "\\"}, Username: "u", Password: "p"}
			g.Candidates = []*signalpb.Candidate{
				address(9, 127, 0, 0, 1), address(9, 224, 0, 0, 1), address(9, 255, 255, 255, 255), address(9, 0, 0, 0, 0),
				address(1900, 239, 255, 255, 250), address(9, 169, 254, 169, 254), address(53, bytes.Repeat([]byte{0}, 16)...),
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, func(c *coordinatorConfig) {
				c.hooks.handler = func(h signal.ServerHandler) signal.ServerHandler { return &forger{ServerHandler: h, change: change} }
			})
			cl := l.client(func(c *clientConfig) {
				d := &c.Deadlines
				d.Direct, d.Relay, d.QUIC, d.Match = 200*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond, time.Second
			})
			began := time.Now()
			got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait()
			if got.exit == ExitOK || got.out != "" || strings.Count(got.err, "\n") != 1 {
				t.Errorf("%+v", got)
			}
			// Four tries, each bounded by this side's own deadlines; on a busy machine.
			if took := time.Since(began); took > testWait/2 {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// forger answers each request with a grant of its own.
type forger struct {
	signal.ServerHandler
	change func(*signalpb.Grant)
}

func (h *forger) Message(p *signal.Peer, env *signalpb.Envelope) {
	req := env.GetMatchRequest()
	if req == nil {
		h.ServerHandler.Message(p, env)
		return
	}
	id := identity.NewSessionID()
	forClient, _ := mintICE()
	g := &signalpb.Grant{
		Nonce: req.GetNonce(), Session: id[:], Miner: bytes.Repeat([]byte{1}, 32), MinerName: "none", Model: "m",
		ExpiresUnixMs: time.Now().Add(time.Hour).UnixMilli(), Ice: forClient, HeadStartMs: 50,
		Candidates: []*signalpb.Candidate{{
			Kind: signalpb.CandidateKind_CANDIDATE_HOST, Address: &signalpb.Address{Ip: []byte{127, 0, 0, 1}, Port: 9},
		}},
	}
	h.change(g)
	_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Grant{Grant: g}})
}

// An answer without an end fills no memory, with -json either.
func TestEndlessAnswerIsBounded(t *testing.T) {
	t.Parallel()
	a := &asker{opts: askOptions{json: true}}
	got := &answered{}
	got.text.WriteString(strings.Repeat("a", maxJSONAnswer-1))
	if err := a.show("b", got); err != nil {
		t.Errorf("%d bytes: %v", maxJSONAnswer, err)
	}
	if err := a.show("c", got); err == nil || asError(err).Code != "too_large" || got.text.Len() != maxJSONAnswer {
		t.Errorf("one more: %v", err)
	}
}

// What is refused can be seen in the metrics.
func TestRefusalsAreCounted(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	l.co.registerEvents(l.registry)
	m.registerEvents(l.registry)
	a := l.attack(signalpb.Role_ROLE_CLIENT, "odd")
	a.say(&signalpb.Envelope{Message: &signalpb.Envelope_Lease{Lease: &signalpb.Lease{}}}) // a miner's word
	waitUntil(t, "the refusal is counted", func() bool {
		return strings.Contains(l.metrics(t), `mintai_coordinator_signal_events_total{event="out_of_order"} 1`)
	})
	for _, want := range []string{"mintai_coordinator_relay_events_total{", "mintai_miner_tunnel_events_total{"} {
		if !strings.Contains(l.metrics(t), want) {
			t.Errorf("no %s", want)
		}
	}
}

// A web page that points its own name at this machine sees no status page.
func TestStatusPagesAndRebinding(t *testing.T) {
	t.Parallel()
	s := listenStatus("127.0.0.1:0", newRegistry(), func() error { return nil }, zerolog.Nop())
	start(t, "the status pages", s.Run)
	for host, want := range map[string]int{
		"127.0.0.1": http.StatusOK, "localhost:9464": http.StatusOK, "[::1]:9464": http.StatusOK,
		"evil.example:9464": http.StatusForbidden, "localhost.evil.example": http.StatusForbidden, "127.0.0.1.evil.example": http.StatusForbidden,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.ln.Addr().String()+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host, req.Close = host, true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", host, resp.StatusCode, want)
		}
	}
}
