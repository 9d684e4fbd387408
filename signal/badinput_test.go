package signal

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"github.com/quic-go/quic-go"

	"mintai/identity"
	"mintai/signal/signalpb"
)

// stranger is a QUIC client that says what it likes.
type stranger struct {
	conn   *quic.Conn
	stream *quic.Stream
}

func dialStranger(t *testing.T, c *coordinator, key *identity.Key) *stranger {
	t.Helper()
	tlsConf, err := key.ClientTLS(ALPN, c.key.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := newTransport(t, 0, nil).Dial(patient(t), c.tr.Conn.LocalAddr(), tlsConf, &quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := conn.OpenStreamSync(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	return &stranger{conn, stream}
}

func (s *stranger) write(t *testing.T, b []byte) {
	t.Helper()
	if _, err := s.stream.Write(b); err != nil {
		t.Fatal(err)
	}
}

// closedWith waits for the coordinator to hang up.
func (s *stranger) closedWith(t *testing.T) CloseCode {
	t.Helper()
	select {
	case <-s.conn.Context().Done():
	case <-patient(t).Done():
		t.Fatal("the coordinator did not hang up")
	}
	code, _, ok := remoteClose(context.Cause(s.conn.Context()))
	if !ok {
		t.Fatalf("ended by %v", context.Cause(s.conn.Context()))
	}
	return code
}

func frame(t *testing.T, envs ...*signalpb.Envelope) []byte {
	t.Helper()
	var all []byte
	for _, env := range envs {
		b, err := encode(env)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

func hello(role signalpb.Role) *signalpb.Envelope {
	return &signalpb.Envelope{Message: &signalpb.Envelope_Hello{Hello: &signalpb.Hello{Role: role, Name: "stranger"}}}
}

func matchRequest(nonce []byte) *signalpb.Envelope {
	return &signalpb.Envelope{Message: &signalpb.Envelope_MatchRequest{MatchRequest: &signalpb.MatchRequest{Nonce: nonce}}}
}

func TestBadInputIsRefusedAndCounted(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	n, _, _ := runNode(t, c, miner, nil) // a bystander
	if err := n.WaitConnected(patient(t)); err != nil {
		t.Fatal(err)
	}
	tooLong := binary.AppendUvarint(nil, MaxMessage+1)
	tests := map[string]struct {
		bytes   []byte
		counter string
	}{
		"garbage":               {[]byte{4, 0xff, 0xff, 0xff, 0xff}, "malformed"},
		"oversized":             {append(frame(t, hello(client)), tooLong...), "oversized"},
		"endless length":        {[]byte{0xff, 0xff, 0xff, 0xff}, "oversized"},
		"padded length":         {[]byte{0x80, 0x00}, "malformed"},
		"no hello":              {frame(t, testLease()), "out_of_order"},
		"empty hello":           {[]byte{0}, "out_of_order"},
		"two hellos":            {frame(t, hello(client), hello(client)), "out_of_order"},
		"unknown role":          {frame(t, hello(7)), "malformed"},
		"no role":               {frame(t, hello(0)), "malformed"},
		"client with a lease":   {frame(t, hello(client), testLease()), "out_of_order"},
		"miner asks":            {frame(t, hello(miner), matchRequest(make([]byte, 16))), "out_of_order"},
		"client sends a grant":  {frame(t, hello(client), testGrant(make([]byte, 16), 1)), "out_of_order"},
		"short nonce":           {frame(t, hello(client), matchRequest(make([]byte, 15))), "malformed"},
		"name with an escape":   {frame(t, &signalpb.Envelope{Message: &signalpb.Envelope_Hello{Hello: &signalpb.Hello{Role: client, Name: "\x1b[2J"}}}), "malformed"},
		"garbage after a hello": {append(frame(t, hello(client)), 3, 0xff, 0xff, 0xff), "malformed"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before := c.Counters()[test.counter]
			s := dialStranger(t, c, newKey(t))
			s.write(t, test.bytes)
			if code := s.closedWith(t); code != CloseBadMessage {
				t.Errorf("closed with %v", code)
			}
			if got := c.Counters()[test.counter]; got != before+1 {
				t.Errorf("%s was counted %d times", test.counter, got-before)
			}
		})
	}
	if !n.Status().Connected {
		t.Error("a bystander was disturbed")
	}
}

// TestUnknownMessagesAreIgnored: a newer node may say more than we know.
func TestUnknownMessagesAreIgnored(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	s := dialStranger(t, c, newKey(t))
	future := []byte{5, 0xf2, 0x3f, 2, 'h', 'i'} // field 1022, two bytes
	s.write(t, append(append(frame(t, hello(client)), future...), frame(t, matchRequest(make([]byte, 16)))...))
	for _, want := range []string{"welcome", "grant"} {
		env, err := ReadMessage(s.stream)
		if err != nil {
			t.Fatalf("no %s: %v", want, err)
		}
		if (want == "welcome") != (env.GetWelcome() != nil) || (want == "grant") != (env.GetGrant() != nil) {
			t.Errorf("%v instead of a %s", env, want)
		}
	}
	if got := c.Counters()["unknown"]; got != 1 {
		t.Errorf("%d unknown messages", got)
	}
	_ = s.conn.CloseWithError(0, "")
}

func TestWrongALPN(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	tlsConf, err := newKey(t).ClientTLS("mintai/999", c.key.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = newTransport(t, 0, nil).Dial(patient(t), c.tr.Conn.LocalAddr(), tlsConf, &quic.Config{})
	var te *quic.TransportError
	if !errors.As(err, &te) || te.ErrorCode != 0x100+120 { // RFC 7301: no_application_protocol
		t.Errorf("dialed with another protocol: %v", err)
	}
	if got := c.Counters()["wrong_alpn"]; got != 1 {
		t.Errorf("counted %d times", got)
	}
}

// TestStolenCertificate: a certificate is public; only its key proves anything.
func TestStolenCertificate(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, nil)
	victim, err := newKey(t).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	thief := newKey(t)
	tlsConf, err := thief.ClientTLS(ALPN, c.key.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	own, err := thief.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	tlsConf.Certificates = []tls.Certificate{{Certificate: victim.Certificate, PrivateKey: own.PrivateKey}}
	conn, err := newTransport(t, 0, nil).Dial(patient(t), c.tr.Conn.LocalAddr(), tlsConf, &quic.Config{})
	if err == nil { // the node's half of the handshake ends first
		<-conn.Context().Done()
	}
	eventually(t, "the failed handshake is counted", func() bool { return c.Counters()["handshake_failed"] == 1 })
	if c.Len() != 0 {
		t.Error("the thief joined")
	}
}

func TestGarbageOnThePortDisturbsNobody(t *testing.T) {
	c := startCoordinator(t, newKey(t), 0, grants)
	n, _, _ := runNode(t, c, client, nil)
	if err := n.WaitConnected(patient(t)); err != nil {
		t.Fatal(err)
	}
	u, err := net.Dial("udp4", c.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	for i := range 256 {
		if _, err := u.Write(append([]byte{byte(i)}, make([]byte, 1250)...)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Match(patient(t), &signalpb.MatchRequest{}); err != nil {
		t.Fatal(err)
	}
}
