package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// fetch returns what an address answers.
func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// find returns the first group of the pattern in what the screen shows, as soon
// as it is there.
func (s *screen) find(pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	waitUntil(s.t, "the output "+pattern, func() bool { return re.MatchString(s.String()) })
	return re.FindStringSubmatch(s.String())[1]
}

const anyPorts = `
[coordinator]
listen = "127.0.0.1:0"
metrics = "127.0.0.1:0"
stun = "127.0.0.1:0"
port_mapping = false
[coordinator.tls]
listen = ""
[coordinator.turn]
listen = "127.0.0.1:0"
[client]
port_mapping = false
listen = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[miner]
port_mapping = false
name = "gpu-box"
metrics = "127.0.0.1:0"
`

// The three commands, in any order, and what they leave behind.
func TestThreeCommands(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	ai := newAI(t, "qwen3:8b", says("A tunnel is a way."))
	config := withConfig(t, anyPorts+fmt.Sprintf("[[miner.backend]]\ntype = \"openai\"\nurl = %q\n", ai.URL))
	run := func(mode string, args ...string) *process {
		return typed(t, nil, append([]string{"-mode", mode, "-state", state, "-config", config}, args...)...)
	}
	// The miner and the endpoint come first: they wait.
	miner := run("miner")
	miner.err.waitFor("no coordinator yet: waiting")
	proxy := run("client", "proxy")
	endpoint := proxy.err.find(`OpenAI endpoint:  (http://127\.0\.0\.1:\d+)/v1`)
	if status, body := fetch(t, endpoint+"/v1/models"); status != http.StatusServiceUnavailable || !strings.Contains(body, "no coordinator is known yet") {
		t.Errorf("before a coordinator: %d %s", status, body)
	}
	coordinator := run("coordinator")
	link := coordinator.out.find(`here +(mintai://\S+)`)
	secret, _, _ := strings.Cut(link[strings.LastIndex(link, "/")+1:], "?")
	for _, want := range []string{"coordinator ", "(signaling)", "(STUN and TURN)", "while a relay is lent", "admits      whoever holds a link"} {
		coordinator.out.waitFor(want)
	}
	miner.err.waitFor(`"models":["qwen3:8b"]`)
	waitUntil(t, "the model in the endpoint's list", func() bool {
		status, body := fetch(t, endpoint+"/v1/models")
		return status == http.StatusOK && strings.Contains(body, `"qwen3:8b"`)
	})
	// The same user is admitted without a link.
	if got := run("client", "ask", "What is a tunnel?").wait(); got.exit != ExitOK || got.out != "A tunnel is a way." || got.err != "" {
		t.Errorf("%+v", got)
	}
	resp := post(t, t.Context(), endpoint, strings.Replace(streamBody, `"m"`, `"qwen3:8b"`, 1))
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "A tunnel is a way.") || !strings.HasSuffix(string(body), "data: [DONE]\n\n") {
		t.Errorf("%d %q %v", resp.StatusCode, body, err)
	}
	// Elsewhere the link is remembered by join.
	elsewhere := t.TempDir()
	other := func(args ...string) ended {
		return typed(t, nil, append([]string{"-mode", "client", "-state", elsewhere}, args...)...).wait()
	}
	if got := other("join", link); got.exit != ExitOK || !strings.Contains(got.err, "joined ") || strings.Contains(got.err, secret) {
		t.Errorf("%+v", got)
	}
	if got := other("ask", "?"); got.exit != ExitOK || got.out != "A tunnel is a way." {
		t.Errorf("%+v", got)
	}
	if got := other("join", strings.Replace(link, secret, secret[3:]+"aaa", 1)); got.exit != ExitNotAdmitted {
		t.Errorf("a wrong secret: %+v", got)
	}
	if got := other("ask", "?"); got.exit != ExitOK { // the good link is still the one
		t.Errorf("%+v", got)
	}
	for name, p := range map[string]*process{"coordinator": coordinator, "miner": miner, "client": proxy} {
		at := p.err.find(`"addr":"(http://127\.0\.0\.1:\d+)","time":"[^"]+","message":"metrics and health"`)
		if status, body := fetch(t, at+"/healthz"); status != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %q", name, status, body)
		}
		if status, body := fetch(t, at+"/metrics"); status != http.StatusOK || !strings.Contains(body, "mintai_"+name+"_") {
			t.Errorf("%s: %d, no metric of its own", name, status)
		}
	}
	for _, p := range []*process{proxy, miner, coordinator} {
		p.cancel()
		if got := p.wait(); got.exit != ExitOK && got.exit != ExitInterrupted {
			t.Errorf("%+v", got)
		}
	}
	for _, role := range []string{"coordinator", "miner", "client"} {
		info, err := os.Stat(filepath.Join(state, role, "key.pem"))
		if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", role, info, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(state, "run", "*")); err != nil || len(left) != 0 {
		t.Errorf("the runtime file stays behind: %q %v", left, err)
	}
	// A link is a secret: none is in a log.
	for _, p := range []*process{coordinator, miner, proxy} {
		mustNotHold(t, "a log", p.err.String(), "join secret", secret)
	}
}

// Everything in one process, as the README's first command.
func TestDev(t *testing.T) {
	t.Parallel()
	config := withConfig(t, "[[miner.backend]]\ntype = \"builtin\"\n")
	got := typed(t, nil, "-mode", "dev", "-state", t.TempDir(), "-config", config, "-json", "ask", "what is 12 * 7").wait()
	var report jsonReport
	if err := json.Unmarshal([]byte(got.out), &report); err != nil {
		t.Fatalf("%v in %q, stderr %q", err, got.out, got.err)
	}
	if got.exit != ExitOK || !strings.Contains(report.Answer, "84") || report.Path == nil || report.Path.Kind != "host" || report.Path.Reason != "same machine" {
		t.Errorf("exit %d, %s, stderr %q", got.exit, got.out, got.err)
	}
	if got := typed(t, nil, "-mode", "dev", "-state", t.TempDir(), "-config", config, "models").wait(); got.exit != ExitOK || !strings.Contains(got.out, "builtin") {
		t.Errorf("%+v", got)
	}
}

// A port that is taken is said with what to do.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	got := typed(t, nil, "-mode", "coordinator", "-state", t.TempDir(), "-listen", l.addr).wait()
	if got.exit != ExitUsage || !strings.Contains(got.err, "cannot listen on UDP "+l.addr) || !strings.Contains(got.err, "another port") || strings.Count(got.err, "\n") != 1 {
		t.Errorf("%+v", got)
	}
	got = typed(t, nil, "-mode", "coordinator", "-join", l.link(), "-state", t.TempDir()).wait()
	if got.exit != ExitUsage || !strings.Contains(got.err, "a coordinator joins nobody") {
		t.Errorf("%+v", got)
	}
}
