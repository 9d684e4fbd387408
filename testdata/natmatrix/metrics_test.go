package main

import (
	"slices"
	"testing"
)

func TestParseTunnels(t *testing.T) {
	got, err := parseTunnels(`# HELP mintai_coordinator_tunnel_reports_total Reports
# TYPE mintai_coordinator_tunnel_reports_total counter
mintai_coordinator_tunnel_reports_total{path="",reason="",state="TUNNEL_CONNECTING"} 21
mintai_coordinator_tunnel_reports_total{path="relay-udp",reason="both-nats-hard",state="TUNNEL_UP"} 20
mintai_coordinator_tunnel_reports_total{path="srflx",state="TUNNEL_UP"} 1e+00
mintai_coordinator_tunnel_reports_total{path="host",reason="x",state="TUNNEL_UP"} 0
other{path="srflx",state="TUNNEL_UP"} 7
`)
	want := []tunnelCount{{"relay-udp", "both-nats-hard", 20}, {"srflx", "", 1}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{`{path="x"`, `{path=x} 1`, `{path="x"} one`} {
		if got, err := parseTunnels(tunnelReports + bad); err == nil {
			t.Errorf("%s was read as %v", bad, got)
		}
	}
}

func TestCompareTunnels(t *testing.T) {
	asked := map[tunnelCount]int{{Path: "srflx", Reason: "nat-traversed"}: 20, {Path: "host", Reason: "same-network"}: 1}
	host := tunnelCount{"host", "same-network", 1}
	for _, c := range []struct {
		name    string
		counted []tunnelCount
		spare   int
		bad     int
	}{
		{"all of them", []tunnelCount{{"srflx", "nat-traversed", 20}, host}, 0, 0},
		{"one too many", []tunnelCount{{"srflx", "nat-traversed", 21}, host}, 0, 1},
		{"one too few", []tunnelCount{{"srflx", "nat-traversed", 19}, host}, 0, 1},
		{"a path is missing", []tunnelCount{{"srflx", "nat-traversed", 20}}, 0, 1},
		{"another reason", []tunnelCount{{"srflx", "", 20}, host}, 0, 2},
		{"another path as well", []tunnelCount{{"srflx", "nat-traversed", 20}, host, {"relay-udp", "nothing-came", 1}}, 0, 1},
		{"nothing", nil, 0, 2},
		{"one of an ask that failed", []tunnelCount{{"srflx", "nat-traversed", 21}, host}, 1, 0},
		{"its path is another", []tunnelCount{{"srflx", "nat-traversed", 20}, host, {"relay-udp", "nothing-came", 1}}, 1, 0},
		{"two, and one ask failed", []tunnelCount{{"srflx", "nat-traversed", 22}, host}, 1, 1},
		{"one of each, and one ask failed", []tunnelCount{{"srflx", "nat-traversed", 21}, {"host", "same-network", 2}}, 1, 1},
		{"one too few, and one ask failed", []tunnelCount{{"srflx", "nat-traversed", 19}, host}, 1, 1},
	} {
		if bad := compareTunnels(asked, c.counted, c.spare); len(bad) != c.bad {
			t.Errorf("%s: %q", c.name, bad)
		}
	}
}
