package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"mintai/identity"
)

func TestStateDir(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("these are the folders of Unix")
	}
	tests := []struct {
		flag string
		env  map[string]string
		want string
	}{
		{"/x", map[string]string{"STATE_DIRECTORY": "/sd", "HOME": "/h"}, "/x"},
		{"", map[string]string{"STATE_DIRECTORY": "/sd", "XDG_STATE_HOME": "/xs", "HOME": "/h"}, "/sd"},
		{"", map[string]string{"STATE_DIRECTORY": "/sd:/sd2"}, "/sd"},
		{"", map[string]string{"XDG_STATE_HOME": "/xs", "HOME": "/h"}, "/xs/mintai"},
		{"", map[string]string{"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/mintai"},
		{"", map[string]string{"HOME": "/h"}, "/h/.local/state/mintai"},
	}
	for _, tt := range tests {
		if got, err := StateDir(tt.flag, envOf(tt.env)); err != nil || got != tt.want {
			t.Errorf("%q %v: got %q, %v, want %q", tt.flag, tt.env, got, err, tt.want)
		}
	}
	if _, err := StateDir("", noEnv); !errors.Is(err, ErrNoStateDir) || !strings.Contains(err.Error(), "-state") {
		t.Errorf("without HOME: got %v", err)
	}
}

func TestPathsOfRolesAreApart(t *testing.T) {
	seen := map[string]Role{}
	for _, role := range []Role{RoleCoordinator, RoleMiner, RoleClient} {
		p := NewPaths("/state", role, noEnv)
		for _, path := range []string{p.Key(), p.Tickets(identity.NodeID{}), p.Tickets(identity.NodeID{1}), p.Pins(), p.Join(), p.Secret(), p.Ledger()} {
			if other, ok := seen[path]; ok {
				t.Errorf("%s is of %s and of %s", path, other, role)
			}
			seen[path] = role
		}
	}
}

func TestRuntimeFilePlaces(t *testing.T) {
	home, run, state := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.Chmod(run, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	r := identity.Runtime{Addr: "127.0.0.1:1", ID: key.ID(), Secret: identity.NewSecret(), PID: 1}
	file := filepath.Join("mintai", "coordinator.json")
	tests := []struct {
		name               string
		coordinator, asker map[string]string
		state, askerState  string
		want               string
	}{
		{
			"XDG_RUNTIME_DIR",
			map[string]string{"XDG_RUNTIME_DIR": run},
			map[string]string{"XDG_RUNTIME_DIR": run},
			state, home, filepath.Join(run, file),
		},
		{
			"the state folder",
			map[string]string{"HOME": home},
			map[string]string{"HOME": home},
			filepath.Join(home, "s"), filepath.Join(home, "s"), filepath.Join(home, "s", "run", "coordinator.json"),
		},
		{
			"a folder that cannot be made",
			map[string]string{"XDG_RUNTIME_DIR": "/dev/null/x"},
			map[string]string{},
			state, state, filepath.Join(state, "run", "coordinator.json"),
		},
		{
			"an asker with a state folder of its own",
			map[string]string{"HOME": home},
			map[string]string{"HOME": home},
			filepath.Join(home, ".local", "state", "mintai"), t.TempDir(),
			filepath.Join(home, ".local", "state", "mintai", "run", "coordinator.json"),
		},
	}
	for _, tt := range tests {
		asker := NewPaths(tt.askerState, RoleClient, envOf(tt.asker))
		if _, err := asker.ReadRuntime(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: before: %v", tt.name, err)
		}
		path, err := NewPaths(tt.state, RoleCoordinator, envOf(tt.coordinator)).WriteRuntime(r)
		if err != nil || path != tt.want {
			t.Errorf("%s: written to %s, %v, want %s", tt.name, path, err, tt.want)
			continue
		}
		if got, err := asker.ReadRuntime(); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: read %v, %v", tt.name, got, err)
		}
		if err := identity.RemoveRuntime(path, r); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A folder that everybody may write to is not believed, and not used.
func TestRuntimeFileInASharedFolder(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no permission bits")
	}
	run, state := t.TempDir(), t.TempDir()
	shared := filepath.Join(run, "mintai")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	p := NewPaths(state, RoleCoordinator, envOf(map[string]string{"XDG_RUNTIME_DIR": run}))
	if _, err := p.ReadRuntime(); !errors.Is(err, identity.ErrRuntimeUnsafe) {
		t.Errorf("got %v", err)
	}
	path, err := p.WriteRuntime(identity.Runtime{Addr: "127.0.0.1:1", ID: identity.NodeID{1}, Secret: "s"})
	if err != nil || !strings.HasPrefix(path, state) {
		t.Errorf("written to %s, %v", path, err)
	}
}

func TestJoinIsRemembered(t *testing.T) {
	p := NewPaths(t.TempDir(), RoleClient, noEnv)
	if _, err := p.LoadJoin(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: got %v", err)
	}
	link := identity.Link{Addrs: []string{"h:1"}, Secret: "s"}
	if err := p.SaveJoin(link); err != nil {
		t.Fatal(err)
	}
	if got, err := p.LoadJoin(); err != nil || !reflect.DeepEqual(got, link) {
		t.Errorf("got %v, %v", got, err)
	}
}
