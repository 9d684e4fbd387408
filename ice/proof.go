package ice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun"

	"mintai/identity"
)

// The attributes that make a Binding Request a probe. They are from the
// comprehension-optional range (RFC 8489 §14), so that any STUN server answers
// a probe as if they were not there.
const (
	attrNode      stun.AttrType = 0xD4D1 // MINTAI-NODE: the sender's NodeID, 32 bytes
	attrStamp     stun.AttrType = 0xD4D2 // MINTAI-STAMP: the sender's clock, Unix milliseconds, 8 bytes
	attrSignature stun.AttrType = 0xD4D3 // MINTAI-SIGNATURE: Ed25519, 64 bytes
)

const (
	probeLabel = "mintai/probe/v1"
	// probeWindow is how far the clocks of a node and its coordinator may be
	// apart. Replays are told by their transaction IDs while the stamp is inside.
	probeWindow = 90 * time.Second
	sigSize     = 64
)

// ErrBadProbe is wrapped when a datagram is no Binding Request, or claims a
// signature that does not hold.
var ErrBadProbe = errors.New("not a valid probe")

// Proof is the coordinator's knowledge that a node's signed packet came from an
// address.
type Proof struct {
	Node identity.NodeID
	From netip.AddrPort // where the packet came from
	At   netip.AddrPort // the coordinator's own address to which it came
}

// Change asks for the answer from another address than the one that was asked
// (RFC 5780 §7.2, CHANGE-REQUEST).
type Change uint8

// The flags of a Change, with the bits of RFC 5780 §7.2.
const (
	ChangePort Change = 0x02
	ChangeIP   Change = 0x04
)

// ProbeRequest is a Binding Request as a server sees it.
type ProbeRequest struct {
	Transaction [stun.TransactionIDSize]byte
	Change      Change
	// Signed says that Node sent it, now or earlier.
	Signed bool
	Node   identity.NodeID // zero unless Signed
	// Fresh says that the stamp is within 90 s of the clock. What is not fresh
	// may be a replay and proves nothing. False unless Signed.
	Fresh bool
	// Unknown lists the comprehension-required attributes that a server must
	// refuse with 420 (RFC 8489 §6.3.1).
	Unknown []uint16
}

// SignProbe returns a Binding Request that proves to one coordinator that the
// node of key sent it, with the transaction ID of its answer. RFC 8489 has no
// authentication that fits: there is no shared secret, and the address proven
// is that of the packet itself.
func SignProbe(key *identity.Key, coordinator identity.NodeID, change Change, now time.Time) (raw []byte, transaction [stun.TransactionIDSize]byte) {
	m := stun.New()
	m.TransactionID = stun.NewTransactionID()
	m.SetType(stun.BindingRequest)
	m.WriteHeader()
	id := key.ID()
	stamp := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	if change != 0 {
		m.Add(stun.AttrChangeRequest, []byte{0, 0, 0, byte(change)})
	}
	m.Add(attrNode, id[:])
	m.Add(attrStamp, stamp)
	m.Add(attrSignature, key.Sign(probeText(coordinator, m.TransactionID, stamp, change)))
	return m.Raw, m.TransactionID
}

// probeText is what a probe's signature covers.
func probeText(coordinator identity.NodeID, transaction [stun.TransactionIDSize]byte, stamp []byte, change Change) []byte {
	text := make([]byte, 0, len(probeLabel)+len(coordinator)+len(transaction)+len(stamp)+1)
	text = append(text, probeLabel...)
	text = append(text, coordinator[:]...)
	text = append(text, transaction[:]...)
	text = append(text, stamp...)
	return append(text, byte(change))
}

