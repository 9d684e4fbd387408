// Package node is the running process: it composes the coordinator, the miner
// and the client from the packages that each know one thing, and is the only
// package that knows them all.
//
// A role is a value with a Run(ctx) that owns every goroutine it starts and
// returns when ctx ends. What a person types is parsed in command.go; what a
// person is told when something fails is an *Error.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"mintai/terminal"
)

// IO is what a process has of the world: arguments are given apart.
type IO struct {
	Stdin  *os.File
	Stdout *os.File
	Stderr *os.File
	Getenv func(string) string
}

// Main runs the command line args (without the program's name) and returns the
// process's exit code. It returns when the command is done or ctx ends.
func Main(ctx context.Context, args []string, std IO) int {
	cmd, err := parseCommand(args)
	if err == nil {
		err = cmd.run(ctx, std)
	}
	if err == nil {
		return int(ExitOK)
	}
	failure := asError(err)
	if !failure.shown {
		printFailure(std.Stderr, failure)
	}
	return int(failure.Exit)
}

// printFailure writes the one line that a person needs, and the hint.
func printFailure(w io.Writer, e *Error) {
	if e.Exit == ExitInterrupted {
		return // the person who pressed Ctrl-C knows
	}
	for _, line := range e.lines {
		_, _ = fmt.Fprintf(w, "mintai: %s\n", terminal.OneLine(line, maxErrorLine))
	}
	if len(e.lines) == 0 {
		_, _ = fmt.Fprintf(w, "mintai: %s\n", e.line())
	}
}

// asError finds the *Error in err, or wraps err as an internal one.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Exit: ExitInterrupted, Code: "interrupted", Message: "interrupted", Err: err}
	}
	return &Error{Exit: ExitInternal, Code: "internal", Message: err.Error(), Err: err}
}
