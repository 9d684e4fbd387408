package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"mintai/ice"
	"mintai/identity"
	"mintai/portmap"
	"mintai/signal"
	"mintai/signal/signalpb"
	"mintai/wss"
)

// How long the parts of a netcheck may take. They run side by side; those that
// need the coordinator's word begin when it is there. Together that is less than
// five seconds where a round trip takes less than 150 ms, and longer in proportion
// where it does not.
const (
	netConnect   = 2500 * time.Millisecond // to the coordinator's first word
	netOthers    = time.Second             // from the start, for its other addresses, and netRounds round trips
	netRounds    = 6
	netBesides   = 3 * time.Second         // what needs no word of the coordinator's
	netMeasure   = 1200 * time.Millisecond // after it, and netMeasureRounds round trips
	netMostTime  = 12 * time.Second        // however slow the path
	netLeastRTO  = 100 * time.Millisecond
	netGuessRTT  = 100 * time.Millisecond // of a coordinator that has not said a word
	netMostAddrs = 4                      // addresses of the coordinator that are tried

	// Silence is believed after nine times the timeout for one answer, which is
	// one and a half round trips; a few more round trips lead there and on.
	netMeasureRounds = 18
)

// needCoordinator are the fields that stay empty without a coordinator.
var needCoordinator = []string{"udp", "ipv4", "ipv6", "hairpin", "mtu", "captive_portal", "coordinators", "stun", "tls", "relay.udp", "relay.tls"}

// runNetcheck measures this machine's network and says what it found.
func (c *command) runNetcheck(ctx context.Context, std IO) error {
	role, mode := RoleClient, "client"
	if c.mode == "miner" {
		role, mode = RoleMiner, "miner"
	}
	s, err := c.prepare(std, role, "off")
	if err != nil {
		return c.asJSON(std, err)
	}
	link := s.cfg.Client.Join
	if role == RoleMiner {
		link = s.cfg.Miner.Join
	}
	n := &netcheck{report: newNetReport(mode), log: s.log, notice: notice(std), router: portmap.Check}
	n.member, err = findMembership(c.join, std.Getenv("MINTAI_JOIN"), link, s.paths)
	if err == nil {
		n.pins, err = s.openPins()
	}
	if err != nil {
		n.unknown = asError(err)
		if n.unknown.Exit != ExitNoPath { // a link or a file that is damaged: not the network's fault
			return c.asJSON(std, err)
		}
	}
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	started := time.Now()
	if err := n.run(ctx); err != nil {
		return c.asJSON(std, err)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	n.report.ElapsedMS = milliseconds(time.Since(started))
	n.report.judge()
	return c.showNetcheck(std, n)
}

// showNetcheck prints the report. That no coordinator answers is its own exit
// code; the report says it already.
func (c *command) showNetcheck(std IO, n *netcheck) error {
	var failure *Error
	if !n.report.connected() && !n.report.refused() && !yes(n.report.UDP) {
		failure = n.failure()
		n.report.Error = &jsonError{Code: failure.Code, Message: failure.Message, Hint: failure.Hint}
	}
	var err error
	if c.json {
		err = writeJSON(std.Stdout, n.report)
	} else if err = n.report.text(std.Stdout); err != nil {
		err = &Error{Exit: ExitInternal, Code: "output", Message: "writing the report: " + err.Error(), Err: err}
	}
	switch {
	case err != nil:
		return err
	case failure == nil:
		return nil
	}
	failure.shown = c.json
	return failure
}

// netcheck is one measurement. run's parts write to fields of the report of their
// own, so that nothing guards them.
type netcheck struct {
	member  membership // without addrs: no coordinator is known
	unknown *Error     // why none is
	pins    *identity.Pins
	notice  func(string)
	log     zerolog.Logger
	router  func(context.Context) portmap.Report // asks it; tests leave real ones alone
	report  *netReport

	connectErr error // why no address of the coordinator answers
}

// contact is the coordinator's first word, or what stands for it.
type contact struct {
	id       identity.NodeID
	stun     []netip.AddrPort
	rtt      time.Duration // 0: not known
	answered bool          // it is the coordinator's own word
	overTLS  bool          // that came over TLS: UDP may be blocked
}

// run measures everything there is to measure. It returns an error only when it
// cannot begin.
func (n *netcheck) run(ctx context.Context) error {
	socket, err := ice.Listen(ice.SocketConfig{Log: n.log})
	if err != nil {
		return fmt.Errorf("opening a UDP socket: %w", err)
	}
	defer func() { _ = socket.Close() }()
	n.families(socket)
	besides, cancel := context.WithTimeout(ctx, netBesides)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { n.askRouter(besides) })
	if len(n.member.addrs) == 0 {
		for _, field := range needCoordinator {
			n.report.missing(field, "no coordinator is known")
		}
		wg.Wait()
		return nil
	}
	tls := &netTLSCheck{netcheck: n}
	wg.Go(func() { tls.run(besides) })
	connecting, stop := context.WithTimeout(ctx, netConnect)
	defer stop()
	others := time.Now().Add(netOthers)
	first := n.connect(connecting, socket, &wg)
	n.measure(ctx, first)
	defer time.AfterFunc(time.Until(others)+netRounds*first.rtt, stop).Stop()
	wg.Wait()
	n.conclude(tls)
	return nil
}

