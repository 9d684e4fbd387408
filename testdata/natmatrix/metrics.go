package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"mintai/testdata/labkit"
)

// tunnelCount is how many tunnels of one sort the coordinator heard of.
type tunnelCount struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
	Count  int    `json:"count"`
}

// tunnelReports is the coordinator's counter of what clients say of tunnels.
const tunnelReports = "mintai_coordinator_tunnel_reports_total"

// coordinatorMetrics is where they stand, at host pub.
const coordinatorMetrics = "http://127.0.0.1:9464/metrics"

// fetchMetrics compares what the coordinator counted with what the clients
// reported: the same paths for the same reasons, as many as there were. spare
// clients failed and left no report; a tunnel may have come up for each.
func (s settings) fetchMetrics(ctx context.Context, l *lab, m *measurement, asked map[tunnelCount]int, spare int) error {
	out, problem, code, err := l.Run(ctx, "pub", l.Dir, s.self, fetchWord, coordinatorMetrics)
	if err != nil || code != 0 {
		return fmt.Errorf("the coordinator's metrics: exit code %d: %v %s", code, err, labkit.LastLine(problem))
	}
	m.Metrics, err = parseTunnels(out)
	if err != nil {
		return err
	}
	m.Disagree = append(m.Disagree, compareTunnels(asked, m.Metrics, spare)...)
	return nil
}

var errMetrics = errors.New("not a metric line")

// parseTunnels reads the tunnels that came up out of a Prometheus text page.
func parseTunnels(page string) ([]tunnelCount, error) {
	var tunnels []tunnelCount
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, tunnelReports+"{")
		if !ok {
			continue
		}
		labels, value, ok := strings.Cut(rest, "} ")
		if !ok {
			return nil, fmt.Errorf("%q: %w", line, errMetrics)
		}
		count, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, errMetrics)
		}
		t := tunnelCount{Count: int(count)}
		up := false
		for label := range strings.SplitSeq(labels, ",") { // none of ours holds a comma
			name, quoted, _ := strings.Cut(label, "=")
			text, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, errMetrics)
			}
			switch name {
			case "path":
				t.Path = text
			case "reason":
				t.Reason = text
			case "state":
				up = text == "TUNNEL_UP"
			}
		}
		if up && t.Count > 0 {
			tunnels = append(tunnels, t)
		}
	}
	return tunnels, nil
}

// compareTunnels says where the coordinator's counts are not what was asked. As
// many tunnels as spare may be more than that.
func compareTunnels(asked map[tunnelCount]int, counted []tunnelCount, spare int) []string {
	left := maps.Clone(asked)
	var bad []string
	for _, t := range counted {
		key := tunnelCount{Path: t.Path, Reason: t.Reason}
		if more := t.Count - asked[key]; more > 0 && more <= spare {
			spare -= more
		} else if more != 0 {
			bad = append(bad, fmt.Sprintf("the metrics count %d× %s %s, the reports %d", t.Count, t.Path, dash(t.Reason), asked[key]))
		}
		delete(left, key)
	}
	for key, n := range left {
		bad = append(bad, fmt.Sprintf("the metrics do not count %d× %s %s", n, key.Path, dash(key.Reason)))
	}
	slices.Sort(bad)
	return bad
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// fetchWord makes this program fetch a page and print it, so that it can do so
// at a host of a laboratory.
const fetchWord = "_fetch"

func fetch(url string) error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}} // no proxy
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(os.Stdout, io.LimitReader(resp.Body, 4<<20))
	return err
}
