package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// cell is one network that is measured: the kinds of the client's and of the
// miner's side, and how the two lie to each other.
type cell struct {
	Client  string   `json:"a"`
	Miner   string   `json:"b"`
	Options []string `json:"options,omitempty"` // of cellOptions, in that order
}

// The options, each a flag of `natlab up`.
const (
	sameNAT     = "same-nat"
	lanIsolated = "lan-isolated"
	sameCGN     = "same-cgn"
	sameSubnet  = "same-subnet"
	noHairpin   = "no-hairpin"
	proxyAuth   = "proxy-auth"
)

var cellOptions = []string{sameNAT, lanIsolated, sameCGN, sameSubnet, noHairpin, proxyAuth}

// The proxy's credentials in cells with proxyAuth: with what an URL must escape.
const proxyUser, proxyPassword = "lab", "p@ss:word"

var errCell = errors.New(`a cell is written a=KIND,b=KIND[,OPTION...]`)

// parseCell reads what String writes.
func parseCell(s string) (cell, error) {
	var c cell
	for part := range strings.SplitSeq(s, ",") {
		name, value, found := strings.Cut(part, "=")
		switch {
		case found && name == "a":
			c.Client = value
		case found && name == "b":
			c.Miner = value
		case !found && slices.Contains(cellOptions, name):
			c.Options = append(c.Options, name)
		default:
			return cell{}, fmt.Errorf("%q: %w, and the options are %s", part, errCell, strings.Join(cellOptions, " "))
		}
	}
	for _, name := range []string{c.Client, c.Miner} {
		if _, ok := kindNamed(name); !ok {
			return cell{}, fmt.Errorf("no kind %q: %w, and the kinds are %s", name, errCell, strings.Join(kindNames(), " "))
		}
	}
	slices.SortFunc(c.Options, func(x, y string) int {
		return slices.Index(cellOptions, x) - slices.Index(cellOptions, y)
	})
	c.Options = slices.Compact(c.Options)
	if c.has(sameNAT) && c.Client != c.Miner {
		return cell{}, fmt.Errorf("%s: with %s both sides have one kind", s, sameNAT)
	}
	return c, nil
}

// String is the cell as -cell takes it.
func (c cell) String() string {
	return strings.Join(append([]string{"a=" + c.Client, "b=" + c.Miner}, c.Options...), ",")
}

func (c cell) has(option string) bool { return slices.Contains(c.Options, option) }

// labArgs are the arguments of `natlab up` that make it.
func (c cell) labArgs() []string {
	args := []string{"--a", c.Client, "--b", c.Miner}
	for _, o := range c.Options {
		args = append(args, "--"+o)
		if o == proxyAuth {
			args = append(args, proxyUser+":"+proxyPassword)
		}
	}
	return args
}

// square is every ordered pair of the kinds named.
func square(names []string) []cell {
	var cells []cell
	for _, a := range names {
		for _, b := range names {
			cells = append(cells, cell{Client: a, Miner: b})
		}
	}
	return cells
}

// mustCells reads cells that stand in this program.
func mustCells(texts ...string) []cell {
	cells := make([]cell, 0, len(texts))
	for _, t := range texts {
		c, err := parseCell(t)
		if err != nil {
			panic(err)
		}
		cells = append(cells, c)
	}
	return cells
}

