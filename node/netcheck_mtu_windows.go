package node

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// From ws2ipdef.h.
const (
	ipDontFragment = 14 // IP_DONTFRAGMENT
	ipv6DontFrag   = 14 // IPV6_DONTFRAG
)

// keepWhole sets DF on what the socket sends.
func keepWhole(raw syscall.RawConn, v6 bool) error {
	level, name := windows.IPPROTO_IP, ipDontFragment
	if v6 {
		level, name = windows.IPPROTO_IPV6, ipv6DontFrag
	}
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = windows.SetsockoptInt(windows.Handle(fd), level, name, 1) }); cerr != nil {
		return cerr
	}
	return err
}
