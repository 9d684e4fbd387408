// Package wss carries datagrams where UDP is blocked: as binary messages of a
// WebSocket (RFC 6455) over TLS, by default on TCP port 443, through HTTP
// proxies where there are some. QUIC runs over them as it does over UDP, with
// the same mutual authentication, and never learns the difference. The same
// port serves TURN over TLS to clients that ask for it by ALPN (RFC 7443).
//
// What the package does not do: it trusts nothing and nobody. The outer TLS is
// there because networks let it through. It may end at a company's proxy, and
// its certificate decides nothing; see Dialer.
//
// docs/adr/0010-quic-over-websocket.md tells why, and what it costs.
//
// # A connection
//
//	client                                   coordinator
//	TCP handshake            (1 R)
//	TLS 1.3, ALPN http/1.1   (1 R)
//	GET /mintai, Upgrade: websocket,
//	Sec-WebSocket-Protocol: mintai.1,
//	Mintai-Datagrams: the first flight  →    101, Mintai-Datagrams: how many it took
//	                                    ←    the answers to them, as messages
//	one datagram a binary message      ↔    one datagram a binary message
//
// RFC 6455 §4.1 forbids messages before the answer to the upgrade: "Once the
// client's opening handshake has been sent, the client MUST wait for a response
// from the server before sending any further data." So the first flight travels
// inside the request, in a header of ours, and costs no round trip of its own.
// Where something in between took the header away, the client sees that the
// answer does not count its datagrams and sends them again as messages.
package wss

import "time"

const (
	// Path is where a server takes WebSockets.
	Path = "/mintai"
	// Subprotocol is the WebSocket subprotocol (RFC 6455 §1.9); a change that
	// older versions do not understand gets a new number.
	Subprotocol = "mintai.1"
	// MaxDatagram is the longest message, in bytes. QUIC here sends at most 1452.
	MaxDatagram = 1500

	protocolHTTP = "http/1.1"
	protocolTURN = "stun.turn" // RFC 7443 §3
)

const (
	// queueLength is how many datagrams wait for a connection that is slow to
	// take them. QUIC's congestion control adapts to the loss of the rest.
	queueLength = 64
	// writeTimeout is how long the other end may take nothing at all before the
	// connection is given up.
	writeTimeout = 10 * time.Second
	// closeTimeout bounds the closing handshake (RFC 6455 §7.1.1) and what is
	// still to be sent before it.
	closeTimeout = time.Second
)
