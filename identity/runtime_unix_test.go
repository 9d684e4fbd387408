//go:build unix

package identity

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadRuntimeRefusesWhatOthersCouldHaveDone(t *testing.T) {
	r := testRuntime(t)
	write := func(t *testing.T) (dir, path string) {
		t.Helper()
		dir = filepath.Join(t.TempDir(), "run")
		path = filepath.Join(dir, "coordinator.json")
		if err := WriteRuntime(path, r); err != nil {
			t.Fatal(err)
		}
		return dir, path
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir, path string)
		root  bool // takes the right to give files away
	}{
		{"readable by the group", func(t *testing.T, _, path string) { must(t, os.Chmod(path, 0o640)) }, false},
		{"readable by all", func(t *testing.T, _, path string) { must(t, os.Chmod(path, 0o604)) }, false},
		{"folder writable by all", func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o777)) }, false},
		{"sticky folder, as /tmp", func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o777|os.ModeSticky)) }, false},
		{"symbolic link", func(t *testing.T, dir, path string) {
			must(t, os.Rename(path, path+"2"))
			must(t, os.Symlink(path+"2", path))
		}, false},
		{"pipe", func(t *testing.T, _, path string) {
			must(t, os.Remove(path))
			must(t, syscall.Mkfifo(path, 0o600))
		}, false},
		{"folder in its place", func(t *testing.T, _, path string) {
			must(t, os.Remove(path))
			must(t, os.Mkdir(path, 0o700))
		}, false},
		{"file of another user", func(t *testing.T, _, path string) { must(t, os.Chown(path, 65534, -1)) }, true},
		{"folder of another user", func(t *testing.T, dir, _ string) { must(t, os.Chown(dir, 65534, -1)) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root && os.Geteuid() != 0 {
				t.Skip("only root can give a file to another user")
			}
			dir, path := write(t)
			tt.spoil(t, dir, path)
			got, err := ReadRuntime(path)
			if !errors.Is(err, ErrRuntimeUnsafe) || got != (Runtime{}) {
				t.Errorf("got %+v, %v", got, err)
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("the error repeats the secret: %v", err)
			}
		})
	}
}

func TestWriteRuntimeRefusesAFolderOfOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "coordinator.json")
	if err := WriteRuntime(path, testRuntime(t)); !errors.Is(err, ErrRuntimeUnsafe) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("it was written all the same: %v", err)
	}
}

func TestPrivateFilesOpenToOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "join")
	if err := WriteLink(path, Link{Addrs: []string{"h:1"}, Secret: "canary"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLink(path); !errors.Is(err, ErrKeyExposed) {
		t.Errorf("got %v", err)
	}
	if _, err := LoadOrCreateSecret(path); !errors.Is(err, ErrKeyExposed) {
		t.Errorf("got %v", err)
	}
}
