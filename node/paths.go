package node

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"mintai/identity"
)

// ErrNoStateDir says that there is no folder to keep keys in.
var ErrNoStateDir = errors.New("no folder for keys and tickets")

// Role names a role in the state folder; each has its own key.
type Role string

// The roles.
const (
	RoleCoordinator Role = "coordinator"
	RoleMiner       Role = "miner"
	RoleClient      Role = "client"
)

// StateDir returns the folder for keys, tickets and the ledger, which may not
// exist yet: flag (-state) if it is given, else systemd's STATE_DIRECTORY,
// else XDG_STATE_HOME/mintai, else ~/.local/state/mintai.
func StateDir(flag string, getenv func(string) string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	// systemd.exec(5): several directories are separated by colons.
	if dir, _, _ := strings.Cut(getenv("STATE_DIRECTORY"), ":"); filepath.IsAbs(dir) && runtime.GOOS != "windows" {
		return dir, nil
	}
	// XDG Base Directory Specification: a relative path is invalid and ignored.
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "mintai"), nil
	}
	if runtime.GOOS == "windows" {
		if dir := getenv("LOCALAPPDATA"); filepath.IsAbs(dir) {
			return filepath.Join(dir, "mintai"), nil
		}
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "mintai"), nil
	}
	return "", fmt.Errorf("%w: HOME is not set; name a folder with -state", ErrNoStateDir)
}

// Paths says where a role keeps its files. Nothing is created until written.
type Paths struct {
	state    string
	role     Role
	runtimes []string // places of the runtime file, first choice first
}

// NewPaths returns the files of role below the state folder.
func NewPaths(state string, role Role, getenv func(string) string) Paths {
	p := Paths{state: state, role: role}
	const file = "coordinator.json"
	// The user's own folder on a memory file system. Never one that users share.
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		p.runtimes = append(p.runtimes, filepath.Join(dir, "mintai", file))
	}
	p.runtimes = append(p.runtimes, filepath.Join(state, "run", file))
	if usual, err := StateDir("", getenv); err == nil {
		if at := filepath.Join(usual, "run", file); !slices.Contains(p.runtimes, at) {
			p.runtimes = append(p.runtimes, at)
		}
	}
	return p
}

// Dir is the role's own folder.
func (p Paths) Dir() string { return filepath.Join(p.state, string(p.role)) }

// Key is the file of the role's private key.
func (p Paths) Key() string { return filepath.Join(p.Dir(), "key.pem") }

// Tickets is where TLS session tickets are kept, one coordinator apart from the
// next. A zero coordinator is the one that is only known by its address.
func (p Paths) Tickets(coordinator identity.NodeID) string {
	name := "tickets"
	if !coordinator.IsZero() {
		name += "-" + coordinator.Short()
	}
	return filepath.Join(p.Dir(), name)
}

// Probing is the file by which all processes of the role bound hard-NAT probing
// together.
func (p Paths) Probing() string { return filepath.Join(p.Dir(), "probing") }

// Pins is the file of coordinators that were trusted on first use.
func (p Paths) Pins() string { return filepath.Join(p.Dir(), "coordinators") }

// Join is the file of the join link that 'client join' remembers.
func (p Paths) Join() string { return filepath.Join(p.Dir(), "join") }

// Secret is the file of the coordinator's admission secret.
func (p Paths) Secret() string { return filepath.Join(p.Dir(), "secret") }

// Ledger is the file of the coordinator's reputation store.
func (p Paths) Ledger() string { return filepath.Join(p.Dir(), "reputation.db") }

// ACME is the folder of the coordinator's certificates that it got by itself.
func (p Paths) ACME() string { return filepath.Join(p.Dir(), "acme") }

// WriteRuntime publishes the coordinator to processes of the same user, at the
// first place that can be had, and returns it for identity.RemoveRuntime.
func (p Paths) WriteRuntime(r identity.Runtime) (string, error) {
	var problems []error
	for _, path := range p.runtimes {
		err := identity.WriteRuntime(path, r)
		if err == nil {
			return path, nil
		}
		problems = append(problems, err)
	}
	return "", errors.Join(problems...)
}

// ReadRuntime finds the coordinator that this user runs on this machine. The
// error is fs.ErrNotExist when there is none, and names files that are not to
// be trusted when there are such.
func (p Paths) ReadRuntime() (identity.Runtime, error) {
	var problems []error
	for _, path := range p.runtimes {
		r, err := identity.ReadRuntime(path)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	if len(problems) == 0 {
		return identity.Runtime{}, fmt.Errorf("no coordinator of this user runs here: %w", fs.ErrNotExist)
	}
	return identity.Runtime{}, errors.Join(problems...)
}

// othersCanRead reports whether a file is open to other users of the machine.
func othersCanRead(info fs.FileInfo) bool {
	return runtime.GOOS != "windows" && info.Mode().Perm()&0o044 != 0
}

// SaveJoin remembers a join link with mode 0600.
func (p Paths) SaveJoin(link identity.Link) error {
	return identity.WriteLink(p.Join(), link)
}

// LoadJoin returns the link that SaveJoin remembered; fs.ErrNotExist if none.
func (p Paths) LoadJoin() (identity.Link, error) { return identity.ReadLink(p.Join()) }
