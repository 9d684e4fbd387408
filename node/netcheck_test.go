package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"mintai/identity"
	"mintai/portmap"
	"mintai/wss"
)

// netcheckOf runs a whole check as the command does, with a router that speaks
// NAT-PMP only.
func netcheckOf(t *testing.T, l *lab, member membership, asJSON bool) ended {
	t.Helper()
	return launch(t, nil, func(ctx context.Context, std IO) int {
		n := &netcheck{
			member: member, notice: notice(std), log: l.logger, report: newNetReport("client"),
			router: func(context.Context) portmap.Report {
				return portmap.Report{
					NATPMP: true, Gateway: netip.MustParseAddr("192.168.1.1"), External: netip.MustParseAddr("30.0.0.1"),
					Detail: map[portmap.Protocol]string{portmap.UPnP: "no answer"},
				}
			},
		}
		started := time.Now()
		if err := n.run(ctx); err != nil {
			return finish(err, std)
		}
		n.report.ElapsedMS = milliseconds(time.Since(started))
		n.report.judge()
		c := &command{json: asJSON}
		return finish(c.showNetcheck(std, n), std)
	}).wait()
}

func netReportOf(t *testing.T, got ended) *netReport {
	t.Helper()
	var r netReport
	if err := json.Unmarshal([]byte(got.out), &r); err != nil || strings.Count(got.out, "\n") != 1 {
		t.Fatalf("%v: %+v", err, got)
	}
	return &r
}

// withProbes lets the coordinator answer address probes.
func withProbes(c *coordinatorConfig) { c.STUN = "127.0.0.1:0" }

func TestNetcheck(t *testing.T) {
	t.Parallel()
	l := newLab(t, withTLS, withProbes)
	member := l.member()
	member.tls = l.co.tls.Addr().Port()
	wrong, late := netcheckFaults(t, l, member)
	for again := 0; len(wrong) > 0 && late && again < 2; again++ {
		t.Logf("measured again: %q", wrong)
		wrong, late = netcheckFaults(t, l, member)
	}
	for _, w := range wrong {
		t.Error(w)
	}
	text := netcheckOf(t, l, member, false)
	if text.exit != ExitOK || !strings.Contains(text.out, "UDP              yes\n") || !strings.Contains(text.out, "\nadvice           nothing to do") {
		t.Errorf("%+v", text)
	}
}

// netcheckFaults runs a whole check and says what is wrong with its report, and
// whether something came too late, as on a busy machine.
func netcheckFaults(t *testing.T, l *lab, member membership) (wrong []string, late bool) {
	t.Helper()
	fault := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	got := netcheckOf(t, l, member, true)
	r := netReportOf(t, got)
	if got.exit != ExitOK || got.err != "" || r.Error != nil || r.ElapsedMS > 5000 {
		fault("%+v", got)
	}
	if r.Verdict != verdictLocal || !yes(r.UDP) || !r.IPv4.Works || !no(r.IPv4.NAT) || r.IPv4.Mapping != behaviorEI {
		fault("verdict %s, IPv4 %+v", r.Verdict, r.IPv4)
	}
	if len(r.Coordinators) != 1 || r.Coordinators[0].Over != "udp" || r.Coordinators[0].RTT <= 0 || r.Coordinators[0].Remote != l.addr {
		fault("coordinators %+v", r.Coordinators)
	}
	if len(r.TLS) != 1 || !r.TLS[0].Works || !yes(r.Relay.TLS) || !yes(r.Relay.UDP) || !no(r.Captive) || r.Proxy != nil {
		fault("%+v, relay %+v, captive %v", r.TLS, r.Relay, r.Captive)
	}
	if r.MTU == nil || !r.MTU.AtLeast || r.MTU.Path != 1500 {
		fault("MTU %+v: %v", r.MTU, r.NotMeasured)
	}
	if r.Hairpin != nil || r.NotMeasured["hairpin"] == "" || r.IPv6.Works || r.NotMeasured["ipv6"] == "" {
		fault("hairpin %v, IPv6 %+v: %v", r.Hairpin, r.IPv6, r.NotMeasured)
	}
	if !r.PortMapping.NATPMP || r.PortMapping.UPnP || r.PortMapping.Detail["upnp"] != "no answer" || r.PortMapping.Usable != nil {
		fault("port mapping %+v", r.PortMapping)
	}
	over := len(r.Coordinators) == 1 && r.Coordinators[0].Over == "tls" // which begins when UDP is late
	return wrong, over || r.ElapsedMS > 5000 || len(r.NotMeasured) > len([]string{"hairpin", "ipv6", "double_nat"})
}

func TestNetcheckWithoutUDP(t *testing.T) {
	t.Parallel()
	l := newLab(t, withTLS)
	got := netcheckOf(t, l, l.blocked(), true)
	r := netReportOf(t, got)
	if got.exit != ExitOK || r.Verdict != verdictRelayed || !no(r.UDP) || r.Coordinators[0].Over != "tls" || !yes(r.Relay.TLS) {
		t.Errorf("%+v", got)
	}
}

