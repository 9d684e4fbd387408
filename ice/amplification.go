package ice

// maxAmplification bounds an answer to somebody who may have forged the source
// of the request, as multiple of the request's bytes. RFC 9000 §8.1 has the same
// factor for QUIC.
const maxAmplification = 3

// isResponse reports whether b is a STUN response: RFC 8489 §5, the class bits
// are 0b10 or 0b11. Only the answer to a request is one.
func isResponse(b []byte) bool { return len(b) >= stunHeader && b[0]&0xc1 == 0x01 }

// amplifies reports whether an answer is too long for its request.
func amplifies(answer, request int) bool { return answer > maxAmplification*request }
