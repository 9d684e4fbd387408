package node

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"mintai/signal"
	"mintai/signal/signalpb"
)

// proposer is a coordinator that has hard-NAT probing done whether it was asked for
// or not.
type proposer struct {
	signal.ServerHandler
	target netip.AddrPort

	mu     sync.Mutex // guards what follows
	asked  []bool     // by each PathRequest
	gaveUp int        // messages that name no port
}

func (h *proposer) Message(p *signal.Peer, env *signalpb.Envelope) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch m := env.GetMessage().(type) {
	case *signalpb.Envelope_ProbePorts:
		if len(m.ProbePorts.GetPorts()) == 0 {
			h.gaveUp++
		}
	case *signalpb.Envelope_PathRequest:
		req := m.PathRequest
		h.asked = append(h.asked, req.GetProbing())
		ice, _ := mintICE()
		_ = p.Send(&signalpb.Envelope{Message: &signalpb.Envelope_Grant{Grant: &signalpb.Grant{
			Nonce: req.GetNonce(), Session: req.GetSession(), Miner: minerOf(h.ServerHandler, req.GetSession()), MinerName: "gpu-box", Model: "m",
			Path: req.GetPath(), ExpiresUnixMs: time.Now().Add(time.Hour).UnixMilli(), Ice: ice,
			Probing: hardProbing(h.target),
		}}})
	default:
		h.ServerHandler.Message(p, env)
	}
}

func minerOf(h signal.ServerHandler, raw []byte) []byte {
	c, _ := h.(*coordinator)
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.sessions {
		if string(id[:]) == string(raw) {
			return s.minerID[:]
		}
	}
	return nil
}

func hardProbing(target netip.AddrPort) *signalpb.HardNATProbing {
	return &signalpb.HardNATProbing{Hard: true, Target: writeAddress(target)}
}

// proposing is a lab with such a coordinator, and the socket that it has probed.
func proposing(t *testing.T) (*lab, *proposer, *net.UDPConn) {
	t.Helper()
	target, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	h := &proposer{target: target.LocalAddr().(*net.UDPAddr).AddrPort()}
	l := newLab(t, func(c *coordinatorConfig) {
		c.hooks.handler = func(s signal.ServerHandler) signal.ServerHandler { h.ServerHandler = s; return h }
	})
	return l, h, target
}

// arrives reports whether anything comes in time.
func arrives(t *testing.T, conn *net.UDPConn, within time.Duration) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	_, _, err := conn.ReadFromUDP(make([]byte, 1500))
	return err == nil
}

// A client probes only when it has asked for it, whatever the coordinator says, and
// asks only for a better path, and not with hard_nat_probing = false.
func TestClientProbesOnlyWhatItAskedFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		on     bool
		cause  signalpb.PathCause
		probes bool
	}{
		"it asked":       {true, upgradeCause, true},
		"it did not":     {true, lostCause, false},
		"it is off":      {false, upgradeCause, false},
		"off, and a way": {false, lostCause, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, h, target := proposing(t)
			m := l.miner("gpu-box", newAI(t, "m", says("ok")))
			cl := l.client(func(cfg *clientConfig) { cfg.Probing = c.on })
			if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
				t.Fatalf("%+v", got)
			}
			// Nothing is there: it ends with its time, and all that it began with it.
			found := cl.findPath(t.Context(), cl.session(t, m), wanted{cause: c.cause, until: time.Now().Add(time.Second)})
			if found.err == nil {
				t.Fatal("there is a path")
			}
			if got := arrives(t, target, 50*time.Millisecond); got != c.probes {
				t.Errorf("probed: %t", got)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if !slices.Equal(h.asked, []bool{c.probes}) {
				t.Errorf("asked for it: %v", h.asked)
			}
			if says := cl.network.message().GetHardNatProbing(); says != c.on {
				t.Errorf("says that it takes part: %t", says)
			}
		})
	}
}

// Each command is a process with a socket of its own; the file bounds all of them.
func TestProcessesOfOneNodeProbeTogether(t *testing.T) {
	t.Parallel()
	l, _, target := proposing(t)
	m := l.miner("gpu-box", newAI(t, "m", says("ok")))
	file := Paths{state: t.TempDir(), role: RoleClient}.Probing()
	for i := range 4 {
		cl := l.client(func(cfg *clientConfig) { cfg.Probing, cfg.ProbeFile = true, file })
		if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
			t.Fatalf("%+v", got)
		}
		_ = cl.findPath(t.Context(), cl.session(t, m), wanted{cause: upgradeCause, until: time.Now().Add(300 * time.Millisecond)})
		if got := arrives(t, target, 50*time.Millisecond); got != (i < 3) {
			t.Errorf("process %d probed: %t", i, got)
		}
		for arrives(t, target, time.Millisecond) { // what else it sent
		}
		cl.part.stop()
	}
}

