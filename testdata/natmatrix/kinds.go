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

// punch says whether a plain UDP hole punch over IPv4 connects the two, and
// whether it takes the one behind a per-destination NAT a second round: the
// other's filter looks at addresses, so the first packets pass only when they
// come after its own, and its own reach nobody before it saw the port they are
// to go to. testdata/natmatrix/floor.txt is the same as measured.
func punch(a, b kind) (connects, second bool) {
	switch {
	case !a.v4 || !b.v4 || a.noUDP || b.noUDP:
		return false, false
	case a.hard && b.hard:
		return false, false
	case a.hard:
		return b.filter != port, b.filter == address
	case b.hard:
		return a.filter != port, a.filter == address
	}
	return true, false
}
