package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"sort"
	"strconv"
	"strings"

	"mintai/backend/builtin/wordnet"
)

// database is WordNet as read from its files (manual pages wndb(5WN),
// senseidx(5WN) and cntlist(5WN)).
type database struct {
	synsets     []synset
	lemmas      map[string][]group
	inflections map[inflection][]string
}

// synset is a set of words with one meaning.
type synset struct {
	words []string
	gloss string
}

// group holds the senses of a lemma in one part of speech.
type group struct {
	pos    wordnet.PartOfSpeech
	senses []int // indexes of synsets
	uses   int   // how often the tagged texts use it
}

type inflection struct {
	pos  wordnet.PartOfSpeech
	form string
}

var files = []struct {
	name string
	pos  wordnet.PartOfSpeech
}{
	{"noun", wordnet.Noun}, {"verb", wordnet.Verb}, {"adj", wordnet.Adjective}, {"adv", wordnet.Adverb},
}

func readDatabase(dir fs.FS) (*database, error) {
	db := &database{lemmas: make(map[string][]group), inflections: make(map[inflection][]string)}
	uses, err := readUses(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		offsets, err := db.readData(dir, "data."+f.name)
		if err != nil {
			return nil, err
		}
		if err := db.readIndex(dir, "index."+f.name, f.pos, offsets, uses); err != nil {
			return nil, err
		}
	}
	for _, groups := range db.lemmas {
		sort.SliceStable(groups, func(i, j int) bool { return groups[i].uses > groups[j].uses })
	}
	for _, f := range files {
		if err := db.readExceptions(dir, f.name+".exc", f.pos); err != nil {
			return nil, err
		}
	}
	return db, nil
}

// eachLine calls f with every line that is not part of the licence notice,
// whose lines begin with two spaces.
func eachLine(dir fs.FS, name string, f func(line string) error) (err error) {
	file, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), " \r")
		if line == "" || strings.HasPrefix(line, "  ") {
			continue
		}
		for _, r := range line {
			if r < ' ' || r > '~' {
				return fmt.Errorf("%s:%d: not ASCII", name, n)
			}
		}
		if err := f(line); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	return lines.Err()
}

// readData adds the synsets of one data file and returns their indexes by the
// offsets under which the index file knows them:
//
//	synset_offset lex_filenum ss_type w_cnt word lex_id [word lex_id...] … | gloss
func (db *database) readData(dir fs.FS, name string) (map[string]int, error) {
	offsets := make(map[string]int)
	err := eachLine(dir, name, func(line string) error {
		head, gloss, ok := strings.Cut(line, " | ")
		fields := strings.Fields(head)
		if !ok || len(fields) < 4 {
			return fmt.Errorf("not a synset")
		}
		n, err := strconv.ParseUint(fields[3], 16, 8)
		if err != nil || len(fields) < 4+2*int(n) || n == 0 {
			return fmt.Errorf("bad word count %q", fields[3])
		}
		s := synset{gloss: strings.TrimSpace(gloss)}
		for i := range int(n) {
			word, _, _ := strings.Cut(fields[4+2*i], "(") // galore(ip): a syntactic marker
			if strings.ContainsAny(word, "|\t") {
				return fmt.Errorf("word %q", word)
			}
			s.words = append(s.words, strings.ReplaceAll(word, "_", " "))
		}
		offsets[fields[0]] = len(db.synsets)
		db.synsets = append(db.synsets, s)
		return nil
	})
	return offsets, err
}

// readIndex adds the lemmas of one part of speech:
//
//	lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset [synset_offset...]
func (db *database) readIndex(dir fs.FS, name string, pos wordnet.PartOfSpeech, offsets map[string]int, uses map[use]int) error {
	return eachLine(dir, name, func(line string) error {
		fields := strings.Fields(line)
		if len(fields) < 6 {
			return fmt.Errorf("not a lemma")
		}
		n, err := strconv.Atoi(fields[2])
		if err != nil || n < 1 || n > len(fields)-6 {
			return fmt.Errorf("bad sense count %q", fields[2])
		}
		g := group{pos: pos, uses: uses[use{fields[0], pos}]}
		for _, offset := range fields[len(fields)-n:] {
			i, ok := offsets[offset]
			if !ok {
				return fmt.Errorf("no synset %s", offset)
			}
			g.senses = append(g.senses, i)
		}
		lemma := strings.ReplaceAll(fields[0], "_", " ")
		db.lemmas[lemma] = append(db.lemmas[lemma], g)
		return nil
	})
}

// readExceptions adds the irregular inflections of one part of speech whose
// base form the dictionary has:
//
//	inflected_form base_form [base_form...]
func (db *database) readExceptions(dir fs.FS, name string, pos wordnet.PartOfSpeech) error {
	return eachLine(dir, name, func(line string) error {
		fields := strings.Fields(line)
		for i := range fields {
			fields[i] = strings.ReplaceAll(fields[i], "_", " ")
		}
		if len(fields) < 2 {
			return fmt.Errorf("not an inflection")
		}
		key := inflection{pos, fields[0]}
		for _, base := range fields[1:] {
			if base != fields[0] && db.has(base, pos) {
				db.inflections[key] = append(db.inflections[key], base)
			}
		}
		return nil
	})
}

func (db *database) has(lemma string, pos wordnet.PartOfSpeech) bool {
	for _, g := range db.lemmas[lemma] {
		if g.pos == pos {
			return true
		}
	}
	return false
}

type use struct {
	lemma string
	pos   wordnet.PartOfSpeech
}

// readUses counts how often each lemma is used in each part of speech:
//
//	sense_key sense_number tag_cnt
//
// where a sense_key begins with lemma%ss_type.
func readUses(dir fs.FS) (map[use]int, error) {
	uses := make(map[use]int)
	types := map[byte]wordnet.PartOfSpeech{
		'1': wordnet.Noun, '2': wordnet.Verb, '3': wordnet.Adjective, '4': wordnet.Adverb, '5': wordnet.Adjective,
	}
	err := eachLine(dir, "cntlist.rev", func(line string) error {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return fmt.Errorf("not a count")
		}
		lemma, rest, ok := strings.Cut(fields[0], "%")
		if !ok || rest == "" {
			return fmt.Errorf("bad sense key %q", fields[0])
		}
		n, err := strconv.Atoi(fields[2])
		if err != nil {
			return err
		}
		uses[use{lemma, types[rest[0]]}] += n
		return nil
	})
	return uses, err
}
