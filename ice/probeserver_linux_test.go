package ice

// Every address of 127.0.0.0/8 is the machine's own, which makes it one with
// several addresses.

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

// probeLab is a ProbeServer and a node that asks it.
type probeLab struct {
	t           testing.TB
	server      *ProbeServer
	coordinator identity.NodeID
	key         *identity.Key
	conn        *net.UDPConn
	proofs      chan Proof
}

func newProbeLab(t testing.TB, cfg ProbeServerConfig) *probeLab {
	t.Helper()
	lab := &probeLab{t: t, proofs: make(chan Proof, 64), key: newKey(t), coordinator: newKey(t).ID()}
	cfg.Coordinator, cfg.Log = lab.coordinator, testLog(t)
	cfg.OnProof = func(p Proof) { lab.proofs <- p }
	if len(cfg.Addrs) == 0 {
		cfg.Addrs = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}
	}
	var err error
	if lab.server, err = StartProbes(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := lab.server.Close(); err != nil {
				t.Errorf("closing the probe server: %v", err)
			}
		}
	})
	if lab.conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lab.conn.Close() })
	return lab
}

func (l *probeLab) self() netip.AddrPort { return addrPort(l.conn.LocalAddr()) }

// ask sends b and returns the answer with where it came from.
func (l *probeLab) ask(to netip.AddrPort, b []byte) (*stun.Message, netip.AddrPort) {
	l.t.Helper()
	if _, err := l.conn.WriteToUDPAddrPort(b, to); err != nil {
		l.t.Fatal(err)
	}
	_ = l.conn.SetReadDeadline(time.Now().Add(testTimeout))
	buf := make([]byte, 2048)
	for {
		n, from, err := l.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			l.t.Fatalf("no answer: %v", err)
		}
		m := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if m.Decode() != nil || len(b) >= stunHeader && string(m.TransactionID[:]) != string(b[8:20]) {
			continue
		}
		if n > maxAmplification*len(b) {
			l.t.Errorf("%d bytes in answer to %d", n, len(b))
		}
		return m, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	}
}

// silence checks that b is not answered, by asking something else afterwards.
func (l *probeLab) silence(what string, to netip.AddrPort, b []byte) {
	l.t.Helper()
	answered := l.server.Stats().Answered
	if _, err := l.conn.WriteToUDPAddrPort(b, to); err != nil {
		l.t.Fatal(err)
	}
	l.ask(to, plainBinding())
	if got := l.server.Stats().Answered; got != answered+1 {
		l.t.Errorf("%s: answered", what)
	}
}

func errorCode(m *stun.Message) stun.ErrorCode {
	var code stun.ErrorCodeAttribute
	if code.GetFrom(m) != nil {
		return 0
	}
	return code.Code
}

// addrOf reads an address attribute of RFC 5780.
func addrOf(t testing.TB, m *stun.Message, attr stun.AttrType) netip.AddrPort {
	t.Helper()
	v, err := m.Get(attr)
	if err != nil {
		return netip.AddrPort{}
	}
	ip, ok := netip.AddrFromSlice(v[4:])
	if !ok {
		t.Fatalf("%s holds no address", attr)
	}
	return netip.AddrPortFrom(ip, uint16(v[2])<<8|uint16(v[3]))
}

func (l *probeLab) noProof() {
	l.t.Helper()
	select {
	case p := <-l.proofs:
		l.t.Errorf("unexpected proof %+v", p)
	default:
	}
}

func TestProbeServerAnswersAnybody(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{})
	addrs := l.server.Addrs()
	if len(addrs) != 4 {
		t.Fatalf("announced %v", addrs)
	}
	for _, at := range addrs {
		m, from := l.ask(at, plainBinding(stun.Fingerprint))
		var mapped stun.XORMappedAddress
		if err := mapped.GetFrom(m); err != nil || mapped.Port != int(l.self().Port()) {
			t.Errorf("%s: mapped %v, %v", at, mapped, err)
		}
		if from != at {
			t.Errorf("asked %s, answered from %s", at, from)
		}
		for _, attr := range []stun.AttrType{stun.AttrResponseOrigin, stun.AttrOtherAddress, stun.AttrSoftware} {
			if m.Contains(attr) {
				t.Errorf("a stranger is told %s", attr)
			}
		}
	}
	l.noProof()
}

