//go:build unix

package identity

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkOwner demands that the file belongs to the user this process runs as.
func checkOwner(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%w: the owner of %s cannot be found out", ErrRuntimeUnsafe, path)
	}
	if uid := os.Geteuid(); int64(stat.Uid) != int64(uid) {
		return fmt.Errorf("%w: %s belongs to user %d, not to user %d", ErrRuntimeUnsafe, path, stat.Uid, uid)
	}
	return nil
}

// exposed reports whether others have any of the permissions in mask.
func exposed(info fs.FileInfo, mask fs.FileMode) bool { return info.Mode().Perm()&mask != 0 }

// openNoFollow opens a file for reading unless its last part is a symbolic
// link, and does not wait for a writer when it is a pipe.
func openNoFollow(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}
