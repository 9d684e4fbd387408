package signal

// historyLimit is how many answered requests are remembered. The oldest go first.
const historyLimit = 64

// history remembers requests that are over, so that an answer that comes twice
// is not taken for another one. The zero value is empty.
type history struct {
	attempts map[[nonceSize]byte]uint32
	order    [][nonceSize]byte // oldest first
}

// note remembers the highest attempt that answered a request.
func (h *history) note(nonce [nonceSize]byte, attempt uint32) {
	if h.attempts == nil {
		h.attempts = make(map[[nonceSize]byte]uint32)
	}
	if _, known := h.attempts[nonce]; !known {
		if len(h.order) >= historyLimit {
			delete(h.attempts, h.order[0])
			h.order = h.order[1:]
		}
		h.order = append(h.order, nonce)
	}
	h.attempts[nonce] = max(attempt, h.attempts[nonce])
}

// has reports whether that request was answered by this attempt or a later one.
func (h *history) has(nonce [nonceSize]byte, attempt uint32) bool {
	highest, known := h.attempts[nonce]
	return known && attempt <= highest
}
