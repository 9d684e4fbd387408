package node

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// keepWhole sets DF on what the socket sends, and lets no earlier experience of
// the kernel with the path decide.
func keepWhole(raw syscall.RawConn, v6 bool) error {
	level, name, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if v6 {
		level, name, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }); cerr != nil {
		return cerr
	}
	return err
}
