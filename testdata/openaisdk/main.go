// Command openaisdk streams one chat completion with the official OpenAI SDK for
// Go, as a program of a user would that only changed its base URL, and prints the
// text. It is a module of its own, so that the SDK is no dependency of MintAI.
//
//	openaisdk -url http://127.0.0.1:11500/v1 -model demo "tell me"
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func main() {
	url := flag.String("url", "http://127.0.0.1:11500/v1", "base URL")
	model := flag.String("model", "demo", "the model to ask")
	list := flag.Bool("list", false, "print the ids of the models instead")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := openai.NewClient(option.WithBaseURL(*url), option.WithAPIKey("unused"), option.WithMaxRetries(0))
	var err error
	if *list {
		err = models(ctx, client)
	} else {
		err = ask(ctx, client, *model, strings.Join(flag.Args(), " "))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "openaisdk:", err)
		os.Exit(1)
	}
}

func models(ctx context.Context, client openai.Client) error {
	pages := client.Models.ListAutoPaging(ctx)
	for pages.Next() {
		fmt.Println(pages.Current().ID)
	}
	return pages.Err()
}

func ask(ctx context.Context, client openai.Client, model, prompt string) error {
	stream := client.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{
		Model:         model,
		Messages:      []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
		StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	})
	defer stream.Close()
	sum := openai.ChatCompletionAccumulator{}
	for stream.Next() {
		chunk := stream.Current()
		if !sum.AddChunk(chunk) {
			return errors.New("the chunks do not belong together")
		}
		for _, c := range chunk.Choices {
			fmt.Print(c.Delta.Content)
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if len(sum.Choices) != 1 || sum.Choices[0].FinishReason == "" {
		return errors.New("the stream ended without a finish_reason")
	}
	if sum.Usage.CompletionTokens == 0 {
		return errors.New("no usage at the end of the stream")
	}
	return nil
}
