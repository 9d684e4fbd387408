package signal

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	"mintai/signal/signalpb"
)

// checkNetwork checks what a node says of its own network.
func checkNetwork(field string, n *signalpb.Network) error {
	if err := first(count(field+".families", len(n.GetFamilies()), 2), known(field+".relay", n.GetRelay())); err != nil {
		return err
	}
	seen := map[bool]bool{}
	for _, f := range n.GetFamilies() {
		if seen[f.GetIpv6()] {
			return &FieldError{field + ".families", "one family twice"}
		}
		seen[f.GetIpv6()] = true
		if err := first(behavior(field+".families.mapping", f.GetMapping()), behavior(field+".families.filtering", f.GetFiltering()),
			optionalAddress(field+".families.mapped", f.GetMapped())); err != nil {
			return err
		}
		if a := f.GetMapped(); a != nil && (len(a.GetIp()) == 16) != f.GetIpv6() {
			return &FieldError{field + ".families.mapped", "of the other family"}
		}
	}
	return nil
}

func behavior(field string, b signalpb.Behavior) error { return known(field, b) }

// expected checks what the coordinator foresees for a pair of peers.
func expected(message string, e signalpb.Expectation, r signalpb.PathReason) error {
	return first(known(message+".expect", e), known(message+".expect_reason", r))
}

// checkRelay checks the relay that the coordinator lends; nil is none.
func checkRelay(field string, r *signalpb.Relay) error {
	if err := count(field+".urls", len(r.GetUrls()), MaxURLs); err != nil {
		return err
	}
	for _, u := range r.GetUrls() {
		if err := text(field+".urls", u, MaxText); err != nil {
			return err
		}
	}
	return first(text(field+".username", r.GetUsername(), MaxText), text(field+".password", r.GetPassword(), MaxText),
		text(field+".realm", r.GetRealm(), MaxText), duration(field+".expires_unix_ms", r.GetExpiresUnixMs()),
		limit(field+".port", r.GetPort(), 65535), limit(field+".tls_port", r.GetTlsPort(), 65535),
		nonce(field+".nonce", r.GetNonce()))
}

// nonce accepts printable ASCII, which is in the quoted string of RFC 8489
// §14.10 whoever made it.
func nonce(field, s string) error {
	if err := text(field, s, MaxNonce); err != nil {
		return err
	}
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return &FieldError{field, "a character outside printable ASCII"}
		}
	}
	return nil
}

// addresses accepts at most MaxAddresses.
func addresses(field string, as []*signalpb.Address) error {
	if err := count(field, len(as), MaxAddresses); err != nil {
		return err
	}
	for _, a := range as {
		if err := address(field, a); err != nil {
			return err
		}
	}
	return nil
}

func address(field string, a *signalpb.Address) error {
	if _, err := AddrPort(a); err != nil {
		return &FieldError{field, "not an address"}
	}
	return nil
}

// known accepts the values that the schema names.
func known(field string, e protoreflect.Enum) error {
	if e.Descriptor().Values().ByNumber(e.Number()) == nil {
		return &FieldError{field, "unknown"}
	}
	return nil
}
