package wss

import (
	"net"
	"os"
	"sync"
	"time"
)

// inboundLength is how many received datagrams wait for the one reader.
const inboundLength = 1024

// packets is the net.PacketConn over all WebSockets of a Server. When its reader
// is slow, each connection waits with one datagram in its hand and TCP holds its
// sender back: nothing is lost, and one flooder takes no other's place.
type packets struct {
	local *Addr
	in    chan *datagram
	read  *deadline
	done  chan struct{} // closed by Close
	once  sync.Once
}

var _ net.PacketConn = (*packets)(nil)

func newPackets(local net.Addr) *packets {
	return &packets{
		local: newAddr(local, nil), in: make(chan *datagram, inboundLength),
		read: newDeadline(), done: make(chan struct{}),
	}
}

// deliver hands a datagram to the reader. It reports false when there will be
// none any more, or stop was closed first.
func (p *packets) deliver(d *datagram, stop <-chan struct{}) bool {
	select {
	case p.in <- d:
		return true
	case <-p.done:
	case <-stop:
	}
	d.release()
	return false
}

// ReadFrom returns the next datagram of any connection, with its *Addr.
func (p *packets) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-p.in:
		return take(d, b)
	case <-p.read.wait():
		return 0, nil, os.ErrDeadlineExceeded
	case <-p.done:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo sends to the connection with that address. It never blocks. The error
// is net.ErrClosed when that connection is gone.
func (p *packets) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*Addr)
	if !ok || a.out == nil {
		return 0, &net.AddrError{Err: "not a connection of this server", Addr: to.String()}
	}
	if err := a.out.put(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close ends ReadFrom. The connections are the Server's.
func (p *packets) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *packets) LocalAddr() net.Addr { return p.local }

func (p *packets) SetReadDeadline(t time.Time) error {
	p.read.set(t)
	return nil
}

func (p *packets) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

func (p *packets) SetWriteDeadline(time.Time) error { return nil } // writes never wait

// quic-go prints a warning when these are missing.
func (p *packets) SetReadBuffer(int) error  { return nil }
func (p *packets) SetWriteBuffer(int) error { return nil }
