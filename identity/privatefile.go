package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxPrivateFile bounds a file with one secret or one link, in bytes.
const maxPrivateFile = 4096

// ErrFolderOpen says that a folder with secrets can be written by every user of
// the machine: whoever writes there can put another key in place.
var ErrFolderOpen = errors.New("folder can be written by other users")

// checkFolder refuses a path whose folder everybody may write, unless only the
// owner of a file may replace it there (the sticky bit). A folder that is
// missing is no error.
func checkFolder(path string) error {
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if err == nil && info.Mode()&fs.ModeSticky == 0 && exposed(info, 0o002) {
		return fmt.Errorf("%w: %s has mode %#o; run: chmod 700 %s", ErrFolderOpen, dir, info.Mode().Perm(), dir)
	}
	return nil
}

// LoadOrCreateSecret reads the secret at path, or makes a random one there
// with mode 0600 when the file does not exist. A file that others can read is
// refused with ErrKeyExposed.
func LoadOrCreateSecret(path string) (Secret, error) {
	text, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret := NewSecret()
		if err := writePrivate(path, []byte(secret.Reveal()+"\n")); err != nil {
			return "", fmt.Errorf("secret file: %w", err)
		}
		return secret, nil
	}
	if err != nil {
		return "", err
	}
	// What the file holds must fit into a join link.
	if _, err := ParseLink(linkScheme + "localhost/" + unknownID + "/" + text); text == "" || err != nil {
		return "", fmt.Errorf("secret file %s: it must hold up to %d of the characters a-z 0-9 -", path, maxSecret)
	}
	return Secret(text), nil
}

// WriteLink keeps a link, its secret included, in a file with mode 0600.
func WriteLink(path string, l Link) error {
	if err := writePrivate(path, []byte(l.String()+"\n")); err != nil {
		return fmt.Errorf("join link file: %w", err)
	}
	return nil
}

// ReadLink reads what WriteLink wrote. A missing file is fs.ErrNotExist; one
// that others can read is refused with ErrKeyExposed.
func ReadLink(path string) (Link, error) {
	text, err := readPrivate(path)
	if err != nil {
		return Link{}, err
	}
	l, err := ParseLink(text)
	if err != nil {
		return Link{}, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// readPrivate reads a small file that only its owner may read, without the
// white space around its text.
func readPrivate(path string) (string, error) {
	if err := checkFolder(path); err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if exposed(info, 0o077) {
		return "", fmt.Errorf("%w: %s has mode %#o; run: chmod 600 %s", ErrKeyExposed, path, info.Mode().Perm(), path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPrivateFile+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxPrivateFile {
		return "", fmt.Errorf("%s is longer than %d bytes", path, maxPrivateFile)
	}
	return string(bytes.TrimSpace(data)), nil
}

// writePrivate replaces the file at path by data with mode 0600, making its
// folder (0700) when missing. A crash leaves the old file or the new one.
func writePrivate(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".tmp-*") // CreateTemp uses 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}
