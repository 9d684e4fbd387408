package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"mintai/api"
	"mintai/gateway"
	"mintai/identity"
	"mintai/signal"
	"mintai/signal/signalpb"
	"mintai/terminal"
)

func (c *command) runClient(ctx context.Context, std IO) error {
	if c.verb == "join" {
		return c.runJoin(ctx, std)
	}
	level := "off"
	if c.verb == "proxy" {
		level = "info"
	}
	s, err := c.prepare(std, RoleClient, level)
	if err != nil {
		return c.asJSON(std, err)
	}
	key, err := s.loadKey()
	if err != nil {
		return c.asJSON(std, err)
	}
	pins, err := s.openPins()
	if err != nil {
		return c.asJSON(std, err)
	}
	find := func() (membership, error) {
		return findMembership(c.join, std.Getenv("MINTAI_JOIN"), s.cfg.Client.Join, s.paths)
	}
	build := func(m membership, metrics *clientMetrics) (*client, error) {
		return newClient(clientConfig{
			Membership: m, Key: key, TicketFile: s.paths.Tickets(m.id), Pins: pins, Notice: notice(std),
			Deadlines: s.cfg.Client.Deadlines, Name: machineName(s.cfg.Client.Name), Log: s.log, Metrics: metrics,
			Relay: s.cfg.Client.Relay, MapPorts: s.cfg.Client.PortMapping, Probing: s.cfg.Client.Probing, ProbeFile: s.paths.Probing(),
		})
	}
	if c.verb == "proxy" {
		return c.runProxy(ctx, std, s, find, build)
	}
	member, err := find()
	if err != nil {
		return c.asJSON(std, err)
	}
	cl, err := build(member, nil)
	if err != nil {
		return c.asJSON(std, err)
	}
	return c.oneShot(ctx, std, cl, s.cfg.Client)
}

// asJSON reports a failure that came before the question as `ask -json` does.
func (c *command) asJSON(std IO, err error) error {
	if !c.json {
		return err
	}
	failure := asError(err)
	report := jsonReport{V: 1, TotalMS: sinceStart(time.Now()), Error: &jsonError{Code: failure.Code, Message: failure.Message, Hint: failure.Hint}}
	if werr := writeJSON(std.Stdout, report); werr != nil {
		return werr
	}
	failure.shown = true
	return failure
}

// oneShot runs ask or models on a client that lives as long as the command.
func (c *command) oneShot(ctx context.Context, std IO, cl *client, cfg ClientConfig) error {
	work := ctx
	if c.timeout > 0 {
		var cancel context.CancelFunc
		work, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	g := newGroup(context.WithoutCancel(ctx)) // the client says goodbye after the command has ended
	g.start(cl.Run)
	var err error
	switch c.verb {
	case "models":
		err = c.listModels(work, std, cl)
	case "ping":
		err = c.runPing(work, std, cl)
	default:
		model := c.model
		if model == "" {
			model = cfg.Model
		}
		err = newAsker(cl, std, askOptions{
			prompt: c.args, model: model, system: c.system, json: c.json, quiet: c.quiet, verbose: c.verbose,
		}).run(work)
	}
	if gerr := g.stop(); err == nil {
		err = gerr
	}
	return err
}

// runJoin remembers a join link after its coordinator has admitted this node.
func (c *command) runJoin(ctx context.Context, std IO) error {
	if len(c.args) != 1 {
		return usageError("join takes one link", "mintai -mode client join mintai://host:4433/…")
	}
	s, err := c.prepare(std, RoleClient, "off")
	if err != nil {
		return err
	}
	member, err := linkMembership(c.args[0], "the command line")
	if err != nil {
		return err
	}
	link, err := identity.ParseLink(strings.TrimSpace(c.args[0]))
	if err != nil {
		return err // linkMembership has parsed it: not reached
	}
	key, err := s.loadKey()
	if err != nil {
		return err
	}
	pins, err := s.openPins()
	if err != nil {
		return err
	}
	cl, err := newClient(clientConfig{
		Membership: member, Key: key, TicketFile: s.paths.Tickets(member.id), Pins: pins, Notice: notice(std),
		Deadlines: s.cfg.Client.Deadlines, Name: machineName(s.cfg.Client.Name), Log: s.log,
	})
	if err != nil {
		return err
	}
	g := newGroup(context.WithoutCancel(ctx))
	g.start(cl.Run)
	wait, cancel := context.WithTimeout(ctx, s.cfg.Client.Deadlines.Match)
	defer cancel()
	err = cl.sig.WaitConnected(wait)
	_ = g.stop() // the question is whether it was admitted
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			err = signal.ErrNotConnected
		}
		return explain(err, cl)
	}
	if err := s.paths.SaveJoin(link); err != nil {
		return fmt.Errorf("remembering the link: %w", err)
	}
	_, _ = fmt.Fprintf(std.Stderr, "joined %s; try: mintai -mode client models\n", link.Redacted())
	return nil
}

