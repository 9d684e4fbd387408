package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testRuntime(t *testing.T) Runtime {
	t.Helper()
	return Runtime{Addr: "127.0.0.1:4433", ID: testID(t, 1), Secret: "canary", PID: 7}
}

func TestRuntimeRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "coordinator.json")
	if _, err := ReadRuntime(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: got %v", err)
	}
	r := testRuntime(t)
	if err := WriteRuntime(path, r); err != nil {
		t.Fatal(err)
	}
	got, err := ReadRuntime(path)
	if err != nil || got != r {
		t.Errorf("got %+v, %v", got, err)
	}
	if text := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(text, "canary") {
		t.Errorf("printed with its secret: %s", text)
	}
	info, err := os.Stat(path)
	if err != nil || exposed(info, 0o177) {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}

	other := r
	other.Secret = "newer"
	if err := WriteRuntime(path, other); err != nil { // a coordinator that was started later
		t.Fatal(err)
	}
	if err := RemoveRuntime(path, r); err != nil {
		t.Error(err)
	}
	if got, err := ReadRuntime(path); err != nil || got != other {
		t.Errorf("the newer coordinator's file: %+v, %v", got, err)
	}
	for range 2 { // the second time it is gone already
		if err := RemoveRuntime(path, other); err != nil {
			t.Error(err)
		}
	}
	if _, err := ReadRuntime(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after: got %v", err)
	}
}

func TestReadRuntimeRefusesNonsense(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "r")
	id := testID(t, 1).String()
	for name, text := range map[string]string{
		"empty":         "",
		"not JSON":      "canary",
		"no address":    `{"id":"` + id + `","secret":"canary"}`,
		"no port":       `{"addr":"h","id":"` + id + `","secret":"canary"}`,
		"no NodeID":     `{"addr":"h:1","secret":"canary"}`,
		"bad NodeID":    `{"addr":"h:1","id":"x","secret":"canary"}`,
		"no secret":     `{"addr":"h:1","id":"` + id + `"}`,
		"a wrong type":  `{"addr":"h:1","id":"` + id + `","secret":{"canary":1}}`,
		"far too large": strings.Repeat(" ", maxRuntimeFile) + "{}",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := ReadRuntime(path)
		if err == nil || r != (Runtime{}) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func FuzzParseRuntime(f *testing.F) {
	f.Add([]byte(`{"addr":"127.0.0.1:1","id":"` + testID(f, 1).String() + `","secret":"s","pid":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRuntime(data)
		if err != nil && r != (Runtime{}) || err == nil && (r.ID.IsZero() || r.Secret == "" || r.Addr == "") {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
