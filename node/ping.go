package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"mintai/api"
	"mintai/identity"
	"mintai/signal/signalpb"
	"mintai/terminal"
)

const (
	// pingPatience is how long one answer is waited for.
	pingPatience = 5 * time.Second
	// pingEvery is the pause between two pings.
	pingEvery = time.Second
	// pingCount is how often the miner is asked unless -c says otherwise.
	pingCount = 3
	// maxPings bounds -c.
	maxPings = 10_000
)

// pingReport is what `ping -json` prints: one object.
type pingReport struct {
	V        int        `json:"v"`
	Miner    string     `json:"miner"`
	MinerID  string     `json:"miner_id,omitempty"`
	Path     *jsonPath  `json:"path,omitempty"` // of the last answer
	Pings    []pingJSON `json:"pings"`
	Sent     int        `json:"sent"`
	Answered int        `json:"answered"`
	Error    *jsonError `json:"error,omitempty"`
}

// pingJSON is one answer.
type pingJSON struct {
	RTT  float64   `json:"rtt_ms"`
	Path *jsonPath `json:"path"`
}

// pinger carries out one `ping`.
type pinger struct {
	client *client
	std    IO
	json   bool
	count  int
	report pingReport
}

// runPing opens a tunnel to the miner as a request would, and measures it. The
// miner's AI server is not asked anything.
func (c *command) runPing(ctx context.Context, std IO, cl *client) error {
	p := &pinger{client: cl, std: std, json: c.json, count: c.count, report: pingReport{V: 1, Pings: []pingJSON{}}}
	if p.count == 0 {
		p.count = pingCount
	}
	err := p.run(ctx, strings.TrimPrefix(c.args[0], "@"))
	var failure *Error
	if err != nil {
		failure = explain(err, cl)
		if failure.Exit == ExitNoMiner || failure.Exit == ExitDeadline || failure.Exit == ExitLost {
			failure.Exit = ExitNoPath // of a ping there is one way to fail: no answer
		}
		p.report.Error = &jsonError{Code: failure.Code, Message: failure.Message, Hint: failure.Hint}
	}
	if c.json {
		if err := writeJSON(std.Stdout, p.report); err != nil {
			return err
		}
	}
	if failure == nil {
		return nil
	}
	failure.shown = c.json
	return failure
}

// run finds the miner, opens the tunnel and pings through it.
func (p *pinger) run(ctx context.Context, miner string) error {
	p.report.Miner = miner
	n, err := p.find(ctx, miner)
	if err != nil {
		return err
	}
	s, l, err := p.client.open(ctx, n, nil, 1, nil)
	if err != nil {
		return err
	}
	defer p.client.endSession(s.id, "the ping is over")
	defer p.client.done(s)
	p.report.Miner, p.report.MinerID = s.minerName, s.miner.String()
	var last error
	for i := range p.count {
		if i > 0 && !pauseFor(ctx, pingEvery) {
			break
		}
		p.report.Sent++
		rtt, err := pingOnce(ctx, l)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			last = err
			p.say(fmt.Sprintf("%s: no answer: %v", s.minerName, err))
			if l.Err() != nil { // no further one will answer
				break
			}
			continue
		}
		path := l.Path()
		path.RTT = rtt
		p.report.Answered++
		p.report.Path = pathJSON(path)
		p.report.Pings = append(p.report.Pings, pingJSON{RTT: milliseconds(rtt), Path: pathJSON(path)})
		p.say(pingLine(s.minerName, path))
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case p.report.Answered > 0:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return &Error{
		Exit: ExitNoPath, Code: "no_answer", Err: last,
		Message: fmt.Sprintf("%s took the connection and answered nothing: %v", s.minerName, last), Hint: "try again",
	}
}

// find learns what the miner offers: it is matched for some call that it answers.
func (p *pinger) find(ctx context.Context, miner string) (needs, error) {
	ctx, cancel := context.WithTimeout(ctx, p.client.deadlines.Match)
	defer cancel()
	models, err := p.client.sig.Models(ctx)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = p.client.unreachable(err)
		}
		return needs{}, err
	}
	return pingNeeds(models, miner)
}

