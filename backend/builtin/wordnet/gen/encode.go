package main

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strconv"
	"strings"

	"mintai/backend/builtin/wordnet"
)

// rawBlock is how many bytes one block holds before compression: larger ones
// compress better, smaller ones are read faster.
const rawBlock = 32 << 10

// block is a compressed block and where it begins.
type block struct {
	first []byte // first key, nil for a section of lines
	num   int    // number of the first record
	data  []byte
	raw   int
	crc   uint32
}

// section collects the blocks of one section.
type section struct {
	keyed   bool
	blocks  []block
	records int
	sum     *bytes.Buffer // all raw bytes, for the checksum of the file

	level int // of compression

	raw  []byte
	key  []byte // of the entry before
	open block
}

// add appends one record. The caller adds keys in order.
func (s *section) add(key string, value []byte) error {
	if len(key) > wordnet.MaxKey {
		return fmt.Errorf("key %q is too long", key)
	}
	if len(s.raw) > 0 && len(s.raw)+len(key)+len(value)+8 > rawBlock {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if len(s.raw) == 0 {
		s.open = block{first: []byte(key), num: s.records}
		s.key = nil
	}
	if s.keyed {
		n := shared(s.key, key)
		s.raw = binary.AppendUvarint(s.raw, uint64(n))
		s.raw = binary.AppendUvarint(s.raw, uint64(len(key)-n))
		s.raw = append(s.raw, key[n:]...)
		s.raw = binary.AppendUvarint(s.raw, uint64(len(value)))
		s.key = []byte(key)
	}
	s.raw = append(s.raw, value...)
	s.records++
	if len(s.raw) > wordnet.MaxRaw {
		return fmt.Errorf("record %q is too long", key)
	}
	return nil
}

func (s *section) flush() error {
	if len(s.raw) == 0 {
		return nil
	}
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, s.level)
	if err != nil {
		return err
	}
	if _, err := w.Write(s.raw); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	s.open.data, s.open.raw, s.open.crc = out.Bytes(), len(s.raw), crc32.ChecksumIEEE(s.raw)
	s.blocks = append(s.blocks, s.open)
	s.sum.Write(s.raw)
	s.raw = s.raw[:0]
	return nil
}

func shared(a []byte, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// encode returns the dictionary file for db, which package wordnet describes,
// compressed at a level of compress/flate.
func encode(db *database, level int) ([]byte, error) {
	sum := new(bytes.Buffer)
	lemmas := &section{keyed: true, sum: sum, level: level}
	inflections := &section{keyed: true, sum: sum, level: level}
	synsets := &section{sum: sum, level: level}
	for _, lemma := range slices.Sorted(maps.Keys(db.lemmas)) {
		var value []byte
		for _, g := range db.lemmas[lemma] {
			value = binary.AppendUvarint(value, uint64(len(g.senses))<<2|uint64(g.pos))
			for _, id := range g.senses {
				value = binary.AppendUvarint(value, uint64(id))
			}
		}
		if err := lemmas.add(lemma, value); err != nil {
			return nil, err
		}
	}
	if err := lemmas.flush(); err != nil {
		return nil, err
	}
	forms := make(map[string]string)
	for key, bases := range db.inflections {
		forms[strconv.Itoa(int(key.pos))+key.form] = strings.Join(slices.Compact(bases), "|")
	}
	for _, form := range slices.Sorted(maps.Keys(forms)) {
		if err := inflections.add(form, []byte(forms[form])); err != nil {
			return nil, err
		}
	}
	if err := inflections.flush(); err != nil {
		return nil, err
	}
	for _, s := range db.synsets {
		if err := synsets.add("", []byte(strings.Join(s.words, "|")+"\t"+s.gloss+"\n")); err != nil {
			return nil, err
		}
	}
	if err := synsets.flush(); err != nil {
		return nil, err
	}
	return assemble(sha256.Sum256(sum.Bytes()), lemmas, inflections, synsets), nil
}

// assemble lays the sections out one after the other.
func assemble(sum [sha256.Size]byte, sections ...*section) []byte {
	lists, keys := wordnet.HeaderSize, 0
	for _, s := range sections {
		lists += len(s.blocks) * wordnet.BlockSize
		if s.keyed {
			for _, b := range s.blocks {
				keys += 1 + len(b.first)
			}
		}
	}
	head := append([]byte(wordnet.Magic), sum[:]...)
	var list, first, data []byte
	for _, s := range sections {
		head = u32s(head, wordnet.HeaderSize+len(list), len(s.blocks), s.records)
		for _, b := range s.blocks {
			begins := b.num
			if s.keyed {
				begins = lists + len(first)
				first = append(append(first, byte(len(b.first))), b.first...)
			}
			list = u32s(list, lists+keys+len(data), len(b.data), b.raw, int(b.crc), begins)
			data = append(data, b.data...)
		}
	}
	return slices.Concat(head, list, first, data)
}

func u32s(b []byte, numbers ...int) []byte {
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return b
}
