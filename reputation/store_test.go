package reputation

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// childPath names the environment variable that turns the test binary into
// the process that gets killed.
const childPath = "REPUTATION_TEST_CHILD"

// childMain records without end, says after each flush how many it had, and
// never closes the ledger.
func childMain(path string) {
	l, err := Open(path, Options{FlushEvery: time.Millisecond, Allowance: -1})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		r := receipt(i, OK)
		if err := l.Record(r); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		if i%20 == 19 {
			if err := l.Flush(); err != nil {
				fmt.Println("error:", err)
				os.Exit(1)
			}
			fmt.Println(i + 1)
		}
	}
}

// TestKilled: what was flushed survives a process that is killed while it
// writes, without Close.
func TestKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "reputation.db")
	survived := uint64(0)
	for round := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		child := exec.CommandContext(ctx, self)
		child.Env = append(os.Environ(), childPath+"="+path)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		said, lines := 0, bufio.NewScanner(out)
		for said < 100*(round+1) && lines.Scan() {
			if _, err := fmt.Sscan(lines.Text(), &said); err != nil {
				t.Fatalf("the child said %q", lines.Text())
			}
		}
		if err := child.Process.Kill(); err != nil { // SIGKILL where there are signals
			t.Fatal(err)
		}
		for lines.Scan() { // what it said before it died
			if _, err := fmt.Sscan(lines.Text(), &said); err != nil {
				t.Fatalf("the child said %q", lines.Text())
			}
		}
		var exit *exec.ExitError
		if err := child.Wait(); !errors.As(err, &exit) {
			t.Fatalf("the child ended with %v instead of being killed", err)
		}
		cancel()

		l, err := Open(path, Options{})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		var got record
		l.view(node(1), func(r *record) { got = r.clone() })
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if got.counts[OK] < survived+uint64(said) || said == 0 {
			t.Fatalf("round %d: %d reports on disk, %d were there before and %d flushed since", round, got.counts[OK], survived, said)
		}
		survived = got.counts[OK]
	}
}

// TestDamaged: every kind of damage ends in a CorruptError that keeps the file,
// and the next Open begins anew.
func TestDamaged(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.db")
	l := openAt(t, good, Options{})
	for i := range 300 {
		l.record(t, with(receipt(i, OK), func(r *Receipt) { r.Miner, r.Client = node(i+1), node(9000) }))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	overwrite := func(from, to int) func([]byte) []byte {
		return func(b []byte) []byte {
			for i := from; i < min(to, len(b)); i++ {
				b[i] = 0xa5
			}
			return b
		}
	}
	tests := map[string]func([]byte) []byte{
		"text":           func([]byte) []byte { return []byte(strings.Repeat("this is no database\n", 1000)) },
		"one byte":       func([]byte) []byte { return []byte("x") },
		"no meta pages":  overwrite(0, 2*page),
		"no data pages":  overwrite(2*page, len(whole)),
		"all zero":       func(b []byte) []byte { return make([]byte, len(b)) },
		"cut to a page":  func(b []byte) []byte { return b[:page] },
		"cut to 2 pages": func(b []byte) []byte { return b[:2*page] },
		"cut in half":    func(b []byte) []byte { return b[:len(b)/2] },
		"a bad record":   func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), `"good":1`, `"good":-`)) },
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, "reputation.db")
			bad := damage(append([]byte(nil), whole...))
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Options{})
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("Open = %v; want a CorruptError in one line", err)
			}
			if corrupt.Path != path || !strings.HasPrefix(corrupt.Kept, path+".damaged-") {
				t.Fatalf("kept as %q", corrupt.Kept)
			}
			kept, err := os.ReadFile(corrupt.Kept)
			if err != nil || len(kept) < len(bad) {
				t.Errorf("kept %d of %d bytes: %v", len(kept), len(bad), err)
			}
			l := openAt(t, path, Options{})
			l.record(t, receipt(1, OK))
			if err := l.Flush(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reputation.db")
	openAt(t, path, Options{})
	if _, err := Open(path, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second Open = %v, want ErrInUse", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file in use is gone: %v", err)
	}
}

func TestNewerDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reputation.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket(bucketMiners)
		if err != nil {
			return err
		}
		id := node(1)
		return b.Put(id[:], []byte(`{"v":2}`))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, ErrNewer) || errors.Is(err, ErrCorrupt) {
		t.Errorf("Open = %v, want ErrNewer", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the newer file was moved: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	folder := t.TempDir()
	if _, err := Open(folder, Options{}); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("a folder as database: %v", err)
	}
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "reputation.db"), Options{}); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("a database below a file: %v", err)
	}
	l := openAt(t, file, Options{}) // an empty file is an empty database
	l.record(t, receipt(1, OK))
	if runtime.GOOS == "windows" {
		return
	}
	fresh := filepath.Join(folder, "fresh.db")
	openAt(t, fresh, Options{})
	info, err := os.Stat(fresh)
	if err != nil {
		t.Fatal(err)
	}
	if perm := info.Mode().Perm(); perm != 0o600 {
		t.Errorf("mode %v, want 0600", perm)
	}
}

// TestWriteFails: a write that fails loses nothing from memory, and Close tells.
func TestWriteFails(t *testing.T) {
	l, err := Open(filepath.Join(t.TempDir(), "reputation.db"), Options{FlushEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	l.record(t, receipt(1, OK))
	if err := l.store.db.Close(); err != nil { // the disk is gone
		t.Fatal(err)
	}
	if err := l.Flush(); err == nil {
		t.Error("Flush to a closed database succeeded")
	}
	if s := l.Score(node(1), t0); !near(s.Alpha, 2) || len(l.dirty) != 1 {
		t.Errorf("lost from memory: %+v, %d dirty", s, len(l.dirty))
	}
	if err := l.Close(); err == nil {
		t.Error("Close hid that nothing was saved")
	}
}
