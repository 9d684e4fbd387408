package portmap

import (
	"context"
	"net/netip"
)

// Report says which protocols the router speaks.
type Report struct {
	PCP, NATPMP, UPnP bool
	// Gateway is the router that was asked; invalid without one.
	Gateway netip.Addr
	// External is the router's own address outside, in its own words; invalid if
	// no protocol told. See Public.
	External netip.Addr
	// Detail says for each protocol, in a few words, what came: why it does not
	// work, or what is wrong although it does.
	Detail map[Protocol]string
}

// Check asks the router what it speaks, by all protocols at once, and makes no
// mapping. It takes at most 3 s, or until ctx ends.
func Check(ctx context.Context) Report { return check(ctx, network{}) }
