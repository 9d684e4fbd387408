package portmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const checkFor = 3 * time.Second

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

// Any reports whether the router speaks any of the protocols.
func (r Report) Any() bool { return r.PCP || r.NATPMP || r.UPnP }

// Check asks the router what it speaks, by all protocols at once, and makes no
// mapping. It takes at most about 3 s, less if ctx ends: the search for UPnP
// waits that long where there is none. PCP tells no external address without
// mapping something; one of the other two may.
func Check(ctx context.Context) Report { return check(ctx, network{}) }

func check(ctx context.Context, net network) Report {
	ctx, cancel := context.WithTimeout(ctx, checkFor)
	defer cancel()
	net = net.orReal()
	rep := Report{Detail: map[Protocol]string{}}
	l, err := net.route(netip.Addr{})
	if err != nil {
		for _, p := range Protocols() {
			rep.Detail[p] = err.Error()
		}
		return rep
	}
	rep.Gateway = l.gateway
	results, wait, n := search(ctx, net, l, Protocols())
	defer wait()
	for range n {
		f := <-results // every finder ends with ctx
		rep.note(f)
	}
	return rep
}

func (r *Report) note(f found) {
	if f.err != nil {
		if errors.Is(f.err, context.DeadlineExceeded) || errors.Is(f.err, context.Canceled) {
			f.err = ErrSilent
		}
		r.Detail[f.protocol] = f.err.Error()
		return
	}
	switch f.protocol {
	case PCP:
		r.PCP = true
	case NATPMP:
		r.NATPMP = true
	case UPnP:
		r.UPnP = true
	}
	external := f.answer.external
	if !external.IsValid() {
		r.Detail[f.protocol] = "answers"
		return
	}
	if !r.External.IsValid() || Public(external) && !Public(r.External) {
		r.External = external
	}
	r.Detail[f.protocol] = "answers, external address " + external.String()
	if !Public(external) {
		r.Detail[f.protocol] = fmt.Sprintf("answers, but its external address %s is not public: another NAT lies beyond the router", external)
	}
}
