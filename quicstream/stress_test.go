package quicstream

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"testing"
)

var errGone = errors.New("not kept")

// pattern is the body that every handler of TestManyAtOnce writes.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

// Many requests on two tunnels at once, read whole, cancelled midway or moved
// to the other tunnel: every byte is right, and nothing stays behind. With
// little memory a moved answer may be gone, but none hangs or is wrong.
func TestManyAtOnce(t *testing.T) {
	t.Run("enough memory", func(t *testing.T) { manyAtOnce(t, 256<<20, false) })
	t.Run("little memory", func(t *testing.T) { manyAtOnce(t, 4<<20, true) })
}

func manyAtOnce(t *testing.T, memory int64, mayBeGone bool) {
	const requests = 300
	body := pattern(200_000)
	want := sha256.Sum256(body)
	r := newRig(t, ServerConfig{BufferPerClient: memory, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		size, _ := strconv.Atoi(req.Header.Get("X-Piece"))
		for p := body; len(p) > 0; {
			n := min(size, len(p))
			if _, err := w.Write(p[:n]); err != nil {
				return
			}
			p = p[n:]
		}
	})})
	tunnels := [2]*Tunnel{r.dial(), r.dial()}
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			id := NewRequestID().String()
			piece := strconv.Itoa([]int{100, 3000, 5000, 70000}[rnd.IntN(4)])
			ask := func(tunnel *Tunnel, offset int64) (io.ReadCloser, error) {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://any/", http.NoBody)
				if err != nil {
					return nil, err
				}
				req.Header.Set("X-Piece", piece)
				req.Header.Set(HeaderRequest, id)
				if offset > 0 {
					req.Header.Set(HeaderResume, strconv.FormatInt(offset, 10))
				}
				res, err := tunnel.RoundTrip(req)
				if err != nil {
					return nil, err
				}
				if mayBeGone && res.Header.Get(HeaderError) != "" {
					_ = res.Body.Close()
					return nil, errGone
				}
				if res.StatusCode != http.StatusOK {
					return nil, fmt.Errorf("status %d at %d", res.StatusCode, offset)
				}
				return res.Body, nil
			}
			at := int64(0)
			sum := sha256.New()
			answer, err := ask(tunnels[i%2], 0)
			if errors.Is(err, errGone) {
				return // refused as busy
			}
			if err != nil {
				t.Error(err)
				return
			}
			switch rnd.IntN(3) {
			case 0: // cancel
				_, _ = io.CopyN(io.Discard, answer, rnd.Int64N(100_000))
				cancel()
				if _, err := io.Copy(io.Discard, answer); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				_ = answer.Close()
				return
			case 1: // move
				if at, err = io.CopyN(sum, answer, 1+rnd.Int64N(100_000)); err != nil {
					t.Error(err)
					return
				}
				old := answer
				defer func() { _ = old.Close() }()
				answer, err = ask(tunnels[(i+1)%2], at)
				if errors.Is(err, errGone) {
					cancel() // frees the answer that is not read any more
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
			n, err := io.Copy(sum, answer)
			_ = answer.Close()
			if _, aborted := errors.AsType[*AbortedError](err); aborted && mayBeGone && at > 0 {
				return
			}
			if err != nil || at+n != int64(len(body)) || [sha256.Size]byte(sum.Sum(nil)) != want {
				t.Errorf("%d bytes of %d from %d on: %v", at+n, len(body), at, err)
			}
		})
	}
	wg.Wait()
	for _, tunnel := range tunnels {
		if n := tunnel.InFlight(); n != 0 || tunnel.Err() != nil {
			t.Errorf("%d in flight, %v", n, tunnel.Err())
		}
	}
	eventually(t, "no handler runs", func() bool {
		r.server.mu.Lock()
		defer r.server.mu.Unlock()
		return r.server.running == 0
	})
	for _, tunnel := range tunnels {
		_ = tunnel.Close(Done)
	}
	eventually(t, "the memory is given back", func() bool { return r.server.Counters().BufferedBytes == 0 })
}
