// Load opens connections to servers at a steady rate, sends one request on each, and keeps them idle until the server closes them. It
// exits when its standard input ends.
package main

import (
	"flag"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	rate := flag.Int("rate", 100, "connections a second to each server, 10 to 1000")
	flag.Parse()
	if *rate < 10 || *rate > 1000 || flag.NArg() == 0 || flag.NArg() > 8 {
		flag.Usage()
		os.Exit(2)
	}
	for _, server := range flag.Args() {
		go open(server, *rate)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func open(server string, rate int) {
	for range time.Tick(100 * time.Millisecond) {
		for range rate / 10 {
			go idle(server)
		}
	}
}

func idle(server string) {
	conn, err := net.DialTimeout("tcp", server, time.Second)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, conn)
}
