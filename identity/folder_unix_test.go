//go:build unix

package identity

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Where everybody may write, everybody may put another key in place.
func TestOpenFolders(t *testing.T) {
	for _, tc := range []struct {
		name string
		mode os.FileMode
		want error
	}{
		{"private", 0o700, nil},
		{"readable", 0o755, nil},
		{"of a group", 0o775, nil},
		{"open", 0o777, ErrFolderOpen},
		{"writable only", 0o702, ErrFolderOpen},
		{"shared, sticky", 0o777 | os.ModeSticky, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "key.pem")
			if err := os.Chmod(dir, tc.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateKey(path); !errors.Is(err, tc.want) {
				t.Errorf("the key: %v", err)
			}
			if _, err := LoadOrCreateSecret(filepath.Join(dir, "secret")); !errors.Is(err, tc.want) {
				t.Errorf("the secret: %v", err)
			}
			if _, err := os.Stat(path); tc.want != nil && err == nil {
				t.Error("a key was written there")
			}
		})
	}
}