// topologies are the cells in which the two sides share something.
func topologies() []cell {
	return mustCells(
		// One home network: the packets need not leave it.
		"a=none,b=none,same-nat",
		"a=eim-apdf,b=eim-apdf,same-nat",
		"a=sym,b=sym,same-nat",
		"a=nf-random,b=nf-random,same-nat",
		"a=cgnat-sym,b=cgnat-sym,same-nat",
		"a=upnp,b=upnp,same-nat",
		"a=dual,b=dual,same-nat",
		"a=ipv6-only,b=ipv6-only,same-nat",
		"a=eim-apdf,b=eim-apdf,same-nat,no-hairpin",
		// A guest network: its hosts do not reach each other, unless the router turns packets round.
		"a=eim-eif,b=eim-eif,same-nat,lan-isolated",
		"a=eim-apdf,b=eim-apdf,same-nat,lan-isolated",
		"a=sym,b=sym,same-nat,lan-isolated",
		"a=nf,b=nf,same-nat,lan-isolated",
		"a=eim-eif,b=eim-eif,same-nat,lan-isolated,no-hairpin",
		"a=eim-apdf,b=eim-apdf,same-nat,lan-isolated,no-hairpin",
		// Two homes behind one carrier.
		"a=cgnat,b=cgnat,same-cgn",
		"a=cgnat-sym,b=cgnat-sym,same-cgn",
		"a=cgnat,b=cgnat,same-cgn,no-hairpin",
		// Two homes with the same private addresses: the peer's is one's own.
		"a=eim-apdf,b=eim-apdf,same-subnet",
		"a=nf,b=nf,same-subnet",
		"a=upnp,b=sym,same-subnet",
		"a=sym,b=eim-apdf,same-subnet",
		"a=dual,b=dual,same-subnet",
		"a=proxy-only,b=eim-apdf,same-subnet",
		// Two homes whose routers turn nothing round: nobody needs that.
		"a=eim-apdf,b=eim-apdf,no-hairpin",
		"a=cgnat,b=eim-adf,no-hairpin",
		// The proxy asks for a name and a password.
		"a=proxy-only,b=eim-apdf,proxy-auth",
		"a=eim-apdf,b=proxy-only,proxy-auth",
		"a=proxy-only,b=proxy-only,proxy-auth",
	)
}

// everything is the whole matrix.
func everything() []cell { return append(square(kindNames()), topologies()...) }

// subset represents the matrix where time is short: each kind on both sides,
// each reason, and each of the ways to lie to each other.
func subset() []cell {
	return mustCells(
		"a=none,b=none",
		"a=none-fw,b=nf",
		"a=eim-eif,b=cgnat-sym",
		"a=eim-adf,b=sym",
		"a=adm-apdf,b=eim-adf",
		"a=sym,b=eim-eif",
		"a=eim-apdf,b=eim-apdf",
		"a=cgnat,b=none-fw",
		"a=nf,b=cgnat",
		"a=nf-random,b=none",
		"a=sym-pp,b=upnp",
		"a=upnp,b=sym-seq",
		"a=upnp,b=upnp",
		"a=dual,b=dual",
		"a=dual,b=ipv6-only",
		"a=ipv6-only,b=ipv6-only",
		"a=ipv6-only,b=eim-eif",
		"a=nf,b=ipv6-only",
		"a=sym,b=eim-apdf",
		"a=eim-apdf,b=nf-random",
		"a=sym-seq,b=sym-pp",
		"a=cgnat-sym,b=adm-apdf",
		"a=cgnat-sym,b=dual",
		"a=udp-blocked,b=eim-apdf",
		"a=eim-apdf,b=udp-blocked",
		"a=udp-blocked,b=udp-blocked",
		"a=proxy-only,b=none",
		"a=sym,b=proxy-only",
		"a=proxy-only,b=udp-blocked",
		"a=ipv6-only,b=proxy-only",
		"a=eim-apdf,b=eim-apdf,same-nat",
		"a=sym,b=sym,same-nat",
		"a=eim-apdf,b=eim-apdf,same-nat,lan-isolated",
		"a=eim-apdf,b=eim-apdf,same-nat,lan-isolated,no-hairpin",
		"a=cgnat,b=cgnat,same-cgn",
		"a=eim-apdf,b=eim-apdf,same-subnet",
		"a=cgnat,b=eim-adf,no-hairpin",
		"a=proxy-only,b=eim-apdf,proxy-auth",
	)
}
