package portmap

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/huin/goupnp"
)

// fakeIGD is a UPnP gateway on loopback: an SSDP responder, a description and a
// table of port mappings.
type fakeIGD struct {
	t    *testing.T
	http *httptest.Server
	ssdp netip.AddrPort

	mu       sync.Mutex // guards what follows
	service  string     // the type of its WAN connection
	location string     // "" is its own
	control  string     // likewise
	fault    func(action string, a soapArgs) int
	raw      http.HandlerFunc // instead of the description
	external string
	table    map[string]soapArgs
	actions  []string
}

// soapArgs are the arguments of an action, by name.
type soapArgs map[string]string

func newIGD(t *testing.T) *fakeIGD {
	f := &fakeIGD{t: t, service: "WANIPConnection:2", external: "30.0.0.1", table: map[string]soapArgs{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /root.xml", f.describe)
	mux.HandleFunc("POST /ctl", f.control1)
	f.http = httptest.NewServer(mux)
	t.Cleanup(f.http.Close)
	f.ssdp = fakeUDP(t, "127.0.0.1:0", func(_ netip.AddrPort, b []byte) [][]byte {
		if !strings.HasPrefix(string(b), "M-SEARCH * HTTP/1.1\r\n") || !strings.Contains(string(b), "InternetGatewayDevice:1") {
			return nil
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return [][]byte{[]byte("junk"), []byte("HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: " + f.at("/root.xml", f.location) + "\r\n\r\n")}
	})
	return f
}

func (f *fakeIGD) at(path, instead string) string {
	if instead != "" {
		return instead
	}
	return f.http.URL + path
}

func (f *fakeIGD) search() ssdpSearch {
	return ssdpSearch{to: []netip.AddrPort{f.ssdp}, times: []time.Duration{500 * time.Millisecond, 100 * time.Millisecond}}
}

func (f *fakeIGD) open() router {
	f.t.Helper()
	a, err := f.search().find(f.t.Context(), loopback)
	if err != nil {
		f.t.Fatal(err)
	}
	return a.router
}

func (f *fakeIGD) describe(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	raw, control := f.raw, f.control
	f.mu.Unlock()
	if raw != nil {
		raw(w, r)
		return
	}
	if control == "" {
		control = "ctl"
	}
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="iso-8859-1"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><URLBase>http://127.0.0.9:1/</URLBase>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>B`+"\xfc"+`ro</friendlyName>
<deviceList><device><deviceList><device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:%s</serviceType><controlURL>%s</controlURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>`, f.service, control)
}

func (f *fakeIGD) control1(w http.ResponseWriter, r *http.Request) {
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPACTION"), `"`), "#")
	body, _ := io.ReadAll(r.Body)
	args := soapArgs{}
	dec := xml.NewDecoder(strings.NewReader(string(body)))
	for name := ""; ; {
		tok, err := dec.Token()
		if err != nil {
			break
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			name = tok.Name.Local
		case xml.CharData:
			args[name] += string(tok)
		case xml.EndElement:
			name = ""
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.actions = append(f.actions, action)
	if f.fault != nil {
		if code := f.fault(action, args); code != 0 {
			f.refuse(w, code)
			return
		}
	}
	key := args["NewProtocol"] + args["NewExternalPort"]
	out := ""
	switch action {
	case "GetExternalIPAddress":
		out = "<NewExternalIPAddress>" + f.external + "</NewExternalIPAddress>"
	case "GetSpecificPortMappingEntry":
		e, ok := f.table[key]
		if !ok {
			f.refuse(w, igdNoSuchEntry)
			return
		}
		for _, n := range []string{"NewInternalPort", "NewInternalClient", "NewEnabled", "NewPortMappingDescription", "NewLeaseDuration"} {
			v := new(strings.Builder)
			_ = xml.EscapeText(v, []byte(e[n]))
			out += "<" + n + ">" + v.String() + "</" + n + ">"
		}
	case "AddPortMapping":
		if host, _, _ := net.SplitHostPort(r.RemoteAddr); host != args["NewInternalClient"] {
			f.refuse(w, 606) // not authorized: secure mode
			return
		}
		f.table[key] = args
	case "DeletePortMapping":
		delete(f.table, key)
	default:
		f.refuse(w, 401)
		return
	}
	_, _ = fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:%sResponse xmlns:u="urn:schemas-upnp-org:service:%s">%s</u:%sResponse></s:Body></s:Envelope>`, action, f.service, out, action)
}

func (f *fakeIGD) refuse(w http.ResponseWriter, code int) {
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>no</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`, code)
}

// bend changes its ways.
func (f *fakeIGD) bend(how func(f *fakeIGD)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how(f)
}

// entries are the table's external ports and where they lead.
func (f *fakeIGD) entries() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := map[string]string{}
	for k, e := range f.table {
		m[k] = e["NewInternalClient"] + ":" + e["NewInternalPort"]
	}
	return m
}

func (f *fakeIGD) enter(protocol string, external, internal int, client string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.table[protocol+strconv.Itoa(external)] = soapArgs{"NewInternalPort": strconv.Itoa(internal), "NewInternalClient": client, "NewEnabled": "1", "NewLeaseDuration": "100"}
}

func newReader(b []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(b)) }

// endpoint is where a connection's requests go.
func endpoint(c wanConnection) url.URL {
	return c.(interface{ GetServiceClient() *goupnp.ServiceClient }).GetServiceClient().SOAPClient.EndpointURL
}
