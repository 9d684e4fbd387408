package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"mintai/identity"
)

// maxConfigFile bounds a configuration file, in bytes.
const maxConfigFile = 1 << 20

// Config is what a TOML file says, over the defaults. config.example.toml
// documents every key; a test keeps the two alike.
type Config struct {
	Path        string            `toml:"-"` // the file; empty: defaults only
	Warnings    []string          `toml:"-"` // one line each; nothing that stops
	Coordinator CoordinatorConfig `toml:"coordinator"`
	Miner       MinerConfig       `toml:"miner"`
	Client      ClientConfig      `toml:"client"`
}

// CoordinatorConfig is [coordinator].
type CoordinatorConfig struct {
	Listen      string               `toml:"listen"`       // UDP host:port
	Public      []string             `toml:"public"`       // host or host:port for the printed links, best first; empty: found out
	Access      string               `toml:"access"`       // AccessLink or AccessOpen
	Metrics     string               `toml:"metrics"`      // TCP host:port of /metrics and /healthz; empty: off
	STUN        string               `toml:"stun"`         // UDP host:port of address probes, which also take the next port; empty: off
	PortMapping bool                 `toml:"port_mapping"` // ask the router to forward the ports, when nothing here is public
	Relays      []string             `toml:"relays"`       // that are lent, the preferred first: RelayOwn or URLs, at most two; empty: none
	TLS         TLSConfig            `toml:"tls"`
	TURN        TURNConfig           `toml:"turn"`
	Deadlines   CoordinatorDeadlines `toml:"deadlines"`
}

// TLSConfig is [coordinator.tls]: signaling and relay for networks that let no
// UDP through. Who is at either end is decided inside of it, by NodeIDs, so that
// any certificate does.
type TLSConfig struct {
	Listen   string   `toml:"listen"`    // TCP host:port; empty: off
	CertFile string   `toml:"cert_file"` // PEM; empty: self-signed
	KeyFile  string   `toml:"key_file"`  // PEM
	ACME     []string `toml:"acme"`      // host names to get certificates for, instead of files; empty: none
}

// RelayMode is when a node lets its packets take a relay.
type RelayMode string

// The values of RelayMode.
const (
	RelayAuto   RelayMode = "auto"   // when there is no direct path
	RelayNever  RelayMode = "never"  // no direct path is an error
	RelayAlways RelayMode = "always" // direct paths are not tried, and the peer never sees this node's addresses
)

// The values of CoordinatorConfig.Access.
const (
	AccessLink = "link" // holders of the join link and processes of the same user
	AccessOpen = "open" // everybody
)

// RelayOwn is the relay inside the coordinator, in CoordinatorConfig.Relays.
const RelayOwn = "own"

// TURNConfig is [coordinator.turn]: the relay that is lent when no direct path
// exists.
type TURNConfig struct {
	Enabled    bool            `toml:"enabled"`
	Listen     string          `toml:"listen"`      // UDP host:port of the own relay
	Ports      PortRange       `toml:"ports"`       // of the relayed addresses
	RelayIP    string          `toml:"relay_ip"`    // the address that peers reach; empty: found out
	SecretFile string          `toml:"secret_file"` // shared with relays that somebody else runs (coturn: static-auth-secret)
	SecretEnv  string          `toml:"secret_env"`  // or the name of an environment variable
	Secret     identity.Secret `toml:"-"`           // what SecretFile or SecretEnv held
}

// CoordinatorDeadlines is [coordinator.deadlines].
type CoordinatorDeadlines struct {
	Offer     time.Duration `toml:"offer"`      // for a miner to take an offer; then the next miner
	HeadStart time.Duration `toml:"head_start"` // of the direct path before a client starts the relay
	Lease     time.Duration `toml:"lease"`      // a miner's statement of readiness lives so long
	Session   time.Duration `toml:"session"`    // a grant lives so long, unless renewed
}

// MinerConfig is [miner].
type MinerConfig struct {
	Join        identity.Link   `toml:"join"`      // zero: the coordinator of this user on this machine
	JoinFile    string          `toml:"join_file"` // holds the link, instead of join
	Name        string          `toml:"name"`      // shown to people; empty: the machine's
	Metrics     string          `toml:"metrics"`   // TCP host:port of /metrics and /healthz; empty: off
	Backends    []BackendConfig `toml:"backend"`
	Queue       int             `toml:"queue"` // requests that wait for a slot; one more is refused as busy
	Relay       RelayMode       `toml:"relay"`
	PortMapping bool            `toml:"port_mapping"`     // ask the router to forward a port to this node
	Probing     bool            `toml:"hard_nat_probing"` // as in [client]
	PadAnswers  bool            `toml:"pad_answers"`      // packets of one length, whatever the tokens are
	Deadlines   MinerDeadlines  `toml:"deadlines"`
}

