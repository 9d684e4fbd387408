package ice

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"mintai/identity"
)

func TestTwoSocketsReachEachOtherAndSpeakQUIC(t *testing.T) {
	for name, cfg := range map[string]SocketConfig{"wildcard": {}, "loopback": {Loopback: true}} {
		t.Run(name, func(t *testing.T) {
			client, miner := newParty(t, cfg), newParty(t, cfg)
			serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
			m := open(t, miner, client, false, loopback(client.socket))
			c := open(t, client, miner, true, loopback(miner.socket))
			r := await(t, c.Addrs())
			if want := loopback(miner.socket).Addr; r.Addr != want || r.Kind != Host {
				t.Errorf("reached %s %s, want host %s", r.Kind, r.Addr, want)
			}
			if st := c.Stats(); st.Authenticated == 0 || st.Received < st.Authenticated {
				t.Errorf("stats %+v", st)
			}
			await(t, m.Addrs())
			echo(t, client.socket.Transport(), r.Addr, client.key, miner.key.ID(), 1<<16)
			// The connection outlives the agents.
			if err := errors.Join(c.Close(), m.Close()); err != nil {
				t.Error(err)
			}
			echo(t, client.socket.Transport(), r.Addr, client.key, miner.key.ID(), 1<<16)
		})
	}
}

// loopback6 returns how another socket of this machine reaches s over IPv6.
func loopback6(t testing.TB, s *Socket) Candidate {
	t.Helper()
	if conn, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("[::1]:0"))); err != nil {
		t.Skip("this machine has no IPv6: ", err)
	} else {
		_ = conn.Close()
	}
	return Candidate{Kind: Host, Addr: netip.AddrPortFrom(netip.IPv6Loopback(), s.LocalAddr().Port())}
}

func TestBothFamiliesOverOneSocket(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
	c := open(t, client, miner, true, loopback(miner.socket), loopback6(t, miner.socket))
	open(t, miner, client, false, loopback(client.socket), loopback6(t, client.socket))
	families := make(map[bool]bool)
	for range 2 {
		r := await(t, c.Addrs())
		families[r.Addr.Addr().Is6()] = true
		echo(t, client.socket.Transport(), r.Addr, client.key, miner.key.ID(), 1000)
	}
	if len(families) != 2 {
		t.Errorf("reached over %d family", len(families))
	}
}

// Once time has passed, the client settles for a pair and the miner follows.
func TestICESelectsAPair(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	client.socket.nominateAfter = 0
	c := open(t, client, miner, true, loopback(miner.socket))
	m := open(t, miner, client, false)
	for x, want := range map[*Session]netip.AddrPort{c: loopback(miner.socket).Addr, m: loopback(client.socket).Addr} {
		if r := await(t, x.Addrs()); r.Addr != want {
			t.Errorf("reached %s, want %s", r.Addr, want)
		}
		eventually(t, "a pair was selected", func() bool {
			pair, err := x.agent.GetSelectedCandidatePair()
			return err == nil && pair != nil && pair.Remote.Port() == int(want.Port())
		})
	}
	if len(c.Addrs()) != 0 || len(m.Addrs()) != 0 {
		t.Error("the selected address was told a second time")
	}
}

func TestSessionsAreBounded(t *testing.T) {
	p := newParty(t, SocketConfig{Loopback: true})
	p.socket.mu.Lock()
	for range maxSessions {
		p.socket.sessions[new(Session)] = struct{}{}
	}
	p.socket.mu.Unlock()
	if _, err := p.socket.Open(SessionConfig{Local: p.creds, Remote: NewCredentials()}); !errors.Is(err, ErrTooManySessions) {
		t.Errorf("one session too many: %v", err)
	}
	p.socket.mu.Lock()
	clear(p.socket.sessions)
	p.socket.mu.Unlock()
}

func TestOneSideThatKnowsTheOtherIsEnough(t *testing.T) {
	for _, tc := range []struct {
		name               string
		toClient, toMiner  bool
		clientOpensAtFirst bool
	}{
		{"only the client knows the miner", false, true, true},
		{"only the miner knows the client", true, false, true},
		{"the miner comes first", false, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
			serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
			var forClient, forMiner []Candidate
			if tc.toMiner {
				forClient = append(forClient, loopback(miner.socket))
			}
			if tc.toClient {
				forMiner = append(forMiner, loopback(client.socket))
			}
			var c, m *Session
			if tc.clientOpensAtFirst {
				c = open(t, client, miner, true, forClient...)
			}
			m = open(t, miner, client, false, forMiner...)
			if c == nil {
				c = open(t, client, miner, true, forClient...)
			}
			r := await(t, c.Addrs())
			if (r.Kind == Host) != tc.toMiner || (r.Kind == Prflx) == tc.toMiner {
				t.Errorf("reached %s %s", r.Kind, r.Addr)
			}
			await(t, m.Addrs())
			echo(t, client.socket.Transport(), r.Addr, client.key, miner.key.ID(), 1000)
		})
	}
}

