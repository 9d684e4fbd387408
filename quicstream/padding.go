package quicstream

import "github.com/quic-go/quic-go/quicvarint"

const (
	// padStep is what the length of a record on the wire is a multiple of.
	padStep = 256
	// padSticky is up to which length a record becomes as long as the longest one
	// before it: a token is always shorter.
	padSticky = 1024
	// framePadding is the type of the frame behind each DATA frame. RFC 9114
	// §7.2.8: "Frame types of the format 0x1f * N + 0x21 for non-negative integer
	// values of N are reserved to exercise the requirement that unknown types be
	// ignored". They "MAY be sent as application-layer padding".
	framePadding = 0x21
	// leastPadding is the shortest frame: its type and its length.
	leastPadding = 2
)

// padding makes the lengths of an answer's records say little: each DATA frame is
// followed by a frame that every receiver ignores, so that both together have a
// length of few. A stream of tokens has one length, the longest of them, whatever
// they are. Offsets and digests count the bytes of the answer, as ever.
type padding struct {
	off    bool
	sticky int // length of the longest short record so far
}

// after returns how long the padding behind a DATA frame of n bytes is, at least
// leastPadding; 0 when there is none.
func (p *padding) after(n int) int {
	if p.off {
		return 0
	}
	whole := (n + leastPadding + padStep - 1) / padStep * padStep
	if whole <= padSticky {
		p.sticky = max(p.sticky, whole)
		whole = p.sticky
	}
	return whole - n
}

// appendPadding appends a frame of n bytes, which is leastPadding or more.
func appendPadding(b []byte, n int) []byte {
	b = append(b, framePadding)
	if rest := n - leastPadding; rest < 1<<6 {
		b = append(b, byte(rest))
		return append(b, zeros[:rest]...)
	}
	rest := n - leastPadding - 1
	b = quicvarint.AppendWithLen(b, uint64(rest), 2)
	return append(b, zeros[:rest]...)
}

// zeros is as much as a padding can be.
var zeros [padSticky]byte
