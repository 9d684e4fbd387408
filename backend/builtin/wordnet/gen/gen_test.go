package main

import (
	"bytes"
	"compress/flate"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"mintai/backend/builtin/wordnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// installed is where Debian's package puts the database.
const installed = "/usr/share/wordnet"

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

// small is a WordNet of three words.
func small() fstest.MapFS {
	return fstest.MapFS{
		"data.noun":   file("  1 licence  \n00000001 03 n 02 mole_rat 0 Spalax 0 001 @ 00000002 n 0000 | a rodent; \"the mole rat digs\"  \n"),
		"index.noun":  file("  1 licence  \nmole_rat n 1 1 @ 1 0 00000001  \nspalax n 1 1 @ 1 0 00000001  \n"),
		"data.verb":   file("00000001 38 v 01 dig 0 000 01 + 08 00 | make a hole\n00000002 38 v 01 dig 1 000 00 | like\n"),
		"index.verb":  file("dig v 2 0 2 1 00000002 00000001\n"),
		"data.adj":    file("00000001 00 a 01 galore(ip) 0 000 | in great numbers\n"),
		"index.adj":   file("galore a 1 0 1 0 00000001\n"),
		"data.adv":    file(""),
		"index.adv":   file(""),
		"noun.exc":    file("mole_rattes mole_rat\nmice mouse\n"),
		"verb.exc":    file("dug dig\ndig dig\n"),
		"adj.exc":     file(""),
		"adv.exc":     file(""),
		"cntlist.rev": file("dig%2:38:00:: 1 7\n"),
	}
}

func TestSmall(t *testing.T) {
	db, err := readDatabase(small())
	if err != nil {
		t.Fatal(err)
	}
	data, err := encode(db, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	d, err := wordnet.OpenData(string(data))
	if err != nil {
		t.Fatal(err)
	}
	for word, want := range map[string]string{
		"mole rat": "a rodent", "SPALAX": "a rodent", "mole rats": "a rodent", "mole rattes": "a rodent",
		"dig": "like", "dug": "like", "galore": "in great numbers",
	} {
		entries, err := d.Lookup(word, 5)
		if err != nil || len(entries) != 1 || entries[0].Groups[0].Senses[0].Definition != want {
			t.Errorf("Lookup(%q) = %v, %v", word, entries, err)
		}
	}
	if entries, err := d.Lookup("galore(ip)", 5); err != nil || len(entries) != 0 {
		t.Errorf("a marker is part of a word: %v, %v", entries, err)
	}
}

// TestReproducible writes the file twice.
func TestReproducible(t *testing.T) {
	from, out := t.TempDir(), t.TempDir()
	for name, f := range small() {
		if err := os.WriteFile(filepath.Join(from, name), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var files [2][]byte
	for i, name := range []string{"a", "b"} {
		name = filepath.Join(out, name)
		if err := run(from, name); err != nil {
			t.Fatal(err)
		}
		var err error
		if files[i], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Error("the same input gave two different files")
	}
}

// TestEmbedded compares the embedded file with the installed database, by its
// contents: another Go release may compress them to other bytes.
func TestEmbedded(t *testing.T) {
	if _, err := os.Stat(installed); errors.Is(err, fs.ErrNotExist) {
		t.Skip("this machine has no " + installed + ": install the package wordnet-base")
	}
	db, err := readDatabase(os.DirFS(installed))
	if err != nil {
		t.Fatal(err)
	}
	data, err := encode(db, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := wordnet.OpenData(string(data))
	if err != nil {
		t.Fatal(err)
	}
	embedded, err := wordnet.Open()
	if err != nil {
		t.Fatal(err)
	}
	if fresh.Sum() != embedded.Sum() {
		t.Error("wordnet.bin is not what gen makes of the installed database: run go generate ./backend/builtin/wordnet")
	}
}

func TestMalformed(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"data.noun", "nonsense\n", "data.noun:1: not a synset"},
		{"data.noun", "00000001 03 n zz dog 0 000 | a\n", "data.noun:1: bad word count"},
		{"data.noun", "00000001 03 n 09 dog 0 000 | a\n", "data.noun:1: bad word count"},
		{"data.noun", "00000001 03 n 01 do|g 0 000 | a\n", "data.noun:1: word"},
		{"data.noun", "00000001 03 n 01 d\xf6g 0 000 | a\n", "data.noun:1: not ASCII"},
		{"index.noun", "dog n\n", "index.noun:1: not a lemma"},
		{"index.noun", "dog n 9 0 1 0 00000001\n", "index.noun:1: bad sense count"},
		{"index.noun", "dog n 1 0 1 0 00000009\n", "index.noun:1: no synset"},
		{"noun.exc", "  \nmice\n", "noun.exc:2: not an inflection"},
		{"cntlist.rev", "dog 1\n", "cntlist.rev:1: not a count"},
		{"cntlist.rev", "dog 1 1\n", "cntlist.rev:1: bad sense key"},
		{"cntlist.rev", "dog%1:: 1 many\n", "cntlist.rev:1: "},
	}
	for _, tt := range tests {
		dir := small()
		dir[tt.name] = file(tt.text)
		if _, err := readDatabase(dir); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s %q: error %v, want %s…", tt.name, tt.text, err, tt.want)
		}
	}
	for name := range small() {
		dir := small()
		delete(dir, name)
		if _, err := readDatabase(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without %s: error %v", name, err)
		}
	}
	db := &database{lemmas: map[string][]group{strings.Repeat("a", 256): nil}}
	if _, err := encode(db, flate.BestSpeed); err == nil {
		t.Error("a key of 256 bytes was accepted")
	}
}

// FuzzOpenData reads damaged dictionaries: errors, never a panic.
func FuzzOpenData(f *testing.F) {
	db, err := readDatabase(small())
	if err != nil {
		f.Fatal(err)
	}
	data, err := encode(db, flate.BestSpeed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, "mole rats")
	f.Add(data[:wordnet.HeaderSize], "dug")
	f.Fuzz(func(_ *testing.T, data []byte, word string) {
		d, err := wordnet.OpenData(string(data))
		if err != nil {
			return
		}
		_, _ = d.Lookup(word, 3)
		_, _ = d.Near(word, 3)
		_, _ = d.Irregular(word)
	})
}
