package node

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"mintai/identity"
	"mintai/portmap"
)

// homeNews tells what came of asking the router, each thing once.
type homeNews struct {
	h       *home
	settled bool // the router has had the time to answer for every port

	external netip.AddrPort // as it was told
	told     []string
	tested   netip.AddrPort // whether this leads here from inside
	leads    bool
}

// tell says what is new.
func (n *homeNews) tell(ctx context.Context) {
	external := n.h.external(n.h.c.Addr().Port(), false)
	reached := n.h.reached.Load()
	if !external.IsValid() && !reached && !n.settled {
		return
	}
	if external != n.tested && external.IsValid() && !reached {
		n.tested, n.leads = external, n.h.selfTest(ctx)
	}
	lines := []string{"reachable: " + reachable(external, n.h.c.portList(), reached, n.leads && external == n.tested)}
	if portmap.Public(external.Addr()) {
		forwarded, missing := n.h.sorted()
		if n.settled || len(missing) == 0 {
			lines = append(lines, forwardedLines(forwarded, missing)...)
		}
	}
	link := external != n.external
	fresh := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !link && slices.Contains(n.told, l) })
	if ctx.Err() != nil || len(fresh) == 0 {
		return
	}
	n.external, n.told = external, lines
	event := n.h.c.log.Info()
	if external.IsValid() {
		event = event.Stringer("external", external)
	}
	event.Strs("news", fresh).Msg("port mapping")
	if n.h.tell != nil {
		n.h.tell(link, fresh)
	}
}

// reachable says in a line whether the Internet reaches a coordinator whose
// router has given it an external address, or none. It says no more than is
// known: a test from inside is not one from outside, a node that came is.
func reachable(external netip.AddrPort, ports string, reached, leads bool) string {
	switch {
	case !external.IsValid() && reached:
		return "yes: a node came in from outside; set [coordinator] public to have the link for others"
	case !external.IsValid():
		return "unknown: the router forwards no ports by itself (UPnP, NAT-PMP, PCP); forward " + ports + " to this machine in it, and set [coordinator] public"
	case !portmap.Public(external.Addr()):
		return fmt.Sprintf("no: the router's own address %s is not public, so there is another NAT behind it (a second router, or the provider's); "+
			"run the coordinator on a machine with a public address", external.Addr())
	case reached:
		return fmt.Sprintf("yes: %s leads here, a node came in from outside", external)
	case leads:
		return fmt.Sprintf("yes: %s leads here, also from inside", external)
	default:
		return fmt.Sprintf("unknown: the router forwards %s, but leads nothing from inside back in; try the link from elsewhere, such as a phone without Wi-Fi", external)
	}
}

// homePort is a port that nodes outside should reach.
type homePort struct {
	portmap.Port
	relay bool
}

// sorted are the ports that the router forwards, and those that it does not.
func (h *home) sorted() (forwarded, missing []homePort) {
	var all []homePort
	for _, p := range h.c.mappedPorts() {
		all = append(all, homePort{Port: p})
	}
	if h.relay != nil {
		for _, p := range h.c.mappedRelays() {
			all = append(all, homePort{Port: p, relay: true})
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range all {
		there := p.relay && h.relays[p.Number].IsValid() ||
			!p.relay && slices.ContainsFunc(h.mappings, func(m portmap.Mapping) bool { return m.Internal == p.Number && m.TCP == p.TCP })
		if there {
			forwarded = append(forwarded, p)
		} else {
			missing = append(missing, p)
		}
	}
	return forwarded, missing
}

// forwardedLines say which ports the router forwards, and what does not work
// because of the others.
func forwardedLines(forwarded, missing []homePort) []string {
	lines := []string{"forwarded: " + portNames(forwarded)}
	for _, of := range []struct {
		is      func(homePort) bool
		without string
	}{
		{func(p homePort) bool { return p.TCP }, "nodes whose network blocks UDP cannot come in from outside"},
		{func(p homePort) bool { return !p.TCP && !p.relay }, "nodes outside cannot tell what NAT they are behind, or use the relay"},
		{func(p homePort) bool { return p.relay }, "nodes outside may not reach each other over the relay"},
	} {
		these := slices.DeleteFunc(slices.Clone(missing), func(p homePort) bool { return !of.is(p) })
		if len(these) > 0 {
			lines = append(lines, fmt.Sprintf("not forwarded: %s, so %s; forward it to this machine by hand, in the router", portNames(these), of.without))
		}
	}
	return lines
}

// portNames names ports for a person: UDP 3478-3479, 4433 and TCP 443.
func portNames(ports []homePort) string {
	var out []string
	for _, tcp := range []bool{false, true} {
		var numbers []int
		for _, p := range ports {
			if p.TCP == tcp {
				numbers = append(numbers, int(p.Number))
			}
		}
		slices.Sort(numbers)
		var ranges []string
		for i := 0; i < len(numbers); {
			end := i
			for end+1 < len(numbers) && numbers[end+1] == numbers[end]+1 {
				end++
			}
			if end == i {
				ranges = append(ranges, fmt.Sprint(numbers[i]))
			} else {
				ranges = append(ranges, fmt.Sprintf("%d-%d", numbers[i], numbers[end]))
			}
			i = end + 1
		}
		if len(ranges) > 0 {
			out = append(out, map[bool]string{false: "UDP ", true: "TCP "}[tcp]+strings.Join(ranges, ", "))
		}
	}
	return strings.Join(out, " and ")
}

// announceHome prints what came of asking the router.
func (c *coordinator) announceHome(w io.Writer, secret identity.Secret, withLink bool, lines []string) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	external := c.home.external(c.Addr().Port(), false)
	if withLink && portmap.Public(external.Addr()) {
		link := c.link(append([]string{external.String()}, c.places().internet...), secret)
		link.TLSPort = c.home.port(link.TLSPort, true, true)
		link.STUNPort = c.home.port(link.STUNPort, false, true)
		printLink(p, "Internet", link)
	}
	for _, line := range lines {
		p("  %s", line)
	}
}