// families lists this machine's addresses.
func (n *netcheck) families(socket *ice.Socket) {
	n.report.IPv4, n.report.IPv6 = &netFamily{Local: []string{}}, &netFamily{Local: []string{}}
	for _, c := range socket.HostCandidates() {
		f := n.family(c.Addr.Addr())
		f.Local = append(f.Local, c.Addr.Addr().String())
	}
}

func (n *netcheck) family(addr netip.Addr) *netFamily {
	if addr.Unmap().Is4() {
		return n.report.IPv4
	}
	return n.report.IPv6
}

// askRouter asks which port-mapping protocols the router speaks.
func (n *netcheck) askRouter(ctx context.Context) {
	found := n.router(ctx)
	p := &netPortMapping{UPnP: found.UPnP, NATPMP: found.NATPMP, PCP: found.PCP, Detail: map[string]string{}}
	if found.Gateway.IsValid() {
		p.Gateway = found.Gateway.String()
	}
	if found.External.IsValid() {
		p.External = found.External.String()
	}
	for protocol, detail := range found.Detail {
		p.Detail[string(protocol)] = detail
	}
	n.report.PortMapping = p
}

// connect asks each of the coordinator's addresses and returns with the first
// answer, or with a guess when none came in time. The others go on in wg.
func (n *netcheck) connect(ctx context.Context, socket *ice.Socket, wg *sync.WaitGroup) contact {
	addrs := n.member.addrs[:min(len(n.member.addrs), netMostAddrs)]
	n.report.Coordinators = make([]netCoordinator, len(addrs))
	n.report.STUN = []netSTUN{}
	answers := make(chan contact, len(addrs))
	failures := make(chan error, len(addrs))
	for i, addr := range addrs {
		n.report.Coordinators[i].Addr = addr
		wg.Go(func() {
			found, err := n.hello(ctx, socket, addr, &n.report.Coordinators[i])
			if err != nil {
				n.report.Coordinators[i].Error = plainReason(err)
				n.report.Coordinators[i].Refused = errors.As(err, new(*signal.RefusedError))
				failures <- err
				return
			}
			answers <- found
		})
	}
	for range addrs {
		select {
		case found := <-answers:
			return found
		case err := <-failures:
			if n.connectErr == nil || errors.As(err, new(*signal.RefusedError)) {
				n.connectErr = err
			}
		}
	}
	return n.guess(ctx)
}

