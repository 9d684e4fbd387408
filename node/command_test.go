package node

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"mintai/api"
	"mintai/identity"
)

func TestParseCommand(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line string // separated by |
		want command
	}{
		{"-mode|client|ask|What is|a tunnel?", command{mode: "client", verb: "ask", args: []string{"What is", "a tunnel?"}}},
		{"ask|?|-mode|client|-m|qwen3", command{mode: "client", verb: "ask", args: []string{"?"}, model: "qwen3"}},
		{"--mode=client|-q|ask|-v|one|-json|two|-timeout|90s", command{
			mode: "client", verb: "ask", args: []string{"one", "two"}, quiet: true, verbose: true, json: true, timeout: 90 * time.Second,
		}},
		{"-mode|client|ask|-s|be brief|-|-model=m@box", command{mode: "client", verb: "ask", args: []string{"-"}, system: "be brief", model: "m@box"}},
		{"-mode|client|ask|--|-v|--|-json", command{mode: "client", verb: "ask", args: []string{"-v", "--", "-json"}}},
		{"-mode|client|--|ask|-x", command{mode: "client", verb: "ask", args: []string{"-x"}}},
		{"-mode|client|ask|--|", command{mode: "client", verb: "ask", args: []string{""}}},
		{"-mode|client|ask", command{mode: "client", verb: "ask"}},
		{"-mode|client|serve|-listen|127.0.0.1:0", command{mode: "client", verb: "proxy", listen: "127.0.0.1:0"}},
		{"-mode|client|join|mintai://x", command{mode: "client", verb: "join", args: []string{"mintai://x"}}},
		{"-mode|coordinator", command{mode: "coordinator", verb: "run"}},
		{"-mode|miner|-config|miner.toml|-log-level|trace|-state|/s", command{mode: "miner", verb: "run", config: "miner.toml", logLevel: "trace", state: "/s"}},
		{"-mode|dev|ask|?", command{mode: "dev", verb: "ask", args: []string{"?"}}},
		{"-mode|client|netcheck|-json", command{mode: "client", verb: "netcheck", json: true}},
		{"-mode|miner|netcheck", command{mode: "miner", verb: "netcheck"}},
		{"-mode|client|ping|@gpu-box|-c|5", command{mode: "client", verb: "ping", args: []string{"@gpu-box"}, count: 5}},
		{"", command{help: true}},
		{"-help", command{help: true}},
		{"-h|nonsense", command{help: true}},
		{"-version|-mode|x", command{version: true, mode: "x"}},
	} {
		var args []string
		if c.line != "" {
			args = strings.Split(c.line, "|")
		}
		got, err := parseCommand(args)
		if err != nil {
			t.Errorf("%q: %v", c.line, err)
			continue
		}
		if len(got.args) == 0 {
			got.args = nil
		}
		if !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%q:\n%+v, want\n%+v", c.line, *got, c.want)
		}
	}
}

func TestParseCommandRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, says string }{
		{"ask|?", `-mode is missing; did you mean: mintai -mode client ask`},
		{"models", `-mode is missing; did you mean: mintai -mode client models`},
		{"miner", `-mode is missing; did you mean: mintai -mode miner`},
		{"What is a tunnel?", `unknown command "What is a tunnel?"; start with -mode coordinator`},
		{"-mode|cleint|ask|?", `unknown mode "cleint"; did you mean client?`},
		{"-mode|server", `unknown mode "server"; the modes are coordinator, miner, client, dev`},
		{"-mode|client", `-mode client needs a command; try: mintai -mode client ask`},
		{"-mode|client|aks|?", `unknown command "aks"; did you mean ask?`},
		{"-mode|client|modles", `unknown command "modles"; did you mean models?`},
		{"-mode|client|prox", `unknown command "prox"; did you mean proxy?`},
		{"-mode|client|xyzzy", `unknown command "xyzzy"; the commands are ask, models, proxy, serve, join, netcheck, ping`},
		{"-mode|client|What is a tunnel?", `did you mean: mintai -mode client ask "What is a tunnel?"`},
		{"-mode|dev|join|x", `unknown command "join"`},
		{"-mode|miner|ask", `-mode miner takes no command but netcheck, and got "ask"`},
		{"-mode|coordinator|netcheck", `-mode coordinator takes no command, but got "netcheck"`},
		{"-mode|client|netcheck|box", `netcheck takes no argument, but got "box"`},
		{"-mode|client|ping", `ping takes one miner; try: mintai -mode client ping gpu-box`},
		{"-mode|client|ping|a|b", `ping takes one miner`},
		{"-mode|client|ping|", `ping takes one miner`},
		{"-mode|client|ping|box|-c|-1", `-c must be 1 to 10000`},
		{"-mode|client|pnig|box", `did you mean ping?`},
		{"-mode|client|models|x", `models takes no argument, but got "x"`},
		{"-mode|client|ask|?|-tiemout|5s", `unknown flag -tiemout; did you mean -timeout?`},
		{"-mode|client|ask|?|-zzzzzz", `unknown flag -zzzzzz; see mintai -help`},
		{"-mode|client|ask|?|-timeout|soon", `invalid value "soon" for flag -timeout`},
		{"-mode|client|ask|?|-timeout|-5s", `-timeout must not be negative`},
		{"-mode|client|ask|?|-m", `flag needs an argument: -m`},
		{"-mode", `flag needs an argument: -mode`},
	} {
		_, err := parseCommand(strings.Split(c.line, "|"))
		var e *Error
		if !errors.As(err, &e) || e.Exit != ExitUsage || !strings.Contains(e.line(), c.says) {
			t.Errorf("%q: %v, want %q", c.line, err, c.says)
			continue
		}
		if strings.Contains(e.line(), "\n") {
			t.Errorf("%q: more than one line: %q", c.line, e.line())
		}
	}
}

func TestHelpFitsAScreen(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"", "-help", "-h", "-mode|client|-help"} {
		got := typed(t, nil, strings.FieldsFunc(line, func(r rune) bool { return r == '|' })...).wait()
		if got.exit != ExitOK || got.err != "" || got.out != helpText {
			t.Errorf("%q: %+v", line, got)
		}
	}
	lines := strings.Split(strings.TrimRight(helpText, "\n"), "\n")
	if len(lines) > 28 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if len(line) > 80 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	first := strings.Join(lines[:5], "\n")
	for _, want := range []string{"mintai -mode coordinator", "mintai -mode miner -config miner.toml", "mintai -mode client ask"} {
		if !strings.Contains(first, want) {
			t.Errorf("the first lines lack %q", want)
		}
	}
	var known []string
	(&command{}).flags().VisitAll(func(f *flag.Flag) { known = append(known, f.Name) })
	for _, name := range known {
		if name != "h" && !strings.Contains(helpText, "-"+name) {
			t.Errorf("-%s is not in the help", name)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	got := typed(t, nil, "-version").wait()
	if got.exit != ExitOK || !strings.HasPrefix(got.out, "mintai "+Version+" (commit ") || !strings.Contains(got.out, "go1.") {
		t.Errorf("%+v", got)
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	words := []string{"", "ask", "models", "proxy", "serve", "join"}
	for got, want := range map[string]string{
		"ask": "ask", "aks": "ask", "asks": "ask", "as": "ask", "modles": "models", "model": "models", "mdels": "models",
		"poxry": "", "proxi": "proxy", "jion": "join", "": "", "x": "", "completely": "", "sevre": "serve", "ASK": "",
	} {
		if n := nearest(got, words); n != want {
			t.Errorf("nearest(%q) = %q, want %q", got, n, want)
		}
	}
	if n := nearest("x", nil); n != "" {
		t.Errorf("of nothing: %q", n)
	}
}

func TestEditDistance(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3}} {
		if d := editDistance(c.a, c.b); d != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.a, c.b, d, c.want)
		}
	}
}

func TestSplitTarget(t *testing.T) {
	t.Parallel()
	for text, want := range map[api.Model][2]string{
		"":               {"", ""},
		"auto":           {"", ""},
		"qwen3:8b":       {"qwen3:8b", ""},
		"qwen3:8b@box":   {"qwen3:8b", "box"},
		"@box":           {"", "box"},
		"auto@box":       {"", "box"},
		"org@v2/m@box":   {"org@v2/m", "box"},
		"m@":             {"m", ""},
		"hf.co/a/b:Q4@x": {"hf.co/a/b:Q4", "x"},
	} {
		model, miner := splitTarget(text)
		if string(model) != want[0] || miner != want[1] {
			t.Errorf("splitTarget(%q) = %q, %q, want %q", text, model, miner, want)
		}
	}
}

