package portmap

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
)

const (
	igdMaxBody    = 256 << 10 // real descriptions have a few kB, some tens of them
	igdMaxHeader  = 16 << 10
	igdTimeout    = 3 * time.Second // of one request
	igdMaxClients = 8               // WAN connections of one router that are looked at
)

// fencedClient makes requests to the gateway and to nobody else: without proxies,
// without redirects, with bounded bodies, from the address that the mapping is
// for (routers compare it).
func fencedClient(l link) http.Client {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.local, 0)), Timeout: igdTimeout}
	return http.Client{
		Timeout: igdTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return fmt.Errorf("%w: UPnP redirects", ErrMalformed)
		},
		Transport: boundedBodies{&http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				to, err := netip.ParseAddrPort(addr)
				if err != nil || to.Addr().Unmap() != l.gateway {
					return nil, fmt.Errorf("%w: UPnP leads away from the gateway", ErrMalformed)
				}
				return dialer.DialContext(ctx, "tcp4", addr)
			},
			DisableKeepAlives:      true, // nothing stays behind between two renewals
			DisableCompression:     true,
			MaxResponseHeaderBytes: igdMaxHeader,
			ResponseHeaderTimeout:  igdTimeout,
		}},
	}
}

// boundedBodies cuts answers off.
type boundedBodies struct{ next http.RoundTripper }

func (b boundedBodies) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, igdMaxBody), res.Body}
	return res, nil
}

// describe fetches and reads a device description (UPnP Device Architecture 1.1,
// §2). Its URLs are absolute afterwards.
func describe(ctx context.Context, client *http.Client, l link, location *url.URL) (*goupnp.RootDevice, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: UPnP location: %v", ErrMalformed, err)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("UPnP description: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: UPnP description: status %d", ErrMalformed, res.StatusCode)
	}
	return parseDescription(res.Body, l, location)
}

func parseDescription(body io.Reader, l link, location *url.URL) (*goupnp.RootDevice, error) {
	root := new(goupnp.RootDevice)
	dec := xml.NewDecoder(body)
	dec.DefaultSpace = goupnp.DeviceXMLNamespace
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return asciiReader{r}, nil }
	if err := dec.Decode(root); err != nil {
		return nil, fmt.Errorf("%w: UPnP description: %v", ErrMalformed, err)
	}
	// "URLBase … is used to resolve relative URLs" (1.0 §2.1); 1.1 says not to use
	// it any more, and some routers have a wrong one.
	base := location
	if u, err := url.Parse(root.URLBaseStr); err == nil && root.URLBaseStr != "" && onGateway(u, l.gateway) == nil {
		base = u
	}
	root.SetURLBase(base)
	return root, nil
}

// asciiReader reads any 8-bit character set: what matters in a description,
// types and URLs, is ASCII.
type asciiReader struct{ io.Reader }

func (r asciiReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	for i, c := range b[:n] {
		if c >= 0x80 {
			b[i] = '?'
		}
	}
	return n, err
}
