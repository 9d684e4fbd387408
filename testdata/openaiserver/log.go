package main

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"
)

// An Event is one line of the log.
type Event struct {
	Event  string    `json:"event"` // start, done, cancelled, aborted, refused
	ID     int64     `json:"id"`
	Path   string    `json:"path"`
	Model  string    `json:"model,omitempty"`
	Status int       `json:"status,omitempty"`
	Tokens int       `json:"tokens"` // sent so far
	At     time.Time `json:"at"`
	// What reached the server of the caller's identity, for tests that want none.
	Origin        string `json:"origin,omitempty"`
	UserAgent     string `json:"user_agent,omitempty"`
	Host          string `json:"host,omitempty"`
	ForwardedFor  string `json:"forwarded_for,omitempty"`
	Authorization bool   `json:"authorization"` // there was one; never which
}

// A Log writes events as JSON lines.
type Log struct {
	mu  sync.Mutex
	enc *json.Encoder
}

// NewLog returns a Log that writes to w.
func NewLog(w io.Writer) *Log { return &Log{enc: json.NewEncoder(w)} }

func (l *Log) write(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.At = time.Now()
	_ = l.enc.Encode(e) // a log that cannot be written has nowhere to say so
}

// exchange is one request as the log tells it.
type exchange struct {
	log *Log
	e   Event
}

func (l *Log) begin(id int64, r *http.Request, model string) *exchange {
	x := &exchange{log: l, e: Event{
		ID: id, Path: r.URL.Path, Model: model,
		Origin: r.Header.Get("Origin"), UserAgent: r.UserAgent(), Host: r.Host,
		ForwardedFor: r.Header.Get("X-Forwarded-For"), Authorization: r.Header.Get("Authorization") != "",
	}}
	x.say("start")
	return x
}

func (x *exchange) say(event string) {
	x.e.Event = event
	x.log.write(x.e)
}
