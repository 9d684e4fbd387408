package wss

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// Who serves TURN may be less patient than the connection is by itself, also
// with a client that has spoken.
func TestTURNReaderIsLessPatient(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	c := &turnConn{Conn: near}
	go func() { _, _ = far.Write([]byte{1}) }()
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	began := time.Now()
	if err := c.SetReadDeadline(began.Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > testWait {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = far.Write([]byte{2}) }()
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Error("without a deadline it reads on", n, err)
	}
}
