package node

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// keepWhole sets DF on what the socket sends.
func keepWhole(raw syscall.RawConn, v6 bool) error {
	var err error
	cerr := raw.Control(func(fd uintptr) {
		if v6 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_DONTFRAG, 1)
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}
