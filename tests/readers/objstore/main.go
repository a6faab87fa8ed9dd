// Objstore parses an http_config strictly with Thanos's types and prints the result as JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/thanos-io/objstore/exthttp"
	"go.yaml.in/yaml/v2"
)

func main() {
	text, err := os.ReadFile(os.Args[1])
	var read struct {
		HTTPConfig exthttp.HTTPConfig `yaml:"http_config"`
	}
	if err == nil {
		err = yaml.UnmarshalStrict(text, &read)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	config := read.HTTPConfig
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
		"idle_conn_timeout":       time.Duration(config.IdleConnTimeout).String(),
		"max_idle_conns":          config.MaxIdleConns,
		"max_idle_conns_per_host": config.MaxIdleConnsPerHost,
		"max_conns_per_host":      config.MaxConnsPerHost,
		"tls_handshake_timeout":   time.Duration(config.TLSHandshakeTimeout).String(),
		"expect_continue_timeout": time.Duration(config.ExpectContinueTimeout).String(),
		"response_header_timeout": time.Duration(config.ResponseHeaderTimeout).String(),
	})
}
