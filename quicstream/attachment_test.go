package quicstream

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// answerOf is the server's record of a request.
func (r *rig) answerOf(t *testing.T, id string) *answer {
	t.Helper()
	parsed, err := ParseRequestID(id)
	if err != nil {
		t.Fatal(err)
	}
	var a *answer
	eventually(t, "the server knows the request", func() bool {
		a = r.server.reg.find(answerKey{r.client.ID(), parsed})
		return a != nil
	})
	return a
}

// No attachment touches a block that a former one still reads: not the next one, and
// not the one after. The test plays that reader.
func TestTakeOverWaitsForTheReader(t *testing.T) {
	s := newStepper()
	r := newRig(t, ServerConfig{Handler: s})
	id := NewRequestID().String()
	first := r.dial()
	res := r.do(first, post(t, "/", "{}", HeaderRequest, id))
	text := strings.Repeat("1", minBlock/2)
	s.give(t, text)
	expect(t, res.Body, text)
	a := r.answerOf(t, id)
	_ = first.Close(Replaced)
	eventually(t, "the client is lost", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.att == nil
	})

	a.mu.Lock()
	_, frame, _ := a.kept.at(0).frame(0)
	a.reader = &attachment{err: errPathLost}
	a.mu.Unlock()
	want := bytes.Clone(frame)
	released, read := make(chan struct{}), make(chan bool, 1)
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	go func() { // what the reader does all the time
		same := true
		for {
			same = same && bytes.Equal(frame, want)
			select {
			case <-released:
				read <- same
				return
			default:
			}
		}
	}()
	s.give(t, "2") // from now on the block's header is another one

	type outcome struct {
		res *http.Response
		err error
	}
	resume := func(attempt string) chan outcome {
		tunnel, req := r.dial(), post(t, "/", "{}", HeaderRequest, id, HeaderResume, "0", HeaderAttempt, attempt)
		done := make(chan outcome, 1)
		go func() {
			res, err := tunnel.RoundTrip(req)
			done <- outcome{res, err}
		}()
		return done
	}
	attached := func(attempt uint32) {
		eventually(t, "the next tunnel has the answer", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.att != nil && a.attempt == attempt
		})
	}
	second := resume("1")
	attached(1)
	third := resume("2")
	attached(2)
	select {
	case o := <-second:
		if o.err == nil {
			t.Error("the second tunnel carried bytes that were read")
			_ = o.res.Body.Close()
		}
	case <-time.After(testWait):
		t.Fatal("the second tunnel waits although it was replaced")
	}
	select {
	case o := <-third:
		if o.err == nil {
			_ = o.res.Body.Close()
		}
		t.Errorf("the third tunnel does not wait for the reader: %v", o.err)
		third <- o
	case <-time.After(100 * time.Millisecond):
	}
	release()
	if !<-read {
		t.Error("what a former attachment sends was changed")
	}
	a.mu.Lock()
	a.reader = nil
	a.cond.Broadcast()
	a.mu.Unlock()
	o := <-third
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer func() { _ = o.res.Body.Close() }()
	expect(t, o.res.Body, text+"2")
	close(s.feed)
	if got := readAll(t, o.res); got != "" {
		t.Errorf("%q", got)
	}
}

// The handler takes no block for new bytes that a former attachment still reads,
// whatever the client says that it has.
func TestBlocksThatAreReadStay(t *testing.T) {
	a := newAnswer(t.Context(), answerKey{}, &ServerConfig{BufferPerClient: minBlock, ResumeWindow: time.Minute}, newRegistry(minBlock, minBlock), &counters{})
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.keepLocked(make([]byte, minBlock), 0); n != minBlock {
		t.Fatalf("%d bytes kept", n)
	}
	a.att = &attachment{sent: minBlock}
	a.reader = &attachment{err: errReplaced}
	if n := a.fillLocked([]byte("new")); n != 0 {
		t.Errorf("%d bytes in a block that is read", n)
	}
	a.reader = nil
	if n := a.fillLocked([]byte("new")); n != 3 {
		t.Errorf("%d bytes kept once nobody reads", n)
	}
}

