package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"mintai/api"
	"mintai/ice"
	"mintai/identity"
	"mintai/quicstream"
	"mintai/signal"
	"mintai/signal/signalpb"
	"mintai/wss"
)

func noMatchOf(code signalpb.NoMatchCode, message string) error {
	return &signal.NoMatchError{NoMatch: &signalpb.NoMatch{Code: code, Message: message}}
}

// Every failure has its exit code, its word, and its HTTP status.
func TestExplain(t *testing.T) {
	t.Parallel()
	c := newLab(t).newClient()
	t.Cleanup(func() { _ = c.socket.Close() })
	refused := func(code string) error { return &refusedError{Miner: "gpu-box", Code: code} }
	for _, tc := range []struct {
		err    error
		exit   Exit
		code   string
		status int
		says   string
	}{
		{noMatchOf(signalpb.NoMatchCode_NO_MATCH_NO_MINER, "no miner is connected"), ExitNoMiner, "no_miner", 503, "no miner is connected"},
		{noMatchOf(signalpb.NoMatchCode_NO_MATCH_FILTERED, "2 do not offer x"), ExitNoMiner, "no_miner", 404, "2 do not offer x"},
		{noMatchOf(signalpb.NoMatchCode_NO_MATCH_NO_SERVER, "gpu-box is connected but runs no AI server"), ExitNoMiner, "no_server", 503, "Ollama"},
		{noMatchOf(signalpb.NoMatchCode_NO_MATCH_BUSY, "1 is full"), ExitNoMiner, "busy", 503, "1 is full"},
		{noMatchOf(signalpb.NoMatchCode_NO_MATCH_BAD_REQUEST, "no such call"), ExitUsage, "bad_request", 400, "no such call"},
		{noMatchOf(99, ""), ExitNoMiner, "no_miner", 503, "no miner can take the request"},
		{&signal.RefusedError{Close: signal.CloseNotAdmitted, Message: "no"}, ExitNotAdmitted, "not_admitted", 403, "join LINK"},
		{&signal.RefusedError{Close: signal.CloseReplaced}, ExitNotAdmitted, "replaced", 403, "-state"},
		{&signal.RefusedError{Close: signal.CloseTooMany}, ExitNoPath, "too_many", 502, "later"},
		{&signal.RefusedError{Close: signal.CloseShuttingDown}, ExitNoPath, "shutting_down", 502, "again"},
		{&signal.RefusedError{Close: signal.CloseBadMessage}, ExitInternal, "protocol", 500, "version"},
		{&PathError{Miner: "gpu-box", Reason: "r", Err: io.EOF}, ExitNoPath, "no_path", 502, "no path to gpu-box: r"},
		{refused(api.CodeBusy), ExitNoMiner, "busy", 503, "takes no more requests now"},
		{refused(string(quicstream.RefusedGoingAway)), ExitNoMiner, "busy", 503, "takes no more requests now"},
		{refused(api.CodeModelNotFound), ExitNoMiner, api.CodeModelNotFound, 404, "no longer offers"},
		{refused(api.CodeBackendDown), ExitNoMiner, api.CodeBackendDown, 503, "does not answer"},
		{refused(api.CodeBackendAuth), ExitRefused, api.CodeBackendAuth, 502, "own API key"},
		{refused(api.CodeBackendNonsense), ExitRefused, api.CodeBackendNonsense, 502, "nonsense"},
		{refused(codeSession), ExitNoPath, codeSession, 502, "gpu-box refused the request (session)"},
		{fmt.Errorf("gpu-box: %w", errFirstByte), ExitDeadline, "first_byte", 504, "no answer began in time"},
		{&lostError{Miner: "gpu-box", Err: io.EOF}, ExitNoPath, "miner_lost", 502, "vanished before it answered"},
		{&lostError{Miner: "gpu-box", Err: io.EOF, Bytes: 1}, ExitLost, "miner_lost", 502, "incomplete"},
		{&lostError{Miner: "gpu-box", Err: io.EOF, Bytes: 1, Backend: true}, ExitLost, "backend_lost", 502, "incomplete"},
		{&signal.UnreachableError{}, ExitNoPath, "no_coordinator", 502, "no coordinator answers at 127.0.0.1:"},
		{fmt.Errorf("x: %w", identity.ErrPeer), ExitNoPath, "wrong_coordinator", 502, "join link"},
		{&identity.KeyChangedError{Addr: "a:1", Path: "p"}, ExitNoPath, "wrong_coordinator", 502, "a:1 was"},
		{context.DeadlineExceeded, ExitDeadline, "deadline", 504, "-timeout"},
		{fmt.Errorf("x: %w", context.Canceled), ExitInterrupted, "interrupted", 499, "interrupted"},
		{errors.New("odd"), ExitInternal, "internal", 500, "odd"},
		{fmt.Errorf("x: %w", usageError("u", "h")), ExitUsage, "usage", 400, "u; h"},
	} {
		e := explain(tc.err, c.client)
		if e.Exit != tc.exit || e.Code != tc.code || !strings.Contains(e.line(), tc.says) || strings.Contains(e.line(), "\n") {
			t.Errorf("%v: exit %d, %q, %q; want %d, %q, %q", tc.err, e.Exit, e.Code, e.line(), tc.exit, tc.code, tc.says)
		}
		if !errors.Is(e, tc.err) && !errors.Is(tc.err, e) {
			t.Errorf("%v: the cause is lost", tc.err)
		}
		out := toAPIError(e)
		if out.Status != tc.status || out.Message != e.Message || (out.RetryAfter > 0) != (tc.status == http.StatusServiceUnavailable) {
			t.Errorf("%v: HTTP %d, retry after %v, want %d", tc.err, out.Status, out.RetryAfter, tc.status)
		}
		if (out.Code == api.CodeModelNotFound) != (tc.status == http.StatusNotFound || tc.code == api.CodeModelNotFound) {
			t.Errorf("%v: HTTP %d with code %q", tc.err, out.Status, out.Code)
		}
	}
}

