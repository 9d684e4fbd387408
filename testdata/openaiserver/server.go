package main

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
)

const created = 1_700_000_000 // the same in every answer: answers are compared

// A Server answers the calls of an OpenAI-compatible server.
type Server struct {
	models []string
	key    string
	log    *Log
	nextID atomic.Int64
	mux    *http.ServeMux
}

// NewServer offers models; a key that is not empty must come as a bearer token.
func NewServer(models []string, key string, log *Log) *Server {
	s := &Server{models: models, key: key, log: log, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /v1/models", s.listModels)
	s.mux.HandleFunc("GET /v1/models/{id}", s.oneModel)
	s.mux.HandleFunc("POST /v1/chat/completions", s.generate)
	s.mux.HandleFunc("POST /v1/completions", s.generate)
	s.mux.HandleFunc("POST /v1/embeddings", s.embed)
	s.mux.HandleFunc("/", s.notFound)
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Request-Id", fmt.Sprintf("req_%d", s.nextID.Add(1)))
	if s.key != "" {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || subtle.ConstantTimeCompare([]byte(given), []byte(s.key)) != 1 {
			s.refuse(w, r, "", http.StatusUnauthorized, "invalid_api_key", "Incorrect API key provided.")
			return
		}
	}
	s.mux.ServeHTTP(w, r)
}

type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func model(id string) modelObject {
	return modelObject{ID: id, Object: "model", Created: created, OwnedBy: "testdata"}
}

func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) {
	list := make([]modelObject, 0, len(s.models))
	for _, id := range s.models {
		list = append(list, model(id))
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": list})
}

func (s *Server) oneModel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !slices.Contains(s.models, id) {
		s.noModel(w, r, id)
		return
	}
	writeJSON(w, http.StatusOK, model(id))
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	s.refuse(w, r, "", http.StatusNotFound, "unknown_url",
		fmt.Sprintf("Unknown request URL: %s %s.", r.Method, r.URL.Path))
}

func (s *Server) noModel(w http.ResponseWriter, r *http.Request, id string) {
	s.refuse(w, r, id, http.StatusNotFound, "model_not_found",
		fmt.Sprintf("The model `%s` does not exist or you do not have access to it.", id))
}

// request is the part of both completion calls that the server looks at.
type request struct {
	Model         string          `json:"model"`
	Messages      []message       `json:"messages"`
	Prompt        json.RawMessage `json:"prompt"`
	Input         json.RawMessage `json:"input"`
	Stream        bool            `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	MaxTokens           int    `json:"max_tokens"`
	MaxCompletionTokens int    `json:"max_completion_tokens"`
	EncodingFormat      string `json:"encoding_format"`
}

type message struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

// read decodes a request, or refuses it as the official server would.
func (s *Server) read(w http.ResponseWriter, r *http.Request) (*request, bool) {
	var q request
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<20)).Decode(&q); err != nil {
		s.refuse(w, r, "", http.StatusBadRequest, "", "We could not parse the JSON body of your request.")
		return nil, false
	}
	if q.Model == "" {
		s.refuse(w, r, "", http.StatusBadRequest, "missing_required_parameter", "you must provide a model parameter")
		return nil, false
	}
	if !slices.Contains(s.models, q.Model) {
		s.noModel(w, r, q.Model)
		return nil, false
	}
	return &q, true
}

// text returns the words that may hold directives: a string, or the text parts
// of a content array.
func text(raw json.RawMessage) string {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return one
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(raw, &parts) != nil {
		return ""
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String()
}

func (q *request) lastWords() string {
	for _, m := range slices.Backward(q.Messages) {
		if m.Role == "user" {
			return text(m.Content)
		}
	}
	return text(q.Prompt)
}

func (s *Server) generate(w http.ResponseWriter, r *http.Request) {
	q, ok := s.read(w, r)
	if !ok {
		return
	}
	chat := strings.HasSuffix(r.URL.Path, "/chat/completions")
	if chat && len(q.Messages) == 0 {
		s.refuse(w, r, q.Model, http.StatusBadRequest, "missing_required_parameter", "Missing required parameter: 'messages'.")
		return
	}
	d := parseDirectives(q.lastWords(), max(q.MaxTokens, q.MaxCompletionTokens))
	if d.status != 0 {
		if d.status == http.StatusTooManyRequests || d.status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
		s.refuse(w, r, q.Model, d.status, "asked_to_refuse", "refused by the AI server, as the test asked")
		return
	}
	x := s.log.begin(s.nextID.Load(), r, q.Model)
	if d.nonsense {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write([]byte{0xff, 0x00, '{', '[', 0x1b, ']', '0', ';', 0x07})
		x.say("done")
		return
	}
	a := &answer{q: q, d: d, chat: chat, x: x, id: fmt.Sprintf("cmpl-%d", s.nextID.Load())}
	var err error
	if q.Stream {
		err = a.stream(r.Context(), w)
	} else {
		err = a.whole(r.Context(), w)
	}
	switch {
	case errors.Is(err, errAborted):
		x.say("aborted")
		panic(http.ErrAbortHandler) // cuts the connection: no end of the body
	case err != nil:
		x.say("cancelled")
	default:
		x.say("done")
	}
}

func (s *Server) embed(w http.ResponseWriter, r *http.Request) {
	q, ok := s.read(w, r)
	if !ok {
		return
	}
	x := s.log.begin(s.nextID.Load(), r, q.Model)
	inputs := []string{text(q.Input)}
	var many []string
	if json.Unmarshal(q.Input, &many) == nil {
		inputs = many
	}
	data := make([]map[string]any, 0, len(inputs))
	total := 0
	for i, in := range inputs {
		data = append(data, map[string]any{"object": "embedding", "index": i, "embedding": vector(in, q.EncodingFormat)})
		total += len(strings.Fields(in))
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"object": "list", "model": q.Model, "data": data,
		"usage": map[string]int{"prompt_tokens": total, "total_tokens": total},
	})
	x.say("done")
}

// refuse answers with the official error object; model is the one asked for, as
// far as that was read, and goes into the log.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, model string, status int, code, msg string) {
	s.log.write(Event{Event: "refused", ID: s.nextID.Load(), Path: r.URL.Path, Model: model, Status: status})
	kind := "invalid_request_error"
	if status >= http.StatusInternalServerError {
		kind = "server_error"
	}
	e := map[string]any{"message": msg, "type": kind, "param": nil, "code": nil}
	if code != "" {
		e["code"] = code
	}
	writeJSON(w, status, map[string]any{"error": e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller went away: nobody to tell
}
