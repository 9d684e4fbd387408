package wss

import (
	"encoding/base64"
	"errors"
	"strings"
)

const (
	// flightHeader carries the client's first datagrams in the request, base64url
	// without padding and separated by commas, and in the answer how many of them
	// the server took, in decimal.
	flightHeader = "Mintai-Datagrams"
	// maxFlight is how many there may be: a QUIC client begins with two Initial
	// packets (its ClientHello has a post-quantum key) and up to two of 0-RTT.
	// That is 6.5 kB of header, below the 8 kB at which common proxies refuse one.
	maxFlight = 4
	// maxFlightBytes is what they may have together.
	maxFlightBytes = 4800
)

var errFlight = errors.New("bad " + flightHeader + " header")

// encodeFlight returns the header for the first datagrams of a connection. It
// takes as many as there may be; the rest follows as messages.
func encodeFlight(flight []*datagram) (header string, taken int) {
	var b strings.Builder
	size := 0
	for _, d := range flight {
		if size += d.n; taken == maxFlight || size > maxFlightBytes {
			break
		}
		if taken > 0 {
			b.WriteByte(',')
		}
		b.WriteString(base64.RawURLEncoding.EncodeToString(d.bytes()))
		taken++
	}
	return b.String(), taken
}

// decodeFlight returns the datagrams of a request. An error means that there is
// none: half a flight is worse than none, which is sent again.
func decodeFlight(header string) ([]*datagram, error) {
	if header == "" {
		return nil, nil
	}
	if len(header) > base64.RawURLEncoding.EncodedLen(maxFlightBytes)+2*maxFlight {
		return nil, errFlight
	}
	size := 0
	parts := strings.Split(header, ",")
	if len(parts) > maxFlight {
		return nil, errFlight
	}
	flight := make([]*datagram, 0, len(parts))
	for _, part := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(part)
		size += len(b)
		if err != nil || len(b) == 0 || len(b) > MaxDatagram || size > maxFlightBytes || strings.ContainsAny(part, "\r\n") {
			for _, d := range flight {
				d.release()
			}
			return nil, errFlight
		}
		flight = append(flight, newDatagram(b))
	}
	return flight, nil
}