func TestProbeServerProvesAddresses(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{})
	for _, at := range l.server.Addrs() {
		raw, _ := SignProbe(l.key, l.coordinator, 0, time.Now())
		for range 2 { // a retransmission is answered and proves nothing new
			m, from := l.ask(at, raw)
			if from != at || addrOf(t, m, stun.AttrResponseOrigin) != at {
				t.Errorf("%s: from %s, origin %s", at, from, addrOf(t, m, stun.AttrResponseOrigin))
			}
			other := addrOf(t, m, stun.AttrOtherAddress)
			if other.Addr() == at.Addr() || other.Port() == at.Port() || !slices.Contains(l.server.Addrs(), other) {
				t.Errorf("%s: OTHER-ADDRESS %s", at, other)
			}
		}
		if p := <-l.proofs; p.Node != l.key.ID() || p.From != l.self() || p.At != at {
			t.Errorf("proof %+v", p)
		}
		l.noProof()
	}
	if st := l.server.Stats(); st.Proofs != 4 || st.Answered != 8 || st.Replayed != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestProbeServerChangesItsAddressForThoseWhoSign(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{})
	addrs := l.server.Addrs()
	at := addrs[0]
	for change, want := range map[Change]func(netip.AddrPort) bool{
		ChangePort:            func(f netip.AddrPort) bool { return f.Addr() == at.Addr() && f.Port() != at.Port() },
		ChangeIP:              func(f netip.AddrPort) bool { return f.Addr() != at.Addr() && f.Port() == at.Port() },
		ChangeIP | ChangePort: func(f netip.AddrPort) bool { return f.Addr() != at.Addr() && f.Port() != at.Port() },
	} {
		raw, _ := SignProbe(l.key, l.coordinator, change, time.Now())
		m, from := l.ask(at, raw)
		if errorCode(m) != 0 || !want(from) || addrOf(t, m, stun.AttrResponseOrigin) != from {
			t.Errorf("change %b: from %s, error %d", change, from, errorCode(m))
		}
		<-l.proofs
	}
	stale, _ := SignProbe(l.key, l.coordinator, ChangeIP, time.Now().Add(-time.Hour))
	unsigned := plainBinding(attrV1{stun.AttrChangeRequest, []byte{0, 0, 0, 6}})
	for name, raw := range map[string][]byte{"unsigned": unsigned, "off the clock": stale} {
		m, from := l.ask(at, raw)
		if errorCode(m) != stun.CodeUnknownAttribute || from != at || m.Contains(stun.AttrXORMappedAddress) {
			t.Errorf("%s: error %d from %s", name, errorCode(m), from)
		}
	}
	l.noProof()
}

// attrV1 is a raw attribute.
type attrV1 struct {
	typ   stun.AttrType
	value []byte
}

func (a attrV1) AddTo(m *stun.Message) error {
	m.Add(a.typ, a.value)
	return nil
}

func TestProbeServerWithoutAnotherAddress(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	at := l.server.Addrs()[0]
	raw, _ := SignProbe(l.key, l.coordinator, ChangeIP|ChangePort, time.Now())
	if m, _ := l.ask(at, raw); errorCode(m) != stun.CodeUnknownAttribute {
		t.Errorf("error %d", errorCode(m))
	}
	raw, _ = SignProbe(l.key, l.coordinator, ChangePort, time.Now())
	m, from := l.ask(at, raw)
	if errorCode(m) != 0 || from.Port() == at.Port() || m.Contains(stun.AttrOtherAddress) {
		t.Errorf("error %d, from %s", errorCode(m), from)
	}
}

