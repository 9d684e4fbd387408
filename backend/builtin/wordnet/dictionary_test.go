package wordnet

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openTest(t testing.TB) *Dictionary {
	t.Helper()
	d, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// describe returns an entry's groups in one line: "tunnel noun:2 verb:2".
func describe(entries []*Entry) string {
	var all []string
	for _, e := range entries {
		s := e.Word
		for _, g := range e.Groups {
			s += fmt.Sprintf(" %s:%d", g.PartOfSpeech, g.Total)
		}
		all = append(all, s)
	}
	return strings.Join(all, "; ")
}

func TestLookup(t *testing.T) {
	d := openTest(t)
	tests := []struct{ word, want string }{
		// Spellings of one word.
		{"tunnel", "tunnel verb:2 noun:2"},
		{"Tunnel", "tunnel verb:2 noun:2"},
		{"  TUNNEL ", "tunnel verb:2 noun:2"},
		{"fire engine", "fire engine noun:1"},
		{"fire-engine", "fire engine noun:1"},
		{"fire_engine", "fire engine noun:1"},
		{"fire  engine", "fire engine noun:1"},
		{"ice-cream", "ice cream noun:1"},
		{"u.s.a.", "U.S.A. noun:1"},
		{"rock 'n' roll", "rock 'n' roll noun:1"},
		{"rock ’n’ roll", "rock 'n' roll noun:1"},
		{"france", "France noun:2"},
		{"9/11", "9/11 noun:1"},
		// Regular forms.
		{"tunnels", "tunnel verb:2 noun:2"},
		{"tunnelled", "tunnel verb:2"},
		{"tunneling", "tunnel verb:2"},
		{"boxes", "box noun:10 verb:3"},
		{"churches", "church noun:4 verb:1"},
		{"ponies", "pony noun:5"},
		{"firemen", "fireman noun:4"},
		{"biggest", "big adjective:13"},
		{"fire engines", "fire engine noun:1"},
		{"took off", "take off verb:9"},
		// Irregular forms.
		{"mice", "mouse noun:4"},
		{"went", "go verb:30"},
		{"geese", "goose noun:3"},
		{"leaves", "leaf noun:3; leave verb:14 noun:3"},
		{"axes", "ax noun:1 verb:2; axis noun:6; axe verb:2"},
		// Not in the dictionary.
		{"frobnicate", ""},
		{"", ""},
		{"   ", ""},
		{"zzzz", ""},
		{"\x00", ""},
		{"\xff\xfe", ""},
		{strings.Repeat("a", MaxKey), ""},
		{strings.Repeat("a", 100_000), ""},
		{strings.Repeat("a ", 120), ""},
	}
	for _, tt := range tests {
		entries, err := d.Lookup(tt.word, 1)
		if err != nil {
			t.Errorf("Lookup(%.40q): %v", tt.word, err)
			continue
		}
		if got := describe(entries); got != tt.want {
			t.Errorf("Lookup(%.40q) = %q, want %q", tt.word, got, tt.want)
		}
		for _, e := range entries {
			for _, g := range e.Groups {
				if len(g.Senses) != 1 || g.Senses[0].Definition == "" {
					t.Errorf("Lookup(%q, 1): %d senses as %s", tt.word, len(g.Senses), g.PartOfSpeech)
				}
			}
		}
	}
}

func TestLookupSense(t *testing.T) {
	entries, err := openTest(t).Lookup("tunnel", 10)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(entries[0].Groups, func(g Group) bool { return g.PartOfSpeech == Noun })
	got := entries[0].Groups[i].Senses[0]
	want := Sense{
		Words:      []string{"tunnel"},
		Definition: "a passageway through or under something, usually underground (especially one for trains or cars)",
		Examples:   []string{"the tunnel reduced congestion at that intersection"},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestIrregular(t *testing.T) {
	d := openTest(t)
	tests := []struct{ word, want string }{
		{"saw", "[{see verb}]"},
		{"better", "[{good adjective} {well adjective} {well adverb}]"},
		{"are", "[{be verb}]"},
		{"tunnels", "[]"},
		{"", "[]"},
	}
	for _, tt := range tests {
		bases, err := d.Irregular(tt.word)
		if got := fmt.Sprint(bases); got != tt.want || err != nil {
			t.Errorf("Irregular(%q) = %s, %v, want %s", tt.word, got, err, tt.want)
		}
	}
}

func TestNear(t *testing.T) {
	d := openTest(t)
	tests := []struct{ word, want string }{
		{"tunnle", "[tunnel]"},
		{"tunel", "[tune tunnel tuner]"},
		{"dictionery", "[dictionary]"},
		{"frobnicate", "[]"},
		{"xyz", "[]"},
		{"two words", "[]"},
		{strings.Repeat("a", 100_000), "[]"},
	}
	for _, tt := range tests {
		near, err := d.Near(tt.word, 3)
		if got := fmt.Sprint(near); got != tt.want || err != nil {
			t.Errorf("Near(%.40q) = %s, %v, want %s", tt.word, got, err, tt.want)
		}
	}
}

func TestOneEdit(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"tunnel", "tunnel", false},
		{"tunnel", "tunnels", true},
		{"tunnel", "unnel", true},
		{"tunnel", "tonnel", true},
		{"tunnel", "tunnle", true},
		{"tunnel", "utnnel", true},
		{"tunnel", "tennul", false},
		{"tunnel", "tun", false},
		{"", "a", true},
		{"a", "b", true},
		{"ab", "ba", true},
		{"abc", "cba", false},
		{"", "", false},
	}
	for _, tt := range tests {
		if oneEdit(tt.a, tt.b) != tt.want || oneEdit(tt.b, tt.a) != tt.want {
			t.Errorf("oneEdit(%q, %q) = %v", tt.a, tt.b, !tt.want)
		}
	}
}

func TestParseSense(t *testing.T) {
	tests := []struct{ line, want string }{
		{
			`burrow|tunnel` + "\t" + `move through by digging; "burrow through the forest"`,
			`{[burrow tunnel] move through by digging [burrow through the forest]}`,
		},
		{"a\tplain definition", "{[a] plain definition []}"},
		{"a\tfirst; second; \"one\"; \"two\"", "{[a] first; second [one two]}"},
		{"a\tthe \"so-called\" thing; \"an example\"", "{[a] the \"so-called\" thing [an example]}"},
		{"a\tthe \"so-called\" thing", "{[a] the \"so-called\" thing []}"},
		{"a\tunclosed; \"example", "{[a] unclosed [example]}"},
		{"a\tunclosed \"word", "{[a] unclosed \"word []}"},
		{"a\tthe law says: \"do not\"", "{[a] the law says [do not]}"},
		{"a\tquoted; \"to be\"- Shakespeare; \"or not\"", "{[a] quoted [to be or not]}"},
		{"a\t\"only an example\"", "{[a]  [only an example]}"},
		{"", "{[]  []}"},
	}
	for _, tt := range tests {
		if got := fmt.Sprint(parseSense(tt.line)); got != tt.want {
			t.Errorf("parseSense(%q) = %s, want %s", tt.line, got, tt.want)
		}
	}
}

// TestWhole reads every block, every word and every meaning.
func TestWhole(t *testing.T) {
	d := openTest(t)
	for i, s := range []section{d.lemmas, d.inflections} {
		before, n := "", 0
		for b := range s.blocks {
			err := s.entries(b, func(key, _ []byte) bool {
				if string(key) <= before {
					t.Fatalf("section %d: %q after %q", i, key, before)
				}
				before = string(key)
				n++
				return true
			})
			if err != nil {
				t.Fatalf("section %d, block %d: %v", i, b, err)
			}
		}
		if n != s.records {
			t.Errorf("section %d: %d records, %d announced", i, n, s.records)
		}
	}
	n := 0
	for b := range d.synsets.blocks {
		err := d.synsets.with(b, func(raw []byte) error {
			for line := range strings.Lines(string(raw)) {
				s := parseSense(strings.TrimSuffix(line, "\n"))
				if s.Definition == "" || s.Words[0] == "" {
					t.Errorf("%.80q: no definition", line)
				}
				n++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n != d.synsets.records || n != 117_659 || d.Len() != 147_306 {
		t.Errorf("%d meanings of %d words", n, d.Len())
	}
}

// TestMemory checks that lookups keep nothing: what they need is given back.
func TestMemory(t *testing.T) {
	d := openTest(t)
	words := []string{"tunnel", "run", "set", "zebra", "abacus", "mice", "took off", "quantum"}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 4 {
		for _, w := range words {
			if _, err := d.Lookup(w, 5); err != nil {
				t.Fatal(err)
			}
		}
	}
	runtime.GC()
	runtime.GC() // a sync.Pool is emptied by the second collection
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 512<<10 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

func TestConcurrent(t *testing.T) {
	d := openTest(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				entries, err := d.Lookup("run", 5)
				if err != nil || describe(entries) != "run verb:41 noun:16" {
					t.Errorf("%s, %v", describe(entries), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestDamaged(t *testing.T) {
	good, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	block := good.lemmas.block(good.lemmas.blocks / 2)
	tests := []struct{ name, data string }{
		{"empty", ""},
		{"other file", "GIF89a" + strings.Repeat("x", 1000)},
		{"magic only", Magic},
		{"cut in the lists", embedded[:HeaderSize+100]},
		{"cut in the blocks", embedded[:len(embedded)/2]},
		{"too many blocks", embedded[:len(Magic)+SumSize+4] + "\xff\xff\xff\xff" + embedded[len(Magic)+SumSize+8:]},
	}
	for _, tt := range tests {
		if _, err := OpenData(tt.data); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", tt.name, err)
		}
	}
	flipped := []byte(embedded)
	flipped[block.off+block.size/2] ^= 1
	d, err := OpenData(string(flipped))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lookup(good.lemmas.firstKey(good.lemmas.blocks/2), 1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("flipped bit: error %v", err)
	}
	if entries, err := d.Lookup("a", 1); err != nil || len(entries) == 0 {
		t.Errorf("a block before the damage: %v", err)
	}
}

func TestLicense(t *testing.T) {
	for _, part := range []string{"WordNet 3.0 Copyright 2006 by Princeton University", "Permission to use", `PROVIDED "AS IS"`} {
		if !strings.Contains(License, part) {
			t.Errorf("the licence lacks %q", part)
		}
	}
}

// FuzzLookup looks up any word.
func FuzzLookup(f *testing.F) {
	d := openTest(f)
	for _, s := range []string{"tunnel", "Took Off", "u.s.a.", "’’", "a-b c_d", "ses", "İ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		entries, err := d.Lookup(s, 2)
		if err != nil {
			t.Fatalf("Lookup(%q): %v", s, err)
		}
		for _, e := range entries {
			if e.Word == "" || len(e.Groups) == 0 {
				t.Fatalf("Lookup(%q): empty entry", s)
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	d := openTest(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Lookup("tunnel", 5); err != nil {
			b.Fatal(err)
		}
	}
}
