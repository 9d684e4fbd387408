package node

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigNetwork(t *testing.T) {
	tests := []struct{ name, doc, err string }{
		{"relay", "[client]\nrelay = \"never\"\nport_mapping = false\n[miner]\nrelay = \"always\"", ""},
		{"relay of no mode", "[client]\nrelay = \"off\"", `:2: relay must be "auto"`},
		{"relay of no mode, miner", "[miner]\nrelay = \"\"", `:2: relay must be "auto"`},
		{"relay of a wrong kind", "[client]\nrelay = true", ":2: relay must be text in quotes"},
		{"port mapping of a wrong kind", "[coordinator]\nport_mapping = \"yes\"", ":2: port_mapping must be true or false"},
		{"stun off", "[coordinator]\nstun = \"\"", ""},
		{"stun any port", "[coordinator]\nstun = \"127.0.0.1:0\"", ""},
		{"stun of its own", "[coordinator]\nstun = \":5000\"", ""},
		{"stun without port", "[coordinator]\nstun = \"3478\"", ":2: stun must be host:port"},
		{"stun's next port is none", "[coordinator]\nstun = \":65535\"", ":2: stun needs the next port"},
		{"stun and relay, not alike", "[coordinator]\nstun = \"127.0.0.1:3478\"", ":2: stun and [coordinator.turn] listen have one port"},
		{"stun and relay's port is another's relay", "[coordinator]\nstun = \"127.0.0.1:3478\"\nturn.enabled = false", ""},
		{"stun's next port is the relay's", "[coordinator]\nstun = \":3477\"", ":2: stun takes port 3478 as well"},
		{"stun's port is signaling's", "[coordinator]\nstun = \":4433\"", ":2: stun takes ports 4433 and 4434"},
		{"stun's next port is signaling's", "[coordinator]\nstun = \":4432\"", ":2: stun takes ports 4432 and 4433"},
		{"tls off", "[coordinator.tls]\nlisten = \"\"", ""},
		{"tls", "[coordinator.tls]\nlisten = \"127.0.0.1:8443\"\ncert_file = \"a.crt\"\nkey_file = \"a.key\"", ""},
		{"tls without port", "[coordinator.tls]\nlisten = \"443\"", ":2: listen must be host:port"},
		{"certificate without key", "[coordinator.tls]\ncert_file = \"a.crt\"", ":2: cert_file and key_file: write both"},
		{"key without certificate", "[coordinator.tls]\nkey_file = \"a.key\"", "cert_file and key_file: write both"},
		{"acme", "[coordinator.tls]\nacme = [\"mint.example.org\"]", ""},
		{"acme and files", "[coordinator.tls]\nacme = [\"mint.example.org\"]\ncert_file = \"a.crt\"\nkey_file = \"a.key\"", ":2: acme and cert_file: write one"},
		{"acme for an address", "[coordinator.tls]\nacme = [\"192.0.2.1\"]", ":2: acme must be host names"},
		{"acme for a wildcard", "[coordinator.tls]\nacme = [\"*.example.org\"]", ":2: acme must be host names"},
		{"acme for a local name", "[coordinator.tls]\nacme = [\"localhost\"]", ":2: acme must be host names"},
		{"a key in the file", "[coordinator.tls]\nprivate_key = \"canary\"", ":2: private_key: no secrets in this file: write key_file"},
	}
	for _, tt := range tests {
		_, err := parse(t, tt.doc, nil)
		switch {
		case tt.err == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: got %v, want …%s…", tt.name, err, tt.err)
		}
	}
	dir := t.TempDir()
	cfg, err := parseConfig(filepath.Join(dir, "c.toml"), []byte("[coordinator.tls]\ncert_file = \"~/a.crt\"\nkey_file = \"b.key\""),
		false, envOf(map[string]string{"HOME": "/home/u"}))
	if err != nil || cfg.Coordinator.TLS.KeyFile != filepath.Join(dir, "b.key") || cfg.Coordinator.TLS.CertFile != filepath.Join("/home/u", "a.crt") {
		t.Errorf("paths: %+v, %v", cfg, err)
	}
}
