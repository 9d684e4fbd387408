// Command mintai lets people reach AI that runs on other people's machines.
//
// A miner serves models from behind a home NAT, a client asks, and a
// coordinator introduces the two and steps out: they talk over a direct,
// end-to-end encrypted QUIC tunnel. See README.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"mintai/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := node.Main(ctx, os.Args[1:], node.IO{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv})
	stop()
	os.Exit(code)
}