// Why no coordinator answers is said even while the first round of dialing goes
// on: the way whose reason says most, in a line.
func TestWhyNoCoordinatorAnswers(t *testing.T) {
	l := newLab(t)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
	}))
	t.Cleanup(proxy.Close)
	t.Setenv("HTTPS_PROXY", proxy.URL)
	member := l.member()
	member.addrs, member.tls = []string{"192.0.2.1:4433"}, 443 // of no network (RFC 5737)
	cl := l.client(func(c *clientConfig) {
		c.Membership, c.Deadlines.Match = member, time.Second
	})
	got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait()
	first := "no coordinator answers at 192.0.2.1:4433 (UDP: "
	second := fmt.Sprintf("; over TLS: the proxy %s asks for credentials (407)", proxy.Listener.Addr())
	if got.exit != ExitNoPath || !strings.Contains(got.err, first) || !strings.Contains(got.err, second) || strings.Count(got.err, "\n") != 1 {
		t.Errorf("%+v, want %s…%s", got, first, second)
	}
}

func TestWaysFailed(t *testing.T) {
	t.Parallel()
	udp := func(err error) error { return &signal.AttemptError{Addr: "192.0.2.1:4433", Err: err} }
	tls := func(err error) error { return &signal.AttemptError{Addr: "192.0.2.1:443", OverTLS: true, Err: err} }
	proxy := &wss.ProxyError{Proxy: "10.0.0.1:3128", Reason: "asks for credentials (407)"}
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for want, why := range map[string]error{
		"UDP: no answer; over TLS: the proxy 10.0.0.1:3128 asks for credentials (407)": tls(proxy),
		"UDP: connection refused":                       udp(refused),
		"UDP: connection refused; over TLS: two":        errors.Join(fmt.Errorf("x: %w", errors.Join(udp(refused), udp(errors.New("later")))), tls(errors.New("two\nlines"))),
		"UDP: looking the coordinator up: no such host": &signal.AttemptError{Err: errors.New("looking the coordinator up: no such host")},
		"odd": errors.New("odd"),
	} {
		if got := waysFailed(why); got != want {
			t.Errorf("%v: %q, want %q", why, got, want)
		}
	}
}

// The AI server of the only miner fails: the person learns which, and why.
func TestOnlyMinerFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		answer func(*aiCall)
		exit   Exit
		says   string
	}{
		{"hangs up", func(c *aiCall) { c.die() }, ExitNoMiner, "the AI server on gpu-box does not answer"},
		{"refuses the miner's key", func(c *aiCall) { c.refuse(http.StatusForbidden, "no") }, ExitRefused, "refuses the miner's own API key"},
		{"is no AI server", func(c *aiCall) { _, _ = io.WriteString(c.w, "<html>") }, ExitRefused, "nonsense"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, _, _ := ready(t, func(call *aiCall) {
				call.w.Header().Set("Content-Type", "text/html")
				c.answer(call)
			})
			if got := l.ask("?").wait(); got.exit != c.exit || !strings.Contains(got.err, c.says) || strings.Count(got.err, "\n") != 1 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestDirectReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		addr string
		kind ice.Kind
		want ice.Reason
	}{
		{"127.0.0.1", ice.Srflx, ice.SameMachine},
		{"::1", ice.Host, ice.SameMachine},
		{"10.255.1.2", ice.Host, ice.SameNetwork},
		{"::ffff:10.255.1.2", ice.Prflx, ice.SameNetwork},
		{"fe80::1", ice.Host, ice.SameNetwork},
		{"100.64.0.1", ice.Srflx, ice.SameNetwork},
		{"100.127.255.255", ice.Srflx, ice.SameNetwork},
		{"100.128.0.1", ice.Srflx, ice.NATTraversed},
		{"203.0.113.7", ice.Host, ice.PublicAddress},
		{"203.0.113.7", ice.Mapped, ice.PortMapping},
		{"203.0.113.7", ice.Prflx, ice.NATTraversed},
		{"2001:db8::7", ice.Host, ice.PublicAddress},
	} {
		at := hop{addr: netip.AddrPortFrom(netip.MustParseAddr(c.addr), 9), kind: c.kind}
		if got := directReason(at, ice.NoReason); got != c.want {
			t.Errorf("%s %s: %v, want %v", c.kind, c.addr, got, c.want)
		}
	}
	if own := []netip.Addr{netip.MustParseAddr("2001:db8:1:2::1")}; !sharePrefix(netip.MustParseAddr("2001:db8:1:2::7"), own) ||
		sharePrefix(netip.MustParseAddr("2001:db8:1:3::7"), own) || sharePrefix(netip.MustParseAddr("10.0.0.1"), own) {
		t.Error("networks of IPv6 are told wrongly")
	}
	// What a forwarded port makes possible comes from any address.
	at := hop{addr: netip.MustParseAddrPort("203.0.113.7:9"), kind: ice.Prflx}
	if got := directReason(at, ice.PortMapping); got != ice.PortMapping {
		t.Errorf("with a forwarded port: %v", got)
	}
}

