package identity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestLinkFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "client", "join")
	if _, err := ReadLink(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: got %v", err)
	}
	l := Link{Addrs: []string{"h:1"}, ID: testID(t, 1), Secret: "s"}
	if err := WriteLink(path, l); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLink(path)
	if err != nil || !reflect.DeepEqual(got, l) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("mintai://h/canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLink(path); !errors.Is(err, ErrBadLink) || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
}

func TestLoadOrCreateSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator", "secret")
	made, err := LoadOrCreateSecret(path)
	if err != nil || made.IsZero() {
		t.Fatalf("%v", err)
	}
	again, err := LoadOrCreateSecret(path)
	if err != nil || again != made {
		t.Errorf("not the same secret the second time: %v", err)
	}
	for name, text := range map[string]string{
		"empty": "", "upper case": "CANARY", "two lines": "can\nary", "a slash": "can/ary", "long": strings.Repeat("canary", 1000),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := LoadOrCreateSecret(path); err == nil || !s.IsZero() || strings.Contains(strings.ToLower(err.Error()), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
