package wordnet

import (
	"cmp"
	"slices"
	"strings"
)

// Near returns at most most words of the dictionary that differ from word in
// one letter more, less or exchanged, or in two neighbours swapped; those with
// the most meanings first. It reads all words, which takes some tens of
// milliseconds, and finds nothing for compounds and words of three letters.
func (d *Dictionary) Near(word string, most int) ([]string, error) {
	key := normalize(word)
	if len(key) < 4 || strings.ContainsRune(key, ' ') {
		return nil, nil
	}
	type near struct {
		word   string
		senses int
	}
	var found []near
	for i := range d.lemmas.blocks {
		err := d.lemmas.entries(i, func(k, v []byte) bool {
			if n := len(k) - len(key); n >= -1 && n <= 1 && oneEdit(string(k), key) {
				found = append(found, near{string(k), countSenses(v)})
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(found, func(a, b near) int {
		return cmp.Or(cmp.Compare(b.senses, a.senses), cmp.Compare(a.word, b.word))
	})
	var words []string
	for _, n := range found[:min(len(found), most)] {
		words = append(words, n.word)
	}
	return words, nil
}

// countSenses adds up the senses of a lemma's value.
func countSenses(value []byte) int {
	n := 0
	for len(value) > 0 {
		head, rest, ok := uvarint(value)
		if !ok {
			return n
		}
		n += head >> 2
		for range head >> 2 {
			if _, rest, ok = uvarint(rest); !ok {
				return n
			}
		}
		value = rest
	}
	return n
}

// oneEdit reports whether one insertion, deletion, substitution or swap of
// neighbouring bytes makes b out of a.
func oneEdit(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 || a == b {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) < len(b) {
		return a[i:] == b[i+1:]
	}
	if a[i+1:] == b[i+1:] {
		return true
	}
	return i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
}
