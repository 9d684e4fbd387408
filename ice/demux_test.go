package ice

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/stun"
	"github.com/quic-go/quic-go"
)

// The request of RFC 5769 §2.1, and its password.
const rfc5769Password = "VOkJxbRl1RmTxUk/WvJxBt"

var rfc5769Request = unhex(`
	00 01 00 58 21 12 a4 42 b7 e7 a7 01 bc 34 d6 86 fa 87 df ae
	80 22 00 10 53 54 55 4e 20 74 65 73 74 20 63 6c 69 65 6e 74
	00 24 00 04 6e 00 01 ff
	80 29 00 08 93 2f f9 b1 51 26 3b 36
	00 06 00 09 65 76 74 6a 3a 68 36 76 59 20 20 20
	00 08 00 14 9a ea a7 0c bf d8 cb 56 78 1e f2 b5 b2 d3 f2 49 c1 b5 71 a2
	80 28 00 04 e5 7a 3b cf`)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// rfc5769Responder is the peer that the request is for.
func rfc5769Responder() *responder {
	return newResponder(
		Credentials{Ufrag: "evtj", Pwd: rfc5769Password},
		Credentials{Ufrag: "h6vY", Pwd: "another password, of 22+"},
	)
}

var testFrom = netip.MustParseAddrPort("192.0.2.1:32853")

func TestClassify(t *testing.T) {
	build := func(typ stun.MessageType) []byte { return stun.MustBuild(stun.TransactionID, typ).Raw }
	long := append(build(stun.BindingRequest), make([]byte, maxSTUN)...)
	long[2], long[3] = byte(maxSTUN>>8), byte(maxSTUN&0xff)
	for name, tc := range map[string]struct {
		b    []byte
		want stunKind
	}{
		"RFC 5769":           {rfc5769Request, bindingRequest},
		"success":            {build(stun.BindingSuccess), bindingResponse},
		"error":              {build(stun.BindingError), bindingResponse},
		"indication":         {build(stun.NewType(stun.MethodBinding, stun.ClassIndication)), otherSTUN},
		"allocate":           {build(stun.NewType(stun.MethodAllocate, stun.ClassRequest)), otherSTUN},
		"empty":              {nil, notSTUN},
		"cut in the header":  {rfc5769Request[:19], notSTUN},
		"cut in the body":    {rfc5769Request[:40], notSTUN},
		"one byte too many":  {append(bytes.Clone(rfc5769Request), 0), notSTUN},
		"wrong cookie":       {append([]byte{0, 1, 0, 0, 1, 2, 3, 4}, make([]byte, 12)...), notSTUN},
		"QUIC long header":   {append([]byte{0xc0}, rfc5769Request[1:]...), notSTUN},
		"ChannelData":        {append([]byte{0x40}, rfc5769Request[1:]...), notSTUN},
		"longer than a path": {long, notSTUN},
	} {
		if got, _ := classify(tc.b); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
	if ufrag, ok := ufragOf(rfc5769Request); !ok || ufrag != "evtj" {
		t.Errorf("the request is for %q, %v", ufrag, ok)
	}
}

func TestResponderAnswers(t *testing.T) {
	out, err := rfc5769Responder().answer(rfc5769Request, testFrom)
	if err != nil {
		t.Fatal(err)
	}
	m := &stun.Message{Raw: out}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	var mapped stun.XORMappedAddress
	if err := errors.Join(
		mapped.GetFrom(m), stun.NewShortTermIntegrity(rfc5769Password).Check(m), stun.Fingerprint.Check(m),
	); err != nil {
		t.Error(err)
	}
	if m.Type != stun.BindingSuccess || mapped.String() != testFrom.String() ||
		!bytes.Equal(m.TransactionID[:], rfc5769Request[8:20]) {
		t.Errorf("answer %v, mapped %v", m, mapped)
	}
}

func TestResponderRefuses(t *testing.T) {
	us, peer := NewCredentials(), NewCredentials()
	r := newResponder(us, peer)
	forUs, err := newResponder(peer, us).check()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.answer(forUs, testFrom); err != nil {
		t.Errorf("the peer's own check: %v", err)
	}
	flipped := bytes.Clone(forUs)
	flipped[len(flipped)-12] ^= 1 // in MESSAGE-INTEGRITY
	noPrint := stun.MustBuild(stun.TransactionID, stun.BindingRequest,
		stun.NewUsername(r.name), r.key)
	wrongKey, err := newResponder(peer, Credentials{Ufrag: us.Ufrag, Pwd: peer.Pwd}).check()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"another session's": rfc5769Request,
		"changed":           flipped,
		"without signature": stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewUsername(r.name), stun.Fingerprint).Raw,
		"no fingerprint":    noPrint.Raw,
		"a wrong password":  wrongKey,
		"a response":        stun.MustBuild(stun.TransactionID, stun.BindingSuccess, stun.NewUsername(r.name), r.key, stun.Fingerprint).Raw,
		"cut":               forUs[:len(forUs)-4],
	} {
		if _, err := r.answer(b, testFrom); !errors.Is(err, ErrBadCheck) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Places for unknown addresses are few: only checks that the peer has signed
// take one, and what the policy forbids is not even looked at.
func TestDemuxAdmitsSignedChecks(t *testing.T) {
	addrs := testAddrs(maxLearned + 3)
	d := newDemux(&quic.Transport{})
	conns := newSessionConns(d, nil, rfc5769Password, &Policy{Proven: addrs[:maxLearned+2]})
	d.register("evtj", conns)
	forged := bytes.Clone(rfc5769Request)
	forged[len(forged)-12] ^= 1
	unsigned := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewUsername("evtj:h6vY")).Raw
	for range 3 {
		d.deliver(forged, addrs[0])
		d.deliver(unsigned, addrs[1])
	}
	if st := d.stats(); st.Malformed != 6 || len(conns.v4.queue) != 0 || conns.pacer.learned != 0 {
		t.Errorf("forged checks: %+v, %d learned", st, conns.pacer.learned)
	}
	for _, a := range addrs {
		d.deliver(rfc5769Request, a)
	}
	st := d.stats()
	if len(conns.v4.queue) != maxLearned || st.Overflow != 2 || st.Forbidden != 1 {
		t.Errorf("%d checks reached the session, stats %+v", len(conns.v4.queue), st)
	}
	// To an address that is not known nothing is sent; quic-go would say that its
	// transport has no socket.
	if n, err := conns.v4.WriteTo(rfc5769Request, net.UDPAddrFromAddrPort(addrs[maxLearned+1])); err != nil || n != len(rfc5769Request) {
		t.Error(n, err)
	}
	if conns.pacer.total() != 0 {
		t.Error("a check was sent")
	}
}

