package main

// What a plain technique can do with the kinds of the laboratory: the words are
// those of RFC 4787.

// filtering is whose packets a mapping lets in.
type filtering int

const (
	anyone  filtering = iota // endpoint-independent
	address                  // address-dependent
	port                     // address- and port-dependent
)

// kind is what matters of one network.
type kind struct {
	name    string
	v4, v6  bool // IPv6 is always behind a stateful firewall, without NAT
	hard    bool // IPv4: the mapping depends on the destination
	filter  filtering
	public  bool // IPv4 without NAT
	mapped  bool // the router opens ports on request
	noUDP   bool // only TCP 443 leaves
	proxied bool // and that only through the router's HTTP proxy
	hairpin bool // hosts behind one of it reach each other by its public address
}

// kinds are the eighteen of the matrix, in the order of its rows and columns.
var kinds = []kind{
	{name: "none", v4: true, filter: anyone, public: true},
	{name: "none-fw", v4: true, filter: port, public: true},
	{name: "eim-eif", v4: true, filter: anyone, hairpin: true},
	{name: "eim-adf", v4: true, filter: address, hairpin: true},
	{name: "eim-apdf", v4: true, filter: port, hairpin: true},
	{name: "adm-apdf", v4: true, hard: true, filter: port},
	{name: "sym", v4: true, hard: true, filter: port},
	{name: "sym-seq", v4: true, hard: true, filter: port},
	{name: "sym-pp", v4: true, hard: true, filter: port},
	{name: "cgnat", v4: true, filter: port, hairpin: true},
	{name: "cgnat-sym", v4: true, hard: true, filter: port},
	{name: "nf", v4: true, filter: port},
	{name: "nf-random", v4: true, hard: true, filter: port},
	{name: "upnp", v4: true, filter: port, mapped: true},
	{name: "dual", v4: true, v6: true, filter: port, hairpin: true},
	{name: "ipv6-only", v6: true, filter: port},
	{name: "udp-blocked", v4: true, filter: port, noUDP: true},
	{name: "proxy-only", v4: true, filter: port, noUDP: true, proxied: true},
}

func kindNamed(name string) (kind, bool) {
	for _, k := range kinds {
		if k.name == name {
			return k, true
		}
	}
	return kind{}, false
}

func kindNames() []string {
	names := make([]string, 0, len(kinds))
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// punch says whether a plain UDP hole punch connects the two, and whether the
// one behind a per-destination NAT needs a second round for it: the other's
// filter looks at addresses, so that one's packets pass only after some went the
// other way, and those reach nobody before it is seen which port they are to go
// to. (Through an open filter the first packet passes, and it shows the port.)
//
// floor.txt is the same as measured, by
//
//	natlab punch --rtt 50 --kinds none,none-fw,...
//
// It counts until both ends know, so that a per-destination NAT always shows as
// two round trips.
func punch(a, b kind) (connects, second bool) {
	switch {
	case a.noUDP || b.noUDP:
		return false, false
	case !a.v4 || !b.v4:
		return a.v6 && b.v6, false
	case a.hard && b.hard:
		return false, false
	case a.hard:
		return b.filter != port, b.filter == address
	case b.hard:
		return a.filter != port, a.filter == address
	}
	return true, false
}
