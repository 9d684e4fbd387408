package portmap

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestUPnP(t *testing.T) {
	for _, service := range []string{"WANIPConnection:1", "WANIPConnection:2", "WANPPPConnection:1"} {
		t.Run(service, func(t *testing.T) {
			f := newIGD(t)
			f.bend(func(f *fakeIGD) { f.service = service })
			a, err := f.search().find(t.Context(), loopback)
			if err != nil || a.external.String() != "30.0.0.1" {
				t.Fatalf("%+v, %v", a, err)
			}
			m, err := a.router.add(t.Context(), udpAsk(5000, 40000))
			if err != nil || m.External.String() != "30.0.0.1:40000" || m.Protocol != UPnP || m.Internal != 5000 || time.Until(m.Expires) > defaultLifetime {
				t.Fatalf("%+v, %v", m, err)
			}
			if got := f.entries(); len(got) != 1 || got["UDP40000"] != "127.0.0.1:5000" {
				t.Errorf("entries %v", got)
			}
			if got := f.table["UDP40000"]["NewPortMappingDescription"]; got != "MintAI <test>" {
				t.Errorf("description %q", got)
			}
			// Renewed: the same once more.
			if m, err = a.router.add(t.Context(), udpAsk(5000, 40000)); err != nil || m.External.Port() != 40000 {
				t.Errorf("renewed: %+v, %v", m, err)
			}
			if err := a.router.remove(t.Context(), udpAsk(5000, 40000)); err != nil || len(f.entries()) != 0 {
				t.Errorf("removed: %v, %v", f.entries(), err)
			}
			if err := a.router.remove(t.Context(), udpAsk(5000, 40000)); err != nil {
				t.Errorf("removed again: %v", err)
			}
		})
	}
}

func TestUPnPTakesNothingFromOthers(t *testing.T) {
	f := newIGD(t)
	r := f.open()
	f.enter("UDP", 40000, 5001, "127.0.0.1") // another process of this machine
	m, err := r.add(t.Context(), udpAsk(5000, 40000))
	if err != nil || m.External.Port() == 40000 || m.External.Port() < 1024 {
		t.Fatalf("%+v, %v", m, err)
	}
	if got := f.entries(); got["UDP40000"] != "127.0.0.1:5001" || len(got) != 2 {
		t.Errorf("entries %v", got)
	}
	if err := r.remove(t.Context(), udpAsk(5000, 40000)); err != nil || len(f.entries()) != 2 {
		t.Errorf("removed another's: %v, %v", f.entries(), err)
	}
	// One who was faster between our look and our entry.
	f = newIGD(t)
	r = f.open()
	var adds int
	f.bend(func(f *fakeIGD) {
		f.fault = func(action string, _ soapArgs) int {
			if action == "AddPortMapping" {
				adds++
			}
			if action == "GetSpecificPortMappingEntry" && adds == 1 {
				f.table["UDP40000"] = soapArgs{"NewInternalPort": "5001", "NewInternalClient": "127.0.0.1", "NewEnabled": "1", "NewLeaseDuration": "9"}
			}
			return 0
		}
	})
	if m, err := r.add(t.Context(), udpAsk(5000, 40000)); err != nil || m.External.Port() == 40000 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestUPnPFaults(t *testing.T) {
	on := func(action string, code int, when func(soapArgs) bool) func(string, soapArgs) int {
		return func(a string, args soapArgs) int {
			if a == action && when(args) {
				return code
			}
			return 0
		}
	}
	always := func(soapArgs) bool { return true }
	leased := func(a soapArgs) bool { return a["NewLeaseDuration"] != "0" }
	for name, c := range map[string]struct {
		fault   func(string, soapArgs) int
		want    error
		port    uint16 // 0: any but 40000
		forever bool
	}{
		"permanent only":           {fault: on("AddPortMapping", 725, leased), port: 40000, forever: true},
		"permanent only, unspoken": {fault: on("AddPortMapping", 402, leased), port: 40000, forever: true},
		"conflict":                 {fault: on("AddPortMapping", 718, func(a soapArgs) bool { return a["NewExternalPort"] == "40000" })},
		"same port":                {fault: on("AddPortMapping", 724, func(a soapArgs) bool { return a["NewExternalPort"] != "5000" }), port: 5000},
		"no lookup":                {fault: on("GetSpecificPortMappingEntry", 401, always), port: 40000},
		"all taken":                {fault: on("AddPortMapping", 718, always), want: ErrRefused},
		"same port taken":          {fault: on("AddPortMapping", 724, always), want: ErrRefused},
		"not authorized":           {fault: on("AddPortMapping", 606, always), want: ErrRefused},
		"bad arguments":            {fault: on("AddPortMapping", 402, always), want: ErrRefused},
		"address unknown":          {fault: on("GetExternalIPAddress", 501, always), want: ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			f := newIGD(t)
			r := f.open()
			f.bend(func(f *fakeIGD) { f.fault = c.fault })
			m, err := r.add(t.Context(), udpAsk(5000, 40000))
			if c.want != nil {
				if !errors.Is(err, c.want) || m != (Mapping{}) || len(f.entries()) != 0 {
					t.Errorf("%+v, %v, %v", m, err, f.entries())
				}
				return
			}
			if err != nil || c.port != 0 && m.External.Port() != c.port || c.port == 0 && m.External.Port() == 40000 || m.Expires.IsZero() != c.forever {
				t.Fatalf("%+v, %v", m, err)
			}
			if err := r.remove(t.Context(), udpAsk(5000, m.External.Port())); err != nil || len(f.entries()) != 0 {
				t.Errorf("removed: %v, %v", err, f.entries())
			}
		})
	}
}

