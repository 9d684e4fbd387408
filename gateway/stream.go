package gateway

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"mintai/api"
)

// streaming says how an answer comes in pieces.
type streaming int

const (
	notStreamed  streaming = iota
	serverEvents           // text/event-stream
	jsonLines              // application/x-ndjson
)

func streamKind(contentType string) streaming {
	media, _, _ := strings.Cut(contentType, ";")
	switch media {
	case "text/event-stream":
		return serverEvents
	case "application/x-ndjson":
		return jsonLines
	default:
		return notStreamed
	}
}

// failureEvent is an error as the stream's own last event. Official clients
// raise it as an exception.
func failureEvent(call api.Call, kind streaming, e *api.Error) []byte {
	body := api.ErrorBody(call, e) // one line
	if kind == jsonLines {
		return body
	}
	event := "data: "
	if call.Flavor() == api.Anthropic {
		event = "event: error\ndata: "
	}
	return []byte(event + string(body) + "\n")
}

// maxHeldLine bounds the part of a line that waits for its end, in bytes.
const maxHeldLine = 64 << 10

// eventReader passes a stream on in whole lines, so that an error event can
// follow wherever the stream breaks: a line that was cut in the middle is not
// passed on. Nobody waits longer for that, because no client acts on half a
// line. Lines over maxHeldLine are passed on in parts.
type eventReader struct {
	body    io.Reader
	kind    streaming
	failure func(error) []byte // the event that says why

	ready    bytes.Buffer // whole lines, to be returned
	held     []byte       // the beginning of a line
	inLine   bool         // a part of the current line was passed on
	tail     [2]byte      // the last bytes that were passed on
	err      error        // what the body ended with
	finished bool         // the end was dealt with
}

// Read returns whole lines, then the body's error. Before an error other than
// io.EOF comes its event.
func (s *eventReader) Read(p []byte) (int, error) {
	for s.ready.Len() == 0 {
		if s.err != nil {
			if s.finished {
				return 0, s.err
			}
			s.finish()
			continue
		}
		n, err := s.body.Read(p)
		s.take(p[:n])
		s.err = err
	}
	return s.ready.Read(p)
}

func (s *eventReader) take(p []byte) {
	end := bytes.LastIndexAny(p, "\n\r") + 1
	if end > 0 {
		s.pass(s.held)
		s.pass(p[:end])
		s.held = s.held[:0]
		s.inLine = false
	}
	s.held = append(s.held, p[end:]...)
	if len(s.held) > maxHeldLine {
		s.pass(s.held)
		s.held = s.held[:0]
		s.inLine = true
	}
}

func (s *eventReader) pass(b []byte) {
	if len(b) == 0 {
		return
	}
	_, _ = s.ready.Write(b) // grows or panics, never fails
	if len(b) == 1 {
		s.tail = [2]byte{s.tail[1], b[0]}
	} else {
		s.tail = [2]byte(b[len(b)-2:])
	}
}

// finish passes on what was held when the stream ended well, and the error
// event when it did not.
func (s *eventReader) finish() {
	s.finished = true
	if errors.Is(s.err, io.EOF) {
		s.pass(s.held)
		return
	}
	if s.inLine {
		s.pass([]byte("\n"))
	}
	// An empty line ends the event that was under way.
	if s.kind == serverEvents && s.tail != [2]byte{} && s.tail != [2]byte{'\n', '\n'} {
		s.pass([]byte("\n"))
	}
	s.pass(s.failure(s.err))
}
