package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// ErrRuntimeUnsafe says that a runtime file, or the folder that it is in,
// belongs to or is open to somebody else. What it says is not to be believed.
var ErrRuntimeUnsafe = errors.New("runtime file is not to be trusted")

const maxRuntimeFile = 4096 // bytes

// Runtime is what a running coordinator tells other processes of the same user
// on the same machine: where it is, and a secret that proves to it that they
// could read this.
type Runtime struct {
	Addr   string // host:port of the coordinator's UDP socket, on loopback
	ID     NodeID // of the coordinator
	Secret Secret // for LocalProof; new at each start
	PID    int    // of the coordinator
}

// runtimeFile is the JSON form. Secret stands here as the plain string that it
// is nowhere else.
type runtimeFile struct {
	Addr   string `json:"addr"`
	ID     NodeID `json:"id"`
	Secret string `json:"secret"`
	PID    int    `json:"pid"`
}

// WriteRuntime writes r to path atomically with mode 0600, in a folder that is
// made with mode 0700 when missing. It refuses, with ErrRuntimeUnsafe, a
// folder of another user or one that others may write to.
func WriteRuntime(path string, r Runtime) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("runtime folder: %w", err)
	}
	if err := checkPrivateDir(filepath.Dir(path)); err != nil {
		return err
	}
	data, err := json.Marshal(runtimeFile{Addr: r.Addr, ID: r.ID, Secret: r.Secret.Reveal(), PID: r.PID})
	if err != nil {
		return fmt.Errorf("runtime file: %w", err)
	}
	if err := writePrivate(path, append(data, '\n')); err != nil {
		return fmt.Errorf("runtime file: %w", err)
	}
	return nil
}

// ReadRuntime reads what WriteRuntime wrote. A missing file is fs.ErrNotExist:
// no coordinator of this user runs here. A file or folder that is not the
// caller's own, that others can read, or that is a symbolic link is
// ErrRuntimeUnsafe.
func ReadRuntime(path string) (Runtime, error) {
	if err := checkPrivateDir(filepath.Dir(path)); err != nil {
		return Runtime{}, err
	}
	f, err := openNoFollow(path)
	if err != nil {
		if info, lerr := os.Lstat(path); lerr == nil && info.Mode()&fs.ModeSymlink != 0 {
			return Runtime{}, fmt.Errorf("%w: %s is a symbolic link", ErrRuntimeUnsafe, path)
		}
		return Runtime{}, fmt.Errorf("runtime file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat() // of what was opened, so that nobody can swap it
	if err != nil {
		return Runtime{}, fmt.Errorf("runtime file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return Runtime{}, fmt.Errorf("%w: %s is no regular file", ErrRuntimeUnsafe, path)
	}
	if err := checkOwner(path, info); err != nil {
		return Runtime{}, err
	}
	if exposed(info, 0o077) {
		return Runtime{}, fmt.Errorf("%w: %s has mode %#o, others can read it", ErrRuntimeUnsafe, path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRuntimeFile+1))
	if err != nil {
		return Runtime{}, fmt.Errorf("runtime file: %w", err)
	}
	r, err := parseRuntime(data)
	if err != nil {
		return Runtime{}, fmt.Errorf("runtime file %s: %w", path, err)
	}
	return r, nil
}

func parseRuntime(data []byte) (Runtime, error) {
	if len(data) > maxRuntimeFile {
		return Runtime{}, fmt.Errorf("longer than %d bytes", maxRuntimeFile)
	}
	var file runtimeFile
	if err := json.Unmarshal(data, &file); err != nil {
		return Runtime{}, errors.New("not the JSON that a coordinator writes") // the JSON error may quote the secret
	}
	if _, _, err := net.SplitHostPort(file.Addr); err != nil || file.ID.IsZero() || file.Secret == "" {
		return Runtime{}, errors.New("the address, the NodeID or the secret is missing")
	}
	return Runtime{Addr: file.Addr, ID: file.ID, Secret: Secret(file.Secret), PID: file.PID}, nil
}

// RemoveRuntime removes the file at path if it still says what r says: a
// coordinator that was started later keeps its own. A file that is gone
// already is no error.
func RemoveRuntime(path string, r Runtime) error {
	now, err := ReadRuntime(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if now.ID != r.ID || now.Secret != r.Secret {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("runtime file: %w", err)
	}
	return nil
}

// checkPrivateDir demands a folder of the caller that nobody else can write to:
// elsewhere, another user could have put the file there.
func checkPrivateDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("runtime folder: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is no folder", ErrRuntimeUnsafe, dir)
	}
	if err := checkOwner(dir, info); err != nil {
		return err
	}
	if exposed(info, 0o022) {
		return fmt.Errorf("%w: the folder %s has mode %#o, others can write to it", ErrRuntimeUnsafe, dir, info.Mode().Perm())
	}
	return nil
}
