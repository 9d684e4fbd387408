package api

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// Bounds on what either end of a tunnel reads from the other.
const (
	// MaxBody is the most bytes of a request body: enough for a dozen photos.
	MaxBody = 32 << 20
	// MaxHeader is the most bytes of a request's or response's header fields.
	MaxHeader = 32 << 10
)

// Header fields of the tunnel. None of them reaches the AI server.
const (
	// HeaderSession carries the SessionID of the match, 32 hex digits.
	HeaderSession = "Mintai-Session"
	// HeaderRequest carries the request's random 128-bit ID, 32 hex digits.
	HeaderRequest = "Mintai-Request"
	// HeaderError carries the Code of an Error that MintAI itself raised. An
	// error response without it is the AI server's own.
	HeaderError = "Mintai-Error"
	// HeaderQueue carries, on a 102 response, how many requests are served
	// before this one gets its turn plus one: 1 is next.
	HeaderQueue = "Mintai-Queue"
	// HeaderResume carries the byte offset from which a client continues an
	// answer that it began on another connection.
	HeaderResume = "Mintai-Resume"
)

// FilterResponseHeader copies from src to dst what may pass from an AI server
// to a stranger: Retry-After, and Content-Type when it is JSON, server-sent
// events or newline-delimited JSON. Cookies, server names, request IDs, rate
// limits and everything else stay behind.
func FilterResponseHeader(dst, src http.Header) {
	if v := src.Get("Retry-After"); validRetryAfter(v) {
		dst.Set("Retry-After", v)
	}
	if ct, ok := AnswerType(src); ok {
		dst.Set("Content-Type", ct)
	}
}

// AnswerType returns the Content-Type of an answer in the one spelling that is
// passed on, and whether it is one of the three that may pass.
func AnswerType(h http.Header) (string, bool) {
	values := h.Values("Content-Type")
	if len(values) != 1 || len(values[0]) > 256 {
		return "", false
	}
	media, params, err := mime.ParseMediaType(values[0])
	if err != nil {
		return "", false
	}
	switch media {
	case "application/json", "text/event-stream", "application/x-ndjson":
	case "application/ndjson", "application/jsonl":
		media = "application/x-ndjson"
	default:
		return "", false
	}
	switch charset := strings.ToLower(params["charset"]); charset {
	case "":
		return media, true
	case "utf-8", "utf8":
		return media + "; charset=utf-8", true
	default:
		return "", false
	}
}

func validRetryAfter(v string) bool {
	if v == "" || len(v) > 64 {
		return false
	}
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return strconv.FormatUint(n, 10) == v
	}
	_, err := http.ParseTime(v)
	return err == nil
}