func TestALatePeerIsStillReached(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	c := open(t, client, miner, true, loopback(miner.socket))
	// More checks than pion's default allows a pair are lost first.
	eventually(t, "the first checks were lost", func() bool { return miner.socket.Stats().Unknown > freeChecks+2 })
	open(t, miner, client, false)
	await(t, c.Addrs())
}

func TestATrickledCandidateIsChecked(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	c := open(t, client, miner, true)
	m := open(t, miner, client, false)
	if err := c.AddRemote(loopback(miner.socket)); err != nil {
		t.Fatal(err)
	}
	if err := c.AddRemote(loopback(miner.socket)); err != nil {
		t.Errorf("the same candidate again: %v", err)
	}
	await(t, c.Addrs())
	await(t, m.Addrs())
}

func TestSessionsOpenAndCloseRepeatedly(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	for range 50 {
		client.creds, miner.creds = NewCredentials(), NewCredentials()
		m := open(t, miner, client, false, loopback(client.socket))
		c := open(t, client, miner, true, loopback(miner.socket))
		await(t, c.Addrs())
		if err := errors.Join(c.Close(), m.Close(), m.Close()); err != nil {
			t.Fatal(err)
		}
		if _, ok := <-m.Addrs(); ok {
			for range m.Addrs() { // until it is closed
			}
		}
		if err := m.AddRemote(loopback(client.socket)); !errors.Is(err, ErrClosed) {
			t.Fatalf("AddRemote after Close: %v", err)
		}
	}
	for _, s := range []*Socket{client.socket, miner.socket} {
		if n := s.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		s.demux.mu.Lock()
		if n := len(s.demux.byUfrag) + len(s.demux.pending); n != 0 {
			t.Errorf("%d entries are left in the demux", n)
		}
		s.demux.mu.Unlock()
	}
}

// Two processes of one user have one key: their sessions with a miner must not
// disturb each other.
func TestSessionsWithOnePeer(t *testing.T) {
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	miner := newParty(t, SocketConfig{Loopback: true})
	for range 3 {
		client := newParty(t, SocketConfig{Loopback: true})
		client.key = key
		at := party{key: miner.key, creds: NewCredentials(), socket: miner.socket}
		c := open(t, client, &at, true, loopback(miner.socket))
		m := open(t, &at, client, false, loopback(client.socket))
		if got := await(t, c.Addrs()); got.Addr != loopback(miner.socket).Addr {
			t.Errorf("the client reached %v", got.Addr)
		}
		if got := await(t, m.Addrs()); got.Addr != loopback(client.socket).Addr {
			t.Errorf("the miner reached %v", got.Addr)
		}
	}
	if n := miner.socket.Stats().Sessions; n != 3 {
		t.Errorf("%d sessions are open, not 3", n)
	}
}

func TestCredentialsServeOneSession(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	first := open(t, client, miner, true)
	cfg := SessionConfig{Peer: identity.NodeID{9}, Controlling: true, Local: client.creds, Remote: miner.creds}
	if _, err := client.socket.Open(cfg); !errors.Is(err, ErrBadCredentials) {
		t.Errorf("the same credentials for another session: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

// A peer that names the address of another must not get the other's checks.
func TestAPeerCannotTakeAnothersChecks(t *testing.T) {
	miner := newParty(t, SocketConfig{})
	client, thief := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	forThief, forClient := *miner, *miner
	forThief.creds, forClient.creds = NewCredentials(), NewCredentials()
	open(t, &forThief, thief, false, loopback(client.socket))
	// The miner has sent checks to the client's address in the thief's name.
	eventually(t, "the checks were sent", func() bool { return client.socket.Stats().Unknown > 3 })
	m := open(t, &forClient, client, false, loopback(client.socket))
	c := open(t, client, &forClient, true, loopback(miner.socket))
	await(t, c.Addrs())
	if r := await(t, m.Addrs()); r.Addr != loopback(client.socket).Addr {
		t.Errorf("reached %s", r.Addr)
	}
}

func TestOpenRefusesBadInput(t *testing.T) {
	p := newParty(t, SocketConfig{})
	good := NewCredentials()
	for name, cfg := range map[string]SessionConfig{
		"no credentials":   {},
		"short password":   {Local: good, Remote: Credentials{Ufrag: "abcd", Pwd: "short"}},
		"long name":        {Local: good, Remote: Credentials{Ufrag: string(make([]byte, 300)), Pwd: good.Pwd}},
		"colon in a name":  {Local: Credentials{Ufrag: "ab:cd", Pwd: good.Pwd}, Remote: good},
		"both sides alike": {Local: good, Remote: good},
	} {
		if x, err := p.socket.Open(cfg); !errors.Is(err, ErrBadCredentials) {
			t.Errorf("%s: %v, %v", name, x, err)
		}
	}
	x, err := p.socket.Open(SessionConfig{Local: good, Remote: NewCredentials(), Candidates: make([]Candidate, 20)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	for i := range MaxRemote {
		if err := x.AddRemote(Candidate{Kind: Host, Addr: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1024+i))}); err != nil {
			t.Error(err)
		}
	}
	if err := x.AddRemote(Candidate{Kind: Host, Addr: netip.MustParseAddrPort("192.0.2.1:9")}); !errors.Is(err, ErrTooManyCandidates) {
		t.Errorf("one candidate too many: %v", err)
	}
}

func TestSocketAfterClose(t *testing.T) {
	s, err := Listen(SocketConfig{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	a, b := NewCredentials(), NewCredentials()
	x, err := s.Open(SessionConfig{Local: a, Remote: b})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close(), x.Close()); err != nil {
		t.Error(err)
	}
	if _, err := s.Open(SessionConfig{Local: a, Remote: b}); !errors.Is(err, ErrClosed) {
		t.Errorf("Open after Close: %v", err)
	}
}

func TestGarbageDisturbsNobody(t *testing.T) {
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	serveEcho(t, miner.socket.Transport(), miner.key, client.key.ID())
	stop, flooded := make(chan struct{}), make(chan int)
	go func() { flooded <- flood(miner.socket, miner.creds.Ufrag, stop) }()
	m := open(t, miner, client, false)
	c := open(t, client, miner, true, loopback(miner.socket))
	r := await(t, c.Addrs())
	echo(t, client.socket.Transport(), r.Addr, client.key, miner.key.ID(), 1<<18)
	close(stop)
	if n := <-flooded; n == 0 {
		t.Error("no garbage was sent")
	}
	if st := miner.socket.Stats(); st.Malformed == 0 || st.Unknown == 0 {
		t.Errorf("stats %+v", st)
	}
	if st := m.Stats(); st.Authenticated == 0 || st.Authenticated > st.Received {
		t.Errorf("stats %+v", st)
	}
}

// flood sends what a stranger may send until stop is closed, at a rate that
// leaves the receive queue some room.
func flood(s *Socket, ufrag string, stop <-chan struct{}) (sent int) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(loopback(s).Addr))
	if err != nil {
		return 0
	}
	defer func() { _ = conn.Close() }()
	stranger := NewCredentials()
	signed := newResponder(stranger, Credentials{Ufrag: ufrag, Pwd: stranger.Pwd})
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		noise := make([]byte, 1+sent%1400)
		_, _ = rand.Read(noise)
		stunLike := append([]byte{0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 20)...)
		check, err := signed.check() // for the right session, with a wrong signature
		if err != nil {
			return 0
		}
		unknown, err := newResponder(stranger, NewCredentials()).check()
		if err != nil {
			return 0
		}
		for _, b := range [][]byte{noise, append([]byte{0}, noise...), stunLike, check, unknown} {
			if _, err := conn.Write(b); err == nil {
				sent++
			}
		}
		select {
		case <-stop:
			return sent
		case <-tick.C:
		}
	}
}

// Neither pion nor this package may print a password, at any level.
func TestNoPasswordIsLogged(t *testing.T) {
	var buf lockedBuffer
	log := zerolog.New(&buf).Level(zerolog.TraceLevel)
	client, miner := newParty(t, SocketConfig{}), newParty(t, SocketConfig{})
	client.socket.log, miner.socket.log = log, log
	m := open(t, miner, client, false)
	c := open(t, client, miner, true, loopback(miner.socket))
	await(t, c.Addrs())
	log.Info().Interface("creds", client.creds).Str("text", client.creds.String()).Msg("printed")
	if err := errors.Join(c.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	out := buf.String()
	if out == "" {
		t.Error("nothing was logged")
	}
	for _, secret := range []string{client.creds.Pwd, miner.creds.Pwd} {
		if bytes.Contains([]byte(out), []byte(secret)) {
			t.Errorf("a password is in the log:\n%s", out)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
