package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"

	"mintai/api"
	"mintai/backend/builtin"
	"mintai/terminal"
)

// processStart is the zero of the times that `ask -json` tells.
var processStart = time.Now()

// stdinPatience is how long `ask` waits for an open but silent standard input.
const stdinPatience = 3 * time.Second

// asker carries out one `ask`.
type asker struct {
	client *client
	std    IO
	opts   askOptions

	progress *terminal.Progress
	out      io.Writer // the answer: raw to a pipe, made harmless on a terminal
	flush    func() error
}

// askOptions is what the command line says about the question.
type askOptions struct {
	prompt  []string
	model   string
	system  string
	json    bool
	quiet   bool
	verbose bool
}

// answered is what one ask came to.
type answered struct {
	trace     *trace
	first     time.Time // of the first token; zero: none
	firstPath Path
	lastPath  Path
	tokens    uint64
	text      strings.Builder // with -json only
	bytes     int
	lastByte  byte
}

func newAsker(c *client, std IO, opts askOptions) *asker {
	a := &asker{client: c, std: std, opts: opts, out: std.Stdout, flush: func() error { return nil }}
	if !opts.json {
		a.progress = terminal.NewProgress(std.Stderr)
	}
	if terminal.IsTerminal(std.Stdout) {
		harmless := terminal.NewSanitizer(a.progress.Wrap(std.Stdout))
		a.out, a.flush = harmless, harmless.Flush
	}
	return a
}

// run asks and shows the answer. With -json also a failure is an object on
// standard output.
func (a *asker) run(ctx context.Context) error {
	got := &answered{trace: &trace{notify: a.progress.Set}}
	prompt, err := a.prompt(ctx)
	if err == nil {
		err = a.ask(ctx, prompt, got)
	}
	a.progress.Close()
	if a.opts.json {
		return a.reportJSON(got, err)
	}
	return a.reportText(got, err)
}

// prompt joins the words of the command line and what standard input holds.
func (a *asker) prompt(ctx context.Context) (string, error) {
	words := a.opts.prompt
	wait := false
	for i, w := range words {
		if w == "-" {
			words = append(append([]string(nil), words[:i]...), words[i+1:]...)
			wait = true
			break
		}
	}
	prompt := strings.Join(words, " ")
	var piped []byte
	if wait || !terminal.IsTerminal(a.std.Stdin) {
		var err error
		if piped, err = a.readStdin(ctx, wait); err != nil {
			return "", err
		}
	}
	switch {
	case len(bytes.TrimSpace(piped)) == 0 && strings.TrimSpace(prompt) == "":
		return "", usageError("the prompt is empty", `try: mintai -mode client ask "What is a tunnel?"`)
	case len(piped) == 0:
		return prompt, nil
	case prompt == "":
		return string(piped), nil
	}
	return prompt + "\n\n" + string(piped), nil
}

