package portmap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"golang.org/x/net/ipv4"
)

// The search for a UPnP gateway (UPnP Device Architecture 1.1, §1.3). goupnp has
// one, which waits out its whole time before it returns the first answer, does
// not tell who answered and writes strangers' mistakes to the standard log.

const (
	ssdpPort      = 1900
	ssdpMaxAnswer = 2048
	maxLocations  = 4 // that one gateway may name
)

var ssdpGroup = netip.AddrPortFrom(netip.AddrFrom4([4]byte{239, 255, 255, 250}), ssdpPort)

// ssdpTargets are what is searched for. Gateways of version 2 answer to 1 too,
// by the book; some answer to root devices only.
var ssdpTargets = [...]string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	"upnp:rootdevice",
}

// ssdpTimes are the waits before the search is repeated and given up.
var ssdpTimes = []time.Duration{300 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond}

// ssdpSearch looks for a gateway's UPnP description.
type ssdpSearch struct {
	to    []netip.AddrPort // nil: the multicast group, and the gateway itself
	times []time.Duration  // nil: ssdpTimes
}

// find searches, reads the description and asks for the external address.
func (s ssdpSearch) find(ctx context.Context, l link) (answer, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.local, 0)))
	if err != nil {
		return answer{}, fmt.Errorf("%w: %v", ErrSilent, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if l.index != 0 { // not every system chooses the interface by the source address
		_ = ipv4.NewPacketConn(conn).SetMulticastInterface(&net.Interface{Index: l.index, Name: l.name})
	}
	to := s.to
	if to == nil {
		// The gateway itself as well: Wi-Fi may lose multicast, and who answers is
		// the gateway anyway.
		to = []netip.AddrPort{ssdpGroup, netip.AddrPortFrom(l.gateway, ssdpPort)}
	}

	times := s.times
	if times == nil {
		times = ssdpTimes
	}

	tried := map[string]bool{}
	last := ErrSilent
	buf := make([]byte, ssdpMaxAnswer)
	for _, wait := range times {
		var sent bool
		for _, target := range ssdpTargets {
			for _, addr := range to {
				if _, err := conn.WriteToUDPAddrPort(searchMessage(target), addr); err == nil {
					sent = true
				}
			}
		}
		if !sent {
			return answer{}, silent(ctx, errors.New("the search cannot be sent"))
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		if ctx.Err() != nil {
			return answer{}, ctx.Err()
		}
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				if t := net.Error(nil); errors.As(err, &t) && t.Timeout() && ctx.Err() == nil {
					break // once more
				}
				if ctx.Err() != nil {
					return answer{}, ctx.Err()
				}
				continue // what ICMP or Windows say of an earlier packet
			}
			if from.Addr().Unmap() != l.gateway {
				continue // some other device: not our router
			}
			location, err := parseLocation(buf[:n], l.gateway)
			if err != nil || tried[location.String()] || len(tried) == maxLocations {
				if err != nil {
					last = err
				}
				continue
			}
			tried[location.String()] = true
			a, err := openIGD(ctx, l, location)
			if err == nil {
				return a, nil
			}
			last = err
		}
	}
	if errors.Is(last, ErrSilent) && len(tried) == 0 {
		return answer{}, ErrSilent
	}
	return answer{}, last
}

// searchMessage is an M-SEARCH (§1.3.2). MX 1: "at most one second".
func searchMessage(target string) []byte {
	return []byte("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: " + target + "\r\n\r\n")
}

// parseLocation reads the answer to a search (§1.3.3): where the description is.
// It must be plain HTTP on the gateway itself, by its number.
func parseLocation(b []byte, gateway netip.Addr) (*url.URL, error) {
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: SSDP: %v", ErrMalformed, err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: SSDP status %d", ErrMalformed, res.StatusCode)
	}
	location, err := url.Parse(res.Header.Get("Location"))
	if err != nil {
		return nil, fmt.Errorf("%w: SSDP location", ErrMalformed)
	}
	if err := onGateway(location, gateway); err != nil {
		return nil, err
	}
	return location, nil
}

// onGateway refuses a URL that leads to any other host than the gateway: whoever
// answers in the local network would otherwise choose what this machine requests
// from whom.
func onGateway(u *url.URL, gateway netip.Addr) error {
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil || host.Unmap() != gateway || u.Scheme != "http" || u.User != nil {
		return fmt.Errorf("%w: UPnP leads to %.60q and not to the gateway %s", ErrMalformed, u.Scheme+"://"+u.Host, gateway)
	}
	return nil
}