// That STUN is answered and TLS can be opened is no relay.
func TestNetcheckWithoutRelay(t *testing.T) {
	t.Parallel()
	l := newLab(t, withTLS, withProbes, func(c *coordinatorConfig) { c.TURN.Enabled = false })
	member := l.member()
	member.tls = l.co.tls.Addr().Port()
	r := netReportOf(t, netcheckOf(t, l, member, true))
	if !no(r.Relay.UDP) || !no(r.Relay.TLS) || !yes(r.UDP) || len(r.TLS) != 1 || !r.TLS[0].Works {
		t.Errorf("relay %+v, UDP %v, TLS %+v", r.Relay, r.UDP, r.TLS)
	}
}

func TestNetcheckOffline(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	wrong := l.member()
	wrong.join = identity.NewSecret()
	silent := l.member()
	silent.addrs = []string{silentUDP(t)}
	for _, c := range []struct {
		name    string
		member  membership
		exit    Exit
		verdict netVerdict
		says    string // in the error or the advice
	}{
		{"nobody answers", silent, ExitNoPath, verdictOffline, "no coordinator answers at " + silent.addrs[0] + "\""},
		{"not admitted", wrong, ExitOK, verdictUnclear, "the coordinator refuses this node"},
		{"nobody known", membership{}, ExitNoPath, verdictOffline, "join a coordinator"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := netcheckOf(t, l, c.member, true)
			r := netReportOf(t, got)
			if got.exit != c.exit || r.Verdict != c.verdict || !strings.Contains(got.out, c.says) || (r.Error == nil) != (c.exit == ExitOK) {
				t.Errorf("%+v", got)
			}
			for _, field := range []string{"hairpin", "mtu", "double_nat"} {
				if r.NotMeasured[field] == "" {
					t.Errorf("nothing says why %s is not there: %v", field, r.NotMeasured)
				}
			}
		})
	}
}

// The command itself, where no coordinator is known: both roles, and a link that
// is none.
func TestNetcheckCommandRefusesBadLinks(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"client", "miner"} {
		got := typed(t, nil, "-mode", mode, "netcheck", "-state", t.TempDir(), "-join", "mintai://").wait()
		if got.exit != ExitUsage || !strings.Contains(got.err, "the join link of -join") || got.out != "" {
			t.Errorf("%s: %+v", mode, got)
		}
	}
}

func TestReadWeb(t *testing.T) {
	t.Parallel()
	asked := &url.URL{Scheme: "http", Host: "20.0.0.1", Path: "/mintai"}
	for _, c := range []struct {
		name   string
		status int
		header http.Header
		want   webAnswer
	}{
		{"ours", 101, http.Header{"Sec-Websocket-Protocol": {wss.Subprotocol}}, webOurs},
		{"another WebSocket", 101, http.Header{"Sec-Websocket-Protocol": {"chat"}}, webSilent},
		{"another web server", 200, nil, webSilent},
		{"not found", 404, nil, webSilent},
		{"RFC 6585", 511, nil, webElsewhere},
		{"to a portal", 302, http.Header{"Location": {"http://login.example.net/?from=x"}}, webElsewhere},
		{"to TLS", 301, http.Header{"Location": {"https://20.0.0.1/mintai"}}, webSilent},
		{"to another page", 307, http.Header{"Location": {"/start"}}, webSilent},
		{"nowhere", 302, nil, webSilent},
		{"nonsense", 302, http.Header{"Location": {"http://[::1"}}, webSilent},
	} {
		if got := readWeb(asked, c.status, c.header); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestAskWeb(t *testing.T) {
	t.Parallel()
	portal := httptest.NewServer(http.RedirectHandler("http://login.example.net/", http.StatusFound))
	defer portal.Close()
	at, err := url.Parse(portal.URL)
	if err != nil {
		t.Fatal(err)
	}
	if got := askWeb(t.Context(), at, nil); got != webElsewhere {
		t.Errorf("a portal: %d", got)
	}
	portal.Close()
	if got := askWeb(t.Context(), at, nil); got != webSilent {
		t.Errorf("nobody: %d", got)
	}
}

func TestCaptive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		web     []webAnswer
		reached bool
		want    *bool
	}{
		{nil, false, nil},
		{[]webAnswer{webSilent, webSilent}, false, nil},
		{[]webAnswer{webSilent, webElsewhere}, false, new(true)},
		{[]webAnswer{webSilent, webElsewhere}, true, new(false)},
		{[]webAnswer{webOurs, webElsewhere}, false, new(false)},
		{nil, true, new(false)},
	} {
		got := (&netTLSCheck{web: c.web}).captive(c.reached)
		if yes(got) != yes(c.want) || no(got) != no(c.want) {
			t.Errorf("%v, %v: %v", c.web, c.reached, got)
		}
	}
}
