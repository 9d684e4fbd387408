package node

import (
	"fmt"
	"io"
	"net/netip"
	"sort"
	"strings"
	"time"

	"mintai/terminal"
)

// maxFact bounds a line's value, in columns: parts of it come from the router
// and from the coordinator.
const maxFact = 400

// factColumn is where the values begin.
const factColumn = 17

// text writes the report as lines of one fact each.
func (r *netReport) text(w io.Writer) error {
	var out strings.Builder
	fact := func(name, value string) {
		_, _ = fmt.Fprintf(&out, "%-*s%s\n", factColumn, name, terminal.OneLine(value, maxFact))
	}
	fact("UDP", r.orWhy("udp", r.UDP))
	for _, f := range []struct {
		name   string
		family *netFamily
	}{{"IPv4", r.IPv4}, {"IPv6", r.IPv6}} {
		fact(f.name, f.family.line(r.NotMeasured[strings.ToLower(f.name)]))
		if f.family == nil || !f.family.Works {
			continue
		}
		if f.family.Mapping != "" {
			fact("  mapping", f.family.mappingWords())
		}
		if f.family.Filtering != "" {
			fact("  filtering", f.family.filteringWords())
		}
		if f.family.Class != "" {
			fact("  class", f.family.Class)
		}
	}
	fact("hairpin", r.orWhy("hairpin", r.Hairpin))
	fact("port mapping", r.portMappingLine())
	if r.Double != nil {
		fact("second NAT", map[bool]string{true: "yes: behind the router, at the provider", false: "no"}[*r.Double])
	}
	fact("MTU", r.mtuLine())
	fact("captive portal", r.orWhy("captive_portal", r.Captive))
	fact("proxy", r.proxyLine())
	for _, c := range r.Coordinators {
		fact("coordinator", c.line())
	}
	if len(r.Coordinators) == 0 {
		fact("coordinator", orNone(r.NotMeasured["coordinators"]))
	}
	if len(r.STUN) > 0 {
		fact("STUN", r.stunLine())
	}
	for _, t := range r.TLS {
		fact("TLS", t.line())
	}
	if len(r.TLS) == 0 {
		fact("TLS", "not measured: "+orNone(r.NotMeasured["tls"]))
	}
	fact("relay by UDP", r.orWhy("relay.udp", r.Relay.UDP))
	fact("relay by TLS", r.orWhy("relay.tls", r.Relay.TLS))
	if r.Relay.UDP != nil || r.Relay.TLS != nil {
		fact("", "("+r.Relay.Checked+")")
	}
	fact("verdict", string(r.Verdict))
	fact("advice", r.Advice)
	_, err := io.WriteString(w, out.String())
	return err
}

// orWhy is yes, no, or why it is not known.
func (r *netReport) orWhy(field string, value *bool) string {
	switch {
	case yes(value):
		return "yes"
	case no(value):
		return "no"
	}
	return "not measured: " + orNone(r.NotMeasured[field])
}

func orNone(why string) string {
	if why == "" {
		return "nothing to measure"
	}
	return why
}

func (f *netFamily) line(why string) string {
	switch {
	case f == nil:
		return "no: " + orNone(why)
	case !f.Works && len(f.Local) == 0:
		return "no: this machine has no such address"
	case !f.Works && why != "":
		return "not measured: " + why
	case !f.Works:
		return "no answer (this machine has " + strings.Join(f.Local, ", ") + ")"
	}
	text := "yes"
	if f.Public != "" {
		text += ", seen as " + f.Public
	}
	switch {
	case no(f.NAT):
		text += ", this machine's own address"
	case len(f.Local) > 0:
		text += ", from " + strings.Join(f.Local, ", ")
	}
	return text
}

// mappingWords is the mapping, with what one address of the coordinator leaves
// open.
func (f *netFamily) mappingWords() string {
	if f.Doubtful && f.Mapping == behaviorEI && yes(f.NAT) {
		return "endpoint-independent or address-dependent (the coordinator has one address)"
	}
	return behaviorWords(f.Mapping)
}

