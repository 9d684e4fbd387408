package ice

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// Each command is a process of its own, and no socket knows another's runs but by
// the file.
func TestPunchFile(t *testing.T) {
	a, b := netip.MustParseAddr("20.0.0.1"), netip.MustParseAddr("20.0.1.1")
	t0 := time.Unix(1e9, 0)
	path := filepath.Join(t.TempDir(), "state", "probing")
	runs := 0
	for i := range 20 {
		l := punchLimit{path: path}
		err := l.begin(a, t0.Add(time.Duration(i)*time.Second))
		if (err == nil) != (i < punchesPerTarget) || err != nil && !errors.Is(err, ErrProbedOften) {
			t.Errorf("process %d: %v", i, err)
		}
		if err == nil {
			runs++
			l.end()
		}
	}
	if runs != punchesPerTarget {
		t.Fatalf("%d runs of 20 processes within a minute", runs)
	}
	first, second := punchLimit{path: path}, punchLimit{path: path}
	if err := first.begin(b, t0.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := second.begin(a, t0.Add(time.Minute)); !errors.Is(err, ErrProbing) {
		t.Errorf("while another process probes: %v", err)
	}
	first.end()
	if err := second.begin(a, t0.Add(time.Minute)); err != nil {
		t.Errorf("when it has ended, and the first run is a minute old: %v", err)
	}
	second.end()
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// What was begun is unknown where the file makes no sense: nothing begins for a
// minute, and then all is well.
func TestPunchFileBroken(t *testing.T) {
	a := netip.MustParseAddr("20.0.0.1")
	t0 := time.Unix(1e9, 0)
	full, err := json.Marshal(punchRecord{Version: 1, Begun: make([]punchEntry, punchesPerSocket+1)})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"no JSON":         "x",
		"half a write":    `{"v":1,"begun":[{"target":"20.0.0.1","at_un`,
		"more behind it":  `{"v":1,"begun":[]}}]}`,
		"of a later time": `{"v":2,"begun":[]}`,
		"no address":      `{"v":1,"begun":[{"target":"","at_unix_ms":1}]}`,
		"too many":        string(full),
		"too long":        `{"v":1,"begun":[]}` + string(make([]byte, maxPunchFile)),
	} {
		path := filepath.Join(t.TempDir(), "probing")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			after time.Duration
			want  error
		}{{0, ErrProbedOften}, {59 * time.Second, ErrProbedOften}, {time.Minute, nil}} {
			l := punchLimit{path: path}
			if err := l.begin(a, t0.Add(step.after)); !errors.Is(err, step.want) {
				t.Errorf("%s, after %s: %v", name, step.after, err)
			}
			l.end()
		}
		if info, err := os.Stat(path); err != nil || info.Size() > maxPunchFile {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// A clock that was set back by an hour neither hides runs nor forbids them for an
// hour.
func TestPunchFileClockSetBack(t *testing.T) {
	a := netip.MustParseAddr("20.0.0.1")
	t0 := time.Unix(1e9, 0)
	path := filepath.Join(t.TempDir(), "probing")
	begin := func(at time.Time) error {
		l := punchLimit{path: path}
		defer l.end()
		return l.begin(a, at)
	}
	for range punchesPerTarget {
		if err := begin(t0.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin(t0); !errors.Is(err, ErrProbedOften) {
		t.Errorf("at once: %v", err)
	}
	if err := begin(t0.Add(time.Minute)); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

// Without a folder to write to, each socket bounds its own runs.
func TestPunchFileCannotBeHad(t *testing.T) {
	a := netip.MustParseAddr("20.0.0.1")
	t0 := time.Unix(1e9, 0)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := punchLimit{path: filepath.Join(file, "probing")}
	for i := range punchesPerTarget + 1 {
		err := l.begin(a, t0)
		if (err == nil) != (i < punchesPerTarget) || err != nil && !errors.Is(err, ErrProbedOften) {
			t.Errorf("run %d: %v", i, err)
		}
		l.end()
	}
}

// Sockets of one file take turns.
func TestPunchFileOfSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "probing")
	cfg := SocketConfig{Loopback: true, PunchFile: path}
	first, second, easy := newParty(t, cfg), newParty(t, cfg), newParty(t, SocketConfig{Loopback: true})
	_, end, err := first.socket.beginPunch(testContext(t), netip.MustParseAddr("127.0.0.1"), time.Now().Add(time.Second), first.creds, easy.creds)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.socket.ProbePorts(testContext(t), probeConfig(second, easy, true)); !errors.Is(err, ErrProbing) {
		t.Errorf("ports: %v", err)
	}
	if _, err := second.socket.OpenFan(testContext(t), fanConfig(second, easy, true)); !errors.Is(err, ErrProbing) {
		t.Errorf("fan: %v", err)
	}
	end()
}
