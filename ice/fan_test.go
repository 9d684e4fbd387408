package ice

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/pion/stun"
)

// fuzzIDs are transactions: that of the check whose answer is waited for, and
// that of one that was not sent.
var fuzzIDs = [2]transactionID{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {12, 11}}

// signedWith reports whether a message has the integrity of a password, by RFC
// 8489 §14.5 and without the library that the code uses.
func signedWith(b []byte, password string) bool {
	const header, integrity = 20, 0x0008
	for at := header; at+4 <= len(b); {
		kind, size := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		if kind != integrity {
			at += 4 + (size+3)&^3
			continue
		}
		if size != sha1.Size || at+4+size > len(b) {
			return false
		}
		text := slices.Clone(b[:at])
		binary.BigEndian.PutUint16(text[2:], uint16(at+4+size-header))
		mac := hmac.New(sha1.New, []byte(password))
		_, _ = mac.Write(text)
		return hmac.Equal(mac.Sum(nil), b[at+4:at+4+size])
	}
	return false
}

// Whatever comes, only the peer's signed messages do anything, only from its
// address, and an answer only to a check that was sent.
func FuzzFanMessage(f *testing.F) {
	local, remote := Credentials{"hard", "a password of the hard side"}, Credentials{"easy", "a password of the easy side"}
	peer, stranger := netip.MustParseAddrPort("20.0.0.1:4433"), netip.MustParseAddrPort("20.0.0.2:4433")
	hard := &fan{cfg: FanConfig{Target: peer}, responder: newLegResponder(local, remote, true, Prflx)}
	seed := func(kind stun.MessageType, id transactionID, more ...stun.Setter) {
		set := append([]stun.Setter{stun.NewTransactionIDSetter(id), kind}, more...)
		m, err := stun.Build(append(set, stun.Fingerprint)...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Raw)
	}
	mapped := &stun.XORMappedAddress{IP: []byte{20, 0, 0, 3}, Port: 1}
	byPeer, name := stun.NewShortTermIntegrity(remote.Pwd), stun.NewUsername("hard:easy")
	seed(stun.BindingSuccess, fuzzIDs[0], mapped, byPeer)
	seed(stun.BindingSuccess, fuzzIDs[1], mapped, byPeer)
	seed(stun.BindingSuccess, fuzzIDs[0], mapped)
	seed(stun.BindingSuccess, fuzzIDs[0], mapped, stun.NewShortTermIntegrity("another password"))
	seed(stun.BindingError, fuzzIDs[0], byPeer)
	seed(stun.BindingRequest, fuzzIDs[1], name, stun.NewShortTermIntegrity(local.Pwd))
	seed(stun.BindingRequest, fuzzIDs[1], name)
	seed(stun.BindingRequest, fuzzIDs[1], name, stun.NewShortTermIntegrity("another password"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		hard.responder.sent = map[transactionID]netip.AddrPort{fuzzIDs[0]: peer}
		if _, ok := hard.message(0, b, stranger); ok {
			t.Error("it came from elsewhere")
		}
		e, ok := hard.message(0, b, peer)
		kind, id := classify(b)
		switch {
		case ok && e.answer == nil:
			if kind != bindingResponse || id != fuzzIDs[0] || !signedWith(b, remote.Pwd) {
				t.Errorf("counts as the peer's answer: %x", b)
			}
			if _, again := hard.message(0, b, peer); again {
				t.Error("an answer counts twice")
			}
		case ok:
			if kind != bindingRequest || !signedWith(b, local.Pwd) {
				t.Errorf("was answered: %x", b)
			}
			if k, answered := classify(e.answer); k != bindingResponse || answered != id || !signedWith(e.answer, local.Pwd) {
				t.Errorf("the answer is %x", e.answer)
			}
		}
		readAnswer(b, peer)
	})
}

// What the fuzz test allows does happen.
func TestFanMessage(t *testing.T) {
	local, remote := NewCredentials(), NewCredentials()
	at := netip.MustParseAddrPort("20.0.0.1:4433")
	hard := &fan{cfg: FanConfig{Target: at}, responder: newLegResponder(local, remote, true, Prflx)}
	easy := newLegResponder(remote, local, false, Prflx)
	ours, err := hard.responder.checkTo(at)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := easy.answer(ours, at)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := hard.message(1, answer, at); !ok || e.answer != nil || e.socket != 1 {
		t.Errorf("the peer's answer: %+v, %t", e, ok)
	}
	theirs, err := easy.check()
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := hard.message(2, theirs, at); !ok || e.answer == nil || e.socket != 2 {
		t.Errorf("the peer's check: %+v, %t", e, ok)
	}
}
