//go:build !windows

package signal

import (
	"fmt"
	"os"
)

// private refuses a file that other users can read or write.
func private(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be read by other users: mode %#o", f.Name(), info.Mode().Perm())
	}
	return nil
}