// pingPrefix is how much of a NodeID names a miner at least.
const pingPrefix = 6

// pingNeeds picks what to ask the named miner for: by its NodeID or the beginning
// of it, else by its name, as the coordinator reads it.
func pingNeeds(models *signalpb.Models, miner string) (needs, error) {
	means := func(_ identity.NodeID, name string) bool { return strings.EqualFold(name, miner) }
	isID := func(id identity.NodeID, _ string) bool { return strings.HasPrefix(id.String(), strings.ToLower(miner)) }
	if len(miner) >= pingPrefix && slices.ContainsFunc(models.GetOffers(), func(o *signalpb.ModelOffer) bool {
		id, err := identity.NodeIDFromBytes(o.GetMiner())
		return err == nil && isID(id, "")
	}) {
		means = isID
	}
	var found []identity.NodeID
	var n needs
	var known []string
	for _, o := range models.GetOffers() {
		id, err := identity.NodeIDFromBytes(o.GetMiner())
		if err != nil || len(o.GetModel().GetCalls()) == 0 {
			continue
		}
		if name := o.GetMinerName(); !slices.Contains(known, name) {
			known = append(known, name)
		}
		if !means(id, o.GetMinerName()) {
			continue
		}
		if !slices.Contains(found, id) {
			found = append(found, id)
		}
		if len(found) == 1 && n.miner == "" {
			n = needs{model: api.Model(o.GetModel().GetName()), miner: id.String(), call: api.Call(o.GetModel().GetCalls()[0])}
		}
	}
	switch {
	case len(found) == 1:
		return n, nil
	case len(found) > 1:
		return n, usageError(fmt.Sprintf("%d miners answer to %q", len(found), miner), "name one by its NodeID: mintai -mode client models -json")
	case slices.ContainsFunc(models.GetEmptyMiners(), func(name string) bool { return strings.EqualFold(name, miner) }):
		return n, &Error{Exit: ExitNoPath, Code: "no_server", Message: miner + " is connected but runs no AI server, so nobody is led to it", Hint: noServerHint}
	case len(known) == 0:
		return n, &Error{Exit: ExitNoPath, Code: "no_miner", Message: "no miner is connected", Hint: "start one: mintai -mode miner -config miner.toml"}
	}
	e := &Error{Exit: ExitNoPath, Code: "no_miner", Message: fmt.Sprintf("no miner %q is connected", miner), Hint: "connected are " + strings.Join(known, ", ")}
	if near := nearest(miner, known); near != "" {
		e.Hint = fmt.Sprintf("did you mean %s?", near)
	}
	return n, e
}

// pingPath is no call: the miner answers 404 to it by itself.
const pingPath = "https://miner/ping"

// pingOnce sends the miner a request that never reaches an AI server, and takes
// the time of its answer.
func pingOnce(ctx context.Context, l *link) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pingPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, pingPath, nil)
	if err != nil {
		return 0, err
	}
	started := time.Now()
	resp, err := l.RoundTrip(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return 0, fmt.Errorf("nothing within %s", terminal.FormatSeconds(pingPatience))
	case err != nil:
		return 0, err
	}
	rtt := time.Since(started)
	return rtt, resp.Body.Close()
}

// say writes a line for the person.
func (p *pinger) say(text string) {
	if !p.json {
		_, _ = fmt.Fprintln(p.std.Stdout, terminal.OneLine(text, maxFact))
	}
}

// pingLine tells of one answer.
func pingLine(miner string, path Path) string {
	word := "direct"
	if path.Relayed() {
		word = "relayed"
	}
	return fmt.Sprintf("%s: %s (%s, %s) %s", miner, word, path.Code, path.Reason, terminal.FormatRTT(path.RTT))
}

// pauseFor reports false when ctx ended meanwhile.
func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
