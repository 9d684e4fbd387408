//go:build !linux && !darwin && !windows

package node

import (
	"errors"
	"syscall"
)

func keepWhole(syscall.RawConn, bool) error {
	return errors.New("this system does not let a program keep its packets whole")
}