// listModels prints what is offered and by whom.
func (c *command) listModels(ctx context.Context, std IO, cl *client) error {
	ctx, cancel := context.WithTimeout(ctx, cl.deadlines.Match)
	defer cancel()
	models, err := cl.sig.Models(ctx)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = cl.unreachable(err)
		}
		return c.asJSON(std, explain(err, cl))
	}
	if c.json {
		return writeJSON(std.Stdout, modelsReport(models))
	}
	if len(models.GetOffers()) == 0 {
		e := &Error{Exit: ExitNoMiner, Code: "no_miner", Message: "no miner is connected", Hint: "start one: mintai -mode miner -config miner.toml"}
		if empty := models.GetEmptyMiners(); len(empty) > 0 {
			e.Code, e.Message = "no_server", strings.Join(empty, ", ")+" is connected but runs no AI server"
			if len(empty) > 1 {
				e.Message = strings.Join(empty, ", ") + " are connected but run no AI server"
			}
			e.Hint = noServerHint
		}
		return e
	}
	w := tabwriter.NewWriter(std.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "MODEL\tMINER\tSERVER\tBUSY\tCONTEXT\tREPUTATION\tCAN")
	for _, o := range models.GetOffers() {
		m := o.GetModel()
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d/%d\t%s\t%.2f\t%s\n",
			terminal.OneLine(m.GetName(), 60), terminal.OneLine(o.GetMinerName(), 40), terminal.OneLine(m.GetBackend(), 20),
			o.GetInFlight(), o.GetSlots(), contextText(m.GetContextTokens()), o.GetReputation(), abilities(m))
	}
	if err := w.Flush(); err != nil {
		return &Error{Exit: ExitInternal, Code: "output", Message: "writing the list: " + err.Error(), Err: err}
	}
	for _, name := range models.GetEmptyMiners() {
		_, _ = fmt.Fprintf(std.Stderr, "%s is connected but runs no AI server\n", terminal.OneLine(name, 40))
	}
	return nil
}

func contextText(tokens uint32) string {
	switch {
	case tokens == 0:
		return "-"
	case tokens%1024 == 0:
		return fmt.Sprintf("%dk", tokens/1024)
	default:
		return fmt.Sprint(tokens)
	}
}

// abilities are the needs that a model meets, in few words.
func abilities(m *signalpb.OfferedModel) string {
	var can []string
	for _, call := range m.GetCalls() {
		switch api.Call(call) {
		case api.ChatCompletions, api.OllamaChat:
			can = append(can, "chat")
		case api.Embeddings, api.OllamaEmbed, api.OllamaEmbeddings:
			can = append(can, "embeddings")
		case api.Messages:
			can = append(can, "messages")
		case api.Responses:
			can = append(can, "responses")
		case api.Completions, api.OllamaGenerate:
			can = append(can, "completions")
		case api.CountTokens:
		}
	}
	for _, a := range []struct {
		has  bool
		word string
	}{{m.GetTools(), "tools"}, {m.GetVision(), "vision"}, {m.GetJson(), "json"}} {
		if a.has {
			can = append(can, a.word)
		}
	}
	seen := map[string]bool{}
	var out []string
	for _, w := range can {
		if !seen[w] {
			seen[w] = true
			out = append(out, w)
		}
	}
	return strings.Join(out, ",")
}

// modelsReport is what `models -json` prints.
func modelsReport(m *signalpb.Models) any {
	type entry struct {
		Model      string   `json:"model"`
		Miner      string   `json:"miner"`
		MinerID    string   `json:"miner_id"`
		Server     string   `json:"server"`
		Calls      []string `json:"calls"`
		Context    uint32   `json:"context_tokens,omitempty"`
		Slots      uint32   `json:"slots"`
		InFlight   uint32   `json:"in_flight"`
		Reputation float64  `json:"reputation"`
	}
	out := struct {
		V      int      `json:"v"`
		Models []entry  `json:"models"`
		Empty  []string `json:"miners_without_server"`
	}{V: 1, Models: []entry{}, Empty: append([]string{}, m.GetEmptyMiners()...)}
	for _, o := range m.GetOffers() {
		id, err := identity.NodeIDFromBytes(o.GetMiner())
		if err != nil {
			continue
		}
		out.Models = append(out.Models, entry{
			Model: o.GetModel().GetName(), Miner: o.GetMinerName(), MinerID: id.String(), Server: o.GetModel().GetBackend(),
			Calls: o.GetModel().GetCalls(), Context: o.GetModel().GetContextTokens(), Slots: o.GetSlots(),
			InFlight: o.GetInFlight(), Reputation: o.GetReputation(),
		})
	}
	return out
}

