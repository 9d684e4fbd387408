package ice

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	stunv4 "github.com/pion/stun/v4"
)

// rawTURN is a TURN client that says what a well-behaved one never would.
type rawTURN struct {
	t        testing.TB
	conn     *net.UDPConn
	server   netip.AddrPort
	user     string
	realm    string
	nonce    string
	key      stunv4.MessageIntegrity
	deadline time.Duration
}

func newRawTURN(t testing.TB, server *TURNServer, user, password string) *rawTURN {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &rawTURN{
		t: t, conn: conn, server: server.Addrs()[0], user: user, realm: server.Realm(),
		key:      stunv4.NewLongTermIntegrity(user, server.Realm(), password),
		deadline: testTimeout,
	}
}

// attr is a raw attribute.
type attr struct {
	typ   stunv4.AttrType
	value []byte
}

func (a attr) AddTo(m *stunv4.Message) error {
	m.Add(a.typ, a.value)
	return nil
}

// xorPeer writes XOR-PEER-ADDRESS (RFC 8656 §18.3) in exactly the family of ip,
// which libraries do not: they turn IPv4-mapped addresses into IPv4.
type xorPeer netip.AddrPort

func (x xorPeer) AddTo(m *stunv4.Message) error {
	addr := netip.AddrPort(x)
	mask := append([]byte{0x21, 0x12, 0xA4, 0x42}, m.TransactionID[:]...)
	family := byte(1)
	if addr.Addr().Is6() {
		family = 2
	}
	v := []byte{0, family}
	v = binary.BigEndian.AppendUint16(v, addr.Port()^0x2112)
	for i, b := range addr.Addr().AsSlice() {
		v = append(v, b^mask[i])
	}
	m.Add(stunv4.AttrXORPeerAddress, v)
	return nil
}

var (
	transportUDP = attr{stunv4.AttrRequestedTransport, []byte{17, 0, 0, 0}}
	transportTCP = attr{stunv4.AttrRequestedTransport, []byte{6, 0, 0, 0}}
)

// channel is CHANNEL-NUMBER (RFC 8656 §18.1): the number and two zero bytes.
func channel(n uint16) attr {
	return attr{stunv4.AttrChannelNumber, []byte{byte(n >> 8), byte(n), 0, 0}}
}

// request sends a signed request and returns the response and its error code,
// zero for success.
func (r *rawTURN) request(method stunv4.Method, attrs ...stunv4.Setter) (*stunv4.Message, stunv4.ErrorCode) {
	r.t.Helper()
	for range 3 {
		setters := []stunv4.Setter{stunv4.TransactionID, stunv4.NewType(method, stunv4.ClassRequest)}
		setters = append(setters, attrs...)
		if r.nonce != "" {
			setters = append(setters, stunv4.NewUsername(r.user), stunv4.NewRealm(r.realm), stunv4.NewNonce(r.nonce), r.key)
		}
		req := stunv4.MustBuild(append(setters, stunv4.Fingerprint)...)
		r.send(req.Raw)
		res := r.response(req.TransactionID)
		var code stunv4.ErrorCodeAttribute
		if code.GetFrom(res) != nil {
			return res, 0
		}
		var nonce stunv4.Nonce
		fresh := nonce.GetFrom(res) == nil && nonce.String() != r.nonce
		if fresh && (code.Code == stunv4.CodeStaleNonce || r.nonce == "") {
			r.nonce = nonce.String()
			continue
		}
		return res, code.Code
	}
	r.t.Fatal("the server goes on asking for another nonce")
	return nil, 0
}

func (r *rawTURN) send(b []byte) {
	r.t.Helper()
	if _, err := r.conn.WriteToUDPAddrPort(b, r.server); err != nil {
		r.t.Fatal(err)
	}
}

// response waits for the response to a request; what else arrives is dropped.
func (r *rawTURN) response(id [stunv4.TransactionIDSize]byte) *stunv4.Message {
	r.t.Helper()
	buf := make([]byte, 2048)
	_ = r.conn.SetReadDeadline(time.Now().Add(r.deadline))
	for {
		n, err := r.conn.Read(buf)
		if err != nil {
			r.t.Fatalf("no answer of the TURN server: %v", err)
		}
		m := &stunv4.Message{Raw: append([]byte(nil), buf[:n]...)}
		if m.Decode() == nil && m.TransactionID == id {
			return m
		}
	}
}

// indicate sends a Send indication.
func (r *rawTURN) indicate(peer netip.AddrPort, data string) {
	r.t.Helper()
	r.send(stunv4.MustBuild(
		stunv4.TransactionID, stunv4.NewType(stunv4.MethodSend, stunv4.ClassIndication),
		xorPeer(peer), attr{stunv4.AttrData, []byte(data)}, stunv4.Fingerprint,
	).Raw)
}

// allocate makes an allocation and returns the relayed address.
func (r *rawTURN) allocate() netip.AddrPort {
	r.t.Helper()
	res, code := r.request(stunv4.MethodAllocate, transportUDP)
	if code != 0 {
		r.t.Fatalf("allocating: error %d", code)
	}
	var relayed stunv4.XORMappedAddress
	if err := relayed.GetFromAs(res, stunv4.AttrXORRelayedAddress); err != nil {
		r.t.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(relayed.IP)
	return netip.AddrPortFrom(ip.Unmap(), uint16(relayed.Port))
}
