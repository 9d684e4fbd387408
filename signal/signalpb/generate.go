// Package signalpb holds the messages between a node and its coordinator,
// generated from signal.proto. Field numbers are only ever added; a breaking
// change gets a new ALPN.
package signalpb

//go:generate go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate
