package main

import (
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "mintai"

// imports says whom each package of ours may import of ours, tests included;
// "*" is everybody. It is the import table of docs/architecture.md. A package
// without a line here is an error: decide where it belongs.
var imports = map[string][]string{
	"identity": {},
	"api":      {"identity"},
	"terminal": {},
	"portmap":  {},
	"wss":      {},

	"signal":          {"identity", "api", "signal/signalpb"},
	"signal/signalpb": {},
	"match":           {"identity", "api"},
	"reputation":      {"identity", "api"},

	// These meet as net.PacketConn, net.Addr, *quic.Transport, http.RoundTripper
	// and http.Handler, and know nothing of each other.
	"ice":             {"identity", "api"},
	"quicstream":      {"identity", "api"},
	"backend":         {"identity", "api"},
	"backend/builtin": {"api", "backend/builtin/calc", "backend/builtin/wordnet"},
	"gateway":         {"identity", "api"},

	"backend/builtin/calc":        {},
	"backend/builtin/wordnet":     {},
	"backend/builtin/wordnet/gen": {"backend/builtin/wordnet"},

	"node": {"*"},
	".":    {"node"},
}

// inTests are further imports of ours that only tests make.
var inTests = map[string][]string{
	"match": {"reputation"}, // the real judge
	"wss":   {"identity"},   // the keys that QUIC proves inside
	".":     {"*"},
}

// fences name the only packages of ours that may import a dependency, by the
// beginning of its path. Tests of the packages that compose the parts may too:
// they play the stranger.
var fences = map[string][]string{
	"github.com/pion/":                {"ice"},
	"github.com/quic-go/":             {"ice", "quicstream", "signal"},
	"github.com/BurntSushi/toml":      {"node"},
	"go.etcd.io/bbolt":                {"reputation"},
	"google.golang.org/protobuf":      {"signal", "signal/signalpb", "node"},
	"github.com/prometheus/":          {"node"},
	"github.com/rogpeppe/go-internal": {},
	"github.com/coder/websocket":      {"wss"},
	"golang.org/x/crypto/acme":        {"wss"},
	"golang.org/x/net/http/httpproxy": {"wss"},
	"github.com/huin/":                {"portmap"},
	"github.com/libp2p/":              {"portmap"},
}

var composing = []string{".", "node"}

// carrying are packages whose tests may import a fenced dependency, because it
// is what they carry.
var carrying = map[string][]string{"github.com/quic-go/": {"wss"}}

// renamed are packages that are always imported under another name.
var renamed = map[string]string{"github.com/pion/ice/v2": "pionice"}

// goFile is what the test reads of one file.
type goFile struct {
	path, pkg string // pkg: folder relative to the module, "." for the top
	test      bool
	imports   map[string]string // path → local name, "" when not renamed
}

// sourceFiles parses the import clauses of every Go file of the module. It reads
// the files itself: a test that asks the go command is cached and lies.
func sourceFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			if name != "." && (base == "testdata" || base == "dist" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		for _, group := range f.Comments {
			for _, c := range group.List {
				if x, err := constraint.Parse(c.Text); err == nil && x.String() == "ignore" {
					return nil // a generator, run by hand
				}
			}
		}
		g := goFile{
			path: filepath.ToSlash(name), pkg: path.Dir(filepath.ToSlash(name)),
			test: strings.HasSuffix(name, "_test.go"), imports: map[string]string{},
		}
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			g.imports[p] = ""
			if spec.Name != nil {
				g.imports[p] = spec.Name.Name
			}
		}
		files = append(files, g)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 2 {
		t.Fatalf("%d Go files found: the test does not run at the top of the module", len(files))
	}
	return files
}

func TestImportsOfOurs(t *testing.T) {
	for _, f := range sourceFiles(t) {
		allowed, known := imports[f.pkg]
		if !known {
			t.Errorf("%s: package %s has no line in the import table of main_imports_test.go", f.path, f.pkg)
			continue
		}
		if f.test {
			allowed = slices.Concat(allowed, inTests[f.pkg])
		}
		for p := range f.imports {
			ours, ok := strings.CutPrefix(p, module+"/")
			if !ok || ours == f.pkg || slices.Contains(allowed, "*") || slices.Contains(allowed, ours) {
				continue
			}
			t.Errorf("%s: %s may not import %s (allowed: %s)", f.path, f.pkg, ours, strings.Join(allowed, ", "))
		}
	}
}

func TestImportsOfDependencies(t *testing.T) {
	for _, f := range sourceFiles(t) {
		for p, name := range f.imports {
			if want := renamed[p]; want != "" && name != want {
				t.Errorf("%s: import %s as %s", f.path, p, want)
			}
			for prefix, holders := range fences {
				if !strings.HasPrefix(p, prefix) || slices.Contains(holders, f.pkg) || f.test && (slices.Contains(composing, f.pkg) || slices.Contains(carrying[prefix], f.pkg)) {
					continue
				}
				t.Errorf("%s: %s stays inside %s", f.path, p, strings.Join(holders, ", "))
			}
		}
	}
}

// TestImportTable keeps the table itself true: no line without a package, no
// cycle, and nobody but main above node.
func TestImportTable(t *testing.T) {
	present := map[string]bool{}
	for _, f := range sourceFiles(t) {
		present[f.pkg] = true
	}
	var visit func(pkg string, trail []string)
	visit = func(pkg string, trail []string) {
		if slices.Contains(trail, pkg) {
			t.Errorf("the import table has a cycle: %s", strings.Join(append(trail, pkg), " → "))
			return
		}
		for _, next := range imports[pkg] {
			if next != "*" {
				visit(next, append(trail, pkg))
			}
		}
	}
	for pkg, allowed := range imports {
		if !present[pkg] {
			t.Errorf("package %s is in the import table and not in the module", pkg)
		}
		if slices.Contains(allowed, "node") && pkg != "." {
			t.Errorf("%s may import node: only main may", pkg)
		}
		visit(pkg, nil)
	}
}
