// Command openaiserver is an OpenAI-compatible server for tests. It speaks the
// official shapes (streams as server-sent events, usage, [DONE], error objects,
// status codes) and its answers are known in advance, so that a test can compare
// bytes. It is no language model and stores nothing.
//
// What a request makes it do is written into the last user message, as words in
// square brackets, see directives.go: [tokens=40] [delay=20ms] [abort=5] …
//
// Its log, one JSON object a line, says how each request ended: done, cancelled
// (the caller went away), aborted (on request), refused. It never holds a prompt.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "listen here")
	addrFile := flag.String("addr-file", "", "write the address that was opened into this file")
	logFile := flag.String("log", "", "append the log to this file (default: stderr)")
	models := flag.String("models", "test-small,test-large,test-embed", "model ids, comma-separated")
	keyEnv := flag.String("key-env", "", "demand the API key that this environment variable holds")
	printN := flag.Int("print", 0, "print the answer of N tokens and leave")
	flag.Parse()
	if *printN > 0 {
		_, _ = io.WriteString(os.Stdout, strings.Join(Answer(*printN), ""))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *addrFile, *logFile, strings.Split(*models, ","), os.Getenv(*keyEnv)); err != nil {
		fmt.Fprintln(os.Stderr, "openaiserver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, addrFile, logFile string, models []string, key string) error {
	out := io.Writer(os.Stderr)
	if logFile != "" {
		f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		out = f
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	if addrFile != "" {
		// Renamed into place: who sees the file sees all of it.
		tmp := addrFile + ".tmp"
		if err := os.WriteFile(tmp, []byte(ln.Addr().String()+"\n"), 0o600); err != nil {
			return err
		}
		if err := os.Rename(tmp, addrFile); err != nil {
			return err
		}
	}
	srv := &http.Server{Handler: NewServer(models, key, NewLog(out)), ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go shutdownWith(ctx, srv, stopped)
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// shutdownWith ends srv when ctx ends; what still runs after a second is cut.
func shutdownWith(ctx context.Context, srv *http.Server, stopped chan<- error) {
	<-ctx.Done()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(end) != nil {
		stopped <- srv.Close()
		return
	}
	stopped <- nil
}
