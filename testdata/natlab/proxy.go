package main

// The HTTP CONNECT proxy of kind proxy-only.

import (
	"bufio"
	"io"
	"net"
	"net/http"
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
			go l.proxyConn(st, c)
		}
	}()
	return nil
}

func (l *lab) proxyConn(st *labSite, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	_, port, _ := net.SplitHostPort(req.Host)
	if req.Method != http.MethodConnect || port != "443" {
		io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		return
	}
	var up net.Conn
	if err := inNS(st.router, func() (err error) {
		up, err = net.DialTimeout("tcp", req.Host, 5*time.Second)
		return
	}); err != nil {
		io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer up.Close()
	c.SetDeadline(time.Time{})
	io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() { io.Copy(up, br); up.(*net.TCPConn).CloseWrite() }()
	io.Copy(c, up)
}
