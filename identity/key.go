package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// ErrKeyExposed says that a key file can be read by others than its owner.
var ErrKeyExposed = errors.New("key file can be read by other users")

const pemType = "PRIVATE KEY"

// Key is a node's private key. Print it and only its NodeID shows.
type Key struct{ priv ed25519.PrivateKey }

// NewKey makes a key that is stored nowhere.
func NewKey() (*Key, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	return &Key{priv: priv}, nil
}

// LoadOrCreateKey reads the PKCS #8 PEM key at path, or makes one there with
// mode 0600 when the file does not exist. Two processes that start at the same
// moment end up with the same key. A file that others can read is refused
// with ErrKeyExposed, and a folder that all can write with ErrFolderOpen.
func LoadOrCreateKey(path string) (*Key, error) {
	if err := checkFolder(path); err != nil {
		return nil, err
	}
	key, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("key folder: %w", err)
	}
	key, err = NewKey()
	if err != nil {
		return nil, err
	}
	if err := key.store(path); err != nil {
		if errors.Is(err, fs.ErrExist) { // another process was faster
			return loadKey(path)
		}
		return nil, err
	}
	return key, nil
}

// store writes the whole key to a temporary file and links it into place, so
// that a crash or a second process never leaves half a key.
func (k *Key) store(path string) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.priv)
	if err != nil {
		return fmt.Errorf("encoding the key: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key-*") // CreateTemp uses 0600
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	err = pem.Encode(tmp, &pem.Block{Type: pemType, Bytes: der})
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return err
		}
		// A file system without hard links: a rename is still atomic.
		if err := os.Rename(tmp.Name(), path); err != nil {
			return fmt.Errorf("key file: %w", err)
		}
	}
	return nil
}

func loadKey(path string) (*Key, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %#o; run: chmod 600 %s", ErrKeyExposed, path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("key file %s holds no PEM private key", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	priv, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key file %s holds a %T, not an Ed25519 key", path, parsed)
	}
	return &Key{priv: priv}, nil
}

// ID returns the public half.
func (k *Key) ID() NodeID {
	id, _ := NodeIDFromBytes(k.priv.Public().(ed25519.PublicKey)) // the length is the type's
	return id
}

// Sign signs message, which must start with a versioned label such as
// "mintai/receipt/v1".
func (k *Key) Sign(message []byte) []byte { return ed25519.Sign(k.priv, message) }

// Verify reports whether sig is id's signature of message.
func Verify(id NodeID, message, sig []byte) bool {
	return ed25519.Verify(id[:], message, sig)
}

// String shows the NodeID, never the key.
func (k *Key) String() string { return "key of " + k.ID().Short() }

// GoString shows the NodeID, never the key.
func (k *Key) GoString() string { return k.String() }