// FuzzDemux feeds what a stranger may send to a demux with one open session.
func FuzzDemux(f *testing.F) {
	f.Add(rfc5769Request)
	f.Add(rfc5769Request[:20])
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingSuccess).Raw)
	f.Add([]byte{0, 1, 0, 4, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 6, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDemux(&quic.Transport{})
		conns := newSessionConns(d, nil, rfc5769Password, nil)
		d.register("evtj", conns)
		before := bytes.Clone(b)
		d.deliver(b, testFrom)
		if !bytes.Equal(b, before) {
			t.Fatal("the datagram was changed")
		}
		kind, _ := classify(b)
		n := len(conns.v4.queue)
		if n > 0 && kind != bindingRequest {
			t.Fatalf("a datagram of kind %d reached the session", kind)
		}
		if n == 0 && d.malformed.Load()+d.unknown.Load()+d.overflow.Load() != 1 {
			t.Fatal("a dropped datagram was not counted")
		}
	})
}

// FuzzResponder checks that only what the peer signed is answered.
func FuzzResponder(f *testing.F) {
	f.Add(rfc5769Request)
	f.Add(rfc5769Request[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := rfc5769Responder().answer(b, testFrom)
		if err != nil {
			if out != nil || !errors.Is(err, ErrBadCheck) {
				t.Fatalf("%x with error %v", out, err)
			}
			return
		}
		m := &stun.Message{Raw: bytes.Clone(b)}
		if m.Decode() != nil || stun.NewShortTermIntegrity(rfc5769Password).Check(m) != nil {
			t.Fatalf("an unsigned check was answered: %x", b)
		}
	})
}

// FuzzParseRelayURL checks that whatever passes names a host and a port.
func FuzzParseRelayURL(f *testing.F) {
	for _, s := range []string{"turn:a:1", "turn:[::1]:3478?transport=udp", "turns:a", "a", ":1", "[::1]:1", "turn:a?transport=tcp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := parseRelayURL(s)
		if err == nil && (host == "" || port == "" || strings.HasPrefix(s, "turns:")) {
			t.Fatalf("%q: %q %q", s, host, port)
		}
		if err != nil && !errors.Is(err, ErrRelayURL) {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
