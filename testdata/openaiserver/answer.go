package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net/http"
	"strings"
	"time"
)

// errAborted says that the request asked for a connection cut midway.
var errAborted = errors.New("aborted as asked")

// answer writes one completion, chat or plain, whole or as a stream.
type answer struct {
	q    *request
	d    directives
	chat bool
	x    *exchange
	id   string
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

func (a *answer) usage() usage {
	p := len(strings.Fields(a.q.lastWords()))
	n := a.d.tokens + a.d.think
	return usage{Prompt: p, Completion: n, Total: p + n}
}

// finish is the finish_reason: "length" when max_tokens cut the answer.
func (a *answer) finish() string {
	limit := max(a.q.MaxTokens, a.q.MaxCompletionTokens)
	if limit > 0 && a.d.tokens == limit {
		return "length"
	}
	return "stop"
}

func (a *answer) object(kind string, choices any) map[string]any {
	return map[string]any{
		"id": a.id, "object": kind, "created": created, "model": a.q.Model,
		"system_fingerprint": "fp_testdata", "choices": choices,
	}
}

func (a *answer) whole(ctx context.Context, w http.ResponseWriter) error {
	if err := wait(ctx, a.d.first+time.Duration(max(0, a.d.tokens-1))*a.d.delay); err != nil {
		return err
	}
	if a.d.abort >= 0 {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"id":"cut`))
		_ = http.NewResponseController(w).Flush()
		return errAborted
	}
	text := strings.Join(a.d.answer(), "")
	choice := map[string]any{"index": 0, "logprobs": nil, "finish_reason": a.finish()}
	kind := "text_completion"
	if a.chat {
		kind = "chat.completion"
		m := map[string]any{"role": "assistant", "content": text, "refusal": nil}
		if a.d.think > 0 {
			m["reasoning_content"] = strings.Join(Answer(a.d.think), "")
		}
		choice["message"] = m
	} else {
		choice["text"] = text
	}
	o := a.object(kind, []any{choice})
	o["usage"] = a.usage()
	a.x.e.Tokens = a.d.tokens
	writeJSON(w, http.StatusOK, o)
	return nil
}

// stream sends server-sent events: a chunk with the role, one a token, one with
// the finish_reason, the usage when asked for, and [DONE].
func (a *answer) stream(ctx context.Context, w http.ResponseWriter) error {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	if a.chat {
		if err := a.chunk(w, map[string]any{"role": "assistant", "content": "", "refusal": nil}, nil); err != nil {
			return err
		}
	}
	if err := a.tokens(ctx, w); err != nil {
		return err
	}
	if err := a.chunk(w, map[string]any{}, a.finish()); err != nil {
		return err
	}
	if a.q.StreamOptions.IncludeUsage {
		o := a.object(a.kind(), []any{})
		o["usage"] = a.usage()
		if err := event(w, o); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprint(w, "data: [DONE]\n\n"); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// tokens paces by the clock of the whole answer, so that delays do not add up.
func (a *answer) tokens(ctx context.Context, w http.ResponseWriter) error {
	begin := time.Now().Add(a.d.first)
	for i, t := range append(Answer(a.d.think), a.d.answer()...) {
		if a.d.abort == i {
			return errAborted
		}
		if err := wait(ctx, time.Until(begin.Add(time.Duration(i)*a.d.delay))); err != nil {
			return err
		}
		delta := map[string]any{"content": t}
		if i < a.d.think {
			delta = map[string]any{"reasoning_content": t}
		}
		if err := a.chunk(w, delta, nil); err != nil {
			return err
		}
		a.x.e.Tokens++
	}
	if a.d.abort >= 0 {
		return errAborted
	}
	return nil
}

func (a *answer) kind() string {
	if a.chat {
		return "chat.completion.chunk"
	}
	return "text_completion"
}

func (a *answer) chunk(w http.ResponseWriter, delta map[string]any, finish any) error {
	choice := map[string]any{"index": 0, "logprobs": nil, "finish_reason": finish}
	if a.chat {
		choice["delta"] = delta
	} else {
		text, _ := delta["content"].(string)
		choice["text"] = text
	}
	return event(w, a.object(a.kind(), []any{choice}))
}

func event(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "data: %s\n\n", b); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// wait returns after d, or with the error of ctx when the caller went away.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// vector is an embedding of 8 numbers: the same text has the same one.
func vector(text, format string) any {
	v := make([]float32, 8)
	h := fnv.New64a()
	for i := range v {
		_, _ = fmt.Fprintf(h, "%d %s", i, text)
		v[i] = float32(h.Sum64()%2000)/1000 - 1
	}
	if format != "base64" {
		return v
	}
	b := make([]byte, 0, 4*len(v))
	for _, f := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return base64.StdEncoding.EncodeToString(b)
}
