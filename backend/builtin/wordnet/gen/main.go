// Command gen writes the dictionary file of package wordnet from the database
// files of WordNet 3.0, as Debian's package wordnet-base installs them in
// /usr/share/wordnet. The same input and the same Go release give the same
// bytes.
//
//	apt-get install wordnet-base
//	go generate ./backend/builtin/wordnet
package main

import (
	"compress/flate"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	from := flag.String("from", "/usr/share/wordnet", "folder with data.noun, index.noun, noun.exc, cntlist.rev …")
	out := flag.String("o", "wordnet.bin", "file to write")
	flag.Parse()
	if err := run(*from, *out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(from, out string) error {
	db, err := readDatabase(os.DirFS(from))
	if err != nil {
		return err
	}
	data, err := encode(db, flate.BestCompression)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s: %d words, %d inflections, %d meanings, %d bytes\n",
		filepath.Base(out), len(db.lemmas), len(db.inflections), len(db.synsets), len(data))
	return os.WriteFile(out, data, 0o644)
}