func TestPrincipalOf(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"203.0.113.77": "203.0.113.0/24", "::ffff:203.0.113.77": "203.0.113.0/24", "2001:db8:1:2::3": "2001:db8:1::/48",
	} {
		if got := principalOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// What a client claims makes no new series in the metrics.
func TestPathLabel(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]string{"host": "host", "relay-udp": "relay-udp", "": "", "host\n": "other", "x": "other"} {
		if got := pathLabel(kind); got != want {
			t.Errorf("%q: %q", kind, got)
		}
	}
}

// Everyone is admitted where the configuration says so, and nobody as the same
// user who cannot show it.
func TestAdmission(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		open       bool
		membership func(l *lab) membership
		admittedAs string // empty: not
	}{
		{"by link", false, (*lab).member, admittedMember},
		{"same user", false, (*lab).sameUser, admittedLocal},
		{"with nothing", false, func(l *lab) membership { m := l.member(); m.join = ""; return m }, ""},
		{"with a wrong secret", false, func(l *lab) membership { m := l.member(); m.join = "wrong"; return m }, ""},
		{"with a wrong local secret", false, func(l *lab) membership { m := l.sameUser(); m.local = "wrong"; return m }, ""},
		{"the join secret as the local one", false, func(l *lab) membership { m := l.sameUser(); m.local = l.join; return m }, ""},
		{"open, with nothing", true, func(l *lab) membership { m := l.member(); m.join = ""; return m }, admittedOpen},
		{"open, by link", true, (*lab).member, admittedMember},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, func(cfg *coordinatorConfig) { cfg.Open = c.open })
			cl := l.client(func(cfg *clientConfig) { cfg.Membership = c.membership(l) })
			ctx, cancel := context.WithTimeout(t.Context(), testWait)
			defer cancel()
			err := cl.sig.WaitConnected(ctx)
			if got := cl.sig.Status().AdmittedAs; got != c.admittedAs {
				t.Errorf("admitted as %q, want %q", got, c.admittedAs)
			}
			var refused *signal.RefusedError
			if (c.admittedAs == "") != errors.As(err, &refused) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A session in use is renewed before it ends, at both ends.
func TestSessionInUseIsRenewed(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *coordinatorConfig) { c.Deadlines.Session = renewBefore / 2 })
	m := l.miner("gpu-box", newAI(t, "m", says("ok")))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	s := cl.session(t, m)
	expiry := func() (atClient, atMiner time.Time) {
		cl.mu.Lock()
		atClient = s.expires
		cl.mu.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if there := m.sessions[s.id]; there != nil {
			atMiner = there.expires
		}
		return atClient, atMiner
	}
	first, _ := expiry()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	waitUntil(t, "a later end at both ends", func() bool {
		a, b := expiry()
		return a.After(first) && b.After(first)
	})
	if sessions, _ := l.co.counts(); sessions != 1 {
		t.Errorf("%d sessions", sessions)
	}
}

// A tunnel that nobody uses is closed, and a session that is over is forgotten
// by all three.
func TestIdleTunnelsGo(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	tunnel := cl.tunnel(t, m)
	cl.dropIdle(time.Now().Add(cl.deadlines.IdleTunnel - time.Minute))
	if err := tunnel.Err(); err != nil {
		t.Errorf("closed too early: %v", err)
	}
	cl.dropIdle(time.Now().Add(cl.deadlines.IdleTunnel + time.Second))
	receive(t, "the end of the tunnel", tunnel.Done())
	waitUntil(t, "no tunnel at the miner", func() bool { return len(m.server.Tunnels()) == 0 })
	// The session stays for the next question.
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	cl.dropIdle(time.Now().Add(2 * time.Hour))
	waitUntil(t, "no session anywhere", func() bool {
		cl.mu.Lock()
		atClient := len(cl.sessions) + len(cl.warm)
		cl.mu.Unlock()
		m.mu.Lock()
		atMiner := len(m.sessions) + len(m.granted)
		m.mu.Unlock()
		atCoordinator, _ := l.co.counts()
		return atClient+atMiner+atCoordinator == 0
	})
}
