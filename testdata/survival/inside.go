package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// What this program does when it is started inside of the laboratory.
const (
	fetchWord  = "fetch-line"
	answerWord = "fetch-answer"
	shortsWord = "ask-shortly"
)

var insides = map[string]func([]string) error{fetchWord: fetchLine, answerWord: fetchAnswer, shortsWord: askShortly}

var errInside = errors.New("started with the wrong words")

// fetchLine says whether a page has a line.
func fetchLine(args []string) error {
	if len(args) != 2 {
		return errInside
	}
	page, err := request(http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	found := false
	for line := range strings.Lines(string(page)) {
		found = found || strings.TrimSpace(line) == args[1]
	}
	fmt.Println(found)
	return nil
}

// fetchAnswer prints the answer of an AI server to a prompt.
func fetchAnswer(args []string) error {
	if len(args) != 2 {
		return errInside
	}
	text, err := chat(args[0], args[1])
	fmt.Print(text)
	return err
}

// askShortly asks for short answers, one after the other, for some time, and
// counts those that are not as they should be.
func askShortly(args []string) error {
	if len(args) != 2 {
		return errInside
	}
	d, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	all, failed, first := 0, 0, ""
	for until := time.Now().Add(d); time.Now().Before(until); all++ {
		text, err := chat(args[0], "hi [tokens=3]")
		if err != nil || text != "Light goes through" {
			failed++
			if first == "" {
				first = fmt.Sprintf(" (%q, %v)", text, err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Printf("%d requests, %d failed%s\n", all, failed, first)
	return nil
}

func chat(url, prompt string) (string, error) {
	body, err := json.Marshal(map[string]any{
		"model": "test-small", "messages": []map[string]string{{"role": "user", "content": prompt}},
	})
	if err != nil {
		return "", err
	}
	page, err := request(http.MethodPost, url+"/v1/chat/completions", body)
	if err != nil {
		return "", err
	}
	var answer struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(page, &answer); err != nil || len(answer.Choices) != 1 {
		return "", fmt.Errorf("no answer: %.200s", page)
	}
	return answer.Choices[0].Message.Content, nil
}

func request(method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{Timeout: 20 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, page)
	}
	return page, err
}