// BackendConfig is one [[miner.backend]].
type BackendConfig struct {
	Type            string          `toml:"type"` // auto ollama openai builtin demo
	URL             string          `toml:"url"`
	APIKeyEnv       string          `toml:"api_key_env"`       // the name of an environment variable
	APIKeyFile      string          `toml:"api_key_file"`      // or a file
	APIKey          identity.Secret `toml:"-"`                 // what APIKeyEnv or APIKeyFile held
	Models          []string        `toml:"models"`            // globs
	Slots           int             `toml:"slots"`             // requests at a time; 0: by type
	FirstToken      time.Duration   `toml:"first_token"`       // demo only
	TokensPerSecond float64         `toml:"tokens_per_second"` // demo only; 0: its default
	Tokens          int             `toml:"tokens"`            // demo only; 0: its default
}

// MinerDeadlines is [miner.deadlines].
type MinerDeadlines struct {
	ResumeWindow time.Duration `toml:"resume_window"` // an answer outlives its lost connection so long
	Drain        time.Duration `toml:"drain"`         // for running answers at shutdown
	MaxIdle      time.Duration `toml:"max_idle"`      // of a tunnel that hears nothing
}

// ClientConfig is [client].
type ClientConfig struct {
	Join        identity.Link `toml:"join"`      // zero: remembered by 'join', or the coordinator of this user on this machine
	JoinFile    string        `toml:"join_file"` // holds the link, instead of join
	Name        string        `toml:"name"`      // shown to people; empty: the machine's
	Model       string        `toml:"model"`     // model, model@miner or @miner; empty: any
	Listen      string        `toml:"listen"`    // TCP host:port of the local endpoint
	Origins     []string      `toml:"origins"`   // web pages that may use the local endpoint
	Metrics     string        `toml:"metrics"`   // TCP host:port of /metrics and /healthz; empty: off
	Relay       RelayMode     `toml:"relay"`
	PortMapping bool          `toml:"port_mapping"`     // ask the router to forward a port to this node
	Probing     bool          `toml:"hard_nat_probing"` // find a direct path through a NAT that maps per destination by many ports
	Deadlines   Deadlines     `toml:"deadlines"`
}

// Deadlines is [client.deadlines]: how long the client waits for each step of
// an ask (docs/architecture.md, "The path of one ask").
type Deadlines struct {
	Match      time.Duration `toml:"match"`       // for the coordinator's answer
	Direct     time.Duration `toml:"direct"`      // for a direct path
	Relay      time.Duration `toml:"relay"`       // for a relayed path, from its start
	QUIC       time.Duration `toml:"quic"`        // for one QUIC handshake
	Resume     time.Duration `toml:"resume"`      // for a miner that fell silent in an answer to be reached over another path
	FirstByte  time.Duration `toml:"first_byte"`  // for the answer's first byte: models load slowly
	IdleTunnel time.Duration `toml:"idle_tunnel"` // an unused tunnel is kept so long
	MaxIdle    time.Duration `toml:"max_idle"`    // of a tunnel that hears nothing
	Report     time.Duration `toml:"report"`      // between two reports of a tunnel's health
}

// PortRange is a range of UDP ports, both ends included.
type PortRange struct{ Min, Max uint16 }

// String returns the TOML form, such as "49160-49259".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.Min, r.Max) }

// defaultTLSListen is where blocked networks most likely let a connection out
// to. A coordinator that may not have this port takes another one.
const defaultTLSListen = ":443"

// DefaultConfig returns what applies where nothing is written.
func DefaultConfig() *Config {
	return &Config{
		Coordinator: CoordinatorConfig{
			Listen: ":4433", Access: AccessLink, Metrics: "127.0.0.1:9464",
			STUN: ":3478", PortMapping: true, Relays: []string{RelayOwn}, TLS: TLSConfig{Listen: defaultTLSListen},
			TURN: TURNConfig{Enabled: true, Listen: ":3478", Ports: PortRange{Min: 49160, Max: 49259}},
			Deadlines: CoordinatorDeadlines{
				Offer: time.Second, HeadStart: 250 * time.Millisecond, Lease: time.Minute, Session: time.Hour,
			},
		},
		Miner: MinerConfig{
			Metrics: "127.0.0.1:9465", Backends: []BackendConfig{defaultBackend()}, Queue: 8,
			Relay: RelayAuto, PortMapping: true, Probing: true, PadAnswers: true,
			Deadlines: MinerDeadlines{ResumeWindow: 30 * time.Second, Drain: 30 * time.Second, MaxIdle: 30 * time.Second},
		},
		Client: ClientConfig{
			Listen: "127.0.0.1:11500", Metrics: "127.0.0.1:9466", Relay: RelayAuto, PortMapping: true, Probing: true,
			Deadlines: Deadlines{
				Match: 5 * time.Second, Direct: 3 * time.Second, Relay: 5 * time.Second, QUIC: 5 * time.Second,
				Resume: 3 * time.Second, FirstByte: 2 * time.Minute, IdleTunnel: 5 * time.Minute, MaxIdle: 30 * time.Second, Report: 10 * time.Second,
			},
		},
	}
}