// readStdin reads standard input to its end. One that is open but silent is
// left after stdinPatience, unless the person said "-".
func (a *asker) readStdin(ctx context.Context, wait bool) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	started := make(chan struct{})
	done := make(chan result, 1)
	go func() { // ends with the process when standard input never does
		first := &firstRead{r: a.std.Stdin, started: started}
		data, err := io.ReadAll(io.LimitReader(first, api.MaxBody+1))
		done <- result{data, err}
	}()
	patience := make(<-chan time.Time)
	if !wait {
		timer := time.NewTimer(stdinPatience)
		defer timer.Stop()
		patience = timer.C
	}
	for {
		select {
		case r := <-done:
			switch {
			case r.err != nil && errors.Is(r.err, os.ErrClosed):
				return nil, nil
			case r.err != nil:
				return nil, usageError("reading standard input: "+r.err.Error(), "")
			case len(r.data) > api.MaxBody:
				return nil, usageError("standard input holds more than 32 MiB", "")
			}
			return r.data, nil
		case <-started:
			started, patience = nil, nil
		case <-patience:
			_, _ = fmt.Fprintln(a.std.Stderr, "mintai: standard input is open but silent; going on without it (use - to wait for it)")
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// firstRead closes started when the first byte has come.
type firstRead struct {
	r       io.Reader
	started chan struct{}
	begun   bool
}

func (f *firstRead) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if n > 0 && !f.begun {
		f.begun = true
		close(f.started)
	}
	return n, err
}

// maxJSONAnswer bounds the answer that -json keeps until its end, in bytes.
const maxJSONAnswer = 64 << 20

// chatRequest is the body of the one call that ask makes.
type chatRequest struct {
	Model    string        `json:"model"`
	Messages []chatMessage `json:"messages"`
	Stream   bool          `json:"stream"`
	Options  streamOptions `json:"stream_options"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// ask sends the question and streams the answer.
func (a *asker) ask(ctx context.Context, prompt string, got *answered) error {
	body := chatRequest{Model: a.opts.model, Stream: true, Options: streamOptions{IncludeUsage: true}}
	if a.opts.system != "" {
		body.Messages = append(body.Messages, chatMessage{"system", a.opts.system})
	}
	body.Messages = append(body.Messages, chatMessage{"user", prompt})
	encoded, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding the question: %w", err)
	}
	req, err := api.ReadRequest(api.ChatCompletions, http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(encoded))
	if err != nil {
		return usageError(err.Error(), "")
	}
	resp, err := a.client.Do(withTrace(ctx, got.trace), req, "text/event-stream")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return a.refusedBy(resp, got)
	}
	return a.stream(resp.Body, got)
}

// refusedBy shows the AI server's own message.
func (a *asker) refusedBy(resp *http.Response, got *answered) error {
	said, own := api.ReadError(resp)
	who := "the AI server on " + got.trace.view().minerName
	if own {
		who = got.trace.view().minerName
	}
	return &Error{
		Exit: ExitRefused, Code: "refused", Err: said,
		Message: fmt.Sprintf("%s answered %d: %s", who, resp.StatusCode, said.Message), Hint: said.Hint,
	}
}

// stream passes the answer on as it comes. Only an answer that says it is whole
// ends well.
func (a *asker) stream(body io.Reader, got *answered) error {
	decoder := api.StreamText(api.ChatCompletions)
	counter := api.NewTokenCounter(api.ChatCompletions, true)
	buf := make([]byte, 16<<10)
	for {
		n, rerr := body.Read(buf)
		_, _ = counter.Write(buf[:n]) // counts, never fails
		text, done, derr := decoder.Feed(buf[:n])
		if decoder.TakeReasoning() != "" && text == "" {
			a.firstToken(got)
			got.trace.stage("thinking…")
		}
		if text != "" {
			a.firstToken(got)
			if err := a.show(text, got); err != nil {
				return err
			}
		}
		got.tokens, _ = counter.Tokens()
		switch {
		case derr != nil:
			return a.streamFailure(derr, got)
		case done:
			return a.end(got, nil)
		case errors.Is(rerr, io.EOF) && decoder.Complete():
			return a.end(got, nil)
		case errors.Is(rerr, io.EOF):
			return a.end(got, &lostError{Miner: got.trace.view().minerName, Bytes: uint64(got.bytes), Backend: true, Err: io.ErrUnexpectedEOF})
		case rerr != nil:
			return a.end(got, rerr)
		}
	}
}

func (a *asker) end(got *answered, err error) error {
	got.lastPath = got.trace.view().path
	if ferr := a.flush(); err == nil && ferr != nil {
		err = fmt.Errorf("writing the answer: %w", ferr)
	}
	return err
}

func (a *asker) firstToken(got *answered) {
	if got.first.IsZero() {
		got.first = time.Now()
		got.firstPath = got.trace.view().path
	}
}

// show writes a piece of the answer.
func (a *asker) show(text string, got *answered) error {
	a.progress.Clear()
	got.bytes += len(text)
	got.lastByte = text[len(text)-1]
	if a.opts.json {
		if got.text.Len()+len(text) > maxJSONAnswer {
			return &Error{
				Exit: ExitLost, Code: "too_large", Message: fmt.Sprintf("the answer is larger than %d MiB", maxJSONAnswer>>20),
				Hint: "without -json an answer may be of any size",
			}
		}
		got.text.WriteString(text)
		return nil
	}
	if _, err := io.WriteString(a.out, text); err != nil {
		return &Error{Exit: ExitInternal, Code: "output", Message: "writing the answer: " + err.Error(), Err: err}
	}
	return nil
}

// streamFailure is an error event, or something that is no answer.
func (a *asker) streamFailure(err error, got *answered) error {
	_ = a.end(got, nil) // the failure is more telling than a failed flush
	var said *api.Error
	e := &Error{Exit: ExitRefused, Code: "refused", Err: err}
	switch {
	case errors.Is(err, api.ErrStream):
		e.Code, e.Message = "bad_answer", fmt.Sprintf("the AI server on %s answered nonsense: %v", got.trace.view().minerName, err)
	case errors.As(err, &said):
		e.Message, e.Hint = fmt.Sprintf("the AI server on %s failed: %s", got.trace.view().minerName, said.Message), said.Hint
	default:
		e.Message = err.Error()
	}
	if got.bytes > 0 {
		e.Exit, e.Code = ExitLost, "miner_lost"
		e.Hint = "what is shown is incomplete; ask again"
	}
	return e
}

// reportText ends the answer's last line on a terminal and writes the footer.
func (a *asker) reportText(got *answered, err error) error {
	if got.bytes > 0 && got.lastByte != '\n' && terminal.IsTerminal(a.std.Stdout) {
		_, _ = fmt.Fprintln(a.std.Stdout)
	}
	if err != nil {
		return a.finalError(err)
	}
	view := got.trace.view()
	if view.model == string(builtin.Model) {
		_, _ = fmt.Fprintln(a.std.Stderr, builtinNotice)
	}
	if a.opts.verbose || terminal.IsTerminal(a.std.Stderr) {
		a.writeFooter(got, view)
	}
	return nil
}

// writeFooter says how the answer came; with -v also why that way.
func (a *asker) writeFooter(got *answered, view traceView) {
	if a.opts.quiet {
		return
	}
	_, _ = fmt.Fprintln(a.std.Stderr, terminal.FormatFooter(a.footer(got, view)))
	if a.opts.verbose {
		_, _ = fmt.Fprintf(a.std.Stderr, "path %s: %s · matched: %s · tries %d\n", terminal.OneLine(got.paths(), 40),
			terminal.OneLine(got.lastPath.Reason, 200), terminal.OneLine(view.why, 200), view.tries)
	}
}

func (a *asker) footer(got *answered, view traceView) terminal.Footer {
	return terminal.Footer{
		Model: view.model, Miner: view.minerName, Path: got.lastPath.word(), Reason: got.lastPath.Reason, RTT: got.lastPath.RTT,
		FirstToken: got.first.Sub(processStart), TokensPerSecond: got.speed(),
	}
}

// paths is the kind of path that the answer ended on, behind the one that it began
// on if that was another.
func (g *answered) paths() string {
	if g.firstPath.Kind == "" || g.firstPath.Kind == g.lastPath.Kind {
		return g.lastPath.Kind
	}
	return g.firstPath.Kind + " → " + g.lastPath.Kind
}

// speed is tokens a second after the first; 0 when there is too little to tell.
func (g *answered) speed() float64 {
	if g.first.IsZero() || g.tokens < 2 {
		return 0
	}
	elapsed := time.Since(g.first).Seconds()
	if elapsed < 0.001 {
		return 0
	}
	return float64(g.tokens-1) / elapsed
}

func (a *asker) finalError(err error) error { return explain(err, a.client) }

// jsonPath is a Path in the JSON report.
type jsonPath struct {
	Kind   string  `json:"kind"`
	Code   string  `json:"code"`
	Reason string  `json:"reason"`
	RTT    float64 `json:"rtt_ms"`
	Since  float64 `json:"since_ms"` // when it came into use
}

// jsonReport is the one object that `ask -json` prints. Times are milliseconds
// from the start of the process.
type jsonReport struct {
	V               int        `json:"v"`
	Model           string     `json:"model,omitempty"`
	Answer          string     `json:"answer"`
	Miner           string     `json:"miner,omitempty"`
	MinerID         string     `json:"miner_id,omitempty"`
	Path            *jsonPath  `json:"path,omitempty"`
	PathFirst       *jsonPath  `json:"path_first,omitempty"`
	MatchMS         float64    `json:"match_ms,omitempty"`
	ConnectMS       float64    `json:"connect_ms,omitempty"`
	TTFTMS          float64    `json:"ttft_ms,omitempty"`
	TotalMS         float64    `json:"total_ms"`
	Tokens          uint64     `json:"tokens"`
	TokensPerSecond float64    `json:"tokens_per_second"`
	Attempts        int        `json:"attempts"`
	Error           *jsonError `json:"error,omitempty"`
}

type jsonError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (a *asker) reportJSON(got *answered, err error) error {
	view := got.trace.view()
	report := jsonReport{
		V: 1, Model: view.model, Answer: got.text.String(), Miner: view.minerName,
		Path: pathJSON(got.lastPath), PathFirst: pathJSON(got.firstPath),
		MatchMS: sinceStart(view.matched), ConnectMS: sinceStart(view.connected), TTFTMS: sinceStart(got.first),
		TotalMS: sinceStart(time.Now()), Tokens: got.tokens, TokensPerSecond: got.speed(), Attempts: view.tries,
	}
	if !view.miner.IsZero() {
		report.MinerID = view.miner.String()
	}
	var failure *Error
	if err != nil {
		failure = explain(err, a.client)
		failure.shown = true
		report.Error = &jsonError{Code: failure.Code, Message: failure.Message, Hint: failure.Hint}
	}
	if werr := writeJSON(a.std.Stdout, report); werr != nil {
		return werr
	}
	if failure != nil {
		return failure
	}
	if a.opts.verbose {
		a.writeFooter(got, view)
	}
	return nil
}

// writeJSON writes v as one line, in which strangers' words cannot steer a
// terminal: what a terminal might obey is written as \u and four digits, which
// to a program is the same.
func writeJSON(w io.Writer, v any) error {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	if err == nil {
		_, err = io.WriteString(w, escapeUnprintable(line.String()))
	}
	if err != nil {
		return &Error{Exit: ExitInternal, Code: "output", Message: "writing the result: " + err.Error(), Err: err}
	}
	return nil
}

// escapeUnprintable escapes what json leaves as it is: DEL, C1 and the bidi
// controls. They occur in a JSON text only within strings.
func escapeUnprintable(text string) string {
	var out strings.Builder
	for _, r := range text {
		if r == '\n' || unicode.IsPrint(r) || r > 0xffff {
			out.WriteRune(r)
		} else {
			_, _ = fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

func pathJSON(p Path) *jsonPath {
	if p.Kind == "" {
		return nil
	}
	return &jsonPath{Kind: p.Kind, Code: p.Code, Reason: p.Reason, RTT: milliseconds(p.RTT), Since: sinceStart(p.Since)}
}

// sinceStart is milliseconds from the start of the process; 0 for never.
func sinceStart(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return milliseconds(t.Sub(processStart))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
