package identity

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func TestPins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "coordinators")
	p, err := OpenPins(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := testID(t, 1), testID(t, 2)
	if first, err := p.Check("host:4433", a); !first || err != nil {
		t.Fatalf("first use: %v %v", first, err)
	}
	if first, err := p.Check("HOST:4433", a); first || err != nil {
		t.Errorf("second use: %v %v", first, err)
	}
	if first, err := p.Check("other:4433", b); !first || err != nil {
		t.Errorf("another address: %v %v", first, err)
	}
	if id, ok := p.Lookup("host:4433"); !ok || id != a {
		t.Errorf("Lookup: %v %v", id, ok)
	}

	again, err := OpenPins(path) // another process
	if err != nil {
		t.Fatal(err)
	}
	first, err := again.Check("host:4433", b)
	var changed *KeyChangedError
	if first || !errors.Is(err, ErrKeyChanged) || !errors.As(err, &changed) {
		t.Fatalf("a changed key: %v %v", first, err)
	}
	for _, part := range []string{a.String(), b.String(), "host:4433", path, "delete the line"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Error("more than one line")
	}
	if first, err := again.Check("host:4433", a); first || err != nil {
		t.Errorf("the old key afterwards: %v %v", first, err)
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// What another process has remembered meanwhile counts, and is kept.
func TestPinsOfTwoProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinators")
	var both [2]*Pins
	for i := range both {
		p, err := OpenPins(path)
		if err != nil {
			t.Fatal(err)
		}
		both[i] = p
	}
	if _, err := both[0].Check("h:1", testID(t, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := both[1].Check("h:1", testID(t, 2)); !errors.Is(err, ErrKeyChanged) {
		t.Errorf("got %v", err)
	}
	if _, err := both[1].Check("h:2", testID(t, 2)); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPins(path)
	if err != nil || len(p.known) != 2 {
		t.Errorf("%v %v", p, err)
	}
}

func TestPinsConcurrently(t *testing.T) {
	p, err := OpenPins(filepath.Join(t.TempDir(), "coordinators"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	firsts := make(chan bool, 16)
	for range cap(firsts) {
		wg.Go(func() {
			first, err := p.Check("h:1", testID(t, 1))
			if err != nil {
				t.Error(err)
			}
			firsts <- first
		})
	}
	wg.Wait()
	close(firsts)
	n := 0
	for first := range firsts {
		if first {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d first uses", n)
	}
}

func TestPinsRefuse(t *testing.T) {
	id, other := testID(t, 1).String(), testID(t, 2).String()
	for name, text := range map[string]string{
		"nonsense":   "x\n",
		"bad NodeID": "host:1 abc\n",
		"too much":   "host:1 " + id + " x\n",
		"conflict":   "host:1 " + id + "\nHOST:1 " + other + "\n",
		"long line":  strings.Repeat("x", 1<<17),
	} {
		path := filepath.Join(t.TempDir(), "coordinators")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenPins(path); !errors.Is(err, ErrBadPins) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "coordinators")
	p, err := OpenPins(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"", "a b", "a\nb", "#a"} {
		if _, err := p.Check(addr, testID(t, 1)); !errors.Is(err, ErrBadPins) {
			t.Errorf("%q: got %v", addr, err)
		}
	}
	if _, err := p.Check("h:1", NodeID{}); !errors.Is(err, ErrBadPins) {
		t.Errorf("the zero NodeID: got %v", err)
	}
	if runtime.GOOS != "windows" {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o622); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenPins(path); !errors.Is(err, ErrBadPins) || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("writable by others: got %v", err)
		}
	}
}

// A memory that cannot be written still tells that it was the first use.
func TestPinsThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Pins{path: filepath.Join(dir, "missing", "coordinators"), known: map[string]NodeID{}}
	if err := os.Symlink(filepath.Join(dir, "file"), filepath.Join(dir, "missing")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Check("h:1", testID(t, 1)); !errors.Is(err, ErrBadPins) {
		t.Errorf("got %v", err)
	}
}
