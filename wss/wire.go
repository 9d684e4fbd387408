package wss

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// errNoText is why a connection ends over which something else than datagrams
// came.
var errNoText = errors.New("a text message instead of a datagram")

// wire is one WebSocket with datagrams in both directions. Two goroutines use
// it, one for each direction; the sending one also says goodbye.
type wire struct {
	ws  *websocket.Conn
	raw net.Conn // the TCP connection below it, whose deadlines bound what is sent
	out *queue

	sent, received atomic.Int64 // when the last datagram was, as Unix nanoseconds
}

func newWire(ws *websocket.Conn, raw net.Conn, out *queue) *wire {
	ws.SetReadLimit(MaxDatagram)
	w := &wire{ws: ws, raw: raw, out: out}
	now := time.Now().UnixNano()
	w.sent.Store(now)
	w.received.Store(now)
	return w
}

// send sends what is in the queue until done is closed, then the rest of it, and
// closes the WebSocket with the code that farewell returns. It closes it at the
// first error too.
func (w *wire) send(done <-chan struct{}, farewell func() (websocket.StatusCode, string)) error {
	for {
		select {
		case d := <-w.out.c:
			if err := w.write(d); err != nil {
				w.cut()
				return err
			}
		case <-done:
			w.close(farewell())
			return nil
		}
	}
}

func (w *wire) write(d *datagram) error {
	defer d.release()
	_ = w.raw.SetWriteDeadline(time.Now().Add(writeTimeout))
	err := w.ws.Write(context.Background(), websocket.MessageBinary, d.bytes())
	if err == nil {
		w.sent.Store(time.Now().UnixNano())
	}
	return err
}

// close sends the rest of the queue and the close message, and waits for the
// other end's within closeTimeout: closing at once could take back what was
// sent.
func (w *wire) close(code websocket.StatusCode, reason string) {
	_ = w.raw.SetDeadline(time.Now().Add(closeTimeout))
	late := time.AfterFunc(closeTimeout, func() { _ = w.raw.Close() })
	defer late.Stop()
	for {
		select {
		case d := <-w.out.c:
			err := w.ws.Write(context.Background(), websocket.MessageBinary, d.bytes())
			d.release()
			if err != nil {
				w.cut()
				return
			}
			continue
		default:
		}
		break
	}
	_ = w.ws.Close(code, reason)
}

// cut ends the connection without a word. TCP goes first: crypto/tls would try
// for five seconds to tell an end that takes nothing.
func (w *wire) cut() {
	_ = w.raw.Close()
	_ = w.ws.CloseNow()
}

// receive hands over each datagram until the connection ends or deliver returns
// false. Blocking in deliver holds the sender back, by TCP, and nobody else.
func (w *wire) receive(deliver func(*datagram) bool) error {
	for {
		kind, r, err := w.ws.Reader(context.Background())
		if err != nil {
			return err
		}
		if kind != websocket.MessageBinary {
			return errNoText
		}
		d := datagrams.Get().(*datagram)
		d.n, err = io.ReadFull(r, d.buf[:])
		if err == nil {
			_, err = io.Copy(io.Discard, r) // nothing, or an error for more than the limit
		} else if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil // shorter than the buffer
		}
		if err != nil {
			d.release()
			return err
		}
		if d.n == 0 {
			d.release()
			continue
		}
		w.received.Store(time.Now().UnixNano())
		if !deliver(d) {
			return net.ErrClosed
		}
	}
}

// ended describes the end of a connection as its reader saw it: what the other
// end said of it first.
func ended(err error) error {
	var ce websocket.CloseError
	switch {
	case errors.As(err, &ce) && ce.Reason != "":
		return errors.New("closed by the other end: " + ce.Reason)
	case errors.As(err, &ce):
		return errors.New("closed by the other end")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("cut off")
	}
	return err
}
