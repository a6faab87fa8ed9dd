// Package settings reads the file that idleconn-operator writes, in the formats yaml, json and env.
package settings

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/joho/godotenv"
	"go.yaml.in/yaml/v3"
)

// Duration is a time.Duration in the text format of time.ParseDuration.
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// MarshalText formats the duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Settings have the names of Go's fields. A nil field keeps its default.
type Settings struct {
	Server       Server `json:"server" yaml:"server"`
	IntraCluster Pool   `json:"intraCluster" yaml:"intraCluster"`
	Backend      Pool   `json:"backend" yaml:"backend"`
}

// Server has the fields of http.Server.
type Server struct {
	IdleTimeout       *Duration `json:",omitempty" yaml:"IdleTimeout"`
	ReadHeaderTimeout *Duration `json:",omitempty" yaml:"ReadHeaderTimeout"`
}

// Pool has the fields of http.Transport, net.Dialer (KeepAlive) and http.Client (Timeout).
type Pool struct {
	IdleConnTimeout       *Duration `json:",omitempty" yaml:"IdleConnTimeout"`
	MaxIdleConns          *int      `json:",omitempty" yaml:"MaxIdleConns"`
	MaxIdleConnsPerHost   *int      `json:",omitempty" yaml:"MaxIdleConnsPerHost"`
	MaxConnsPerHost       *int      `json:",omitempty" yaml:"MaxConnsPerHost"`
	KeepAlive             *Duration `json:",omitempty" yaml:"KeepAlive"`
	TLSHandshakeTimeout   *Duration `json:",omitempty" yaml:"TLSHandshakeTimeout"`
	ExpectContinueTimeout *Duration `json:",omitempty" yaml:"ExpectContinueTimeout"`
	ResponseHeaderTimeout *Duration `json:",omitempty" yaml:"ResponseHeaderTimeout"`
	Timeout               *Duration `json:",omitempty" yaml:"Timeout"`
}

// Parse parses the text of a file by the extension of its name. An unknown field is an error, so that settings apply completely or not at all.
func Parse(name string, text []byte) (Settings, error) {
	var read Settings
	var err error
	switch extension := filepath.Ext(name); extension {
	case ".yaml", ".yml":
		decoder := yaml.NewDecoder(bytes.NewReader(text))
		decoder.KnownFields(true)
		err = decoder.Decode(&read)
	case ".json":
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		err = decoder.Decode(&read)
	case ".env":
		read, err = environment(text)
	default:
		err = fmt.Errorf("unknown extension %q; use .yaml, .json or .env", extension)
	}
	if err != nil {
		return Settings{}, fmt.Errorf("%s: %w", name, err)
	}
	return read, nil
}

// environment parses lines such as Backend_MaxIdleConns=100 by conversion to JSON.
func environment(text []byte) (Settings, error) {
	lines, err := godotenv.UnmarshalBytes(text)
	if err != nil {
		return Settings{}, err
	}
	tree := map[string]map[string]any{}
	for name, value := range lines {
		pool, field, found := strings.Cut(name, "_")
		if !found {
			return Settings{}, fmt.Errorf("%q has no prefix such as Backend_", name)
		}
		pool = strings.ToLower(pool[:1]) + pool[1:]
		if tree[pool] == nil {
			tree[pool] = map[string]any{}
		}
		if count, err := strconv.Atoi(value); err == nil {
			tree[pool][field] = count
		} else {
			tree[pool][field] = value
		}
	}
	whole, err := json.Marshal(tree)
	if err != nil {
		return Settings{}, err
	}
	return Parse("environment.json", whole)
}