// filteringWords is the filtering, likewise.
func (f *netFamily) filteringWords() string {
	if f.Doubtful && f.Filtering == behaviorAD {
		return "address-dependent or endpoint-independent (the coordinator has one address)"
	}
	return behaviorWords(f.Filtering)
}

// behaviorWords is the behavior in RFC 4787's words.
func behaviorWords(code string) string {
	if code == behaviorAPD {
		return "address and port-dependent"
	}
	return code
}

func (r *netReport) portMappingLine() string {
	p := r.PortMapping
	if p == nil {
		return "not measured: " + orNone(r.NotMeasured["port_mapping"])
	}
	var speaks []string
	for _, protocol := range []struct {
		has  bool
		name string
	}{{p.UPnP, "UPnP"}, {p.NATPMP, "NAT-PMP"}, {p.PCP, "PCP"}} {
		if protocol.has {
			speaks = append(speaks, protocol.name)
		}
	}
	if len(speaks) == 0 {
		if p.Gateway == "" {
			return "none: no router"
		}
		return "none: the router " + p.Gateway + " speaks neither UPnP nor NAT-PMP nor PCP"
	}
	text := strings.Join(speaks, ", ")
	if p.External != "" {
		text += "; the router " + p.Gateway + " is " + p.External + " outside"
	}
	if no(p.Usable) {
		text += ", but is not seen there: its ports lead nowhere"
	}
	return text
}

func (r *netReport) mtuLine() string {
	switch {
	case r.MTU == nil:
		return "not measured: " + orNone(r.NotMeasured["mtu"])
	case r.MTU.AtLeast:
		return fmt.Sprintf("%d or more", r.MTU.Path)
	}
	return fmt.Sprint(r.MTU.Path)
}

func (r *netReport) proxyLine() string {
	switch {
	case r.Proxy == nil:
		return "none"
	case yes(r.Proxy.Works):
		return r.Proxy.URL + ", lets TLS to the coordinator through"
	case no(r.Proxy.Works):
		return r.Proxy.URL + ": " + r.Proxy.Error
	}
	return r.Proxy.URL
}

func (c netCoordinator) line() string {
	switch {
	case c.Refused:
		return c.Addr + " answers: " + c.Error
	case c.Over == "":
		return c.Addr + ": " + orNone(c.Error)
	}
	text := c.Addr
	if c.Remote != "" && c.Remote != c.Addr {
		text += " (" + c.Remote + ")"
	}
	if c.RTT > 0 {
		text += " in " + terminal.FormatRTT(fromMilliseconds(c.RTT))
	}
	return text + " over " + strings.ToUpper(c.Over)
}

// stunLine sums the probes up: which addresses answer, and how fast the fastest
// does. Not all of them need to be asked.
func (r *netReport) stunLine() string {
	var answered []string
	best := 0.0
	for _, s := range r.STUN {
		if s.RTT == nil {
			continue
		}
		answered = append(answered, s.Addr)
		if len(answered) == 1 || *s.RTT < best {
			best = *s.RTT
		}
	}
	if len(answered) == 0 {
		return fmt.Sprintf("none of %d addresses answered at once", len(r.STUN))
	}
	return strings.Join(answered, ", ") + " in " + terminal.FormatRTT(fromMilliseconds(best))
}

func (t netTLS) line() string {
	if !t.Works {
		return t.Addr + ": " + orNone(t.Error)
	}
	return t.Addr + " open, in " + terminal.FormatRTT(fromMilliseconds(t.TookMS))
}

func fromMilliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// addrOf is the address of an address and port; empty if it is none.
func addrOf(addrPort string) string {
	at, err := netip.ParseAddrPort(addrPort)
	if err != nil {
		return ""
	}
	return at.Addr().String()
}

// sortSTUN orders the probes' addresses, so that reports can be compared.
func sortSTUN(all []netSTUN) {
	sort.Slice(all, func(i, j int) bool { return all[i].Addr < all[j].Addr })
}