func TestUPnPShorterLease(t *testing.T) {
	f := newIGD(t)
	r := f.open()
	f.bend(func(f *fakeIGD) {
		f.fault = func(action string, a soapArgs) int {
			if action == "AddPortMapping" {
				a["NewLeaseDuration"] = "600"
			}
			return 0
		}
	})
	if m, err := r.add(t.Context(), udpAsk(5000, 40000)); err != nil || time.Until(m.Expires) > 10*time.Minute {
		t.Errorf("%+v, %v", m, err)
	}
}

// Whatever somebody in the local network answers leads nowhere but to the gateway.
func TestUPnPLeadsNowhereElse(t *testing.T) {
	var hits atomic.Int32
	victim := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	victim.Start()
	t.Cleanup(func() { // after the parallel ones
		victim.Close()
		if n := hits.Load(); n != 0 {
			t.Errorf("%d requests reached somebody else", n)
		}
	})
	// The same server, under a name and an address that are not the gateway's.
	byName := strings.Replace(victim.URL, "127.0.0.1", "localhost", 1)
	byOther := strings.Replace(victim.URL, "127.0.0.1", "127.0.0.2", 1)
	for name, bend := range map[string]func(f *fakeIGD){
		"location of another host": func(f *fakeIGD) { f.location = byOther + "/root.xml" },
		"location by name":         func(f *fakeIGD) { f.location = byName + "/root.xml" },
		"location with user":       func(f *fakeIGD) { f.location = strings.Replace(victim.URL, "//", "//u:p@", 1) },
		"location not http":        func(f *fakeIGD) { f.location = "file:///etc/passwd" },
		"control of another host":  func(f *fakeIGD) { f.control = byOther + "/ctl" },
		"redirect": func(f *fakeIGD) {
			f.raw = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, victim.URL, http.StatusTemporaryRedirect)
			}
		},
		"not found": func(f *fakeIGD) { f.raw = http.NotFound },
		"endless": func(f *fakeIGD) {
			f.raw = func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "<root>")
				for r.Context().Err() == nil {
					if _, err := io.WriteString(w, strings.Repeat("<a>x</a>", 1000)); err != nil {
						return
					}
				}
			}
		},
		"no XML": func(f *fakeIGD) {
			f.raw = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }
		},
		"no service": func(f *fakeIGD) { f.service = "Printer:1" },
		"no address": func(f *fakeIGD) { f.external = "0.0.0.0" },
		"bad address": func(f *fakeIGD) {
			f.external = "example.org"
		},
		"IPv6 address": func(f *fakeIGD) { f.external = "2001:db8::1" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newIGD(t)
			f.bend(bend)
			a, err := f.search().find(t.Context(), loopback)
			if err == nil || a.router != nil {
				t.Errorf("%+v", a)
			}
			if errors.Is(err, ErrSilent) {
				t.Errorf("says nothing of the reason: %v", err)
			}
		})
	}
}

