package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"mintai/api"
)

// The codes of the refusals of this file.
const (
	CodeBadHost   = "host_not_allowed"
	CodeBadOrigin = "origin_not_allowed"
)

// containerHosts are the names by which containers call the machine that they
// run on. Nobody can point them elsewhere from outside.
var containerHosts = map[string]bool{"host.docker.internal": true, "host.containers.internal": true}

// guard refuses what a web page in the user's browser could send. A page can
// make the browser call 127.0.0.1, but the browser says so in Origin or
// Sec-Fetch-Site; and a page whose own name was pointed at 127.0.0.1 after it
// was loaded (DNS rebinding) still sends that name in Host.
func (g *gateway) guard(w http.ResponseWriter, r *http.Request) *api.Error {
	if !g.hostAllowed(r.Host) {
		return &api.Error{
			Status: http.StatusForbidden, Code: CodeBadHost,
			Message: "this endpoint is not called by that host name",
			Hint:    "use http://127.0.0.1 or http://localhost with its port",
		}
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
			return errBadOrigin()
		}
		return nil
	}
	if len(origins) > 1 || !g.originAllowed(origins[0], r.Host) {
		return errBadOrigin()
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", origins[0])
	h.Add("Vary", "Origin")
	if r.Method == http.MethodOptions {
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST")
		h.Set("Access-Control-Allow-Headers", "Accept, Authorization, Content-Type, X-Api-Key, Anthropic-Version, Anthropic-Beta")
		h.Set("Access-Control-Max-Age", "600")
	}
	return nil
}

func errBadOrigin() *api.Error {
	return &api.Error{
		Status: http.StatusForbidden, Code: CodeBadOrigin,
		Message: "this web page may not use the local endpoint",
		Hint:    "if it should, write its address into origins in [client]",
	}
}

// hostAllowed accepts IP addresses (a rebinding page has none), localhost, and
// the names that were configured.
func (g *gateway) hostAllowed(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	} else if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	host = strings.ToLower(host)
	// RFC 6761 §6.3: names under localhost are always loopback.
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || containerHosts[host] || g.hosts[host]
}

// originAllowed accepts the configured pages and pages of this endpoint itself.
func (g *gateway) originAllowed(origin, host string) bool {
	origin = strings.ToLower(origin)
	return g.origins[origin] || origin == "http://"+strings.ToLower(host)
}
