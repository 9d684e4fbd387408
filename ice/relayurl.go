package ice

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// parseRelayURL reads "turn:host[:port][?transport=udp]" (RFC 7065 §3.1) or a
// bare "host:port".
func parseRelayURL(s string) (host, port string, err error) {
	rest, isURL := strings.CutPrefix(s, "turn:")
	if strings.HasPrefix(s, "turns:") {
		return "", "", fmt.Errorf("%w: %q asks for TLS", ErrRelayURL, s)
	}
	rest, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery && query != "transport=udp" {
		return "", "", fmt.Errorf("%w: %q asks for another transport", ErrRelayURL, s)
	}
	host, port, err = net.SplitHostPort(rest)
	if err != nil && isURL && rest != "" && !strings.Contains(strings.Trim(rest, "[]"), "]") {
		host, port, err = strings.Trim(rest, "[]"), "3478", nil
	}
	if err != nil || host == "" {
		return "", "", fmt.Errorf("%w: %q is not turn:host:port", ErrRelayURL, s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("%w: %q has no valid port", ErrRelayURL, s)
	}
	return host, port, nil
}

func resolve(ctx context.Context, host, port string) ([]*net.UDPAddr, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	n, _ := strconv.ParseUint(port, 10, 16) // checked by parseRelayURL
	var addrs []*net.UDPAddr
	for _, ip := range ips {
		addrs = append(addrs, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), uint16(n))))
		if len(addrs) == maxRelayAddrs {
			break
		}
	}
	return addrs, nil
}
