package gateway

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

var errCut = errors.New("cut")

// Whatever the stream and wherever it is cut into reads, a stream that ends
// well passes byte for byte, and one that does not ends in the error event.
func FuzzEventReader(f *testing.F) {
	f.Add([]byte("data: {}\n\ndata: x\r\n\r\n: comment\n\nevent: a"), true)
	f.Add([]byte("{}\n{\n"), false)
	f.Fuzz(func(t *testing.T, stream []byte, one bool) {
		cut := func(r io.Reader) io.Reader {
			if one {
				return iotest.OneByteReader(r)
			}
			return iotest.DataErrReader(r)
		}
		for _, kind := range []streaming{serverEvents, jsonLines} {
			event := []byte("!event\n")
			read := func(body io.Reader) ([]byte, error) {
				return io.ReadAll(&eventReader{body: cut(body), kind: kind, failure: func(error) []byte { return event }})
			}
			got, err := read(bytes.NewReader(stream))
			if err != nil || !bytes.Equal(got, stream) {
				t.Errorf("passed %q as %q, %v", stream, got, err)
			}
			got, err = read(io.MultiReader(bytes.NewReader(stream), iotest.ErrReader(errCut)))
			if !errors.Is(err, errCut) || !bytes.HasSuffix(got, event) {
				t.Errorf("broke %q as %q, %v", stream, got, err)
			}
			if rest := bytes.TrimSuffix(got, event); len(rest) > 0 && rest[len(rest)-1] != '\n' && rest[len(rest)-1] != '\r' {
				t.Errorf("the event stands in the middle of a line: %q", got)
			}
		}
	})
}

// Per token, the reader costs next to nothing.
func BenchmarkEventReader(b *testing.B) {
	event := bytes.Repeat([]byte("data: {\"choices\":[{\"delta\":{\"content\":\"token\"}}]}\n\n"), 64)
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	buf := make([]byte, copyBuffer)
	source := bytes.NewReader(event)
	for b.Loop() {
		source.Reset(event)
		r := &eventReader{body: source, kind: serverEvents}
		for {
			if _, err := r.Read(buf); err != nil {
				break
			}
		}
	}
}
