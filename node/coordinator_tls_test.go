package node

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// spare is a second coordinator of the lab that is not run.
func (l *lab) spare(log *bytes.Buffer, change func(*coordinatorConfig)) (*coordinator, error) {
	l.t.Helper()
	config := l.config
	config.Listen, config.TLS, config.Metrics = "127.0.0.1:0", tlsSettings{}, nil
	config.Reputation, config.Log = l.t.TempDir()+"/r.db", zerolog.New(log)
	change(&config)
	return newCoordinator(config)
}

// Authorities look at TCP 443 only: elsewhere no certificate is to be had by ACME,
// and the operator learns it at once.
func TestACMEElsewhere(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	first := taken(t)
	for name, c := range map[string]struct {
		tls   tlsSettings
		notes int
	}{
		"the default port is taken": {tlsSettings{Listen: first, Otherwise: "127.0.0.1:0", ACME: []string{"a.example.org"}}, 2},
		"another port":              {tlsSettings{Listen: "127.0.0.1:0", ACME: []string{"a.example.org"}}, 1},
		"no ACME":                   {tlsSettings{Listen: "127.0.0.1:0"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var out, log bytes.Buffer
			c.tls.ACMECache = t.TempDir()
			co, err := l.spare(&log, func(cfg *coordinatorConfig) { cfg.TLS = c.tls })
			if err != nil {
				t.Fatal(err)
			}
			defer co.close()
			co.announce(&out, l.join, nil)
			const line = "ACME: no certificate for a.example.org is issued or renewed unless TCP 443"
			if len(co.tlsNotes) != c.notes || strings.Contains(out.String(), line) != (len(c.tls.ACME) > 0) {
				t.Errorf("%d notes\n%s", len(co.tlsNotes), out.String())
			}
			if strings.Contains(log.String(), "authorities ask at TCP 443 only") != (len(c.tls.ACME) > 0) {
				t.Error(log.String())
			}
		})
	}
}

// Who is to move a port that is taken learns of everything that must move.
func TestHintForTakenSTUNPort(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	for relay, want := range map[string]string{
		conn.LocalAddr().String(): "choose another port with [coordinator] stun and the same with [coordinator.turn] listen",
		"127.0.0.1:0":             "choose another port with [coordinator] stun",
	} {
		co, err := l.spare(new(bytes.Buffer), func(cfg *coordinatorConfig) {
			cfg.STUN, cfg.TURN.Listen = conn.LocalAddr().String(), relay
		})
		if err == nil {
			co.close()
		}
		var e *Error
		if !errors.As(err, &e) || e.Hint != want {
			t.Errorf("%v", err)
		}
	}
}