// A miner takes no part with hard_nat_probing = false, nor where all is to go by
// the relay.
func TestMinerProbesOnlyWhenOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		on     bool
		relay  RelayMode
		begins bool
		file   string // what stands in the node's file
		probes bool
	}{
		"on":         {on: true, relay: RelayAuto, begins: true, probes: true},
		"off":        {relay: RelayAuto},
		"relay only": {on: true, relay: RelayAlways},
		"used up":    {on: true, relay: RelayAuto, begins: true, file: "broken, and so it counts as full"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, _, target := proposing(t)
			m := l.miner("gpu-box", newAI(t, "m", says("ok")), func(cfg *minerConfig) {
				cfg.Probing, cfg.Relay, cfg.ProbeFile = c.on, c.relay, filepath.Join(t.TempDir(), "probing")
				if err := os.WriteFile(cfg.ProbeFile, []byte(c.file), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			client := newKey(t).ID()
			id, offer := offerOf(client)
			offer.Probing = hardProbing(target.LocalAddr().(*net.UDPAddr).AddrPort())
			if refusal := m.takeOffer(id, client, offer); refusal != "" {
				t.Fatal(refusal)
			}
			m.mu.Lock()
			began := m.sessions[id].probe != nil
			m.mu.Unlock()
			if began != c.begins {
				t.Errorf("began to probe: %t", began)
			}
			within := 200 * time.Millisecond
			if c.probes {
				within = testWait
			}
			if got := arrives(t, target, within); got != c.probes {
				t.Errorf("probed: %t", got)
			}
			if says := m.network.message().GetHardNatProbing(); says != c.on {
				t.Errorf("says that it takes part: %t", says)
			}
		})
	}
}

// A hard side that may not begin says so, that nobody probes its ports in vain.
func TestHardSideGivesUp(t *testing.T) {
	t.Parallel()
	private := netip.MustParseAddrPort("10.0.0.1:9") // no node probes there
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		l, h, _ := proposing(t)
		h.target = private
		m := l.miner("gpu-box", newAI(t, "m", says("ok")))
		cl := l.client(func(cfg *clientConfig) { cfg.Probing = true })
		if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
			t.Fatalf("%+v", got)
		}
		_ = cl.findPath(t.Context(), cl.session(t, m), wanted{cause: upgradeCause, until: time.Now().Add(time.Second)})
		waitUntil(t, "the client says so", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.gaveUp == 1 })
	})
	t.Run("miner", func(t *testing.T) {
		t.Parallel()
		l, h, _ := proposing(t)
		m := l.miner("gpu-box", newAI(t, "m", says("ok")), func(cfg *minerConfig) { cfg.Probing = true })
		client := newKey(t).ID()
		id, offer := offerOf(client)
		offer.Probing = hardProbing(private)
		if refusal := m.takeOffer(id, client, offer); refusal != "" {
			t.Fatal(refusal)
		}
		waitUntil(t, "the miner says so", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.gaveUp == 1 })
	})
}

// Where the NAT is measured for probing is filtered as all that a coordinator says.
func TestMeasuringIsFiltered(t *testing.T) {
	t.Parallel()
	strange := netip.MustParseAddr("169.254.1.1")
	l := newLab(t, func(c *coordinatorConfig) { c.STUN, c.Public = "127.0.0.1:0", []string{strange.String()} })
	ai := newAI(t, "m", says("ok"))
	m, cl := l.miner("gpu-box", ai), l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	isStrange := func(a netip.AddrPort) bool { return a.Addr() == strange }
	if said := cl.sig.Status().Stun; !slices.ContainsFunc(said, isStrange) {
		t.Fatalf("the coordinator says %v", said)
	}
	for name, servers := range map[string][]netip.AddrPort{"client": cl.connector.stun(), "miner": m.stun()} {
		if len(servers) == 0 || slices.ContainsFunc(servers, isStrange) {
			t.Errorf("the %s measures at %v", name, servers)
		}
	}
}
