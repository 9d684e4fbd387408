package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// command is a parsed command line.
type command struct {
	mode string // coordinator miner client dev
	verb string // of client and dev
	args []string

	help, version bool

	config   string
	join     string
	state    string
	logLevel string
	listen   string

	model   string
	system  string
	timeout time.Duration
	count   int // of pings; 0: the default
	json    bool
	quiet   bool
	verbose bool
}

// verbs lists what each mode can be asked to do; the first is the default.
var verbs = map[string][]string{
	"coordinator": {"run"},
	"miner":       {"run", "netcheck"},
	"client":      {"", "ask", "models", "proxy", "serve", "join", "netcheck", "ping"},
	"dev":         {"", "ask", "models", "proxy", "serve"},
}

var modes = []string{"coordinator", "miner", "client", "dev"}

// parseCommand reads the command line. Flags may stand anywhere on it; "--"
// ends them.
func parseCommand(args []string) (*command, error) {
	c := &command{}
	fs := c.flags()
	var words []string
	for {
		if err := fs.Parse(args); err != nil {
			return nil, flagError(fs, err)
		}
		// Parse stops at the first word, or behind a "--".
		used := len(args) - fs.NArg()
		if used > 0 && args[used-1] == "--" {
			words = append(words, fs.Args()...)
			break
		}
		if fs.NArg() == 0 {
			break
		}
		words = append(words, fs.Arg(0))
		args = fs.Args()[1:]
	}
	if c.help || c.version {
		return c, nil
	}
	return c, c.place(words)
}

func (c *command) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("mintai", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&c.help, "help", false, "")
	fs.BoolVar(&c.help, "h", false, "")
	fs.BoolVar(&c.version, "version", false, "")
	fs.StringVar(&c.mode, "mode", "", "")
	fs.StringVar(&c.config, "config", "", "")
	fs.StringVar(&c.join, "join", "", "")
	fs.StringVar(&c.state, "state", "", "")
	fs.StringVar(&c.logLevel, "log-level", "", "")
	fs.StringVar(&c.listen, "listen", "", "")
	fs.StringVar(&c.model, "model", "", "")
	fs.StringVar(&c.model, "m", "", "")
	fs.StringVar(&c.system, "system", "", "")
	fs.StringVar(&c.system, "s", "", "")
	fs.DurationVar(&c.timeout, "timeout", 0, "")
	fs.IntVar(&c.count, "c", 0, "")
	fs.BoolVar(&c.json, "json", false, "")
	fs.BoolVar(&c.quiet, "q", false, "")
	fs.BoolVar(&c.verbose, "v", false, "")
	return fs
}

// flagError turns package flag's words into ours, with the nearest flag.
func flagError(fs *flag.FlagSet, err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return usageError("run mintai -help", "")
	}
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		var known []string
		fs.VisitAll(func(f *flag.Flag) { known = append(known, f.Name) })
		hint := "see mintai -help"
		if near := nearest(name, known); near != "" {
			hint = fmt.Sprintf("did you mean -%s? A prompt that starts with - goes behind --", near)
		}
		return usageError("unknown flag -"+name, hint)
	}
	return usageError(text, "see mintai -help")
}