func TestProbeServerBelievesNobodyElse(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{})
	at, now := l.server.Addrs()[0], time.Now()
	raw, _ := SignProbe(l.key, l.coordinator, 0, now)
	forged := slices.Clone(raw)
	forged[len(forged)-1] ^= 1
	l.silence("a wrong signature", at, forged)
	elsewhere, _ := SignProbe(l.key, newKey(t).ID(), 0, now)
	l.silence("another coordinator's", at, elsewhere)
	l.noProof()

	l.ask(at, raw)
	<-l.proofs
	// The same packet from somebody else's address, and to another of ours.
	other, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	own := l.conn
	l.conn = other
	l.ask(at, raw)
	l.conn = own
	l.ask(l.server.Addrs()[1], raw)
	for _, off := range []time.Duration{-2 * probeWindow, 2 * probeWindow} {
		late, _ := SignProbe(l.key, l.coordinator, 0, now.Add(off))
		if m, _ := l.ask(at, late); errorCode(m) != 0 {
			t.Errorf("a wrong clock is refused: error %d", errorCode(m))
		}
	}
	l.noProof()
	if st := l.server.Stats(); st.Proofs != 1 || st.Replayed != 4 || st.Refused != 2 {
		t.Errorf("stats %+v", st)
	}
	// Unknown attributes that must be understood.
	m, _ := l.ask(at, plainBinding(attrV1{0x7abc, nil}))
	unknown, err := m.Get(stun.AttrUnknownAttributes)
	if errorCode(m) != stun.CodeUnknownAttribute || err != nil || string(unknown) != "\x7a\xbc" {
		t.Errorf("error %d, unknown %x", errorCode(m), unknown)
	}
}

func TestProbeServerSharesItsPortWithTURN(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{Shared: true})
	server := testTURN(t, TURNConfig{Conns: l.server.Conns()})
	_, user := allow(server, "127.0.0.1")
	c := newRawTURN(t, server, user, testPassword)
	if c.server != l.server.Addrs()[0] {
		t.Errorf("TURN at %s, probes at %v", c.server, l.server.Addrs())
	}
	c.allocate()
	for _, at := range l.server.Addrs() {
		raw, _ := SignProbe(l.key, l.coordinator, ChangeIP, time.Now())
		if m, _ := l.ask(at, raw); errorCode(m) != 0 {
			t.Errorf("%s: error %d", at, errorCode(m))
		}
		<-l.proofs
	}
	if st := server.Stats(); st.Malformed != 0 || st.Allocations != 1 {
		t.Errorf("TURN got probes: %+v", st)
	}
}

func TestProbeServerOnAllAddresses(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{Addrs: []netip.Addr{netip.IPv4Unspecified()}})
	addrs := l.server.Addrs()
	if len(addrs) < 2 {
		t.Fatalf("announced %v", addrs)
	}
	for _, ip := range []string{"127.0.0.1", "127.0.0.3"} {
		for _, port := range []uint16{addrs[0].Port(), addrs[1].Port()} {
			at := netip.AddrPortFrom(netip.MustParseAddr(ip), port)
			if at.Addr() == netip.MustParseAddr("127.0.0.3") && len(l.server.sockets[0]) != 1 {
				continue // without pktinfo only addresses that interfaces list
			}
			raw, _ := SignProbe(l.key, l.coordinator, 0, time.Now())
			if _, from := l.ask(at, raw); from != at {
				t.Errorf("asked %s, answered from %s", at, from)
			}
			if p := <-l.proofs; p.At != at {
				t.Errorf("proof at %s, want %s", p.At, at)
			}
		}
	}
}

func TestProbeServerDropsAFlood(t *testing.T) {
	l := newProbeLab(t, ProbeServerConfig{})
	at, b := l.server.Addrs()[0], plainBinding()
	for l.server.Stats().Flood == 0 {
		for range 50 {
			if _, err := l.conn.WriteToUDPAddrPort(b, at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestStartProbesFails(t *testing.T) {
	taken, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := addrPort(taken.LocalAddr()).Port()
	local := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if p, err := StartProbes(ProbeServerConfig{Addrs: local, Ports: [2]uint16{port, 0}, Log: testLog(t)}); err == nil {
		t.Error("a taken port was opened")
		_ = p.Close()
	}
	p, err := StartProbes(ProbeServerConfig{Addrs: local, Ports: [2]uint16{0, port}, Log: testLog(t)})
	if err != nil {
		t.Fatalf("without the second port: %v", err)
	}
	if got := p.Addrs(); len(got) != 1 {
		t.Errorf("announced %v", got)
	}
	_ = p.Close()
}