// A coordinator is taken from where it is named most deliberately.
func TestFindMembership(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	paths := NewPaths(state, RoleClient, noEnv)
	link := func(host string) identity.Link {
		return identity.Link{Addrs: []string{host + ":4433"}, ID: newKey(t).ID(), Secret: identity.NewSecret()}
	}
	find := func(flag, env string, config identity.Link) (origin, string, error) {
		m, err := findMembership(flag, env, config, paths)
		if err != nil {
			return "", "", err
		}
		return m.origin, m.addrs[0], nil
	}
	expect := func(from origin, addr string, flag, env string, config identity.Link) {
		t.Helper()
		if gotFrom, gotAddr, err := find(flag, env, config); err != nil || gotFrom != from || gotAddr != addr {
			t.Errorf("%s %s %v, want %s %s", gotFrom, gotAddr, err, from, addr)
		}
	}
	var e *Error
	if _, _, err := find("", "", identity.Link{}); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &e) || e.Exit != ExitNoPath {
		t.Errorf("nobody is known: %v", err)
	}
	running := identity.Runtime{Addr: "127.0.0.1:5", ID: newKey(t).ID(), Secret: identity.NewSecret(), PID: os.Getpid()}
	if _, err := paths.WriteRuntime(running); err != nil {
		t.Fatal(err)
	}
	expect(originRuntime, "127.0.0.1:5", "", "", identity.Link{})
	if err := paths.SaveJoin(link("stored")); err != nil {
		t.Fatal(err)
	}
	expect(originStored, "stored:4433", "", "", identity.Link{})
	expect(originConfig, "config:4433", "", "", link("config"))
	expect(originEnv, "env:4433", "", link("env").String(), link("config"))
	expect(originFlag, "flag:4433", "  "+link("flag").String()+"\n", link("env").String(), link("config"))
	// What is named and wrong is not passed over.
	for _, c := range []struct{ flag, env string }{{"x", link("env").String()}, {"", "x"}} {
		if _, _, err := find(c.flag, c.env, link("config")); !errors.As(err, &e) || e.Exit != ExitUsage || e.Code != "bad_link" {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A runtime file whose process is gone is no coordinator.
func TestStaleRuntimeFile(t *testing.T) {
	t.Parallel()
	dead := identity.Runtime{Addr: "127.0.0.1:5", ID: newKey(t).ID(), Secret: identity.NewSecret(), PID: 1 << 30}
	if m, err := runtimeMembership(func() (identity.Runtime, error) { return dead, nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%+v, %v", m, err)
	}
}

// What strangers wrote is shown as one harmless line.
func TestErrorLinesAreHarmless(t *testing.T) {
	t.Parallel()
	nasty := "a\x1b]0;title\x07b\r\nc\u202ed\u009be\x00" + strings.Repeat("long ", 500)
	for name, e := range map[string]*Error{
		"message": {Message: nasty}, "hint": {Message: "m", Hint: nasty}, "lines": {lines: []string{nasty, nasty}},
	} {
		out := newScreen(t)
		printFailure(out.w, e)
		out.close()
		text := out.String()
		if i := strings.IndexFunc(strings.ReplaceAll(text, "\n", ""), func(r rune) bool {
			return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r == 0xfffd
		}); i >= 0 {
			t.Errorf("%s: raw control characters in %q", name, text)
		}
		if n := max(1, len(e.lines)); strings.Count(text, "\n") != n || len([]rune(text)) > n*(maxErrorLine+20) {
			t.Errorf("%s: %d lines of %d characters", name, strings.Count(text, "\n"), len([]rune(text)))
		}
		if !strings.Contains(text, "␛") {
			t.Errorf("%s: it is not visible that something was there: %q", name, text)
		}
	}
}

// An AI server's own words reach standard error without their control
// characters.
func TestStrangersWordsAreHarmless(t *testing.T) {
	t.Parallel()
	l, _, _ := ready(t, func(c *aiCall) { c.refuse(400, "no \x1b[2J\u202e\u009b way\nmintai: all is well") })
	got := l.ask("?").wait()
	if got.exit != ExitRefused || strings.Count(got.err, "\n") != 1 || strings.ContainsAny(got.err, "\x1b\u202e\u009b") || !strings.Contains(got.err, "no ␛[2J") {
		t.Errorf("exit %d, %q", got.exit, got.err)
	}
}