// hello introduces an unknown client to one address of the coordinator: under
// this node's own key it would take the place of the process that runs with it.
func (n *netcheck) hello(ctx context.Context, socket *ice.Socket, addr string, out *netCoordinator) (contact, error) {
	key, err := identity.NewKey()
	if err != nil {
		return contact{}, err
	}
	cfg := signal.NodeConfig{
		Key: key, Transport: socket.Transport(), Addrs: []string{addr}, Coordinator: n.member.id,
		Trust: n.member.trust(n.pins, n.notice),
		Hello: func(coordinator identity.NodeID) *signalpb.Hello {
			return n.member.hello(signalpb.Role_ROLE_CLIENT, key.ID(), coordinator, "netcheck", nil)
		},
		Log: n.log,
	}
	if target, ok := withPort(addr, n.member.tls); ok {
		cfg.TLSAddrs, cfg.Fallback = []string{target}, newTLSWay(n.log).signaling
	}
	node, err := signal.NewNode(cfg)
	if err != nil {
		return contact{}, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- node.Run(running) }()
	defer func() {
		stop()
		<-done //nolint:errcheck // it says goodbye; ended by us it has no error
	}()
	if err := node.WaitConnected(ctx); err != nil {
		if why := node.WhyNot(); why != nil {
			err = why
		}
		return contact{}, err
	}
	st := node.Status()
	out.Over, out.RTT = "udp", milliseconds(st.RTT)
	if st.OverTLS {
		out.Over = "tls"
	}
	if st.Remote.IsValid() {
		out.Remote = st.Remote.String()
	}
	return contact{id: st.Coordinator, stun: slices.Clone(st.Stun), rtt: st.RTT, answered: true, overTLS: st.OverTLS}, nil
}

// guess stands for a coordinator that does not answer, or does not admit this
// node: where the link says that address probes are answered they may be.
func (n *netcheck) guess(ctx context.Context) contact {
	found := contact{id: n.member.id}
	if found.id.IsZero() || n.member.stun == 0 {
		return found
	}
	for _, addr := range n.member.addrs {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		ips, err := net.DefaultResolver.LookupNetIP(context.WithoutCancel(ctx), "ip", host)
		if err != nil {
			continue
		}
		for _, ip := range ips {
			for _, port := range []uint16{n.member.stun, n.member.stun + 1} {
				at := netip.AddrPortFrom(ip.Unmap(), port)
				if !slices.Contains(found.stun, at) && len(found.stun) < 2*netMostAddrs {
					found.stun = append(found.stun, at)
				}
			}
		}
	}
	return found
}

// failure says that no coordinator answers.
func (n *netcheck) failure() *Error {
	if n.unknown != nil {
		return n.unknown
	}
	why := n.connectErr
	if errors.Is(why, context.DeadlineExceeded) {
		why = nil // that there was no answer is said already
	}
	return unreachableError(n.member, why, n.connectErr)
}

// conclude fills in what follows from several parts.
func (n *netcheck) conclude(tls *netTLSCheck) {
	r := n.report
	udp := r.IPv4.Works || r.IPv6.Works
	for _, c := range r.Coordinators {
		if c.Over != "udp" {
			continue
		}
		udp = true
		if at, err := netip.ParseAddrPort(c.Remote); err == nil {
			n.family(at.Addr()).Works = true
		}
	}
	if udp || r.connected() || len(r.STUN) > 0 {
		r.UDP = &udp
	} else {
		r.missing("udp", "the coordinator does not answer at all")
	}
	portal := tls.captive(r.connected() || udp)
	r.Captive = portal
	if portal == nil {
		r.missing("captive_portal", "nothing answered at all")
	}
}

// rtoOf is how long an answer is waited for before the request is sent again.
func rtoOf(rtt time.Duration) time.Duration {
	return max(netLeastRTO, rtt+rtt/2)
}

// withPort puts a port behind the host of an address.
func withPort(addr string, port uint16) (string, bool) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || port == 0 {
		return "", false
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(port))), true
}

// plainReason is an error in a few words: the system's own where it has some,
// instead of the way that they took.
func plainReason(err error) string {
	var (
		refused *signal.RefusedError
		proxy   *wss.ProxyError
		errno   syscall.Errno
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &refused):
		return "it refuses this node: " + refused.Message
	case errors.As(err, &proxy):
		return proxy.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no answer"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
