package identity

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
)

var (
	// ErrKeyChanged is matched by a KeyChangedError.
	ErrKeyChanged = errors.New("the coordinator's key has changed")
	// ErrBadPins says that the file of remembered coordinators cannot be used.
	ErrBadPins = errors.New("the file of remembered coordinators")
)

const (
	maxPinsFile = 1 << 20 // bytes
	pinsHeader  = "# Coordinators that were trusted on first use: address, NodeID. Delete a line to forget one.\n"
)

// KeyChangedError says that a remembered coordinator answered with another key
// than before. It matches ErrKeyChanged.
type KeyChangedError struct {
	Addr  string // as the user gave it
	Known NodeID // remembered
	Got   NodeID // seen now
	Path  string // the file that remembers
}

// Error names both keys and says what to do.
func (e *KeyChangedError) Error() string {
	return fmt.Sprintf("%s was %s and now answers as %s: it was set up anew, or somebody stands in between; "+
		"ask its operator, and only if the new key is right delete the line of %s from %s",
		e.Addr, e.Known, e.Got, e.Addr, e.Path)
}

// Is matches ErrKeyChanged.
func (e *KeyChangedError) Is(target error) bool { return target == ErrKeyChanged }

// Pins remembers which NodeID answered at an address: trust on first use, for
// join links without NodeID. It is safe for concurrent use.
type Pins struct {
	path string

	mu    sync.Mutex // guards known and the file
	known map[string]NodeID
}

// OpenPins reads the file at path; one that does not exist yet is empty. A
// file that others can write, or with a line that makes no sense, is refused
// with ErrBadPins rather than trusted in part.
func OpenPins(path string) (*Pins, error) {
	p := &Pins{path: path}
	if err := p.loadLocked(); err != nil {
		return nil, err
	}
	return p, nil
}

// Lookup returns what is remembered about addr, and writes nothing. It is the
// one to use inside tls.Config.VerifyConnection, before the peer has proved
// that it holds its key.
func (p *Pins) Lookup(addr string) (NodeID, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, ok := p.known[pinKey(addr)]
	return id, ok
}

// Check compares id, which must have proved its key in a finished handshake,
// with what is remembered about addr. On first use it remembers id, durably,
// and returns first = true so that the caller can say so. Another key than the
// remembered one is a KeyChangedError. When the memory cannot be written the
// error says so and first is true.
func (p *Pins) Check(addr string, id NodeID) (first bool, err error) {
	if id.IsZero() || strings.ContainsAny(addr, " \t\r\n#") || addr == "" {
		return false, fmt.Errorf("%w: an address and a NodeID are needed", ErrBadPins)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := pinKey(addr)
	known, ok := p.known[key]
	if !ok {
		// Another process of this user may have been here since.
		if err := p.loadLocked(); err != nil {
			return false, err
		}
		known, ok = p.known[key]
	}
	switch {
	case !ok:
		p.known[key] = id
		return true, p.storeLocked()
	case known != id:
		return false, &KeyChangedError{Addr: addr, Known: known, Got: id, Path: p.path}
	}
	return false, nil
}

func pinKey(addr string) string { return strings.ToLower(addr) }

func (p *Pins) loadLocked() error {
	known := make(map[string]NodeID)
	f, err := os.Open(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		p.known = known
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadPins, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadPins, err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w: %s can be written by other users; run: chmod 600 %s", ErrBadPins, p.path, p.path)
	}
	if err := parsePins(f, known); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBadPins, p.path, err)
	}
	p.known = known
	return nil
}

func parsePins(r io.Reader, known map[string]NodeID) error {
	lines := bufio.NewScanner(io.LimitReader(r, maxPinsFile))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("line %d is not an address and a NodeID", n)
		}
		id, err := ParseNodeID(fields[1])
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		key := pinKey(fields[0])
		if old, ok := known[key]; ok && old != id {
			return fmt.Errorf("line %d: %s stands there twice with different keys", n, fields[0])
		}
		known[key] = id
	}
	return lines.Err()
}

func (p *Pins) storeLocked() error {
	var b bytes.Buffer
	b.WriteString(pinsHeader)
	for _, addr := range slices.Sorted(maps.Keys(p.known)) {
		fmt.Fprintf(&b, "%s %s\n", addr, p.known[addr])
	}
	if err := writePrivate(p.path, b.Bytes()); err != nil {
		return fmt.Errorf("%w could not be written: %w", ErrBadPins, err)
	}
	return nil
}
