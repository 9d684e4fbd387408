package wordnet

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"
	"strings"
	"sync"
)

// Magic begins a dictionary file. The layout after it, all numbers little
// endian:
//
//	32 bytes   SHA-256 of all blocks before compression, in file order
//	3 sections lemmas, inflections, synsets; each three uint32:
//	           offset of its block list, blocks, records
//	block lists and first keys
//	blocks     each DEFLATE (RFC 1951)
//
// A block list has five uint32 a block: offset, compressed length, raw length,
// CRC-32 (IEEE) of the raw bytes, and where the block begins: for synsets the
// number of its first record, else the offset of its first key (one length
// byte, then the key).
//
// Raw blocks of lemmas and inflections are entries sorted by key: uvarint
// length of the prefix shared with the key before, uvarint length of the rest,
// the rest, uvarint length of the value, the value. Raw blocks of synsets are
// lines: the words joined by "|", a tab, the gloss.
//
// The value of a lemma is a list of groups: uvarint (senses<<2 | part of
// speech), then a uvarint synset number for each sense. The key of an
// inflection is the digit of its part of speech and the inflected form; the
// value holds its base forms joined by "|".
const Magic = "mintai/wordnet/v1\n"

// Sizes of the parts that the layout above fixes.
const (
	SumSize     = 32
	SectionSize = 3 * 4
	BlockSize   = 5 * 4
	HeaderSize  = len(Magic) + SumSize + 3*SectionSize
)

// MaxRaw is the most that one block inflates to, in bytes.
const MaxRaw = 40 << 10

// MaxKey is the length of the longest key, in bytes.
const MaxKey = 255

// ErrCorrupt is wrapped by every error about the dictionary's bytes.
var ErrCorrupt = errors.New("dictionary file is damaged")

func corrupt(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }

// section is one list of blocks, read in place.
type section struct {
	data    string
	list    int // offset of the block list
	blocks  int
	records int
}

// openSection checks the n-th section's header and that every block lies
// inside data.
func openSection(data string, n int) (section, error) {
	if len(data) < HeaderSize {
		return section{}, corrupt("too short")
	}
	at := len(Magic) + SumSize + n*SectionSize
	s := section{data: data, list: int(u32(data, at)), blocks: int(u32(data, at+4)), records: int(u32(data, at+8))}
	if s.list < HeaderSize || s.list > len(data) || s.blocks > (len(data)-s.list)/BlockSize {
		return section{}, corrupt("block list outside the file")
	}
	for i := range s.blocks {
		b := s.block(i)
		if b.off > len(data) || b.size > len(data)-b.off || b.raw > MaxRaw {
			return section{}, corrupt("block outside the file")
		}
	}
	return s, nil
}

type block struct {
	off, size, raw int
	crc            uint32
	first          int
}

func (s section) block(i int) block {
	at := s.list + i*BlockSize
	return block{
		off:   int(u32(s.data, at)),
		size:  int(u32(s.data, at+4)),
		raw:   int(u32(s.data, at+8)),
		crc:   u32(s.data, at+12),
		first: int(u32(s.data, at+16)),
	}
}

// firstKey returns the first key of block i, empty when it lies outside the
// file.
func (s section) firstKey(i int) string {
	at := s.block(i).first
	if at >= len(s.data) {
		return ""
	}
	n := int(s.data[at])
	if at+1+n > len(s.data) {
		return ""
	}
	return s.data[at+1 : at+1+n]
}

// inflater is what reading one block needs. They are kept, because a DEFLATE
// reader is larger than the block that it reads.
type inflater struct {
	src strings.Reader
	r   io.ReadCloser
	raw [MaxRaw]byte
}

var inflaters = sync.Pool{New: func() any {
	f := new(inflater)
	f.r = flate.NewReader(&f.src)
	return f
}}

// with calls f with the raw bytes of block i, which are valid until f returns.
func (s section) with(i int, f func(raw []byte) error) error {
	b := s.block(i)
	inf := inflaters.Get().(*inflater)
	defer inflaters.Put(inf)
	inf.src.Reset(s.data[b.off : b.off+b.size])
	if err := inf.r.(flate.Resetter).Reset(&inf.src, nil); err != nil {
		return corrupt(err.Error())
	}
	raw := inf.raw[:b.raw]
	if _, err := io.ReadFull(inf.r, raw); err != nil {
		return corrupt(err.Error())
	}
	if crc32.ChecksumIEEE(raw) != b.crc {
		return corrupt("wrong checksum")
	}
	return f(raw)
}

// find returns the value stored under key, as a copy.
func (s section) find(key string) (value string, ok bool, err error) {
	// The last block whose first key is not after key.
	i := sort.Search(s.blocks, func(i int) bool { return s.firstKey(i) > key }) - 1
	if i < 0 {
		return "", false, nil
	}
	want := []byte(key)
	err = s.entries(i, func(k, v []byte) bool {
		c := bytes.Compare(k, want)
		if c == 0 {
			value, ok = string(v), true
		}
		return c < 0
	})
	return value, ok, err
}

// entries calls f with the entries of block i in order until it returns false.
// The slices are valid during the call.
func (s section) entries(i int, f func(key, value []byte) bool) error {
	return s.with(i, func(raw []byte) error {
		key := make([]byte, 0, MaxKey)
		for len(raw) > 0 {
			var shared, rest, size int
			var ok bool
			if shared, raw, ok = uvarint(raw); !ok || shared > len(key) {
				return corrupt("bad key")
			}
			if rest, raw, ok = uvarint(raw); !ok || rest > len(raw) || shared+rest > MaxKey {
				return corrupt("bad key")
			}
			key, raw = append(key[:shared], raw[:rest]...), raw[rest:]
			if size, raw, ok = uvarint(raw); !ok || size > len(raw) {
				return corrupt("bad value")
			}
			if !f(key, raw[:size]) {
				return nil
			}
			raw = raw[size:]
		}
		return nil
	})
}

// record returns line n of a section of lines, as a copy.
func (s section) record(n int) (line string, err error) {
	i := sort.Search(s.blocks, func(i int) bool { return s.block(i).first > n }) - 1
	if i < 0 || n >= s.records {
		return "", corrupt("no such record")
	}
	skip := n - s.block(i).first
	err = s.with(i, func(raw []byte) error {
		rest := raw
		for {
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				return corrupt("record missing")
			}
			if skip == 0 {
				line = string(rest[:end])
				return nil
			}
			rest = rest[end+1:]
			skip--
		}
	})
	return line, err
}

// uvarint reads a number from b and returns what follows it.
func uvarint(b []byte) (n int, rest []byte, ok bool) {
	v, size := binary.Uvarint(b)
	if size <= 0 || v > 1<<30 {
		return 0, b, false
	}
	return int(v), b[size:], true
}

func u32(s string, at int) uint32 {
	return uint32(s[at]) | uint32(s[at+1])<<8 | uint32(s[at+2])<<16 | uint32(s[at+3])<<24
}
