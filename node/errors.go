package node

import "mintai/terminal"

// Exit is a process exit code. The list is closed and documented in the README.
type Exit int

// The exit codes.
const (
	ExitOK          Exit = 0
	ExitInternal    Exit = 1   // a fault of ours
	ExitUsage       Exit = 2   // the command line or a configuration file
	ExitNotAdmitted Exit = 3   // the coordinator refuses this node
	ExitNoMiner     Exit = 4   // no miner offers what the request needs
	ExitNoPath      Exit = 5   // no coordinator, or no path to a miner
	ExitLost        Exit = 6   // the miner was lost after a part of the answer
	ExitDeadline    Exit = 7   // a deadline passed
	ExitRefused     Exit = 8   // the AI server refused the request
	ExitInterrupted Exit = 130 // Ctrl-C
)

// Error is a failure as a person sees it: what happened and why (Message), and
// what to do next (Hint, may be empty). Code is the stable word of it for
// programs.
type Error struct {
	Exit    Exit
	Code    string
	Message string
	Hint    string
	Err     error // the cause, for errors.Is; may be nil

	lines []string // several failures at once, in place of Message
	shown bool     // already reported, as a JSON object
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// line is the whole failure in one line, safe for a terminal even where a
// stranger wrote parts of it.
func (e *Error) line() string {
	text := e.Message
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return terminal.OneLine(text, maxErrorLine)
}

// maxErrorLine bounds a failure's line, in characters: a stranger's error
// message must not fill the screen.
const maxErrorLine = 600

func usageError(message, hint string) *Error {
	return &Error{Exit: ExitUsage, Code: "usage", Message: message, Hint: hint}
}
