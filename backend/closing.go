package backend

import (
	"errors"
	"io"
	"net/http"

	"mintai/api"
)

// endsByClosing reports whether nothing but the end of the connection ends the
// body (RFC 9112 §6.3, rule 8), as with servers that speak HTTP/1.0. Then a
// server that dies looks like one that is done.
func endsByClosing(resp *http.Response) bool {
	return resp.ProtoMajor == 1 && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
}

// untilSaid makes the end of a streamed answer an error unless the stream itself
// said that it is whole.
func untilSaid(r *http.Request, body io.ReadCloser) io.ReadCloser {
	call, _ := r.Context().Value(callKey{}).(api.Call)
	stream, _ := r.Context().Value(streamKey{}).(bool)
	switch call {
	case api.ChatCompletions, api.Completions, api.OllamaChat, api.OllamaGenerate:
		if stream {
			return &saidBody{ReadCloser: body, text: api.StreamText(call)}
		}
	default:
	}
	return body // whole JSON, which nobody can read in part
}

// saidBody watches for the end that the stream itself tells.
type saidBody struct {
	io.ReadCloser
	text *api.TextDecoder
}

func (b *saidBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	_, _, ferr := b.text.Feed(p[:n])
	_ = b.text.TakeReasoning()
	// A stream that is malformed or that tells of an error says enough itself.
	if errors.Is(err, io.EOF) && ferr == nil && !b.text.Complete() {
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}
