package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// TestProxyAuth: only CONNECT to port 443 passes, and with credentials set only
// for who has them.
func TestProxyAuth(t *testing.T) {
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, c := range []struct {
		name, auth, method, target, header string
		status                             int
	}{
		{"open", "", "CONNECT", "20.0.0.1:443", "", 200},
		{"open, credentials all the same", "", "CONNECT", "20.0.0.1:443", basic("x:y"), 200},
		{"another port", "", "CONNECT", "20.0.0.1:80", "", 403},
		{"no CONNECT", "", "GET", "http://20.0.0.1:443/", "", 403},
		{"nobody answers", "", "CONNECT", "20.0.0.9:443", "", 502},
		{"asked", "lab:p@ss:word", "CONNECT", "20.0.0.1:443", "", 407},
		{"right", "lab:p@ss:word", "CONNECT", "20.0.0.1:443", basic("lab:p@ss:word"), 200},
		{"right, the scheme in small letters", "lab:x", "CONNECT", "20.0.0.1:443", "b" + basic("lab:x")[1:], 200},
		{"wrong password", "lab:x", "CONNECT", "20.0.0.1:443", basic("lab:y"), 407},
		{"other scheme", "lab:x", "CONNECT", "20.0.0.1:443", "Bearer " + basic("lab:x")[6:], 407},
		{"asked before the port is looked at", "lab:x", "CONNECT", "20.0.0.1:80", "", 407},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			client.SetDeadline(time.Now().Add(5 * time.Second))
			dialled := ""
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				proxyConn(server, c.auth, func(to string) (net.Conn, error) {
					dialled = to
					if to == "20.0.0.9:443" {
						return nil, errors.New("refused")
					}
					up, far := net.Pipe()
					go func() { io.WriteString(far, "hello"); far.Close() }()
					return up, nil
				})
			}()
			fmt.Fprintf(client, "%s %s HTTP/1.1\r\nHost: 20.0.0.1\r\n", c.method, c.target)
			if c.header != "" {
				fmt.Fprintf(client, "Proxy-Authorization: %s\r\n", c.header)
			}
			io.WriteString(client, "\r\n")
			br := bufio.NewReader(client)
			resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status {
				t.Fatalf("status %d, want %d", resp.StatusCode, c.status)
			}
			if (resp.StatusCode == 407) != (resp.Header.Get("Proxy-Authenticate") != "") {
				t.Errorf("Proxy-Authenticate %q with status %d", resp.Header.Get("Proxy-Authenticate"), resp.StatusCode)
			}
			if c.status == 200 {
				if b, err := io.ReadAll(br); err != nil || string(b) != "hello" {
					t.Errorf("through the proxy came %q, %v", b, err)
				}
			}
			client.Close()
			<-ended
			if want := c.status == 200 || c.status == 502; (dialled != "") != want {
				t.Errorf("dialled %q", dialled)
			}
		})
	}
}

// TestProxyURL: what is printed is a URL even when the password is not.
func TestProxyURL(t *testing.T) {
	u, err := url.Parse(proxyURL("lab:p@ss:word", "192.168.1"))
	if err != nil {
		t.Fatal(err)
	}
	if password, _ := u.User.Password(); u.Host != "192.168.1.1:3128" || u.User.Username() != "lab" || password != "p@ss:word" {
		t.Errorf("parsed as %v", u)
	}
	if got := proxyURL("", "192.168.2"); got != "http://192.168.2.1:3128" {
		t.Errorf("without credentials: %s", got)
	}
}
