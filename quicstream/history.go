package quicstream

import "github.com/quic-go/quic-go/quicvarint"

const (
	minBlock = 2 << 10   // most answers are a few kilobytes
	maxBlock = 256 << 10 // bulk runs in steps of this size
)

// headroom is the space before a block's bytes in which a DATA frame's header
// can be put, so that header and payload go out in one write.
const headroom = 8

// block is a piece of kept body; b grows up to its capacity and never moves.
type block struct {
	start int64 // offset of b[0] in the body
	b     []byte
	raw   []byte // headroom and b
}

func newBlock(start int64, n int) block {
	raw := make([]byte, headroom+n)
	return block{start: start, b: raw[headroom:headroom], raw: raw}
}

func (k *block) end() int64 { return k.start + int64(len(k.b)) }

// frame returns the block's bytes from offset on in a DATA frame (RFC 9114
// §7.2.1) of its own. Bytes from the block's start carry their header; for
// others head is to be written first.
func (k *block) frame(offset int64) (head, payload []byte, n int) {
	var buf [headroom]byte
	from := int(offset - k.start)
	n = len(k.b) - from
	head = appendDataHeader(buf[:0], n)
	if from > 0 {
		return head, k.b[from:], n
	}
	start := headroom - len(head)
	copy(k.raw[start:], head)
	return nil, k.raw[start : headroom+len(k.b)], n
}

// appendDataHeader appends the header of a DATA frame with n bytes.
func appendDataHeader(b []byte, n int) []byte {
	const frameData = 0x00
	return quicvarint.Append(append(b, frameData), uint64(n))
}

// history holds the bytes [base, end) of an answer's body. It is plain data:
// its owner locks, pays for the blocks and decides what may be dropped.
type history struct {
	blocks    []block
	base, end int64
	size      int // sum of the capacities
}

// room is the free space in the last block.
func (h *history) room() int {
	if len(h.blocks) == 0 {
		return 0
	}
	last := &h.blocks[len(h.blocks)-1]
	return cap(last.b) - len(last.b)
}

// nextSize is the capacity that the next block should have.
func (h *history) nextSize() int {
	if len(h.blocks) == 0 {
		return minBlock
	}
	return min(2*cap(h.blocks[len(h.blocks)-1].b), maxBlock)
}

// add appends an empty block of n bytes.
func (h *history) add(n int) {
	h.blocks = append(h.blocks, newBlock(h.end, n))
	h.size += n
}

// append copies what fits into the last block and returns how much that was.
func (h *history) append(p []byte) int {
	n := min(len(p), h.room())
	if n == 0 {
		return 0
	}
	last := &h.blocks[len(h.blocks)-1]
	last.b = append(last.b, p[:n]...)
	h.end += int64(n)
	return n
}

// front returns the oldest block, nil when there is none.
func (h *history) front() *block {
	if len(h.blocks) == 0 {
		return nil
	}
	return &h.blocks[0]
}

// drop forgets the oldest block and returns its capacity.
func (h *history) drop() int {
	n := cap(h.blocks[0].b)
	clear(h.blocks[0].b[:n]) // more than its length: it may have been longer before recycle
	h.shift()
	h.size -= n
	return n
}

// recycle makes the oldest block the newest, empty one.
func (h *history) recycle() {
	k := h.blocks[0]
	h.shift()
	k.start, k.b = h.end, k.b[:0]
	h.blocks = append(h.blocks, k)
}

func (h *history) shift() {
	h.base = h.blocks[0].end()
	copy(h.blocks, h.blocks[1:])
	h.blocks[len(h.blocks)-1] = block{}
	h.blocks = h.blocks[:len(h.blocks)-1]
}

// skip moves past n bytes that are not kept, forgetting what was; it returns
// the capacity freed.
func (h *history) skip(n int) int {
	freed := h.wipe()
	h.end += int64(n)
	h.base = h.end
	return freed
}

// at returns the block that holds offset, nil at the end. The offset must lie
// within [base, end].
func (h *history) at(offset int64) *block {
	for i := range h.blocks {
		if k := &h.blocks[i]; offset < k.end() {
			return k
		}
	}
	return nil
}

// wipe overwrites and forgets everything; it returns the capacity freed.
func (h *history) wipe() int {
	for i := range h.blocks {
		b := h.blocks[i].b
		clear(b[:cap(b)]) // more than its length: it may have been longer before recycle
	}
	freed := h.size
	h.blocks, h.size, h.base = nil, 0, h.end
	return freed
}
