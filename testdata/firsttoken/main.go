// Command firsttoken asks an OpenAI-compatible endpoint n times, one after the
// other, and prints for each how many milliseconds passed from the start of the
// request to the first token of the streamed answer. Connections are kept, as
// every client does; the first request, which opens one, is not counted.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	url := flag.String("url", "http://127.0.0.1:11500", "the endpoint, without /v1")
	model := flag.String("model", "demo", "the model to ask")
	prompt := flag.String("prompt", "How long is the way?", "what to ask")
	n := flag.Int("n", 5, "how many requests are measured")
	timeout := flag.Duration("timeout", 30*time.Second, "limit for each request")
	flag.Parse()
	for i := range *n + 1 {
		d, err := once(*url, *model, *prompt, *timeout)
		if err != nil {
			fmt.Fprintln(os.Stderr, "firsttoken:", err)
			os.Exit(1)
		}
		if i > 0 {
			fmt.Printf("%.2f\n", float64(d.Microseconds())/1000)
		}
	}
}

// once returns the time to the first token of one answer, which it reads to the
// end: an answer cut short is an error.
func once(url, model, prompt string, timeout time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{
		"model": model, "stream": true,
		"messages": []map[string]string{{"role": "user", "content": prompt}},
	})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	begin := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return 0, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(said))
	}
	return readAnswer(resp.Body, begin)
}

func readAnswer(r io.Reader, begin time.Time) (first time.Duration, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	done := false
	for sc.Scan() {
		data, ok := bytes.CutPrefix(sc.Bytes(), []byte("data:"))
		if !ok {
			continue
		}
		data = bytes.TrimSpace(data)
		if string(data) == "[DONE]" {
			done = true
			continue
		}
		var c struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
		}
		if err := json.Unmarshal(data, &c); err != nil {
			return 0, fmt.Errorf("not a chunk: %w", err)
		}
		if first == 0 && len(c.Choices) > 0 && c.Choices[0].Delta.Content != "" {
			first = time.Since(begin)
		}
	}
	if err := sc.Err(); err != nil {
		return 0, err
	}
	if !done || first == 0 {
		return 0, errors.New("the answer ended too early")
	}
	return first, nil
}