// lateClient is the local endpoint's way out: it is there before a coordinator is.
type lateClient struct{ client atomic.Pointer[client] }

var _ http.RoundTripper = (*lateClient)(nil)

var errNoCoordinatorYet = &api.Error{
	Status: http.StatusServiceUnavailable, Code: "no_coordinator", Message: "no coordinator is known yet",
	Hint: "start one: mintai -mode coordinator; or join one: mintai -mode client join LINK", RetryAfter: lookEvery,
}

// RoundTrip carries the request as soon as there is a client to carry it.
func (l *lateClient) RoundTrip(r *http.Request) (*http.Response, error) {
	cl := l.client.Load()
	if cl == nil {
		return nil, errNoCoordinatorYet
	}
	return cl.RoundTrip(r)
}

// models lists what is offered, for the endpoint's model lists.
func (l *lateClient) models(ctx context.Context) ([]gateway.ModelEntry, error) {
	cl := l.client.Load()
	if cl == nil {
		return nil, errNoCoordinatorYet
	}
	ctx, cancel := context.WithTimeout(ctx, cl.deadlines.Match)
	defer cancel()
	models, err := cl.sig.Models(ctx)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = cl.unreachable(err)
		}
		return nil, toAPIError(explain(err, cl))
	}
	return modelEntries(models), nil
}

// explain is what the caller of the local endpoint is told about a failure.
func (l *lateClient) explain(err error) *api.Error {
	var said *api.Error
	if cl := l.client.Load(); cl != nil && !errors.As(err, &said) {
		return toAPIError(explain(err, cl))
	}
	return api.AsError(err)
}

// modelEntries turns the coordinator's list into the endpoint's.
func modelEntries(m *signalpb.Models) []gateway.ModelEntry {
	out := make([]gateway.ModelEntry, 0, len(m.GetOffers()))
	for _, o := range m.GetOffers() {
		model := o.GetModel()
		entry := gateway.ModelEntry{
			Model: api.Model(model.GetName()), Miner: o.GetMinerName(), ContextTokens: int(model.GetContextTokens()),
			Tools: model.GetTools(), Vision: model.GetVision(), SizeBytes: model.GetSizeBytes(), Family: model.GetFamily(),
			Quantization: model.GetQuantization(), InFlight: int(o.GetInFlight()),
		}
		for _, call := range model.GetCalls() {
			entry.Calls = append(entry.Calls, api.Call(call))
		}
		out = append(out, entry)
	}
	return out
}

// runProxy opens the local endpoint at once and finds a coordinator behind it.
func (c *command) runProxy(ctx context.Context, std IO, s *setup, find func() (membership, error),
	build func(membership, *clientMetrics) (*client, error),
) error {
	addr := s.cfg.Client.Listen
	if c.listen != "" {
		addr = c.listen
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return &Error{Exit: ExitUsage, Code: "listen", Message: fmt.Sprintf("cannot listen on %s: %v", addr, errors.Unwrap(err)), Hint: "choose another address with -listen", Err: err}
	}
	registry := newRegistry()
	metrics := newClientMetrics(registry)
	late := &lateClient{}
	g := newGroup(ctx)
	g.start(func(ctx context.Context) error { return serveGateway(ctx, ln, late, s) })
	g.start(listenStatus(s.cfg.Client.Metrics, registry, func() error {
		if cl := late.client.Load(); cl == nil || !cl.sig.Status().Connected {
			return errors.New("not connected to a coordinator")
		}
		return nil
	}, s.log).Run)
	_, _ = fmt.Fprintf(std.Stderr, "OpenAI endpoint:  http://%s/v1\nOllama endpoint:  http://%s\n", ln.Addr(), ln.Addr())
	g.start(func(ctx context.Context) error {
		member, err := awaitMembership(ctx, find, s.log)
		if err != nil {
			return err
		}
		cl, err := build(member, metrics)
		if err != nil {
			return err
		}
		late.client.Store(cl)
		return cl.Run(ctx)
	})
	return g.wait()
}

// gatewayGrace is how long running answers get when the endpoint stops.
const gatewayGrace = 10 * time.Second

// serveGateway serves the local endpoint until ctx ends.
func serveGateway(ctx context.Context, ln net.Listener, late *lateClient, s *setup) error {
	srv := gateway.NewServer(gateway.New(gateway.Config{
		Transport: late, Models: late.models, Explain: late.explain, Origins: s.cfg.Client.Origins, Log: s.log,
	}))
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), gatewayGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("local endpoint: %w", err)
	}
	return ctx.Err()
}
