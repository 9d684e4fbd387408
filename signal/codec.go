package signal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"mintai/signal/signalpb"
)

// MaxMessage is the longest encoded Envelope in bytes, its length prefix not
// counted. Longer ones are neither sent nor read.
const MaxMessage = 64 << 10

// readStep bounds what is allocated on the word of a length prefix alone: the
// buffer grows with the bytes that truly arrive.
const readStep = 4 << 10

var (
	// ErrTooLarge says that a message is longer than MaxMessage.
	ErrTooLarge = errors.New("signal: message too large")
	// ErrMalformed says that the bytes are no message.
	ErrMalformed = errors.New("signal: malformed message")
)

// WriteMessage writes the length of env as an unsigned varint, then env, in one
// Write.
func WriteMessage(w io.Writer, env *signalpb.Envelope) error {
	frame, err := encode(env)
	if err != nil {
		return err
	}
	_, err = w.Write(frame)
	return err
}

// encode returns the frame of env: its length, then itself.
func encode(env *signalpb.Envelope) ([]byte, error) {
	n := proto.Size(env)
	if n > MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, n)
	}
	frame := binary.AppendUvarint(make([]byte, 0, n+binary.MaxVarintLen32), uint64(n))
	frame, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(frame, env)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return frame, nil
}

// ReadMessage reads one message. It returns io.EOF when r ends before the first
// byte, io.ErrUnexpectedEOF when it ends within a message, ErrTooLarge before
// it allocates, ErrMalformed, or the error of r. It reads not a byte beyond the
// message, and does not judge the fields: see Validate.
func ReadMessage(r io.Reader) (*signalpb.Envelope, error) {
	n, err := readLength(r)
	if err != nil {
		return nil, err
	}
	return readEnvelope(r, n)
}

func readEnvelope(r io.Reader, n int) (*signalpb.Envelope, error) {
	body, err := readBody(r, n)
	if err != nil {
		return nil, err
	}
	env := new(signalpb.Envelope)
	// Unknown fields are dropped: nothing passes them on, and they cost memory.
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, env); err != nil {
		return nil, fmt.Errorf("%w: %d bytes do not parse", ErrMalformed, n)
	}
	return env, nil
}

// readLength reads the varint, which for MaxMessage takes three bytes at most,
// and accepts its shortest spelling only.
func readLength(r io.Reader) (int, error) {
	var n uint64
	var one [1]byte
	for i := range 3 {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			if i > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		n |= uint64(one[0]&0x7f) << (7 * i)
		if one[0] < 0x80 {
			return checkLength(n, i > 0 && one[0] == 0)
		}
	}
	return 0, fmt.Errorf("%w: its length takes more than three bytes", ErrTooLarge)
}

func checkLength(n uint64, padded bool) (int, error) {
	switch {
	case padded:
		return 0, fmt.Errorf("%w: length in a long spelling", ErrMalformed)
	case n > MaxMessage:
		return 0, fmt.Errorf("%w: %d bytes", ErrTooLarge, n)
	}
	return int(n), nil
}

func readBody(r io.Reader, n int) ([]byte, error) {
	body := make([]byte, 0, min(n, readStep))
	for len(body) < n {
		step := min(n-len(body), max(len(body), readStep)) // at most doubles
		start := len(body)
		body = append(body, make([]byte, step)...)
		if _, err := io.ReadFull(r, body[start:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return body, nil
}
