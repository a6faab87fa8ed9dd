// Package client is an http.Client whose pool can be reconfigured while it is in use, and whose connections are counted.
//
// The fields of an http.Transport must not change once it is used. A change of the settings therefore creates a new Transport. The old one
// finishes its requests and keeps no connections after them.
package client

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"idleconn.io/examples/go-service/settings"
)

// Client sends requests over a pool and counts its connections.
type Client struct {
	wanted  *settings.Pool
	current atomic.Pointer[http.Client]
	open    atomic.Int64
	active  atomic.Int64
	waiting atomic.Int64
	got     *prometheus.CounterVec
}

// New returns a Client with the defaults of net/http.
func New(registry *prometheus.Registry, pool string) *Client {
	c := &Client{got: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name:        "idleconn_client_connections_got_total",
		Help:        "Connections that requests got, by whether they were reused. A low share of reused ones means that the pool is too small or its idle timeout too short.",
		ConstLabels: prometheus.Labels{"pool": pool},
	}, []string{"reused"})}
	gauge := func(state, help string, value func() int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "idleconn_client_connections", Help: help, ConstLabels: prometheus.Labels{"pool": pool, "state": state},
		}, func() float64 { return float64(max(value(), 0)) })
	}
	const help = "Connections to upstreams by state; waiting counts requests that wait for a connection."
	registry.MustRegister(c.got,
		gauge("idle", help, func() int64 { return c.open.Load() - c.active.Load() }),
		gauge("active", help, c.active.Load),
		gauge("waiting", help, c.waiting.Load),
	)
	c.Apply(settings.Pool{})
	return c
}

// Apply changes the pool, unless it has these settings already, because a new Transport costs the idle connections of the old one. Requests
// in flight continue. Apply must not be called concurrently.
func (c *Client) Apply(wanted settings.Pool) {
	if c.wanted != nil && reflect.DeepEqual(*c.wanted, wanted) {
		return
	}
	c.wanted = &wanted
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	duration(&dialer.KeepAlive, wanted.KeepAlive)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c.open.Add(1)
		return &counted{Conn: conn, open: &c.open}, nil
	}
	duration(&transport.IdleConnTimeout, wanted.IdleConnTimeout)
	duration(&transport.TLSHandshakeTimeout, wanted.TLSHandshakeTimeout)
	duration(&transport.ExpectContinueTimeout, wanted.ExpectContinueTimeout)
	duration(&transport.ResponseHeaderTimeout, wanted.ResponseHeaderTimeout)
	count(&transport.MaxIdleConns, wanted.MaxIdleConns)
	count(&transport.MaxIdleConnsPerHost, wanted.MaxIdleConnsPerHost)
	count(&transport.MaxConnsPerHost, wanted.MaxConnsPerHost)
	next := &http.Client{Transport: transport}
	duration(&next.Timeout, wanted.Timeout)
	if old := c.current.Swap(next); old != nil {
		old.CloseIdleConnections()
	}
}

func duration(field *time.Duration, wanted *settings.Duration) {
	if wanted != nil {
		*field = time.Duration(*wanted)
	}
}

func count(field *int, wanted *int) {
	if wanted != nil {
		*field = *wanted
	}
}

// Do sends a request without a body.
func (c *Client) Do(ctx context.Context, method, url string) (*http.Response, error) {
	var has atomic.Bool
	c.waiting.Add(1)
	leave := func() {
		if has.CompareAndSwap(true, false) {
			c.active.Add(-1)
		}
	}
	got := false
	trace := &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if !got {
				got = true
				c.waiting.Add(-1)
			}
			reused := "false"
			if info.Reused {
				reused = "true"
			}
			c.got.WithLabelValues(reused).Inc()
			if has.CompareAndSwap(false, true) {
				c.active.Add(1)
			}
		},
	}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, url, nil)
	if err != nil {
		c.waiting.Add(-1)
		return nil, err
	}
	answer, err := c.current.Load().Do(request)
	if !got {
		c.waiting.Add(-1)
	}
	if err != nil {
		leave()
		return nil, err
	}
	answer.Body = &body{ReadCloser: answer.Body, leave: leave}
	return answer, nil
}

// body ends the use of the connection when it is closed.
type body struct {
	io.ReadCloser
	leave func()
}

// Close ends the request.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.leave()
	return err
}

// counted is a connection that decrements the count of open connections when it is closed.
type counted struct {
	net.Conn
	open   *atomic.Int64
	closed atomic.Bool
}

// Close closes the connection and counts it once.
func (c *counted) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}
