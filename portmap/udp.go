package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// pcpPort is where a gateway answers both PCP (RFC 6887 §19.1) and NAT-PMP
// (RFC 6886 §3.1).
const pcpPort = 5351

// removeTimes are the waits for the answer to a deletion, together what a
// process takes longer to end for it. The gateway is one hop away; the packet
// is there even if no answer is.
var removeTimes = []time.Duration{35 * time.Millisecond, 65 * time.Millisecond}

// converse sends a request to the gateway, again after each of the waits, until
// read takes an answer as its own; read's error is then the result. It ends with
// ctx at once.
func converse(ctx context.Context, l link, port uint16, request []byte, waits []time.Duration, read func(answer []byte) (mine bool, err error)) error {
	if port == 0 {
		port = pcpPort
	}
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.local, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.gateway, port)))
	if err != nil {
		return fmt.Errorf("%w: %v", ErrSilent, err)
	}
	defer conn.Close()
	// A connected socket: the kernel drops what others than the gateway send.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	buf := make([]byte, pcpMaxLen+1)
	for _, wait := range waits {
		if _, err := conn.Write(request); err != nil {
			return silent(ctx, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		if ctx.Err() != nil { // it may have ended just before the deadline was set
			return ctx.Err()
		}
		for {
			n, err := conn.Read(buf)
			if err != nil {
				if t := net.Error(nil); errors.As(err, &t) && t.Timeout() && ctx.Err() == nil {
					break // once more
				}
				return silent(ctx, err)
			}
			if mine, err := read(buf[:n]); mine {
				return err
			}
		}
	}
	return ErrSilent
}

// silent makes one error of the ways in which nothing comes.
func silent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// The system's word alone, without addresses: "connection refused" is a router
	// where nothing listens.
	if e := (*os.SyscallError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return fmt.Errorf("%w: %v", ErrSilent, err)
}
