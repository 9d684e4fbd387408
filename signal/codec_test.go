package signal

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"mintai/signal/signalpb"
)

func TestMessagesRoundTrip(t *testing.T) {
	var b bytes.Buffer
	for _, env := range samples() {
		if err := WriteMessage(&b, env); err != nil {
			t.Fatal(err)
		}
	}
	r := iotest.OneByteReader(&b)
	for _, want := range samples() {
		got, err := ReadMessage(r)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("%v became %v", want, got)
		}
	}
	if _, err := ReadMessage(r); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestMessageSizeIsBounded(t *testing.T) {
	big := &signalpb.Envelope{Message: &signalpb.Envelope_Goodbye{Goodbye: &signalpb.Goodbye{Reason: string(make([]byte, MaxMessage))}}}
	var b bytes.Buffer
	if err := WriteMessage(&b, big); !errors.Is(err, ErrTooLarge) || b.Len() != 0 {
		t.Errorf("%v after %d bytes", err, b.Len())
	}
	big.GetGoodbye().Reason = string(bytes.Repeat([]byte{'x'}, MaxMessage-9)) // just fits with its headers
	if err := WriteMessage(&b, big); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadMessage(&b); err != nil || !proto.Equal(got, big) {
		t.Error(err)
	}
}

// TestLengthAloneCostsLittle: a stranger who promises 64 KiB and sends nothing
// must not get 64 KiB.
func TestLengthAloneCostsLittle(t *testing.T) {
	promise := []byte{0x80, 0x80, 0x04} // 65,536
	bytesPerRun := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ReadMessage(bytes.NewReader(promise)); !errors.Is(err, io.ErrUnexpectedEOF) {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if bytesPerRun > 2*readStep+1024 {
		t.Errorf("%d bytes were allocated", bytesPerRun)
	}
}

func TestAddress(t *testing.T) {
	for _, s := range []string{"192.0.2.1:1", "[2001:db8::1]:65535", "[::ffff:192.0.2.1]:80"} {
		want := netip.MustParseAddrPort(s)
		got, err := AddrPort(Address(want))
		if err != nil || got.Addr() != want.Addr().Unmap() || got.Port() != want.Port() {
			t.Errorf("%s became %v, %v", s, got, err)
		}
	}
	mapped := netip.MustParseAddr("::ffff:192.0.2.1").As16()
	for name, a := range map[string]*signalpb.Address{
		"nothing":     nil,
		"three bytes": {Ip: []byte{1, 2, 3}, Port: 1},
		"port 0":      {Ip: []byte{1, 2, 3, 4}},
		"port 65536":  {Ip: []byte{1, 2, 3, 4}, Port: 65536},
		"mapped":      {Ip: mapped[:], Port: 1},
	} {
		if got, err := AddrPort(a); !errors.Is(err, ErrBadAddress) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func BenchmarkOffer(b *testing.B) {
	var offer *signalpb.Envelope
	for _, env := range samples() {
		if env.GetOffer() != nil {
			offer = env
		}
	}
	b.ReportAllocs()
	var buf bytes.Buffer
	for b.Loop() {
		if err := WriteMessage(&buf, offer); err != nil {
			b.Fatal(err)
		}
		env, err := ReadMessage(&buf)
		if err != nil {
			b.Fatal(err)
		}
		if err := Validate(env); err != nil {
			b.Fatal(err)
		}
	}
}
