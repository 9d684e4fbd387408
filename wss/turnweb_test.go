package wss

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// opener is a proxy that opens TLS: it ends the client's with a certificate of
// its own, offers the protocol that it knows, and makes another to the server.
func opener(t *testing.T, server string, protocols ...string) string {
	t.Helper()
	cert, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	return listen(t, func(raw net.Conn) {
		inside := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: protocols})
		if inside.Handshake() != nil {
			return
		}
		outside, err := tls.Dial("tcp", server, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocolHTTP}})
		if err != nil {
			return
		}
		defer outside.Close()
		go func() {
			_, _ = io.Copy(outside, inside)
			_ = outside.Close()
		}()
		_, _ = io.Copy(inside, outside)
		_ = inside.Close()
	})
}

// TURN gets through where TLS is opened on the way: in a WebSocket.
func TestTURNThroughOpenedTLS(t *testing.T) {
	s, stop := startServer(t, ServerConfig{})
	for name, protocols := range map[string][]string{"that refuses other protocols": {protocolHTTP}, "that ignores them": nil} {
		t.Run(name, func(t *testing.T) {
			at := opener(t, s.Addr().String(), protocols...)
			c, err := (&Dialer{}).TURN(patient(t), at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			there, err := s.TURN().Accept()
			if err != nil {
				t.Fatal(err)
			}
			sent := make([]byte, 200<<10)
			_, _ = rand.Read(sent)
			go func() {
				for i := 0; i < len(sent); i += 8 << 10 {
					_, _ = c.Write(sent[i:min(i+8<<10, len(sent))])
				}
			}()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("the bytes were changed, or %v", err)
			}
			if _, err := io.WriteString(there, "pong"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, got[:4]); err != nil || string(got[:4]) != "pong" {
				t.Fatalf("%q %v", got[:4], err)
			}
			if there.RemoteAddr().String() == "" || there.RemoteAddr().Network() != "tcp" {
				t.Errorf("remote %v", there.RemoteAddr())
			}
			_ = c.Close()
			if _, err := there.Read(got[:1]); err == nil {
				t.Error("the other end has closed")
			}
			_ = there.Close()
		})
	}
	// The server's end is the end of what it handed over.
	c, err := (&Dialer{}).TURN(patient(t), opener(t, s.Addr().String(), protocolHTTP))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := s.TURN().Accept(); err != nil {
		t.Fatal(err)
	}
	stop()
	mustEnd(t, c)
}
