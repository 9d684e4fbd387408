package node

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

func TestAskAnswers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "qwen3:8b", says("A tunnel", " is a way\n", "through. \x1b[31m\u202e"))
	l.miner("gpu-box", ai)
	got := l.ask("What is", "-v", "a tunnel?", "-s", "Be brief.", "-m", "qwen3:8b").wait()
	if got.exit != ExitOK {
		t.Fatalf("exit %d: %s", got.exit, got.err)
	}
	if want := "A tunnel is a way\nthrough. \x1b[31m\u202e"; got.out != want { // a pipe is byte-exact
		t.Errorf("answer %q, want %q", got.out, want)
	}
	for _, want := range []string{"qwen3:8b on gpu-box · direct ", "first token ", "path ", "same machine", "tries 1"} {
		if !strings.Contains(got.err, want) {
			t.Errorf("no %q in %q", want, got.err)
		}
	}
	var body chatRequest
	if err := json.Unmarshal((<-ai.began).body, &body); err != nil {
		t.Fatal(err)
	}
	want := []chatMessage{{"system", "Be brief."}, {"user", "What is a tunnel?"}}
	if len(body.Messages) != 2 || body.Messages[0] != want[0] || body.Messages[1] != want[1] || body.Model != "qwen3:8b" || !body.Stream {
		t.Errorf("the AI server was asked %+v", body)
	}
}

// Nobody goes on looking for a path once the tunnel is up.
func TestChecksEndWithTheTunnel(t *testing.T) {
	t.Parallel()
	l, m, _ := ready(t, says("ok"))
	cl := l.client()
	if got := cl.ask(t, askOptions{prompt: []string{"?"}}).wait(); got.exit != ExitOK {
		t.Fatalf("%+v", got)
	}
	if a, b := cl.socket.Stats().Sessions, m.socket.Stats().Sessions; a != 0 || b != 0 {
		t.Errorf("%d ICE sessions at the client, %d at the miner", a, b)
	}
}

// Without a terminal and without -v, only the answer is written.
func TestAskIsQuietInPipes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.miner("gpu-box", newAI(t, "m", says("yes")))
	if got := l.ask("?").wait(); got.out != "yes" || got.err != "" || got.exit != ExitOK {
		t.Errorf("%+v", got)
	}
	if got := l.ask("?", "-v", "-q").wait(); got.out != "yes" || got.err != "" {
		t.Errorf("with -q: %+v", got)
	}
}

func TestAskJSON(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.miner("gpu-box", newAI(t, "m", says("one", " two", " three")))
	got := l.ask("-json", "count").wait()
	if got.exit != ExitOK || got.err != "" {
		t.Fatalf("exit %d: %s", got.exit, got.err)
	}
	if strings.Count(got.out, "\n") != 1 {
		t.Errorf("not one line: %q", got.out)
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(got.out), &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"v", "model", "answer", "miner", "path", "path_first", "match_ms", "connect_ms", "ttft_ms", "total_ms",
		"tokens", "tokens_per_second", "attempts",
	} {
		if _, ok := fields[name]; !ok {
			t.Errorf("no field %q", name)
		}
	}
	var report jsonReport
	if err := json.Unmarshal([]byte(got.out), &report); err != nil {
		t.Fatal(err)
	}
	switch {
	case report.V != 1, report.Model != "m", report.Answer != "one two three", report.Miner != "gpu-box",
		report.MinerID != m.id().String(), report.Attempts != 1, report.Tokens != 3, report.Error != nil:
		t.Errorf("report %s", got.out)
	case report.Path == nil || report.Path.Kind == "" || report.Path.Reason != "same machine" || report.Path.RTT <= 0:
		t.Errorf("path %+v", report.Path)
	case report.MatchMS <= 0, report.ConnectMS < report.MatchMS, report.TTFTMS < report.ConnectMS, report.TotalMS < report.TTFTMS:
		t.Errorf("the times do not follow each other: %s", got.out)
	}
	// With -v the footer stands beside it, and says the same.
	got = l.ask("-json", "-v", "count").wait()
	if err := json.Unmarshal([]byte(got.out), &report); err != nil {
		t.Fatal(err)
	}
	if want := "m on gpu-box · direct "; !strings.HasPrefix(got.err, want) || !strings.Contains(got.err, "("+report.Path.Reason+")") {
		t.Errorf("with -v: %q", got.err)
	}
}

func TestAskJSONFailure(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	got := l.ask("-json", "?").wait()
	var report jsonReport
	if err := json.Unmarshal([]byte(got.out), &report); err != nil {
		t.Fatalf("%v in %q", err, got.out)
	}
	if got.exit != ExitNoMiner || got.err != "" || report.V != 1 || report.Error == nil ||
		report.Error.Code != "no_miner" || !strings.Contains(report.Error.Message+report.Error.Hint, "start one") {
		t.Errorf("exit %d, %q, stderr %q", got.exit, got.out, got.err)
	}
	// A failure before the question is an object, too.
	got = typed(t, nil, "-mode", "client", "-state", t.TempDir(), "-json", "-join", "mintai://", "ask", "?").wait()
	report = jsonReport{}
	if err := json.Unmarshal([]byte(got.out), &report); err != nil || report.Error == nil || report.Error.Code != "bad_link" || got.exit != ExitUsage {
		t.Errorf("exit %d, %q, %v", got.exit, got.out, err)
	}
}

// pipe returns a standard input and its other end.
func pipe(t testing.TB) (in, other *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.Close()
		_ = r.Close()
	})
	return r, w
}

func TestAskReadsStdin(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", says("ok"))
	l.miner("gpu-box", ai)
	for _, c := range []struct {
		name, piped, want string
		args              []string
	}{
		{"appended", "some text\n", "summarise\n\nsome text\n", []string{"summarise"}},
		{"alone", "some text\n", "some text\n", nil},
		{"empty", "", "hello", []string{"hello"}},
		{"dash", "some text", "summarise\n\nsome text", []string{"summarise", "-"}},
	} {
		in, other := pipe(t)
		if _, err := other.WriteString(c.piped); err != nil {
			t.Fatal(err)
		}
		_ = other.Close()
		if got := l.askWithStdin(in, c.args...).wait(); got.exit != ExitOK || got.err != "" {
			t.Errorf("%s: exit %d: %s", c.name, got.exit, got.err)
			continue
		}
		if asked := (<-ai.began).prompt; asked != c.want {
			t.Errorf("%s: asked %q, want %q", c.name, asked, c.want)
		}
	}
}

// An open but silent standard input is left after a while, which is said.
func TestAskLeavesSilentStdin(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", says("ok"))
	l.miner("gpu-box", ai)
	in, other := pipe(t)
	started := time.Now()
	got := l.askWithStdin(in, "hello").wait()
	_ = other.Close()
	if took := time.Since(started); took < stdinPatience || took > stdinPatience+5*time.Second {
		t.Errorf("it took %v", took)
	}
	if got.exit != ExitOK || got.out != "ok" || !strings.Contains(got.err, "standard input is open but silent") || strings.Count(got.err, "\n") != 1 {
		t.Errorf("%+v", got)
	}
	if asked := (<-ai.began).prompt; asked != "hello" {
		t.Errorf("asked %q", asked)
	}
}

// With "-" it is waited for, however long it takes.
func TestAskWaitsForStdin(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ai := newAI(t, "m", says("ok"))
	l.miner("gpu-box", ai)
	in, other := pipe(t)
	p := l.askWithStdin(in, "-", "hello")
	select {
	case <-p.done:
		t.Fatal("it did not wait")
	case <-time.After(stdinPatience + 200*time.Millisecond): // longer than without "-"
	}
	if _, err := other.WriteString("late"); err != nil {
		t.Fatal(err)
	}
	_ = other.Close()
	if got := p.wait(); got.exit != ExitOK || got.out != "ok" || got.err != "" {
		t.Errorf("%+v", got)
	}
	if asked := (<-ai.began).prompt; asked != "hello\n\nlate" {
		t.Errorf("asked %q", asked)
	}
}

func TestAskWithoutPrompt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	got := l.ask("  ").wait()
	if got.exit != ExitUsage || !strings.Contains(got.err, "the prompt is empty") {
		t.Errorf("%+v", got)
	}
}
