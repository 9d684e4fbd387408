package node

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"mintai/identity"
	"mintai/signal"
)

const (
	maxNameBytes  = 64
	maxSlots      = 4096
	maxQueue      = 1024
	maxSecretFile = 64 << 10
	maxDeadline   = 30 * 24 * time.Hour
)

var (
	envName  = pattern(`^[A-Z_][A-Z0-9_]{0,127}$`)
	hostName = pattern(`(?i)^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	nodeName = pattern(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
)

// BackendTypes lists what [[miner.backend]] type may be.
var BackendTypes = []string{"auto", "ollama", "openai", "builtin", "demo"}

// configChecker judges what the values mean, and reads the secrets that they
// point to.
type configChecker struct {
	cfg      *Config
	problems *problemList
	broken   map[string]bool // keys that have a problem already
	dir      string          // of the file
	getenv   func(string) string
	exposed  bool // the file can be read by others
}

func (c *configChecker) fail(key, format string, args ...any) {
	if !c.broken[key] {
		c.problems.add(key, format, args...)
	}
}

func (c *configChecker) warn(key, format string, args ...any) {
	c.cfg.Warnings = append(c.cfg.Warnings,
		fmt.Sprintf("%s:%d: %s", c.cfg.Path, c.problems.lineOf(key), fmt.Sprintf(format, args...)))
}

func (c *configChecker) check() {
	c.coordinator(&c.cfg.Coordinator)
	c.miner(&c.cfg.Miner)
	c.client(&c.cfg.Client)
}

func (c *configChecker) coordinator(k *CoordinatorConfig) {
	c.listen("coordinator.listen", k.Listen, false)
	c.metrics("coordinator.metrics", k.Metrics)
	if k.Access != AccessLink && k.Access != AccessOpen {
		c.fail("coordinator.access", "access must be %q (holders of the join link) or %q (everybody), not %q", AccessLink, AccessOpen, k.Access)
	}
	for i, host := range k.Public {
		if !isPublicHost(host) {
			c.fail(indexKey("coordinator.public", i), "public must be host names or IP addresses, each with or without :port, not %q", host)
		}
	}
	c.tls(&k.TLS)
	c.turn(&k.TURN)
	c.relays(k)
	c.stun(k)
	c.durations("coordinator.deadlines", reflect.ValueOf(k.Deadlines))
}

func (c *configChecker) tls(t *TLSConfig) {
	const at = "coordinator.tls."
	if t.Listen != "" {
		c.listen(at+"listen", t.Listen, false)
	}
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		c.fail(at+"cert_file", "cert_file and key_file: write both of them, or none for a self-signed certificate")
	case t.CertFile != "" && len(t.ACME) > 0:
		c.fail(at+"acme", "acme and cert_file: write one of them")
	}
	t.CertFile, t.KeyFile = c.path(t.CertFile), c.path(t.KeyFile)
	for i, host := range t.ACME {
		_, isIP := splitIP(host)
		if isIP || len(host) > 253 || !hostName().MatchString(host) || !strings.Contains(host, ".") {
			c.fail(indexKey(at+"acme", i), "acme must be host names that lead to this machine, such as \"coordinator.example.org\", not %q", host)
		}
	}
}

// stun checks that the two ports for probes are no others' ports. Only those of
// the relay may be shared.
func (c *configChecker) stun(k *CoordinatorConfig) {
	const at = "coordinator.stun"
	if k.STUN == "" || c.broken[at] {
		return
	}
	c.listen(at, k.STUN, false)
	host, port, ok := hostPort(k.STUN)
	if !ok || port == 0 {
		return
	}
	if port == 65535 {
		c.fail(at, "stun needs the next port as well: write at most 65534")
		return
	}
	turnHost, turnPort, turns := hostPort(k.TURN.Listen)
	turns = turns && k.TURN.Enabled && slices.Contains(k.Relays, RelayOwn)
	_, signals, _ := hostPort(k.Listen)
	switch {
	case turns && turnPort == port && turnHost != host:
		c.fail(at, "stun and [coordinator.turn] listen have one port, so they must be written alike")
	case turns && turnPort == port+1:
		c.fail(at, "stun takes port %d as well, which is that of [coordinator.turn] listen", port+1)
	case signals == port, signals == port+1:
		c.fail(at, "stun takes ports %d and %d, and one of them is that of [coordinator] listen", port, port+1)
	}
}

// hostPort splits an address that listen accepts.
func hostPort(addr string) (host string, port uint16, ok bool) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, false
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return host, uint16(n), err == nil
}

// relay checks when a node lets its packets take a relay.
func (c *configChecker) relay(at string, mode RelayMode) {
	switch mode {
	case RelayAuto, RelayNever, RelayAlways:
	default:
		c.fail(at, "relay must be %q (when there is no direct path), %q or %q, not %q", RelayAuto, RelayNever, RelayAlways, string(mode))
	}
}

func (c *configChecker) turn(t *TURNConfig) {
	const at = "coordinator.turn."
	c.listen(at+"listen", t.Listen, false)
	if t.RelayIP != "" {
		if ip, ok := splitIP(t.RelayIP); !ok || ip.IsUnspecified() {
			c.fail(at+"relay_ip", "relay_ip must be the IP address at which others reach this machine, not %q", t.RelayIP)
		}
	}
	t.Secret = c.secret(at+"secret", t.SecretEnv, t.SecretFile)
}

// maxRelays is how many relays a grant names.
const maxRelays = 1 + signal.MaxMoreRelays

// relays checks which relays are lent.
func (c *configChecker) relays(k *CoordinatorConfig) {
	const at = "coordinator.relays"
	if len(k.Relays) > maxRelays {
		c.fail(at, "relays are at most %d", maxRelays)
	}
	others := false
	for i, r := range k.Relays {
		switch {
		case slices.Contains(k.Relays[:i], r):
			c.fail(indexKey(at, i), "relays has %q twice", r)
		case r == RelayOwn:
		case isTURNURL(r):
			others = true
		default:
			c.fail(indexKey(at, i), "relays must be %q or like \"turn:relay.example.org:3478?transport=udp\" (RFC 7065), not %q", RelayOwn, r)
		}
	}
	hasSecret := k.TURN.SecretEnv != "" || k.TURN.SecretFile != ""
	switch {
	case others && !hasSecret:
		c.fail(at, "relays of others need secret_file or secret_env in [coordinator.turn]: the secret shared with them (coturn: static-auth-secret)")
	case !others && hasSecret:
		c.fail("coordinator.turn.secret_file", "a secret without relays of others in [coordinator] relays: the coordinator's own needs none")
	}
}

func (c *configChecker) miner(m *MinerConfig) {
	c.name("miner.name", m.Name)
	c.metrics("miner.metrics", m.Metrics)
	c.join("miner", &m.Join, m.JoinFile)
	if m.Queue < 0 || m.Queue > maxQueue {
		c.fail("miner.queue", "queue must be from 0 to %d", maxQueue)
	}
	if len(m.Backends) == 0 {
		c.fail("miner.backend", "backend is empty: leave it out for the default, or write a [[miner.backend]]")
	}
	for i := range m.Backends {
		c.backend(indexKey("miner.backend", i)+".", &m.Backends[i])
	}
	c.relay("miner.relay", m.Relay)
	c.durations("miner.deadlines", reflect.ValueOf(m.Deadlines))
}

func (c *configChecker) backend(at string, b *BackendConfig) {
	if !slices.Contains(BackendTypes, b.Type) {
		hint := "it must be one of " + strings.Join(BackendTypes, ", ")
		if near := nearest(strings.ToLower(b.Type), BackendTypes); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.fail(at+"type", "unknown type %q: %s", b.Type, hint)
		return
	}
	served := b.Type == "ollama" || b.Type == "openai"
	switch {
	case b.URL == "" && b.Type == "openai":
		c.fail(at+"url", "type \"openai\" needs url, such as \"http://127.0.0.1:8000\"")
	case b.URL != "" && !served:
		c.fail(at+"url", "url is of no use with type %q: write type = \"ollama\" or \"openai\"", b.Type)
	case b.URL != "":
		c.backendURL(at+"url", b.URL)
	}
	if (b.APIKeyEnv != "" || b.APIKeyFile != "") && !served {
		c.fail(at+"api_key_env", "an API key is of no use with type %q: write type = \"openai\" and url", b.Type)
	} else {
		b.APIKey = c.secret(at+"api_key", b.APIKeyEnv, b.APIKeyFile)
	}
	if len(b.Models) == 0 {
		c.fail(at+"models", "models is empty: write [\"*\"] for all, or leave it out")
	}
	for i, glob := range b.Models {
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			c.fail(indexKey(at+"models", i), "%q is no pattern: * stands for any letters, ? for one, [ab] for a or b", glob)
		}
	}
	if b.Slots < 0 || b.Slots > maxSlots {
		c.fail(at+"slots", "slots must be from 0 (by type) to %d", maxSlots)
	}
	c.demo(at, b)
}

func (c *configChecker) demo(at string, b *BackendConfig) {
	if b.Type != "demo" {
		for key, set := range map[string]bool{
			"first_token": b.FirstToken != 0, "tokens_per_second": b.TokensPerSecond != 0, "tokens": b.Tokens != 0,
		} {
			if set {
				c.fail(at+key, "%s is only for type \"demo\"", key)
			}
		}
		return
	}
	if b.FirstToken < 0 || b.FirstToken > time.Hour {
		c.fail(at+"first_token", "first_token must be from \"0ms\" to \"1h\"")
	}
	if b.TokensPerSecond < 0 || b.TokensPerSecond > 1e6 || math.IsNaN(b.TokensPerSecond) {
		c.fail(at+"tokens_per_second", "tokens_per_second must be from 0 to 1000000")
	}
	if b.Tokens < 0 || b.Tokens > 10_000_000 {
		c.fail(at+"tokens", "tokens must be from 0 to 10000000")
	}
}

// backendURL never repeats the URL: a key may hide in it.
func (c *configChecker) backendURL(at, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		c.fail(at, "url must start with http:// or https:// and a host, such as \"http://127.0.0.1:11434\"")
	case u.User != nil:
		c.fail(at, "url: no secrets in this file: take the name and password out of it and write api_key_file or api_key_env")
	case u.RawQuery != "" || u.Fragment != "":
		c.fail(at, "url ends with its path: take out what stands behind ? or #; an API key belongs in api_key_file or api_key_env")
	}
}

func (c *configChecker) client(k *ClientConfig) {
	c.name("client.name", k.Name)
	c.listen("client.listen", k.Listen, true)
	c.metrics("client.metrics", k.Metrics)
	c.join("client", &k.Join, k.JoinFile)
	for i, origin := range k.Origins {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || u.Scheme+"://"+u.Host != origin {
			c.fail(indexKey("client.origins", i), "origins must be like \"https://app.example.org\", without a path, not %q", origin)
		}
	}
	c.relay("client.relay", k.Relay)
	c.durations("client.deadlines", reflect.ValueOf(k.Deadlines))
}

// join reads join_file, and warns of a link with a secret that others can read.
func (c *configChecker) join(table string, link *identity.Link, file string) {
	at := table + ".join_file"
	if !link.IsZero() && link.Secret != "" && c.exposed {
		c.warn(table+".join", "join holds a secret and other users can read this file; run: chmod 600 %s", c.cfg.Path)
	}
	if file == "" {
		return
	}
	if !link.IsZero() {
		c.fail(at, "join and join_file: write one of them")
		return
	}
	text, err := c.readSecret(at, file)
	if err != nil {
		c.fail(at, "join_file: %s", err)
		return
	}
	parsed, err := identity.ParseLink(text.Reveal())
	if err != nil {
		c.fail(at, "join_file: %s", err)
		return
	}
	*link = parsed
}

// secret reads the secret that key_env or key_file points to.
func (c *configChecker) secret(key, env, file string) identity.Secret {
	short := lastKey(key)
	switch {
	case env != "" && file != "":
		c.fail(key+"_env", "%s_env and %s_file: write one of them", short, short)
	case env != "" && !envName().MatchString(env):
		// What stands there may be the secret itself: do not repeat it.
		c.fail(key+"_env", "%s_env is the name of an environment variable, in capitals, such as \"OPENAI_API_KEY\"; not the secret itself", short)
	case env != "":
		value := strings.TrimSpace(c.getenv(env))
		if value == "" {
			c.fail(key+"_env", "%s_env: the environment variable that it names is not set", short)
		}
		return identity.Secret(value)
	case file != "":
		s, err := c.readSecret(key+"_file", file)
		if err != nil {
			c.fail(key+"_file", "%s_file: %s", short, err)
		}
		return s
	}
	return ""
}

// path completes the name of a file: a relative one starts at the
// configuration's folder. None stays none.
func (c *configChecker) path(name string) string {
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		return filepath.Join(c.getenv("HOME"), rest)
	}
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.dir, name)
}

// readSecret reads a small file without the white space around its text.
func (c *configChecker) readSecret(key, name string) (identity.Secret, error) {
	name = c.path(name)
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", fmt.Errorf("%s is a folder", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxSecretFile:
		return "", fmt.Errorf("%s is longer than 64 KiB", name)
	case text == "":
		return "", fmt.Errorf("%s is empty", name)
	case strings.ContainsAny(text, "\r\n\x00"):
		return "", fmt.Errorf("%s has more than one line", name)
	}
	if othersCanRead(info) {
		c.warn(key, "other users can read %s; run: chmod 600 %s", name, name)
	}
	return identity.Secret(text), nil
}

func (c *configChecker) name(at, name string) {
	if name != "" && (len(name) > maxNameBytes || !nodeName().MatchString(name)) {
		c.fail(at, "name must be up to %d letters, digits and . _ - inside, such as \"gpu-box\", not %q", maxNameBytes, name)
	}
}

// listen checks host:port. The host may be empty, unless local is set.
func (c *configChecker) listen(at, addr string, local bool) {
	example := `":4433"`
	if local {
		example = `"127.0.0.1:11500"`
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if _, isIP := splitIP(host); err != nil || host != "" && !isIP && !hostName().MatchString(host) {
		c.fail(at, "%s must be host:port such as %s, not %q", lastKey(at), example, addr)
		return
	}
	if local && !isLoopbackHost(host) {
		c.warn(at, "%s is open to other machines: whoever reaches %s can use your models", lastKey(at), addr)
	}
}

func (c *configChecker) metrics(at, addr string) {
	if addr == "" {
		return
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		c.fail(at, "metrics must be host:port such as \"127.0.0.1:9464\", or \"\" for none, not %q", addr)
	} else if !isLoopbackHost(host) {
		c.warn(at, "metrics is open to other machines")
	}
}

func isLoopbackHost(host string) bool {
	ip, ok := splitIP(host)
	return ok && ip.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// durations demands that every deadline of a struct is positive.
func (c *configChecker) durations(table string, v reflect.Value) {
	for key, i := range fieldsOf(v.Type()) {
		if d := time.Duration(v.Field(i).Int()); d <= 0 || d > maxDeadline {
			c.fail(joinKey(table, key), "%s must be longer than \"0s\" and at most \"%s\"", key, "720h")
		}
	}
}

// isPublicHost accepts a host name or an IP address, with or without a port.
func isPublicHost(s string) bool {
	host := s
	if _, isIP := splitIP(s); !isIP {
		if h, port, err := net.SplitHostPort(s); err == nil {
			if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
				return false
			}
			host = h
		}
	}
	_, isIP := splitIP(host)
	return isIP || len(host) <= 253 && hostName().MatchString(host)
}

// isTURNURL accepts turn:host[:port][?transport=udp], the part of RFC 7065 §3.1
// that a client of ours can use.
func isTURNURL(s string) bool {
	rest, ok := strings.CutPrefix(s, "turn:")
	rest, query, found := strings.Cut(rest, "?")
	if !ok || found && query != "transport=udp" {
		return false
	}
	return isPublicHost(rest)
}
