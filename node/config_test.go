package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"mintai/identity"
)

const exampleConfig = "../config.example.toml"

func noEnv(string) string { return "" }

func envOf(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

// parse is parseConfig of a text, in a folder of its own.
func parse(t *testing.T, doc string, env map[string]string) (*Config, error) {
	t.Helper()
	return parseConfig(filepath.Join(t.TempDir(), "miner.toml"), []byte(doc), false, envOf(env))
}

func TestExampleConfigIsTheDefault(t *testing.T) {
	cfg, err := LoadConfig(exampleConfig, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Warnings) != 0 {
		t.Errorf("warnings: %q", cfg.Warnings)
	}
	want := DefaultConfig()
	want.Path = exampleConfig
	want.Coordinator.Public, want.Client.Origins, want.Coordinator.TLS.ACME = []string{}, []string{}, []string{} // written as empty lists
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("config.example.toml loads as\n%+v\nthe defaults are\n%+v", cfg, want)
	}
}

// The values behind "#" must be right as well: uncommented, they load.
func TestExampleConfigComments(t *testing.T) {
	data, err := os.ReadFile(exampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"openai.key": "k", "turn.secret": "s", "join.link": "mintai://coordinator.example.org",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := envOf(map[string]string{"OPENAI_API_KEY": "k", "TURN_SECRET": "s"})
	comment := regexp.MustCompile(`(?m)^# (\[\[|[a-z_]+ = )`)
	for _, leftOut := range []string{"_env", "_file"} { // of each secret only one may be given
		doc := comment.ReplaceAll(data, []byte("$1"))
		doc = regexp.MustCompile(`(?m)^[a-z_]+`+leftOut+` = .*$`).ReplaceAll(doc, nil)
		if leftOut == "_env" {
			doc = regexp.MustCompile(`(?m)^join = .*$`).ReplaceAll(doc, nil)
		}
		cfg, err := parseConfig(filepath.Join(dir, "all.toml"), doc, false, env)
		if err != nil {
			t.Fatalf("without %s: %v", leftOut, err)
		}
		if len(cfg.Miner.Backends) != 3 || cfg.Miner.Backends[1].APIKey != "k" || cfg.Coordinator.TURN.Secret != "s" {
			t.Errorf("without %s: %+v", leftOut, cfg)
		}
		if cfg.Miner.Join.IsZero() || cfg.Client.Join.IsZero() {
			t.Errorf("without %s: the join links were not read", leftOut)
		}
	}
}

// Every key that the program knows stands in the example.
func TestExampleConfigIsComplete(t *testing.T) {
	data, err := os.ReadFile(exampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	var visit func(path string, typ reflect.Type)
	visit = func(path string, typ reflect.Type) {
		for key, i := range fieldsOf(typ) {
			field := typ.Field(i).Type
			at := joinKey(path, key)
			switch {
			case isTable(field):
				if !bytes.Contains(data, []byte("["+at+"]")) {
					t.Errorf("[%s] is not in config.example.toml", at)
				}
				visit(at, field)
			case field.Kind() == reflect.Slice && isTable(field.Elem()):
				visit(at, field.Elem())
			case !regexp.MustCompile(`(?m)^(# )?` + key + ` = `).Match(data):
				t.Errorf("%s is not in config.example.toml", at)
			}
		}
	}
	visit("", reflect.TypeFor[Config]())
}

func TestExampleConfigRejectsUnknownKeys(t *testing.T) {
	data, err := os.ReadFile(exampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	doc := strings.Replace(string(data), "slots = 0", "slot = 0", 1)
	line := 1 + strings.Count(doc[:strings.Index(doc, "slot = 0")], "\n")
	_, err = parse(t, doc, nil)
	var cerr *ConfigError
	if !errors.As(err, &cerr) || len(cerr.Problems) != 1 || cerr.Problems[0].Line != line ||
		!strings.Contains(cerr.Problems[0].Message, `did you mean "slots"?`) {
		t.Fatalf("got %v, want line %d and the nearest key", err, line)
	}
}

func TestConfigReportsEverythingAtOnce(t *testing.T) {
	_, err := parse(t, `# a comment
[coordinator]
listen = 4433
acces = "open"
public = ["host", 5]

[coordinator.deadlines]
offer = 1
session = "soon"
lease = "-1s"

[coordinator.turn]
ports = "99-1"
password = "hunter2"

[minor]
x = 1

[miner]
origins = []

[[miner.backend]]
type = "olama"

[[miner.backend]]
type = "openai"
url = "127.0.0.1:8000"
api_key = """
sk-canary-1
"""
slots = -1
models = [
  "ok",
  "[bad",
]

[client]
join = "mintai://host/CANARY2"
listen = "11500"
deadlines = { match = "5s", "qiuc" = "1s" }
`, nil)
	var cerr *ConfigError
	if !errors.As(err, &cerr) {
		t.Fatalf("got %v", err)
	}
	want := []struct {
		line int
		text string
	}{
		{3, "listen must be text in quotes"},
		{4, `unknown key "acces" in [coordinator]: did you mean "access"?`},
		{5, "public must be a list of texts"},
		{8, `offer must be a duration in quotes, such as "5s"`},
		{9, `session must be a duration such as`},
		{10, `lease must be longer than "0s"`},
		{13, "ports must be a range"},
		{14, "password: no secrets in this file: write secret_file"},
		{16, `unknown section or key "minor" at the top of the file: did you mean "miner"?`},
		{20, `unknown key "origins" in [miner]: it belongs in [client]`},
		{23, `unknown type "olama": did you mean "ollama"?`},
		{27, "url must start with http://"},
		{28, "api_key: no secrets in this file: write api_key_file (a file's path) or api_key_env"},
		{31, "slots must be from 0"},
		{34, `"[bad" is no pattern`},
		{38, "links are lower case"},
		{39, "listen must be host:port"},
		{40, `unknown key "qiuc" in [client.deadlines]: did you mean "quic"?`},
	}
	if len(cerr.Problems) != len(want) {
		t.Errorf("%d problems instead of %d", len(cerr.Problems), len(want))
	}
	for i, p := range cerr.Problems {
		if i < len(want) && (p.Line != want[i].line || !strings.Contains(p.Message, want[i].text)) {
			t.Errorf("problem %d: line %d: %s\nwant line %d: …%s…", i, p.Line, p.Message, want[i].line, want[i].text)
		}
	}
	for _, secret := range []string{"hunter2", "canary", "CANARY"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error repeats the secret %q", secret)
		}
	}
	if !regexp.MustCompile(`(?m)^\S+miner\.toml:3: `).MatchString(err.Error()) {
		t.Errorf("no path:line: in %q", err.Error())
	}
}

func TestConfigValues(t *testing.T) {
	cfg, err := parse(t, `
[coordinator]
listen = "[::]:4000"
public = ["mint.example.org", "192.0.2.1:4433", "2001:db8::1", "[2001:db8::1]:4433"]
access = "open"
metrics = ""
turn.enabled = false
turn.ports = "50000-50100"
deadlines.offer = "1500ms"

[miner]
join = "mintai://mint.example.org:4433"
name = "gpu-box"
backend = [
  { type = "demo", first_token = "250ms", tokens_per_second = 62, tokens = 7 },
  { type = "openai", url = "https://api.example.org/v1", api_key_env = "KEY", slots = 3 },
]

[client]
model = "qwen3:8b@gpu-box"
origins = ["https://chat.example.org"]
`, map[string]string{"KEY": " sk-1\n"})
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Path = cfg.Path
	k := &want.Coordinator
	k.Listen, k.Access, k.Metrics, k.TURN.Enabled = "[::]:4000", AccessOpen, "", false
	k.Public = []string{"mint.example.org", "192.0.2.1:4433", "2001:db8::1", "[2001:db8::1]:4433"}
	k.TURN.Ports, k.Deadlines.Offer = PortRange{50000, 50100}, 1500*time.Millisecond
	want.Miner.Join = identity.Link{Addrs: []string{"mint.example.org:4433"}, STUNPort: 3478}
	want.Miner.Name = "gpu-box"
	want.Miner.Backends = []BackendConfig{
		{Type: "demo", Models: []string{"*"}, FirstToken: 250 * time.Millisecond, TokensPerSecond: 62, Tokens: 7},
		{Type: "openai", Models: []string{"*"}, URL: "https://api.example.org/v1", APIKeyEnv: "KEY", APIKey: "sk-1", Slots: 3},
	}
	want.Client.Model, want.Client.Origins = "qwen3:8b@gpu-box", []string{"https://chat.example.org"}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
}

func TestConfigRefusesSecretsInPlainText(t *testing.T) {
	const canary = "sk-canary-123"
	tests := []struct{ doc, want string }{
		{"[[miner.backend]]\napi_key = \"" + canary + "\"", "api_key_file"},
		{"[[miner.backend]]\napiKey = \"" + canary + "\"", "api_key_file"},
		{"[[miner.backend]]\napi-token = \"" + canary + "\"", "api_key_file"},
		{"[[miner.backend]]\nbearer = \"" + canary + "\"", "api_key_file"},
		{"[[miner.backend]]\ntype = \"openai\"\nurl = \"https://u:" + canary + "@h/\"", "api_key_file"},
		{"[[miner.backend]]\ntype = \"openai\"\nurl = \"https://h/?key=" + canary + "\"", "api_key_file"},
		{"[[miner.backend]]\ntype = \"openai\"\nurl = \"http://h\"\napi_key_env = \"" + canary + "\"", "name of an environment variable"},
		{"[[miner.backend]]\napi_key = " + canary, "not valid TOML"},
		{"[[miner.backend]]\napi_key = 12" + canary, "not valid TOML"},
		{"[coordinator.turn]\nsecret = \"" + canary + "\"", "secret_file"},
		{"[coordinator.turn]\nstatic-auth-secret = \"" + canary + "\"", "secret_file"},
		{"[coordinator]\nsecret = \"" + canary + "\"", "state folder"},
		{"[miner]\njoin_token = \"" + canary + "\"", "join_file"},
		{"[client]\napi_key = \"" + canary + "\"", "join_file"},
		{"[client]\njoin = \"mintai://h/x/" + canary + "\"", "paste the whole link"},
		{"[client]\njoin = \"" + canary + "\"", "must start with mintai://"},
		{"api_key = \"" + canary + "\"", "environment variables"},
	}
	for _, tt := range tests {
		_, err := parse(t, tt.doc, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want …%s…", tt.doc, err, tt.want)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
	// A misspelled key that is meant to point to a secret is no secret.
	_, err := parse(t, "[[miner.backend]]\napi_key_fil = \"x\"\ntoken_per_second = 3", nil)
	if err == nil || !strings.Contains(err.Error(), `did you mean "api_key_file"?`) || !strings.Contains(err.Error(), `did you mean "tokens_per_second"?`) {
		t.Errorf("got %v", err)
	}
}

func TestConfigSecretSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("key", "sk-1\n", 0o600)
	write("open", "sk-2", 0o644)
	write("empty", " \n", 0o600)
	write("lines", "a\nb", 0o600)
	write("link", "mintai://h/-/s3cret\n", 0o600)
	write("nolink", "canary", 0o600)
	const openai = "[[miner.backend]]\ntype = \"openai\"\nurl = \"http://h\"\n"
	tests := []struct{ name, doc, err, warning string }{
		{"file", openai + `api_key_file = "key"`, "", ""},
		{"readable by others", openai + `api_key_file = "open"`, "", "chmod 600"},
		{"missing", openai + `api_key_file = "none"`, ":4: api_key_file: open ", ""},
		{"empty", openai + `api_key_file = "empty"`, "is empty", ""},
		{"lines", openai + `api_key_file = "lines"`, "more than one line", ""},
		{"folder", openai + `api_key_file = "."`, "is a folder", ""},
		{"both", openai + "api_key_file = \"key\"\napi_key_env = \"K\"", "write one of them", ""},
		{"not set", openai + `api_key_env = "NOT_SET"`, ":4: api_key_env: the environment variable", ""},
		{"no use", "[[miner.backend]]\ntype = \"builtin\"\napi_key_file = \"key\"", "of no use with type \"builtin\"", ""},
		{"relay of others without secret", "[coordinator]\nrelays = [\"turn:h\"]", ":2: relays of others need secret_file", ""},
		{"secret without relay of others", "[coordinator.turn]\nsecret_file = \"key\"", "a secret without relays of others", ""},
		{"two relays", "[coordinator]\nrelays = [\"own\", \"turn:h:1?transport=udp\"]\n[coordinator.turn]\nsecret_file = \"key\"", "", ""},
		{"relays where they were", "[coordinator.turn]\nurls = [\"turn:h\"]", ":2: urls has moved: write relays", ""},
		{"turns", "[coordinator]\nrelays = [\"turns:h\"]", "relays must be \"own\" or like", ""},
		{"three relays", "[coordinator]\nrelays = [\"own\", \"turn:a\", \"turn:b\"]\n[coordinator.turn]\nsecret_file = \"key\"", ":2: relays are at most 2", ""},
		{"one relay twice", "[coordinator]\nrelays = [\"own\", \"own\"]", "relays has \"own\" twice", ""},
		{"no relays", "[coordinator]\nrelays = []", "", ""},
		{"join file", "[miner]\njoin_file = \"link\"", "", ""},
		{"join twice", "[miner]\njoin_file = \"link\"\njoin = \"mintai://h\"", "write one of them", ""},
		{"join file of nonsense", "[client]\njoin_file = \"nolink\"", "must start with mintai://", ""},
		{"open endpoint", "[client]\nlisten = \"0.0.0.0:1\"", "", "open to other machines"},
	}
	for _, tt := range tests {
		cfg, err := parseConfig(filepath.Join(dir, "c.toml"), []byte(tt.doc), false, noEnv)
		switch {
		case tt.err == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: got %v, want …%s…", tt.name, err, tt.err)
		case err != nil && strings.Contains(err.Error(), "canary"):
			t.Errorf("%s: the error repeats the secret", tt.name)
		case err == nil && !strings.Contains(strings.Join(cfg.Warnings, "\n"), tt.warning),
			err == nil && tt.warning == "" && len(cfg.Warnings) > 0:
			t.Errorf("%s: warnings %q, want …%s…", tt.name, cfg.Warnings, tt.warning)
		}
	}
	cfg, err := parseConfig(filepath.Join(dir, "c.toml"), []byte("[miner]\njoin = \"mintai://h/-/s\""), true, noEnv)
	if err != nil || len(cfg.Warnings) != 1 {
		t.Errorf("a join secret in a file that others can read: %v %v", cfg, err)
	}
}

func TestLoadConfigWithoutFile(t *testing.T) {
	cfg, err := LoadConfig("", noEnv)
	if err != nil || !reflect.DeepEqual(cfg, DefaultConfig()) {
		t.Errorf("got %+v, %v", cfg, err)
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none.toml"), noEnv); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.toml")
	if err := os.WriteFile(big, make([]byte, maxConfigFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	var cerr *ConfigError
	if _, err := LoadConfig(big, noEnv); !errors.As(err, &cerr) {
		t.Errorf("got %v", err)
	}
}

// The scanner and the TOML package must see the same keys in the same order.
func FuzzConfig(f *testing.F) {
	example, err := os.ReadFile(exampleConfig)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example))
	f.Add("a.b.c = 1\n[x]\ny = \"\"\"\n[z]\n\\\"\"\"\"\"\n[[x.t]]\nq = '''\n#'''\n[[x.t]]\n'q r' = [1, {k = [\n2]}, # ]\n3]\n\"é\\u00e9\" = 1979-05-27 07:32:00 # }\n")
	f.Fuzz(func(t *testing.T, doc string) {
		var raw map[string]any
		md, err := toml.Decode(doc, &raw)
		if err == nil && strings.IndexByte(doc, 0) < 0 {
			seen := map[string]bool{}
			for at := range keyLines(doc) {
				seen[indexes().ReplaceAllString(at, "")] = true
			}
			for _, key := range md.Keys() {
				path := ""
				for _, part := range key {
					path = joinKey(path, part)
				}
				if !seen[indexes().ReplaceAllString(path, "")] {
					t.Errorf("key %q was not found in %q: %v", key, doc, seen)
				}
			}
		} else {
			keyLines(doc) // must end
		}
		cfg, err := parseConfig("c.toml", []byte(doc), false, noEnv)
		if (cfg == nil) == (err == nil) {
			t.Errorf("half a value: %v, %v", cfg, err)
		}
	})
}