func TestFencedClient(t *testing.T) {
	var hits atomic.Int32
	victim := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		_, _ = w.Write(make([]byte, 2*igdMaxBody))
	}))
	t.Cleanup(victim.Close)
	get := func(l link) (int64, error) {
		client := fencedClient(l)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, victim.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		return io.Copy(io.Discard, res.Body)
	}
	other := loopback
	other.gateway = netip.MustParseAddr("127.0.0.2")
	if _, err := get(other); !errors.Is(err, ErrMalformed) || hits.Load() != 0 {
		t.Errorf("not the gateway: %v", err)
	}
	if n, err := get(loopback); err != nil || n != igdMaxBody {
		t.Errorf("%d bytes read, %v", n, err)
	}
}

// An answer from anybody but the gateway is passed over.
func TestSSDPFromStranger(t *testing.T) {
	f := newIGD(t)
	l := loopback
	l.gateway = netip.MustParseAddr("127.0.0.2")
	if _, err := f.search().find(t.Context(), l); !errors.Is(err, ErrSilent) {
		t.Errorf("%v", err)
	}
}

func TestSearchMessage(t *testing.T) {
	req, err := http.ReadRequest(newReader(searchMessage("upnp:rootdevice")))
	if err != nil || req.Method != "M-SEARCH" || req.Header.Get("MAN") != `"ssdp:discover"` || req.Header.Get("ST") != "upnp:rootdevice" || req.Host != "239.255.255.250:1900" {
		t.Errorf("%+v, %v", req, err)
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1@evil.example/\r\n\r\n"))
	f.Add([]byte("NOTIFY * HTTP/1.1\r\n\r\n"))
	gateway := netip.MustParseAddr("192.168.1.1")
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := parseLocation(b, gateway)
		if (err == nil) == (u == nil) {
			t.Fatalf("%v, %v", u, err)
		}
		if err == nil && (u.Scheme != "http" || netip.MustParseAddr(u.Hostname()).Unmap() != gateway) {
			t.Fatalf("leads to %v", u)
		}
	})
}

func FuzzParseDescription(f *testing.F) {
	seed := func(control string) {
		f.Add(fmt.Appendf(nil, `<root xmlns="urn:schemas-upnp-org:device-1-0"><URLBase>http://127.0.0.1/</URLBase><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>%s</controlURL></service></serviceList></device></root>`, control))
	}
	seed("/ctl")
	seed("http://127.0.0.2/ctl")
	seed("//127.0.0.2/ctl")
	location := &url.URL{Scheme: "http", Host: "127.0.0.1:5000", Path: "/root.xml"}
	f.Fuzz(func(t *testing.T, b []byte) {
		root, err := parseDescription(strings.NewReader(string(b)), loopback, location)
		if err != nil {
			return
		}
		all := connections(root, loopback, location)
		if len(all) > igdMaxClients {
			t.Fatalf("%d connections", len(all))
		}
		for _, c := range all {
			if u := endpoint(c); onGateway(&u, loopback.gateway) != nil {
				t.Fatalf("leads to %v", &u)
			}
		}
	})
}