// VerifyProbe reads a Binding Request, signed or plain, that came to the named
// coordinator. It keeps no reference to raw. Errors wrap ErrBadProbe. Whether a
// signed request was seen before is the caller's to remember, by Node and
// Transaction, for as long as it is Fresh.
func VerifyProbe(raw []byte, coordinator identity.NodeID, now time.Time) (ProbeRequest, error) {
	kind, id := classify(raw)
	if kind != bindingRequest {
		return ProbeRequest{}, fmt.Errorf("%w: not a binding request", ErrBadProbe)
	}
	m := &stun.Message{Raw: append([]byte(nil), raw...)}
	if err := m.Decode(); err != nil {
		return ProbeRequest{}, fmt.Errorf("%w: malformed", ErrBadProbe)
	}
	p := ProbeRequest{Transaction: id}
	var node, stamp, sig []byte
	for _, a := range m.Attributes {
		var into *[]byte
		switch a.Type {
		case attrNode:
			into = &node
		case attrStamp:
			into = &stamp
		case attrSignature:
			into = &sig
		case stun.AttrChangeRequest:
			if len(a.Value) != 4 {
				return ProbeRequest{}, fmt.Errorf("%w: CHANGE-REQUEST of %d bytes", ErrBadProbe, len(a.Value))
			}
			p.Change = Change(a.Value[3]) & (ChangeIP | ChangePort)
			continue
		case stun.AttrFingerprint:
			if err := stun.Fingerprint.Check(m); err != nil {
				return ProbeRequest{}, fmt.Errorf("%w: the fingerprint is wrong", ErrBadProbe)
			}
			continue
		default:
			if a.Type.Required() && !understood(a.Type) {
				p.Unknown = append(p.Unknown, a.Type.Value())
			}
			continue
		}
		// RFC 8489 §14: "Any attribute type MAY appear more than once in a STUN
		// message. Unless specified otherwise, ... only the first occurrence needs to
		// be processed". Here a second one is refused: nobody has a use for it.
		if *into != nil {
			return ProbeRequest{}, fmt.Errorf("%w: %s twice", ErrBadProbe, a.Type)
		}
		*into = a.Value
	}
	if node == nil && stamp == nil && sig == nil {
		return p, nil
	}
	if len(stamp) != 8 || len(sig) != sigSize {
		return ProbeRequest{}, fmt.Errorf("%w: a part of the signature is missing", ErrBadProbe)
	}
	nodeID, err := identity.NodeIDFromBytes(node)
	if err != nil {
		return ProbeRequest{}, fmt.Errorf("%w: %w", ErrBadProbe, err)
	}
	if !identity.Verify(nodeID, probeText(coordinator, id, stamp, p.Change), sig) {
		return ProbeRequest{}, fmt.Errorf("%w: the signature is wrong", ErrBadProbe)
	}
	p.Signed, p.Node = true, nodeID
	p.Fresh = fresh(int64(binary.BigEndian.Uint64(stamp)), now)
	return p, nil
}

// fresh compares a stamp with the clock; a stamp may be any number.
func fresh(stamp int64, now time.Time) bool {
	at := now.UnixMilli()
	window := probeWindow.Milliseconds()
	return stamp >= at-window && stamp <= at+window
}

// understood reports whether a comprehension-required attribute means nothing
// bad in a Binding Request: credentials that this server does not ask for.
func understood(t stun.AttrType) bool {
	switch t {
	case stun.AttrUsername, stun.AttrMessageIntegrity, stun.AttrMessageIntegritySHA256,
		stun.AttrRealm, stun.AttrNonce, stun.AttrUserhash, stun.AttrPasswordAlgorithm:
		return true
	default:
		return false
	}
}

// Prove sends one signed probe to each server and waits for nothing. It shows
// the coordinator from which of the node's addresses it sends, and how the NAT
// before it maps them. What cannot be sent is left out.
func (s *Socket) Prove(key *identity.Key, coordinator identity.NodeID, servers []netip.AddrPort) {
	now := time.Now()
	for _, to := range servers {
		if _, err := (Candidate{Addr: to}).Check(); err != nil {
			continue
		}
		s.contacts.note(canonical(to), now)
		raw, _ := SignProbe(key, coordinator, 0, now)
		_, _ = s.transport.WriteTo(raw, net.UDPAddrFromAddrPort(to))
	}
}