// place checks the words that are not flags.
func (c *command) place(words []string) error {
	if c.mode == "" {
		if len(words) > 0 && slices.Contains(verbs["client"], words[0]) {
			return usageError("-mode is missing", fmt.Sprintf("did you mean: mintai -mode client %s", words[0]))
		}
		if len(words) > 0 && slices.Contains(modes, words[0]) {
			return usageError("-mode is missing", fmt.Sprintf("did you mean: mintai -mode %s", words[0]))
		}
		if len(words) == 0 {
			c.help = true
			return nil
		}
		return usageError(fmt.Sprintf("unknown command %q", words[0]), "start with -mode coordinator, -mode miner or -mode client; see mintai -help")
	}
	known, ok := verbs[c.mode]
	if !ok {
		hint := "the modes are " + strings.Join(modes, ", ")
		if near := nearest(c.mode, modes); near != "" {
			hint = "did you mean " + near + "?"
		}
		return usageError(fmt.Sprintf("unknown mode %q", c.mode), hint)
	}
	c.verb = known[0]
	if len(words) > 0 {
		c.verb, c.args = words[0], words[1:]
		if !slices.Contains(known, c.verb) {
			return unknownVerb(c.mode, c.verb, known)
		}
	}
	if c.verb == "serve" {
		c.verb = "proxy"
	}
	if c.verb == "" {
		return usageError("-mode "+c.mode+" needs a command", fmt.Sprintf("try: mintai -mode %s ask \"What is a tunnel?\"", c.mode))
	}
	if c.verb == "ping" && (len(c.args) != 1 || strings.Trim(c.args[0], "@ ") == "") {
		return usageError("ping takes one miner", "try: mintai -mode client ping gpu-box; the miners are listed by: mintai -mode client models")
	}
	if c.count < 0 || c.count > maxPings {
		return usageError(fmt.Sprintf("-c must be 1 to %d", maxPings), "")
	}
	if c.verb != "ask" && c.verb != "join" && c.verb != "ping" && len(c.args) > 0 {
		return usageError(fmt.Sprintf("%s takes no argument, but got %q", c.verb, c.args[0]), "see mintai -help")
	}
	if c.timeout < 0 {
		return usageError("-timeout must not be negative", "")
	}
	return nil
}

func unknownVerb(mode, verb string, known []string) error {
	switch mode {
	case "coordinator":
		return usageError(fmt.Sprintf("-mode %s takes no command, but got %q", mode, verb), "see mintai -help")
	case "miner":
		return usageError(fmt.Sprintf("-mode miner takes no command but netcheck, and got %q", verb), "see mintai -help")
	}
	words := known[1:]
	hint := "the commands are " + strings.Join(words, ", ")
	if near := nearest(verb, words); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	if strings.ContainsAny(verb, " ?") {
		hint = fmt.Sprintf("did you mean: mintai -mode %s ask %q", mode, verb)
	}
	return usageError(fmt.Sprintf("unknown command %q", verb), hint)
}

// run carries the command out.
func (c *command) run(ctx context.Context, std IO) error {
	switch {
	case c.help:
		_, err := io.WriteString(std.Stdout, helpText)
		return err
	case c.version:
		_, err := io.WriteString(std.Stdout, versionText())
		return err
	}
	if c.verb == "netcheck" {
		return c.runNetcheck(ctx, std)
	}
	switch c.mode {
	case "coordinator":
		return c.runCoordinator(ctx, std)
	case "miner":
		return c.runMiner(ctx, std)
	case "dev":
		return c.runDev(ctx, std)
	default:
		return c.runClient(ctx, std)
	}
}

const helpText = `mintai: ask AI that runs on another machine, through a direct encrypted tunnel

  mintai -mode coordinator                      introduces clients to miners
  mintai -mode miner -config miner.toml         serves this machine's AI models
  mintai -mode client ask "What is a tunnel?"   asks

client commands
  ask PROMPT...      the answer on stdout, all else on stderr; stdin is appended
  models             what is offered, and by whom
  proxy  (serve)     an OpenAI and Ollama endpoint on http://127.0.0.1:11500
  join LINK          remember a coordinator's join link
  netcheck           what this network lets through (also -mode miner netcheck)
  ping MINER         direct or relayed, round trip, why; -c N times
dev ask PROMPT...    coordinator, miner and client in one process, to try it

flags, anywhere on the line
  -config FILE     TOML; see config.example.toml    -state DIR   keys, tickets
  -join LINK       else MINTAI_JOIN, config, join   -listen ADDR to listen on
  -m, -model NAME  model, model@miner or @miner     -s, -system  system prompt
  -timeout D       give up after D, such as 90s     -json        one JSON object
  -q               no footer                        -v           path and tries
  -log-level LEVEL trace debug info warn error off  -version, -help

exit codes: 0 ok, 1 internal, 2 usage, 3 not admitted, 4 no miner, 5 no path,
  6 lost midway, 7 deadline, 8 refused by the AI server, 130 interrupted
`