// backing is all that was ever in a slice's array.
func backing(b []byte) []byte { return b[:cap(b)] }

func wiped(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// An answer that nobody fetched in time is overwritten, and so is what was asked.
func TestExpiredAnswerIsWiped(t *testing.T) {
	const text, prompt = "a private answer", `{"prompt":"a private question"}`
	prompts := make(chan *requestBody, 1)
	s := newStepper()
	r := newRig(t, ServerConfig{
		MaxIdle: 500 * time.Millisecond, ResumeWindow: 300 * time.Millisecond,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			prompts <- req.Body.(*requestBody)
			s.ServeHTTP(w, req)
		}),
	})
	tr, id := socket(t), NewRequestID().String()
	res := r.do(r.dialFrom(tr, r.client), post(t, "/", prompt, HeaderRequest, id))
	s.give(t, text)
	expect(t, res.Body, text)
	asked := backing((<-prompts).all)
	a := r.answerOf(t, id)
	a.mu.Lock()
	kept := backing(a.kept.blocks[0].b)
	a.mu.Unlock()
	if !bytes.Contains(asked, []byte(prompt)) || !bytes.Contains(kept, []byte(text)) {
		t.Fatalf("%q, %q: this test sees nothing", asked, kept)
	}
	_ = tr.Close() // nobody comes back
	if err := s.ended(t); !errors.Is(err, ErrExpired) {
		t.Fatalf("cause %v", err)
	}
	eventually(t, "the memory is given back", func() bool { return r.server.Counters().BufferedBytes == 0 })
	if !wiped(kept) {
		t.Errorf("%q is left of the answer", bytes.Trim(kept, "\x00"))
	}
	if !wiped(asked) {
		t.Errorf("%q is left of what was asked", bytes.Trim(asked, "\x00"))
	}
}

// What an attachment put together to send is overwritten where it takes a larger
// array, and when it leaves.
func TestScratchIsWiped(t *testing.T) {
	for name, test := range map[string]struct {
		short, long int
		of          func(*attachment) []byte
	}{
		"tokens":  {100, directWrite, func(att *attachment) []byte { return att.frame }},
		"catchup": {directWrite + 1, 3 * directWrite, func(att *attachment) []byte { return att.last }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepper()
			r := newRig(t, ServerConfig{Handler: s})
			id := NewRequestID().String()
			res := r.do(r.dial(), post(t, "/", "{}", HeaderRequest, id))
			a := r.answerOf(t, id)
			eventually(t, "the head is sent", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return a.att != nil && a.att.direct
			})
			// array is what the attachment used for a piece, once that is sent.
			var att *attachment
			array := func(n int) (b []byte) {
				t.Helper()
				piece := strings.Repeat("x", n)
				s.give(t, piece)
				expect(t, res.Body, piece)
				eventually(t, "the piece is sent", func() bool {
					a.mu.Lock()
					defer a.mu.Unlock()
					if att = a.att; att.busy || !att.direct {
						return false
					}
					b = backing(test.of(att))
					return true
				})
				if wiped(b) {
					t.Fatal("nothing of the piece: this test sees nothing")
				}
				return b
			}
			former := array(test.short)
			last := array(test.long)
			if &former[0] == &last[0] {
				t.Fatal("the array did not grow: this test sees nothing")
			}
			if !wiped(former) {
				t.Errorf("%d bytes are left in the former array", len(bytes.Trim(former, "\x00")))
			}
			close(s.feed)
			if _, err := io.Copy(io.Discard, res.Body); err != nil {
				t.Fatal(err)
			}
			r.stop() // waits for the stream's goroutine
			if !wiped(last) {
				t.Error("something is left in the last array")
			}
		})
	}
}
