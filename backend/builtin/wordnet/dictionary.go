// Package wordnet looks words up in Princeton University's WordNet 3.0, which
// is part of the binary: about 5 MB of small compressed blocks that are read
// in place. A lookup inflates the few blocks that it needs and keeps nothing.
//
// The data is generated from Debian's package wordnet-base; its licence stands
// in the file LICENSE beside it and in the constant of that name.
package wordnet

import (
	_ "embed"
	"strings"
)

//go:generate go run ./gen -from /usr/share/wordnet -o wordnet.bin

//go:embed wordnet.bin
var embedded string

// License is the notice that WordNet's licence asks to be kept with every copy
// of the data.
//
//go:embed LICENSE
var License string

// Source names the data as answers do.
const Source = "WordNet 3.0"

// PartOfSpeech is a word class, as WordNet divides them.
type PartOfSpeech byte

// The word classes of WordNet, numbered as in the dictionary file.
const (
	Noun PartOfSpeech = iota
	Verb
	Adjective
	Adverb
)

// String returns the English name of the word class.
func (p PartOfSpeech) String() string {
	switch p {
	case Noun:
		return "noun"
	case Verb:
		return "verb"
	case Adjective:
		return "adjective"
	case Adverb:
		return "adverb"
	}
	return "word"
}

// Sense is one meaning of a word.
type Sense struct {
	// Words share this meaning, in WordNet's order and spelling.
	Words []string
	// Definition is a phrase without a final full stop.
	Definition string
	// Examples are phrases or sentences that use one of Words.
	Examples []string
}

// Group holds the senses of a word in one word class, the most used first.
type Group struct {
	PartOfSpeech PartOfSpeech
	// Senses holds at most as many as Lookup was asked for, Total counts all.
	Senses []Sense
	Total  int
}

// Entry is what the dictionary says about one word. Groups stand in the order
// of use in the texts that WordNet's authors tagged.
type Entry struct {
	// Word is spelled as in the dictionary, with its capitals.
	Word   string
	Groups []Group
}

// Dictionary is an open WordNet. It may be used by several goroutines.
type Dictionary struct {
	lemmas, inflections, synsets section
}

// Open returns the embedded dictionary. Its errors wrap ErrCorrupt.
func Open() (*Dictionary, error) { return OpenData(embedded) }

// OpenData returns the dictionary in data, a file as Magic describes it. The
// blocks are checked when they are read.
func OpenData(data string) (*Dictionary, error) {
	if !strings.HasPrefix(data, Magic) {
		return nil, corrupt("not a dictionary")
	}
	d := new(Dictionary)
	for i, s := range []*section{&d.lemmas, &d.inflections, &d.synsets} {
		var err error
		if *s, err = openSection(data, i); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Len returns the number of words in the dictionary.
func (d *Dictionary) Len() int { return d.lemmas.records }

// Sum returns the SHA-256 of the dictionary's contents before compression.
func (d *Dictionary) Sum() [SumSize]byte {
	return [SumSize]byte([]byte(d.lemmas.data[len(Magic) : len(Magic)+SumSize]))
}

// group is a Group before its senses are read.
type group struct {
	pos   PartOfSpeech
	total int
	ids   []int
}

// groups returns what is stored about a lemma, nothing when it is unknown.
func (d *Dictionary) groups(lemma string, most int) ([]group, error) {
	value, ok, err := d.lemmas.find(lemma)
	if err != nil || !ok {
		return nil, err
	}
	var all []group
	rest := []byte(value)
	for len(rest) > 0 {
		var head, id int
		if head, rest, ok = uvarint(rest); !ok {
			return nil, corrupt("bad lemma")
		}
		g := group{pos: PartOfSpeech(head & 3), total: head >> 2}
		for i := range g.total {
			if id, rest, ok = uvarint(rest); !ok {
				return nil, corrupt("bad lemma")
			}
			if i < most {
				g.ids = append(g.ids, id)
			}
		}
		all = append(all, g)
	}
	return all, nil
}

// entry reads the senses of groups.
func (d *Dictionary) entry(lemma string, groups []group) (*Entry, error) {
	e := &Entry{Word: lemma}
	spelled := false
	for _, g := range groups {
		out := Group{PartOfSpeech: g.pos, Total: g.total}
		for _, id := range g.ids {
			line, err := d.synsets.record(id)
			if err != nil {
				return nil, err
			}
			s := parseSense(line)
			for _, w := range s.Words {
				if !spelled && strings.EqualFold(w, lemma) {
					e.Word, spelled = w, true
				}
			}
			out.Senses = append(out.Senses, s)
		}
		e.Groups = append(e.Groups, out)
	}
	return e, nil
}

// parseSense splits a synset's line into its words, its definition and its
// examples: WordNet writes a gloss as `definition; "example"; "example"`.
func parseSense(line string) Sense {
	words, gloss, _ := strings.Cut(line, "\t")
	s := Sense{Words: strings.Split(words, "|")}
	at := strings.IndexByte(gloss, '"')
	for at > 0 && !strings.HasSuffix(strings.TrimRight(gloss[:at], " "), ";") &&
		!strings.HasSuffix(strings.TrimRight(gloss[:at], " "), ":") {
		next := strings.IndexByte(gloss[at+1:], '"') // a quotation inside the definition
		if next < 0 {
			at = len(gloss)
			break
		}
		at += 1 + next
		if next = strings.IndexByte(gloss[at+1:], '"'); next < 0 {
			at = len(gloss)
			break
		}
		at += 1 + next
	}
	if at < 0 {
		at = len(gloss)
	}
	s.Definition = strings.TrimRight(gloss[:at], " ;:")
	for rest := gloss[at:]; ; {
		_, after, ok := strings.Cut(rest, `"`)
		if !ok {
			break
		}
		example, tail, ok := strings.Cut(after, `"`)
		if example = strings.TrimSpace(example); example != "" {
			s.Examples = append(s.Examples, example)
		}
		if !ok {
			break
		}
		rest = tail
	}
	return s
}