func defaultBackend() BackendConfig { return BackendConfig{Type: "auto", Models: []string{"*"}} }

// Problem is one thing that is wrong in a configuration file.
type Problem struct {
	Line    int    // 0: of no line in particular
	Key     string // such as "miner.backend[0].url"; empty: of no key
	Message string // what is wrong and what to write instead, one line, never a secret
}

// ConfigError is everything that is wrong in a configuration file, in the
// order of its lines.
type ConfigError struct {
	Path     string
	Problems []Problem
}

// Error puts each problem on a line of its own, as path:line: message.
func (e *ConfigError) Error() string { return strings.Join(e.Lines(), "\n") }

// Lines returns the problems as path:line: message.
func (e *ConfigError) Lines() []string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		if p.Line > 0 {
			lines[i] = fmt.Sprintf("%s:%d: %s", e.Path, p.Line, p.Message)
		} else {
			lines[i] = fmt.Sprintf("%s: %s", e.Path, p.Message)
		}
	}
	return lines
}

// LoadConfig reads the TOML file at path over the defaults, and the secrets
// from the files and environment variables that it names (files relative to
// its own folder). An empty path gives the defaults. What is wrong in the file
// is a *ConfigError with all of it; a file that cannot be read is an error of
// package os.
func LoadConfig(path string, getenv func(string) string) (*Config, error) {
	if path == "" {
		return DefaultConfig(), nil
	}
	data, exposed, err := readConfigFile(path)
	if err != nil {
		return nil, err
	}
	return parseConfig(path, data, exposed, getenv)
}

// readConfigFile also reports whether other users can read the file.
func readConfigFile(path string) (data []byte, exposed bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, fmt.Errorf("configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, false, fmt.Errorf("configuration: %w", err)
	}
	data, err = io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err != nil {
		return nil, false, fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxConfigFile {
		return nil, false, &ConfigError{Path: path, Problems: []Problem{{Message: "longer than 1 MiB: not a configuration"}}}
	}
	return data, othersCanRead(info), nil
}

// parseConfig is LoadConfig without the file itself.
func parseConfig(path string, data []byte, exposed bool, getenv func(string) string) (*Config, error) {
	var raw map[string]any
	if _, err := toml.Decode(string(data), &raw); err != nil {
		return nil, &ConfigError{Path: path, Problems: []Problem{syntaxProblem(data, err)}}
	}
	cfg := DefaultConfig()
	cfg.Path = path
	d := &configDecoder{problemList: problemList{lines: keyLines(string(data))}, broken: map[string]bool{}}
	d.decode(raw, cfg)
	c := &configChecker{cfg: cfg, problems: &d.problemList, dir: filepath.Dir(path), getenv: getenv, broken: d.broken, exposed: exposed}
	c.check()
	if len(d.problems) > 0 {
		d.sort()
		return nil, &ConfigError{Path: path, Problems: d.problems}
	}
	return cfg, nil
}

// syntaxProblem turns the parser's error into ours. The parser quotes what it
// did not understand, which is withheld where that could be a secret.
func syntaxProblem(data []byte, err error) Problem {
	var perr toml.ParseError
	if !errors.As(err, &perr) {
		return Problem{Message: "not valid TOML"}
	}
	text := strings.TrimSpace(strings.ReplaceAll(perr.Message, "\n", " "))
	lines := strings.Split(string(data), "\n")
	if n := perr.Position.Line; n < 1 || n > len(lines) || secretWords().MatchString(lines[n-1]) || secretWords().MatchString(perr.LastKey) {
		text = "a value is not written as TOML wants it (text stands in double quotes)"
	}
	return Problem{Line: perr.Position.Line, Key: perr.LastKey, Message: "not valid TOML: " + text}
}
