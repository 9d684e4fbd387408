package quicstream

import (
	"bytes"
	"testing"

	"github.com/quic-go/quic-go/quicvarint"
)

// payload takes a DATA frame apart.
func payload(t *testing.T, head, rest []byte) []byte {
	t.Helper()
	all := append(bytes.Clone(head), rest...)
	kind, n, err := quicvarint.Parse(all)
	if err != nil || kind != 0 {
		t.Fatalf("frame type %d, %v", kind, err)
	}
	length, m, err := quicvarint.Parse(all[n:])
	if err != nil || int(length) != len(all)-n-m {
		t.Fatalf("length %d of %d bytes, %v", length, len(all)-n-m, err)
	}
	return all[n+m:]
}

// FuzzHistory holds a history against a plain slice: whatever was appended,
// dropped, recycled or skipped, the kept range reads back the same.
func FuzzHistory(f *testing.F) {
	f.Add([]byte{0, 200, 1, 0, 255, 2, 3, 0, 17, 4, 9})
	f.Add([]byte{0, 255, 0, 255, 0, 255, 2, 0, 255, 3, 0, 255})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var (
			h     history
			whole []byte
		)
		for i := 0; i+1 < len(ops); i += 2 {
			n := int(ops[i+1]) * 37
			switch ops[i] % 5 {
			case 0, 1: // append what fits, in a new block when there is no room
				if h.room() == 0 {
					h.add(h.nextSize())
				}
				p := bytes.Repeat([]byte{ops[i+1] ^ byte(i)}, n)
				p = p[:h.append(p)]
				whole = append(whole, p...)
			case 2:
				if h.front() != nil {
					h.drop()
				}
			case 3:
				if h.front() != nil && h.room() == 0 {
					h.recycle()
				}
			case 4:
				h.skip(n)
				whole = append(whole, make([]byte, n)...)
			}
			if h.end != int64(len(whole)) || h.base > h.end {
				t.Fatalf("[%d, %d) of %d bytes", h.base, h.end, len(whole))
			}
			size := 0
			for j := range h.blocks {
				size += cap(h.blocks[j].b)
			}
			if size != h.size {
				t.Fatalf("size %d, capacities %d", h.size, size)
			}
			for at := h.base; at < h.end; {
				head, rest, n := h.at(at).frame(at)
				if got := payload(t, head, rest); !bytes.Equal(got, whole[at:at+int64(n)]) {
					t.Fatalf("bytes differ at %d", at)
				}
				if n > 1 { // and from the middle of a block
					head, rest, m := h.at(at + 1).frame(at + 1)
					if got := payload(t, head, rest); m != n-1 || !bytes.Equal(got, whole[at+1:at+int64(n)]) {
						t.Fatalf("bytes differ at %d", at+1)
					}
				}
				at += int64(n)
			}
		}
		if h.wipe(); h.size != 0 || h.base != h.end || h.at(h.end) != nil {
			t.Fatalf("not empty: %+v", h)
		}
	})
}

// What was kept is overwritten as far as it ever reached, also where a block was
// used again for less.
func TestHistoryIsWiped(t *testing.T) {
	for name, forget := range map[string]func(*history){
		"wipe": func(h *history) { h.wipe() },
		"drop": func(h *history) { h.drop() },
	} {
		var h history
		h.add(64)
		h.append(bytes.Repeat([]byte{'x'}, 64))
		memory := h.blocks[0].b
		h.recycle()
		h.append([]byte("y"))
		forget(&h)
		if bytes.ContainsAny(memory, "xy") {
			t.Errorf("%s: %q is left", name, memory)
		}
	}
}
