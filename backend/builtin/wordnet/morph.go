package wordnet

import (
	"slices"
	"strings"
)

// detachments are the regular inflections of English, from the manual page
// morphy(7WN): a suffix and what takes its place.
var detachments = [...][]struct{ suffix, ending string }{
	Noun: {
		{"s", ""},
		{"ses", "s"},
		{"xes", "x"},
		{"zes", "z"},
		{"ches", "ch"},
		{"shes", "sh"},
		{"men", "man"},
		{"ies", "y"},
	},
	Verb: {
		{"s", ""},
		{"ies", "y"},
		{"es", "e"},
		{"es", ""},
		{"ed", "e"},
		{"ed", ""},
		{"ing", "e"},
		{"ing", ""},
	},
	Adjective: {
		{"er", ""}, {"est", ""}, {"er", "e"}, {"est", "e"},
	},
	Adverb: nil,
}

// Base is the dictionary form of an inflected word.
type Base struct {
	Word         string
	PartOfSpeech PartOfSpeech
}

// Lookup finds word, in any of its usual spellings (capitals, a hyphen or a
// space in a compound), with at most senses senses of each word class. When
// the dictionary has no such word but knows it as an inflected form, Lookup
// returns an entry for each base form, and only in the word classes that are
// inflected so: "tunnels" finds "tunnel". No entry means that the word is not
// in the dictionary; errors wrap ErrCorrupt.
func (d *Dictionary) Lookup(word string, senses int) ([]*Entry, error) {
	for _, key := range spellings(word) {
		groups, err := d.groups(key, senses)
		if err != nil {
			return nil, err
		}
		if len(groups) > 0 {
			e, err := d.entry(key, groups)
			if err != nil {
				return nil, err
			}
			return []*Entry{e}, nil
		}
	}
	for _, key := range spellings(word) {
		bases, err := d.bases(key)
		if err != nil {
			return nil, err
		}
		entries, err := d.baseEntries(bases, senses)
		if err != nil || len(entries) > 0 {
			return entries, err
		}
	}
	return nil, nil
}

// Irregular returns the base forms of which word is an irregular inflection:
// "saw" is one of "see". The dictionary may have word as such too.
func (d *Dictionary) Irregular(word string) ([]Base, error) {
	key := normalize(word)
	if key == "" {
		return nil, nil
	}
	var bases []Base
	for pos := Noun; pos <= Adverb; pos++ {
		irregular, err := d.irregular(key, pos)
		if err != nil {
			return nil, err
		}
		bases = append(bases, irregular...)
	}
	return bases, nil
}

func (d *Dictionary) irregular(key string, pos PartOfSpeech) ([]Base, error) {
	value, ok, err := d.inflections.find(string('0'+byte(pos)) + key)
	if err != nil || !ok {
		return nil, err
	}
	var bases []Base
	for word := range strings.SplitSeq(value, "|") {
		bases = append(bases, Base{word, pos})
	}
	return bases, nil
}

// bases returns the base forms of key that the dictionary has. Of a compound
// the last word is inflected ("fire engines"), or the first ("took off").
func (d *Dictionary) bases(key string) ([]Base, error) {
	var all []Base
	for pos := Noun; pos <= Adverb; pos++ {
		candidates, err := d.irregular(key, pos)
		if err != nil {
			return nil, err
		}
		if len(candidates) == 0 {
			candidates, err = d.regular(key, pos)
			if err != nil {
				return nil, err
			}
		}
		for _, b := range candidates {
			ok, err := d.has(b)
			if err != nil {
				return nil, err
			}
			if ok && !slices.Contains(all, b) {
				all = append(all, b)
			}
		}
	}
	return all, nil
}

// regular applies the detachment rules, and the irregular forms of the parts
// of a compound.
func (d *Dictionary) regular(key string, pos PartOfSpeech) ([]Base, error) {
	before, part, after := "", key, ""
	if pos == Verb {
		if first, rest, ok := strings.Cut(key, " "); ok {
			part, after = first, " "+rest
		}
	} else if i := strings.LastIndexByte(key, ' '); i >= 0 {
		before, part = key[:i+1], key[i+1:]
	}
	var bases []Base
	if part != key {
		irregular, err := d.irregular(part, pos)
		if err != nil {
			return nil, err
		}
		for _, b := range irregular {
			bases = append(bases, Base{before + b.Word + after, pos})
		}
	}
	for _, r := range detachments[pos] {
		if stem, ok := strings.CutSuffix(part, r.suffix); ok && len(stem) > 1 {
			bases = append(bases, Base{before + stem + r.ending + after, pos})
		}
	}
	if stem, ok := doubled(part); ok && pos == Verb {
		bases = append(bases, Base{before + stem + after, pos})
	}
	return bases, nil
}

// doubled undoes the doubling of a final consonant: "tunnelled", "running".
func doubled(word string) (stem string, ok bool) {
	for _, suffix := range []string{"ed", "ing"} {
		stem, ok = strings.CutSuffix(word, suffix)
		if n := len(stem); ok && n > 2 && stem[n-1] == stem[n-2] {
			return stem[:n-1], true
		}
	}
	return "", false
}

func (d *Dictionary) has(b Base) (bool, error) {
	groups, err := d.groups(b.Word, 0)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(groups, func(g group) bool { return g.pos == b.PartOfSpeech }), nil
}

// baseEntries returns one entry for each word among bases.
func (d *Dictionary) baseEntries(bases []Base, senses int) ([]*Entry, error) {
	var entries []*Entry
	var done []string
	for _, b := range bases {
		if slices.Contains(done, b.Word) {
			continue
		}
		done = append(done, b.Word)
		groups, err := d.groups(b.Word, senses)
		if err != nil {
			return nil, err
		}
		groups = slices.DeleteFunc(groups, func(g group) bool {
			return !slices.Contains(bases, Base{b.Word, g.pos})
		})
		e, err := d.entry(b.Word, groups)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// normalize returns word as the dictionary's keys are written: lower case, one
// space between words, ASCII apostrophes. It is empty for what can be no key.
func normalize(word string) string {
	if len(word) > 4*MaxKey {
		return ""
	}
	word = strings.NewReplacer("’", "'", "_", " ").Replace(word)
	word = strings.ToLower(strings.Join(strings.Fields(word), " "))
	if len(word) > MaxKey {
		return ""
	}
	return word
}

// spellings returns the keys under which word may stand, the likeliest first.
func spellings(word string) []string {
	key := normalize(word)
	if key == "" {
		return nil
	}
	keys := []string{key}
	add := func(k string) {
		if k != "" && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	add(strings.ReplaceAll(key, " ", "-"))
	add(strings.ReplaceAll(key, "-", " "))
	add(strings.NewReplacer(" ", "", "-", "").Replace(key))
	add(strings.ReplaceAll(key, ".", ""))
	return keys
}
