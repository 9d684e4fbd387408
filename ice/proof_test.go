package ice

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

func newTestKey(t testing.TB) *identity.Key {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var testCoordinator = identity.NodeID{1, 2, 3}

func TestProbeIsSignedAndVerified(t *testing.T) {
	key := newTestKey(t)
	now := time.Now()
	for _, change := range []Change{0, ChangePort, ChangeIP, ChangeIP | ChangePort} {
		raw, id := SignProbe(key, testCoordinator, change, now)
		before := bytes.Clone(raw)
		got, err := VerifyProbe(raw, testCoordinator, now)
		if err != nil || !bytes.Equal(raw, before) {
			t.Fatalf("change %d: %v", change, err)
		}
		if got.Transaction != id || got.Change != change || !got.Signed || !got.Fresh || got.Node != key.ID() || got.Unknown != nil {
			t.Errorf("change %d: %+v", change, got)
		}
		// An answer with three IPv6 addresses must not amplify (it has 92 bytes).
		if len(raw) < 92/3 {
			t.Errorf("a probe has %d bytes", len(raw))
		}
	}
}

func TestProbeStamp(t *testing.T) {
	key := newTestKey(t)
	now := time.Now()
	for off, want := range map[time.Duration]bool{
		0: true, 89 * time.Second: true, -89 * time.Second: true, 91 * time.Second: false, -91 * time.Second: false,
		1000000 * time.Hour: false, -1000000 * time.Hour: false,
	} {
		raw, _ := SignProbe(key, testCoordinator, 0, now.Add(off))
		if p, err := VerifyProbe(raw, testCoordinator, now); err != nil || !p.Signed || p.Fresh != want {
			t.Errorf("a clock off by %s: %+v, %v", off, p, err)
		}
	}
	for _, stamp := range []int64{-1 << 63, 1<<63 - 1, 0, -1} {
		if fresh(stamp, now) {
			t.Errorf("stamp %d is fresh", stamp)
		}
	}
}

func TestProbeForgeries(t *testing.T) {
	key, other := newTestKey(t), newTestKey(t)
	now := time.Now()
	raw, _ := SignProbe(key, testCoordinator, ChangePort, now)
	if _, err := VerifyProbe(raw, identity.NodeID{9}, now); !errors.Is(err, ErrBadProbe) {
		t.Errorf("for another coordinator: %v", err)
	}
	// Each byte that says something is covered. CHANGE-REQUEST's reserved bits
	// say nothing (RFC 5780 §7.2).
	for i := range raw {
		b := bytes.Clone(raw)
		b[i] ^= 1
		if p, err := VerifyProbe(b, testCoordinator, now); err == nil && p.Signed && (i < 24 || i > 27) {
			t.Errorf("byte %d was changed, and it holds: %+v", i, p)
		}
	}
	for i := range raw {
		if p, err := VerifyProbe(raw[:i], testCoordinator, now); !errors.Is(err, ErrBadProbe) {
			t.Errorf("the first %d bytes: %+v, %v", i, p, err)
		}
	}
	id, otherID := key.ID(), other.ID()
	transaction := stun.NewTransactionID()
	stamp := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	sig := key.Sign(probeText(testCoordinator, transaction, stamp, 0))
	attr := func(t stun.AttrType, v []byte) stun.RawAttribute { return stun.RawAttribute{Type: t, Value: v} }
	for name, tc := range map[string]struct {
		attrs []stun.RawAttribute
		ok    bool
	}{
		"complete":                {[]stun.RawAttribute{attr(attrNode, id[:]), attr(attrStamp, stamp), attr(attrSignature, sig)}, true},
		"in another order":        {[]stun.RawAttribute{attr(attrSignature, sig), attr(attrStamp, stamp), attr(attrNode, id[:])}, true},
		"another node":            {[]stun.RawAttribute{attr(attrNode, otherID[:]), attr(attrStamp, stamp), attr(attrSignature, sig)}, false},
		"without signature":       {[]stun.RawAttribute{attr(attrNode, id[:]), attr(attrStamp, stamp)}, false},
		"without node":            {[]stun.RawAttribute{attr(attrStamp, stamp), attr(attrSignature, sig)}, false},
		"without stamp":           {[]stun.RawAttribute{attr(attrNode, id[:]), attr(attrSignature, sig)}, false},
		"a short node":            {[]stun.RawAttribute{attr(attrNode, id[:31]), attr(attrStamp, stamp), attr(attrSignature, sig)}, false},
		"a long stamp":            {[]stun.RawAttribute{attr(attrNode, id[:]), attr(attrStamp, append(stamp, 0)), attr(attrSignature, sig)}, false},
		"a short signature":       {[]stun.RawAttribute{attr(attrNode, id[:]), attr(attrStamp, stamp), attr(attrSignature, sig[:63])}, false},
		"an empty node":           {[]stun.RawAttribute{attr(attrNode, []byte{})}, false},
		"two nodes":               {[]stun.RawAttribute{attr(attrNode, id[:]), attr(attrNode, id[:]), attr(attrStamp, stamp), attr(attrSignature, sig)}, false},
		"a change that was not":   {[]stun.RawAttribute{attr(stun.AttrChangeRequest, []byte{0, 0, 0, 6}), attr(attrNode, id[:]), attr(attrStamp, stamp), attr(attrSignature, sig)}, false},
		"a malformed change":      {[]stun.RawAttribute{attr(stun.AttrChangeRequest, []byte{6})}, false},
		"a wrong fingerprint":     {[]stun.RawAttribute{attr(stun.AttrFingerprint, []byte{1, 2, 3, 4})}, false},
		"a malformed fingerprint": {[]stun.RawAttribute{attr(stun.AttrFingerprint, []byte{1})}, false},
	} {
		m := stun.New()
		m.TransactionID = transaction
		m.SetType(stun.BindingRequest)
		m.WriteHeader()
		for _, a := range tc.attrs {
			m.Add(a.Type, a.Value)
		}
		p, err := VerifyProbe(m.Raw, testCoordinator, now)
		if (err == nil) != tc.ok || tc.ok != p.Signed || err != nil && !errors.Is(err, ErrBadProbe) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestPlainBindingRequests(t *testing.T) {
	now := time.Now()
	plain := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	p, err := VerifyProbe(plain.Raw, testCoordinator, now)
	if err != nil || p.Signed || p.Fresh || p.Transaction != plain.TransactionID {
		t.Errorf("%+v, %v", p, err)
	}
	printed := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
	if _, err := VerifyProbe(printed.Raw, testCoordinator, now); err != nil {
		t.Error(err)
	}
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.RawAttribute{Type: 0x7abc, Value: []byte{1}},
		stun.RawAttribute{Type: 0xfabc, Value: []byte{1}}, stun.NewUsername("x"))
	if p, err := VerifyProbe(m.Raw, testCoordinator, now); err != nil || !slices.Equal(p.Unknown, []uint16{0x7abc}) {
		t.Errorf("%+v, %v", p, err)
	}
	for name, typ := range map[string]stun.MessageType{
		"an answer": stun.BindingSuccess, "an indication": stun.NewType(stun.MethodBinding, stun.ClassIndication),
		"an allocation": stun.NewType(stun.MethodAllocate, stun.ClassRequest),
	} {
		if _, err := VerifyProbe(stun.MustBuild(stun.TransactionID, typ).Raw, testCoordinator, now); !errors.Is(err, ErrBadProbe) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSocketProves(t *testing.T) {
	s, coordinator := testSocket(t, SocketConfig{Loopback: true}), testSocket(t, SocketConfig{Loopback: true})
	key := newTestKey(t)
	s.Prove(key, testCoordinator, []netip.AddrPort{
		{}, netip.MustParseAddrPort("224.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:0"), loopback(coordinator).Addr,
	})
	eventually(t, "the proof", func() bool { return coordinator.Stats().Received == 1 })
	if !s.contacts.recent(loopback(coordinator).Addr) {
		t.Error("the contact is not remembered")
	}
}

// FuzzVerifyProbe takes its input as a datagram, and as changes to one that was
// signed: those never pass as signed.
func FuzzVerifyProbe(f *testing.F) {
	key := newTestKey(f)
	now := time.Now()
	raw, _ := SignProbe(key, testCoordinator, ChangeIP|ChangePort, now)
	f.Add(raw)
	f.Add(rfc5769Request)
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint).Raw)
	f.Add([]byte{24: 1})
	f.Add([]byte{140: 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		changed := bytes.Clone(raw)
		for i := range min(len(b), len(changed)) {
			changed[i] ^= b[i]
		}
		for _, datagram := range [][]byte{b, changed} {
			before := bytes.Clone(datagram)
			p, err := VerifyProbe(datagram, testCoordinator, now)
			switch {
			case !bytes.Equal(datagram, before):
				t.Fatal("the datagram was changed")
			case err != nil:
				if !errors.Is(err, ErrBadProbe) || p.Signed || p.Fresh || p.Node != (identity.NodeID{}) {
					t.Fatalf("%+v with error %v", p, err)
				}
			case p.Signed && p.Node == key.ID() && (!bytes.Equal(datagram[8:20], raw[8:20]) || p.Change != ChangeIP|ChangePort || !p.Fresh):
				t.Fatalf("a forgery: %x", datagram)
			case p.Fresh && !p.Signed, p.Change&^(ChangeIP|ChangePort) != 0:
				t.Fatalf("%+v", p)
			}
		}
	})
}

// FuzzReadAnswer checks that an answer has a usable address or is a refusal.
func FuzzReadAnswer(f *testing.F) {
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingSuccess, &stun.XORMappedAddress{IP: []byte{192, 0, 2, 1}, Port: 4433}).Raw)
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingError, stun.CodeUnknownAttribute).Raw)
	f.Add(rfc5769Request)
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := readAnswer(b, testFrom)
		if !ok {
			return
		}
		if _, err := (Candidate{Addr: a.mapped}).Check(); err != nil && !a.refused {
			t.Fatalf("%+v", a)
		}
	})
}
