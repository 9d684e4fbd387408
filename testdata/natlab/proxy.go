package main

// The HTTP CONNECT proxy of kind proxy-only.

import (
	"bufio"
	"crypto/subtle"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

func (l *lab) proxy(st *labSite) error {
	var ln net.Listener
	if err := inNS(st.router, func() (err error) {
		ln, err = net.Listen("tcp", st.sa.lan+".1:3128")
		return
	}); err != nil {
		return err
	}
	go func() { <-l.done; ln.Close() }()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go proxyConn(c, l.cfg.ProxyAuth, func(to string) (up net.Conn, err error) {
				err = inNS(st.router, func() (e error) {
					up, e = net.DialTimeout("tcp", to, 5*time.Second)
					return
				})
				return
			})
		}
	}()
	return nil
}

// proxyURL is the proxy as a client in that LAN is told of it.
func proxyURL(auth, lan string) string {
	u := url.URL{Scheme: "http", Host: lan + ".1:3128"}
	if user, password, ok := strings.Cut(auth, ":"); ok {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

// authorized: RFC 7617 credentials; no auth lets everybody in.
func authorized(req *http.Request, auth string) bool {
	if auth == "" {
		return true
	}
	scheme, sent, _ := strings.Cut(req.Header.Get("Proxy-Authorization"), " ")
	want := base64.StdEncoding.EncodeToString([]byte(auth))
	return strings.EqualFold(scheme, "Basic") && subtle.ConstantTimeCompare([]byte(sent), []byte(want)) == 1
}

func proxyConn(c net.Conn, auth string, dial func(to string) (net.Conn, error)) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	if !authorized(req, auth) {
		io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"natlab\"\r\nContent-Length: 0\r\n\r\n")
		return
	}
	_, port, _ := net.SplitHostPort(req.Host)
	if req.Method != http.MethodConnect || port != "443" {
		io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		return
	}
	up, err := dial(req.Host)
	if err != nil {
		io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer up.Close()
	c.SetDeadline(time.Time{})
	io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		io.Copy(up, br)
		if w, ok := up.(interface{ CloseWrite() error }); ok {
			w.CloseWrite()
		}
	}()
	io.Copy(c, up)
}
