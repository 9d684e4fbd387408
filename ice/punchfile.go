package ice

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// maxPunchFile bounds what is read of the file, in bytes.
const maxPunchFile = 4096

// punchFile is the file in which all sockets of a node, each in a process of its
// own, keep what runs they began lately. Whoever has it open has it locked, for as
// long as its run lasts: the system frees it when the process dies.
//
// It is written in place, for a lock is on a file and not on its name. What half
// a write leaves behind makes no sense, and counts as full.
type punchFile struct{ f *os.File }

// punchRecord is what stands in the file.
type punchRecord struct {
	Version int          `json:"v"`
	Begun   []punchEntry `json:"begun"`
}

type punchEntry struct {
	Target netip.Addr `json:"target"`
	At     int64      `json:"at_unix_ms"`
}

// openPunchFile opens and locks the file, and makes it when it is missing. The
// error is ErrProbing when another has it.
func openPunchFile(path string) (*punchFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	locked, err := lockFile(f)
	if err == nil && !locked {
		err = fmt.Errorf("%w, in another process", ErrProbing)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &punchFile{f}, nil
}

// begin notes a run, if there may be one.
func (p *punchFile) begin(target netip.Addr, now time.Time) error {
	b, err := io.ReadAll(io.LimitReader(p.f, maxPunchFile+1))
	if err != nil {
		return err
	}
	begun, ok := parsePunches(b, now)
	if !ok {
		// Nobody knows what was begun. As many as there may be were, just now: that
		// is safe, and over in a minute.
		for range punchesPerSocket {
			begun = append(begun, punchBegun{netip.IPv4Unspecified(), now})
		}
	}
	begun, refusal := judgePunch(begun, target, now)
	if refusal == nil {
		begun = append(begun, punchBegun{target, now})
	}
	if err := p.write(begun); err != nil && refusal == nil {
		return err
	}
	return refusal
}

// parsePunches reads a record. A time that is still to come, because the clock was
// set back, is taken for now: it counts for a minute, and not for longer.
func parsePunches(b []byte, now time.Time) ([]punchBegun, bool) {
	if len(b) == 0 { // it was just made
		return nil, true
	}
	var r punchRecord
	if len(b) > maxPunchFile || json.Unmarshal(b, &r) != nil || r.Version != 1 || len(r.Begun) > punchesPerSocket {
		return nil, false
	}
	var begun []punchBegun
	for _, e := range r.Begun {
		at := time.UnixMilli(e.At)
		if !e.Target.IsValid() {
			return nil, false
		}
		if at.After(now) {
			at = now
		}
		begun = append(begun, punchBegun{e.Target, at})
	}
	return begun, true
}

func (p *punchFile) write(begun []punchBegun) error {
	r := punchRecord{Version: 1}
	for _, x := range begun {
		r.Begun = append(r.Begun, punchEntry{x.target, x.at.UnixMilli()})
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = p.f.WriteAt(b, 0)
	return errors.Join(err, p.f.Truncate(int64(len(b))))
}

// close lets others begin.
func (p *punchFile) close() { _ = p.f.Close() }
