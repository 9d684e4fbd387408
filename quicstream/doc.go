// Package quicstream is the tunnel between a client and a miner: one QUIC
// connection (RFC 9000) over whatever path was found, both ends proven to be
// the NodeID they claim, HTTP/3 (RFC 9114) on top.
//
// The miner runs a Server in front of an http.Handler. The client dials a
// Tunnel, which is an http.RoundTripper. Neither side's handler or proxy sees
// QUIC.
//
// Between the connection and the handler lies the answer buffer. A handler runs
// on a context of its own, so a path that dies does not waste the GPU's work:
//
//	running ──stream reset, or tunnel closed on purpose──▶ cancelled at once
//	running ──connection lost──▶ kept ──same NodeID, same request ID──▶ running
//	                             kept ──resume window over──▶ cancelled, wiped
//	running ──handler returned──▶ finished, kept as long ──▶ wiped
//
// The package finds no paths, matches nothing and knows no models.
package quicstream

import "mintai/api"

// ALPN is the application protocol of the tunnel (RFC 7301). A breaking change
// gets a new name.
const ALPN = "mintai-tunnel/1"

// Header fields of the tunnel. Names are in canonical form.
const (
	// HeaderRequest carries the RequestID of a request.
	HeaderRequest = api.HeaderRequest
	// HeaderResume carries, in a request, the number of body bytes that the
	// client already has, and in the answer the offset at which it continues.
	HeaderResume = api.HeaderResume
	// HeaderDigest carries, in a request with HeaderResume, the Digest of the
	// request that it continues. The body then need not be sent again.
	HeaderDigest = "Mintai-Digest"
	// HeaderAttempt numbers the tries to carry one answer over one tunnel after
	// another, from 1: packets of an earlier try may come later, and must not
	// take the answer back. The answer repeats it, which tells an answer of the
	// handler, whatever its HeaderError, from a Refusal.
	HeaderAttempt = "Mintai-Attempt"
	// HeaderError carries the Refusal of an answer that the tunnel itself made.
	HeaderError = api.HeaderError
)

// Refusal says why the tunnel answered a request itself instead of handing it
// to the handler. It is a closed list.
type Refusal string

// The refusals.
const (
	RefusedUnauthorized   Refusal = "unauthorized"    // 403: no live grant
	RefusedMalformed      Refusal = "bad-request"     // 400: request ID, offset or body
	RefusedMethod         Refusal = "bad-method"      // 405: CONNECT, upgrades
	RefusedTooLarge       Refusal = "too-large"       // 413: request body
	RefusedBusy           Refusal = "busy"            // 503: this client's buffers are full
	RefusedGoingAway      Refusal = "going-away"      // 503: the miner is shutting down
	RefusedUnknownRequest Refusal = "resume-unknown"  // 404: nothing to resume for this client
	RefusedOtherRequest   Refusal = "resume-conflict" // 409: the ID belongs to another request
	RefusedGone           Refusal = "resume-gone"     // 410: these bytes are no longer kept
	RefusedStale          Refusal = "resume-stale"    // 409: a later attempt carries the answer
	RefusedOffset         Refusal = "resume-offset"   // 416: past the end of the answer
)
