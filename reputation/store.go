package reputation

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"mintai/identity"
)

// Errors of Open, to branch on.
var (
	// ErrCorrupt says that the database cannot be read; CorruptError carries
	// where it was put.
	ErrCorrupt = errors.New("reputation database is damaged")
	// ErrInUse says that another process holds the database.
	ErrInUse = errors.New("reputation database is in use by another process")
	// ErrNewer says that a newer version of the program wrote the database.
	ErrNewer = errors.New("reputation database was written by a newer version")
)

// CorruptError says that a database was damaged and has been moved aside, so
// that the next Open of the same path begins with an empty one.
type CorruptError struct {
	Path string // where the database was looked for
	Kept string // where the damaged file is now; empty: it could not be moved
	Err  error  // what was wrong
}

// Error says what happened and what to do, in one line.
func (e *CorruptError) Error() string {
	if e.Kept == "" {
		return fmt.Sprintf("%v: %s: %v; move the file away to start with an empty one", ErrCorrupt, e.Path, e.Err)
	}
	return fmt.Sprintf("%v: %s: %v; it is kept as %s, start again to begin with an empty one", ErrCorrupt, e.Path, e.Err, e.Kept)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns what was wrong with the file.
func (e *CorruptError) Unwrap() error { return e.Err }

// lockWait is how long Open waits for another process to let go of the file.
const lockWait = time.Second

// bucketMiners holds one record a miner, under the 32 bytes of its NodeID.
var bucketMiners = []byte("miners/v1")

// store is the bbolt database: copy-on-write pages and two checked meta pages,
// so that a killed process leaves the last committed state.
type store struct{ db *bbolt.DB }

// openStore opens or makes the database and reads all of it once, because a
// damaged page must be found here and not in the middle of a match.
func openStore(path string) (*store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("reputation folder: %w", err)
	}
	s, err := openChecked(path)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s; stop the other coordinator or give this one its own -state", ErrInUse, path)
	case errors.Is(err, ErrNewer):
		return nil, fmt.Errorf("%w (%s); use that version or move the file away", err, path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist), !errors.Is(err, errDamaged):
		return nil, fmt.Errorf("reputation database: %w", err)
	}
	kept := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000")
	if moveErr := os.Rename(path, kept); moveErr != nil {
		kept = ""
	}
	return nil, &CorruptError{Path: path, Kept: kept, Err: err}
}

// errDamaged marks the errors that a damaged file causes, as opposed to those
// of the file system.
var errDamaged = errors.New("damaged")

// openChecked opens the file and walks over every record. bbolt trusts its
// pages: a damaged one ends in a panic, or in a fault when the file is shorter
// than its pages say. Both become errors here.
func openChecked(path string) (s *store, err error) {
	var file *os.File
	var db *bbolt.DB
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, fmt.Errorf("%w: %v", errDamaged, p)
		}
		if err != nil && file != nil {
			// bbolt's own Close may wait for the transaction that panicked;
			// closing the file gives its lock back.
			_ = file.Close()
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      lockWait,
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			file = f
			return f, err
		},
	})
	if err != nil {
		file = nil // bbolt closed it
		if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch) {
			return nil, fmt.Errorf("%w: %v", errDamaged, err)
		}
		var pathError *fs.PathError
		if errors.Is(err, berrors.ErrTimeout) || errors.As(err, &pathError) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %v", errDamaged, err) // "file size too small" has no sentinel
	}
	s = &store{db: db}
	if err := s.verify(); err != nil {
		_ = db.Close()
		file = nil
		return nil, err
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucketMiners)
		return err
	}); err != nil {
		_ = db.Close()
		file = nil
		return nil, err
	}
	return s, nil
}

// verify reads every record, and so every page that leads to one.
func (s *store) verify() error {
	return s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketMiners)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			if _, err := identity.NodeIDFromBytes(k); err != nil {
				return fmt.Errorf("%w: %v", errDamaged, err)
			}
			if _, err := decodeRecord(v); errors.Is(err, ErrNewer) {
				return err
			} else if err != nil {
				return fmt.Errorf("%w: %v", errDamaged, err)
			}
			return nil
		})
	})
}

// read returns a miner's record, or nil when there is none.
func (s *store) read(miner identity.NodeID) (*record, error) {
	var r *record
	err := s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketMiners).Get(miner[:])
		if v == nil {
			return nil
		}
		var err error
		r, err = decodeRecord(v)
		return err
	})
	return r, err
}

// write stores records in one transaction and returns once they are on disk.
func (s *store) write(values map[identity.NodeID][]byte) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketMiners)
		for miner, v := range values {
			if err := b.Put(miner[:], v); err != nil {
				return err
			}
		}
		return nil
	})
}

// pruneBatch bounds how many records one transaction of prune deletes.
const pruneBatch = 1000

// prune deletes the records that were last touched before a moment and returns
// how many.
func (s *store) prune(before time.Time) (int, error) {
	total := 0
	for {
		deleted := 0
		err := s.db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketMiners)
			var stale [][]byte
			c := b.Cursor()
			for k, v := c.First(); k != nil && len(stale) < pruneBatch; k, v = c.Next() {
				if r, err := decodeRecord(v); err == nil && r.at.Before(before) {
					stale = append(stale, append([]byte(nil), k...))
				}
			}
			for _, k := range stale {
				if err := b.Delete(k); err != nil {
					return err
				}
			}
			deleted = len(stale)
			return nil
		})
		if err != nil {
			return total, err
		}
		total += deleted
		if deleted < pruneBatch {
			return total, nil
		}
	}
}

func (s *store) close() error { return s.db.Close() }
