// Package portmap asks the home router to forward a UDP or TCP port to this
// machine: by PCP (RFC 6887), by NAT-PMP (RFC 6886) and by UPnP's Internet
// Gateway Device. A host behind a NAT then has an address at which strangers
// reach it, like a host without one.
//
// A Mapper does so for as long as it runs:
//
//	            ┌───────────────── the gateway or our address changed ────────────┐
//	            ▼                                                                 │
//	looking ──a protocol answered──▶ asking ──granted──▶ mapped ──half its life──▶ renewing
//	   ▲                               │                                          │
//	   └── nobody answered, all refused: again after a while ◀──── refused, silent ┘
//
//	any ──ctx ended──▶ deleting (300 ms, or a little more) ──▶ done
//
// All protocols are tried at the same time, and a port is mapped by one of them
// only: a mapping that a second protocol made as well would be a hole that
// nobody closes.
//
// Whoever answers in the local network is a stranger. Answers are read from the
// gateway's address only, are bounded, lead nowhere else (a UPnP description
// that names another host is refused, redirects are not followed), and the
// external address is the router's word: whoever uses it as a candidate must
// have it proven by somebody outside.
//
// The package opens no pinholes in IPv6 firewalls, serves no protocol itself
// and knows nothing of candidates.
package portmap
