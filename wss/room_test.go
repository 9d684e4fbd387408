package wss

import (
	"net"
	"runtime"
	"testing"
	"time"
)

// conns waits until the server has n connections, and makes them old.
func conns(t *testing.T, s *Server, n int) {
	t.Helper()
	for deadline := time.Now().Add(testWait); ; runtime.Gosched() {
		s.mu.Lock()
		got := len(s.conns)
		for c := range s.conns {
			c.since = c.since.Add(-2 * admitTime)
		}
		s.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections, want %d", got, n)
		}
	}
}

func timedOut(err error) bool {
	var ne net.Error
	return asTimeout(err, &ne)
}

// Strangers who take all places and only keep them keep nobody out, and who was
// let in keeps his.
func TestStrangersMakeRoom(t *testing.T) {
	s, _ := startServer(t, ServerConfig{MaxConns: 2})
	known, err := (&Dialer{}).TURN(patient(t), s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer known.Close()
	server, err := s.TURN().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.(interface{ Admit(bool) }).Admit(true) // as a signed request does
	conns(t, s, 1)

	silent, err := net.Dial("tcp", s.Addr().String()) // not even TLS
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	conns(t, s, 2)
	c, err := (&Dialer{}).Packets(patient(t), s.Addr().String())
	if err != nil {
		t.Fatalf("no room: %v", err)
	}
	defer c.Close()
	mustEnd(t, silent)

	if _, err := server.Write([]byte("still here")); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 10)
	if _, err := known.Read(buf); err != nil || string(buf) != "still here" {
		t.Errorf("the connection that was let in: %q, %v", buf, err)
	}

	server.(interface{ Admit(bool) }).Admit(false)
	conns(t, s, 2)
	late, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	_ = known.SetReadDeadline(time.Now().Add(testWait))
	if _, err := known.Read(buf); err == nil || timedOut(err) {
		t.Errorf("who is no longer known keeps its place: %v", err)
	}
}

// A newcomer's own limits count before anybody makes room for it.
func TestNoRoomIsMadeForAFlood(t *testing.T) {
	s, _ := startServer(t, ServerConfig{MaxConns: 1, PerPrefix: 1})
	first, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	conns(t, s, 1)
	second, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	mustEnd(t, second)
	_ = first.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := first.Read(make([]byte, 1)); !timedOut(err) {
		t.Errorf("the first was closed: %v", err)
	}
}
