package ice

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"mintai/identity"
)

const testTimeout = 20 * time.Second

func testLog(t testing.TB) zerolog.Logger {
	return zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func testSocket(t testing.TB, cfg SocketConfig) *Socket {
	t.Helper()
	cfg.Log = testLog(t)
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the socket: %v", err)
		}
	})
	return s
}

// loopback returns how another socket of this machine reaches s.
func loopback(s *Socket) Candidate {
	return Candidate{Kind: Host, Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalAddr().Port())}
}

// party is a node of a test: a key, a socket and its credentials.
type party struct {
	key    *identity.Key
	socket *Socket
	creds  Credentials
}

func newParty(t testing.TB, cfg SocketConfig) *party {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return &party{key: key, socket: testSocket(t, cfg), creds: NewCredentials()}
}

func open(t testing.TB, p, peer *party, controlling bool, candidates ...Candidate) *Session {
	t.Helper()
	x, err := p.socket.Open(SessionConfig{
		ID:          identity.SessionID{1, 2, 3},
		Peer:        peer.key.ID(),
		Controlling: controlling,
		Local:       p.creds,
		Remote:      peer.creds,
		Candidates:  candidates,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func await(t testing.TB, addrs <-chan Reached) Reached {
	t.Helper()
	select {
	case r, ok := <-addrs:
		if !ok {
			t.Fatal("the channel was closed before the peer was reached")
		}
		return r
	case <-time.After(testTimeout):
		t.Fatal("the peer was not reached")
	}
	panic("unreachable")
}

const testALPN = "mintai-ice-test"

// serveEcho accepts one connection and one stream, and echoes it.
func serveEcho(t testing.TB, tr *quic.Transport, key *identity.Key, allow identity.NodeID) {
	t.Helper()
	tlsConf, err := key.ServerTLS(testALPN, func(id identity.NodeID) error {
		if id != allow {
			return identity.ErrPeer
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tr.Listen(tlsConf, &quic.Config{InitialPacketSize: 1200})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept(ctx)
			if err != nil {
				return
			}
			str, err := conn.AcceptStream(ctx)
			if err != nil {
				continue
			}
			_, _ = io.Copy(str, str)
			_ = str.Close()
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		<-done
	})
}

// echo dials peer at addr and sends n random bytes there and back.
func echo(t testing.TB, tr *quic.Transport, addr netip.AddrPort, key *identity.Key, peer identity.NodeID, n int) {
	t.Helper()
	ctx := testContext(t)
	tlsConf, err := key.ClientTLS(testALPN, peer, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(addr), tlsConf, &quic.Config{InitialPacketSize: 1200})
	if err != nil {
		t.Fatalf("dialing %s: %v", addr, err)
	}
	defer func() { _ = conn.CloseWithError(0, "") }()
	str, err := conn.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, n)
	_, _ = rand.Read(sent)
	errc := make(chan error, 1)
	go func() {
		_, err := str.Write(sent)
		errc <- errors.Join(err, str.Close())
	}()
	got, err := io.ReadAll(str)
	if err := errors.Join(err, <-errc); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back changed", len(got))
	}
}
