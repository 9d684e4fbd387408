package match

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"mintai/api"
)

// ErrNoMatch is what every *NoMatchError is, for errors.Is.
var ErrNoMatch = errors.New("no miner meets the needs")

// Code is the kind of a failed match. The numbers are those of
// signalpb.NoMatchCode, so that a conversion is a cast.
type Code int

// The closed list of codes.
const (
	CodeNoMiner    Code = iota + 1 // none is connected
	CodeFiltered                   // each was removed by a filter
	CodeNoServer                   // miners are connected but run no AI server
	CodeBusy                       // those that could are full, draining or already tried
	CodeBadRequest                 // the needs make no sense
)

// String returns the code as it is written in logs.
func (c Code) String() string {
	switch c {
	case CodeNoMiner:
		return "no miner"
	case CodeFiltered:
		return "filtered"
	case CodeNoServer:
		return "no server"
	case CodeBusy:
		return "busy"
	case CodeBadRequest:
		return "bad request"
	}
	return fmt.Sprintf("Code(%d)", int(c))
}

// Filter is what one filter removed.
type Filter struct {
	Reason  string // reads on after the number: "do not offer qwen3:8b"
	Removed int    // miners, at least 1
}

// String returns "2 do not offer qwen3:8b".
func (f Filter) String() string { return fmt.Sprintf("%d %s", f.Removed, f.Reason) }

// NoMatchError says why no miner was chosen.
type NoMatchError struct {
	Code    Code
	Filters []Filter    // in the order in which they were applied
	Offered []api.Model // what the asker could have had, sorted, at most 32
	// NoServer are the names of connected miners that run no AI server, sorted,
	// at most 32.
	NoServer []string
	// RetryAfter is when to try again when the miners are only busy; 0: trying
	// again does not help by itself.
	RetryAfter time.Duration
	// Detail is the sentence of a CodeBadRequest.
	Detail string
}

// Bounds of what an error carries.
const (
	maxOffered  = 32
	maxNoServer = 32
	namesShown  = 5  // in Error, of Offered and of NoServer
	nameShown   = 48 // characters of each
)

// Is makes errors.Is(err, ErrNoMatch) true.
func (e *NoMatchError) Is(target error) bool { return target == ErrNoMatch }

// Error says what happened, why, and what to do next, in one line.
func (e *NoMatchError) Error() string {
	switch e.Code {
	case CodeNoMiner:
		return "no miner is connected; start one with: mintai -mode miner -config miner.toml"
	case CodeNoServer:
		return noServerText(e.NoServer)
	case CodeBadRequest:
		return e.Detail
	case CodeFiltered, CodeBusy:
	}
	parts := make([]string, 0, len(e.Filters))
	for _, f := range e.Filters {
		parts = append(parts, f.String())
	}
	text := "no miner can answer: " + strings.Join(parts, ", ")
	switch {
	case e.Code == CodeBusy:
		text = "no miner can answer just now: " + strings.Join(parts, ", ") + "; try again in " + seconds(e.RetryAfter)
	case len(e.Offered) > 0:
		text += "; offered: " + shorten(modelNames(e.Offered))
	}
	return text
}

// noServerText says which miners are there in vain.
func noServerText(miners []string) string {
	verb := "is connected but runs no AI server"
	if len(miners) != 1 {
		verb = "are connected but run no AI server"
	}
	return shorten(miners) + " " + verb
}

func modelNames(models []api.Model) []string {
	out := make([]string, len(models))
	for i, m := range models {
		out[i] = string(m)
	}
	return out
}

// shorten joins the first names and says how many are left out. A name that is
// longer than anybody reads is cut.
func shorten(names []string) string {
	shown := make([]string, 0, namesShown)
	for _, name := range names[:min(len(names), namesShown)] {
		if r := []rune(name); len(r) > nameShown {
			name = string(r[:nameShown-1]) + "…"
		}
		shown = append(shown, name)
	}
	text := strings.Join(shown, ", ")
	if len(names) > namesShown {
		text += fmt.Sprintf(" and %d more", len(names)-namesShown)
	}
	return text
}

func seconds(d time.Duration) string { return fmt.Sprintf("%d s", int(max(d, time.Second).Seconds())) }
